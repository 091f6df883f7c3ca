"""Plants bugs into real functions with real tests, and keeps those that are proven: the fixed program passes, the buggy one fails.

    python benchmarks/planted/make.py python      # packages from PyPI, fetched at pinned versions
    python benchmarks/planted/make.py java        # the classes beside this file, tested by JUnit 4
    python benchmarks/planted/make.py python --per-program 1    # a try of a minute; writes nothing

Writes python.json or java.json beside this file, which the source ``planted-bugs`` reads. Takes some minutes on two cores and can be
interrupted: what was proven is in the cache folder and is not run again.
"""

from __future__ import annotations

import argparse
import collections
import random
import time
from pathlib import Path
from typing import Any

from luthier.encoding.lexer import normalised
from luthier.encoding.mutation import planted
from luthier.encoding.syntax import functions
from luthier.execution.bugs import Bug, bug_of
from luthier.execution.judge import Judge
from luthier.execution.sandbox import Limits
from luthier.records import Record
from luthier.run_folder import cache_folder, write_json
from luthier.sources.planted import planted_record, program_folder

HERE = Path(__file__).parent
LIMITS = Limits(timeout_s=12, memory_mib=1024, disk_mib=64)  # many mutants of loops hang
MAX_LINES = 40
LEAST_LINES = 3


def pytest_of(tests: dict[str, str], **options: Any) -> dict[str, Any]:
    """A program whose files each have a test file of their own."""
    by_path = {path: {"paths": names.split()} for path, names in tests.items()}
    return {"language": "python", "tests": {"type": "pytest", **options}, "tests_by_path": by_path}


def module_tests(folder: str, tests: str, names: str) -> dict[str, str]:
    """``NAME.py`` tested by ``test_NAME.py``."""
    return {f"{folder}/{name}.py": f"{tests}/test_{name}.py" for name in names.split()}


PYTHON = {
    "toolz==1.2.0": {
        "sha256": "9667a038e9d6ecba37995e26cb2f59ec6420b6ad8dd9677de59db9b956b08490",
        **pytest_of(module_tests("toolz", "toolz/tests", "itertoolz dicttoolz functoolz recipes")),
    },
    "boltons==26.2.0": {
        "sha256": "d39cfd15c1a1c3bd4d705c82252fa9edb8e4f5e8cc039f8e39afac7b1b47e92c",
        **pytest_of(
            module_tests(
                "boltons",
                "tests",
                "cacheutils dictutils iterutils listutils mathutils namedutils queueutils setutils statsutils strutils "
                "tableutils timeutils typeutils urlutils",
            )
        ),
    },
    "inflection==0.5.1": {
        "sha256": "1a29730d366e996aaacffb2f1f1cb9593dc38e2ddd30c91250c6dde09ea9b417",
        **pytest_of({"inflection/__init__.py": "test_inflection.py"}),
    },
    "semver==3.1.1": {
        "sha256": "149b26cabada6f63212f97e94505d21578cb1d280cf714827f328d5e70765fea",
        **pytest_of(
            {"src/semver/version.py": "tests/test_bump.py tests/test_compare.py tests/test_format.py tests/test_match.py "
             "tests/test_parsing.py tests/test_semver.py"},
            import_from=["src"],
        ),
    },
}  # fmt: skip
JAVA = {
    "java": {
        "language": "java",
        "tests": {"type": "java"},
        "tests_by_path": {
            f"{name}.java": {
                "junit": [f"{name}Test"],
                "sources": [f"{name}.java", f"{name}Test.java"],
                "heap_mib": 128,
            }
            for name in (
                "Fractions",
                "Intervals",
                "Sorting",
                "Texts",
                "Matrices",
                "Calculator",
                "LruCache",
                "Dates",
            )
        },
    }
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("language", choices=["python", "java"])
    parser.add_argument(
        "--per-program", type=int, help="bugs of each program; then nothing is written without --out"
    )
    parser.add_argument("--out", type=Path, help="where the list is written, if not beside this file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    programs: dict[str, Any] = PYTHON if options.language == "python" else JAVA
    wanted = options.per_program or (60 if options.language == "python" else 64)
    judge = Judge(cache_folder() / "planted" / f"{options.language}.jsonl", LIMITS, options.workers)
    bugs, reasons = [], collections.Counter[str]()
    began = time.perf_counter()
    for name, program in programs.items():
        found = plant(name, program, wanted, judge, random.Random(f"{options.seed} {name}"), reasons)
        print(f"{name}: {len(found)} bugs", flush=True)
        bugs += found
    operators = collections.Counter(bug["operator"] for bug in bugs)
    print(
        f"{len(bugs)} bugs in {time.perf_counter() - began:.0f} s: {dict(operators)}; not kept: {dict(reasons)}"
    )
    path = options.out or (HERE / f"{options.language}.json" if options.per_program is None else None)
    if path is not None:
        write_json(path, {"programs": programs, "bugs": bugs})
        print(f"written to {path}")


def plant(
    name: str,
    program: dict[str, Any],
    wanted: int,
    judge: Judge,
    draw: random.Random,
    reasons: collections.Counter[str],
) -> list[dict[str, Any]]:
    """Proven bugs of a program, one a function at first, and of each kind in turn."""
    tree = program_folder(name, program, HERE)
    places = []
    for path in program["tests_by_path"]:
        text = (tree / path).read_bytes()
        for function in functions(text, program["language"]):
            if LEAST_LINES <= text.count(b"\n", function.start, function.end) <= MAX_LINES:
                mutations = planted(
                    text, program["language"], function, random.Random(f"{name} {path} {function.name}")
                )
                places.append((path, text, function, mutations))
    draw.shuffle(places)
    kept: list[dict[str, Any]] = []
    while places and len(kept) < wanted:
        batch: list[tuple[Bug, dict[str, Any]]] = []
        for place in list(places):
            path, text, function, mutations = place
            mutation = next(mutations, None)
            if mutation is None:
                places.remove(place)
                continue
            short = name.partition("==")[0]
            entry = {
                "id": f"{short}:{path}:{function.name}:{mutation.start}:{mutation.operator}", "program": name, "path": path,
                "function": function.name, "operator": mutation.operator, "start": mutation.start, "end": mutation.end,
                "text": mutation.text.decode(),
            }  # fmt: skip
            record = planted_record(entry["id"], name, program, tree, path, function.name, text, mutation)
            bug = bug_of(record) if isinstance(record, Record) else record
            if not isinstance(bug, Bug) or normalised(bug.buggy, bug.language) == normalised(
                bug.fixed, bug.language
            ):
                reasons["no change"] += 1
                continue
            batch.append((bug, entry))
            if len(batch) + len(kept) >= wanted + 4:
                break
        proofs = judge.prove([bug for bug, _ in batch])
        for bug, entry in batch:
            proof = proofs[bug.id]
            reasons.update([proof.reason] if proof.reason else [])
            if proof.reason.startswith("fixed-"):  # its tests do not run here, whatever is planted
                places = [place for place in places if place[0] != entry["path"]]
            if not proof.reason and len(kept) < wanted:
                kept.append({**entry, "failing": list(proof.tests[:3])})
    return kept


if __name__ == "__main__":
    main()
