"""HumanEvalPack through the judge: do canonical solutions pass and buggy ones fail, and how many bugs a second are proven?

    python benchmarks/judge/run.py humanevalpack-python.jsonl.gz humanevalpack-java.jsonl.gz
    python benchmarks/judge/run.py PYTHON JAVA --bugs 4        # a try; writes nothing

Each bug is four runs, as in ``luthier repair``: both versions, twice. Speed is of Python's bugs with one worker and with two,
each without a memory. Ten minutes on two cores; writes results.json beside this file. Needs a JDK.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from luthier.execution.bugs import Bug, bug_of
from luthier.execution.judge import Judge, Proof
from luthier.execution.sandbox import Limits, strongest
from luthier.records import Record
from luthier.sources.bugs import HumanEvalPack

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

RESULTS = HERE / "results.json"
LIMITS = Limits(timeout_s=60, memory_mib=2048, disk_mib=64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", type=Path)
    parser.add_argument("java", type=Path)
    parser.add_argument("--bugs", type=int, help="so many of each; then nothing is written")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-benchmark-judge")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    left_out: dict[str, dict[str, str]] = {}
    for language in ("python", "java"):
        bugs, unread = read(getattr(options, language), language, options.bugs)
        judge = Judge(options.work / f"{language}.jsonl", LIMITS)
        proofs = judge.prove(bugs, said)
        figures[f"{language}_valid"] = sum(not proof.reason for proof in proofs.values())
        figures[f"{language}_rows"] = len(bugs) + len(unread)
        left_out[language] = unread | {name: why(proof) for name, proof in proofs.items() if proof.reason}
    bugs, _ = read(options.python, "python", options.bugs)
    speed = {workers: bugs_per_second(bugs, workers) for workers in (1, 2)}
    figures["bugs_per_s"] = round(speed[2], 3)
    figures["bugs_per_s_one_worker"] = round(speed[1], 3)
    figures["two_worker_speedup"] = round(speed[2] / speed[1], 3)
    print()
    results.write(
        RESULTS if options.bugs is None else options.work / "results.json",
        figures,
        command="python benchmarks/judge/run.py PYTHON JAVA",
        packages=("luthier",),
        notes="valid: the buggy version fails and the canonical one passes, twice. bugs_per_s: Python's bugs proven a second with two "
        f"workers, four runs each. Held by {strongest()}.",
        left_out=left_out,
    )


def read(path: Path, language: Any, most: int | None) -> tuple[list[Bug], dict[str, str]]:
    """The bugs of a file, and the rows that are none, with the reason."""
    bugs: list[Bug] = []
    unread: dict[str, str] = {}
    for record in list(HumanEvalPack(path=str(path), language=language).records())[:most]:
        bug = bug_of(record) if isinstance(record, Record) else record
        if isinstance(bug, Bug):
            bugs.append(bug)
        else:
            unread[bug.id] = f"{bug.reason}: {bug.detail}"
    return bugs, unread


def bugs_per_second(bugs: list[Bug], workers: int) -> float:
    """Of proving them anew."""
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(Path(folder) / "judged.jsonl", LIMITS, workers)
        judge.prove(bugs[:1])  # what is looked up once
        began = time.perf_counter()
        judge.prove(bugs[1:])
        return len(bugs[1:]) / (time.perf_counter() - began)


def why(proof: Proof) -> str:
    return f"{proof.reason}: {(proof.failing or proof.detail)[:200]}"


def said(label: str, done: int, total: int | None) -> None:
    print(f"\r{label} {done}/{total}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
