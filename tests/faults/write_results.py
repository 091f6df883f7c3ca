"""Runs the fault suite and writes ``results.json`` beside this file, from which the table in the docs is made.

make faults
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults import catalogue, suite
from tests.faults.test_planted import SEEN

HERE = Path(__file__).parent


def main() -> None:
    shutil.rmtree(SEEN, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", str(HERE / "test_planted.py")]
    subprocess.run(command, check=True, env={**os.environ, "LUTHIER_REGENERATE": "1", "OMP_NUM_THREADS": "1"})
    suite.load()
    faults = [
        {
            "name": fault.name,
            "check": fault.check,
            "catalogue": list(fault.catalogue),
            "where": fault.where,
            "how": fault.how,
            "family": fault.family,
            **seen(f"fault-{fault.name}"),
        }
        for fault in suite.FAULTS.values()
    ]
    healthy = [{"name": h.name, "how": h.how, **seen(f"healthy-{h.name}")} for h in suite.HEALTHY.values()]
    packages = ("torch", "transformers", "peft", "trl")
    results = {
        "figures": {
            "faults_planted": len(faults),
            "caught_by_one_check_alone": sum(not fault["also"] for fault in faults),
            "healthy_set_ups": len(healthy),
        },
        "faults": faults,
        "healthy": healthy,
        "entries": catalogue.ENTRIES,
        "prevented": {n: {"why": why, "test": test} for n, (why, test) in catalogue.PREVENTED.items()},
        "out_of_reach": catalogue.OUT_OF_REACH,
        "command": "make faults",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
        "notes": "Each defect was caught by the check named; also: others that gave an error or a warning.",
    }
    (HERE / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def seen(name: str) -> dict[str, object]:
    """What the test saw."""
    text = (SEEN / f"{name}.json").read_text(encoding="utf-8")
    # Folders of tests have other names each time.
    found: dict[str, object] = json.loads(
        re.sub(rf"{re.escape(tempfile.gettempdir())}/[\w./-]+", "FOLDER", text)
    )
    return found


if __name__ == "__main__":
    main()
