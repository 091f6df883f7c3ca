"""What names give away, before and after cleaning: parts of the study, which ``run.py`` calls.

    python studies/repair-rounds/leak_probe.py --sven sven-train.jsonl.gz       # a minute; prints the figures

Generated test cases are those of ``tests/fixtures/juliet.py``. SVEN's rows are read where they lie.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from luthier.check.leak_probe import CHANCE, probe
from luthier.sources.cwe_pairs import CwePairs
from luthier.sources.juliet import Juliet
from luthier.sources.vulnerable import Vulnerable

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.fixtures.juliet import write_juliet  # noqa: E402 # what the tests generate


def figures(sven: Path | None) -> dict[str, Any]:
    """``leak_probe_before``, ``leak_probe_after`` and ``chance``: accuracy with its 95% interval, by data, rows and names that were taken out.

    Args:
        sven: Its rows (JSONL); without them only the generated test cases are probed.
    """
    found: dict[str, Any] = {"leak_probe_before": {}, "leak_probe_after": {}, "chance": CHANCE}
    with tempfile.TemporaryDirectory() as folder:
        sources: dict[str, Vulnerable] = {"generated": Juliet(path=str(write_juliet(Path(folder))))}
        if sven is not None:
            sources["sven"] = CwePairs(path=str(sven))
        for name, source in sources.items():
            for rows in ("fixes", "functions"):
                for label, clean, names in (
                    ("before", False, "own"),
                    ("after", True, "own"),
                    ("after", True, "all"),
                ):
                    update = {"rows": rows, "clean": clean, "names": names}
                    result = probe(source.model_copy(update=update))
                    assert result is not None, "too few groups"
                    key = f"{name}/{rows}" + (f"/{names}-names" if clean else "")
                    figure = [round(x, 4) for x in (result.accuracy, *result.interval)]
                    found[f"leak_probe_{label}"][key] = figure
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sven", type=Path)
    print(json.dumps(figures(parser.parse_args().sven), indent=1))
