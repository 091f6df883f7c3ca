"""Luthier's own ``train`` stage on a folder whose rows are prepared and checked; figures from ``history.jsonl``."""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

from luthier import pipeline
from luthier.run_folder import RunFolder, read_json, read_jsonl


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    ends: list[float] = []

    def progress(label: str, step: int, total: int | None) -> None:
        if label.startswith("loss "):
            ends.append(time.time())

    pipeline.train(settings["recipe"], folder=settings["folder"], progress=progress)
    run = RunFolder(settings["folder"])
    history = [row for row in read_jsonl(run.history) if row["step"]]
    result = {
        "ends": ends,
        "seconds": [row["seconds"] for row in history],
        "losses": [row["loss"] for row in history],
        "tokens": [after - before for before, after in pairwise([0, *(row["tokens"] for row in history)])],
        "same_rows": True,
        "engine": read_json(run.environment)["engine"],
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
