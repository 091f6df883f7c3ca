"""Candidates that do harm are judged, and harm nothing. All of them with LUTHIER_TEST_HOSTILE=1 (`make test-hostile`)."""

import os
import shutil
from pathlib import Path

import psutil
import pytest
from tests.fixtures.hostile import JAVA, PYTHON, function

from luthier.execution.bugs import Bug, bug_of
from luthier.execution.judge import Judge
from luthier.execution.sandbox import Limits, strongest
from luthier.records import Record
from luthier.run_folder import hash_folder

ALL = bool(os.environ.get("LUTHIER_TEST_HOSTILE"))
LIMITS = Limits(timeout_s=6 if ALL else 3, memory_mib=700, disk_mib=8, processes=64)
QUICK = ("delete-files", "fork-bomb", "kill-all", "symlink-out")
# What may come to its end without harm, and so to the right answer.
HARMLESS = {
    "delete-files", "delete-home", "daemon", "thread-bomb", "kill-the-parent", "kill-all", "ignore-signals", "symlink-the-end",
    "processes",
}  # fmt: skip


def bug(language: str) -> Bug:
    if language == "python":
        wrong, right = (f"def f(x):\n    return x {sign} 1\n" for sign in "-+")
        files, path, tests = {"a.py": wrong}, "a.py", {"type": "asserts", "code": "assert f(1) == 2"}
    else:
        wrong, right = (f"    static int f(int x) {{ return x {sign} 1; }}\n" for sign in "-+")
        main = "public class Main { public static void main(String[] a) throws Exception { if (A.f(1) != 2) throw new AssertionError(); } }\n"
        files = {"A.java": f"class A {{\n{wrong}}}\n", "Main.java": main}
        path, tests = "A.java", {"type": "java", "main": "Main", "heap_mib": 64}
    fields = {
        "before": wrong,
        "after": right,
        "language": language,
        "path": path,
        "files": files,
        "tests": tests,
    }
    found = bug_of(Record("b", fields, "g"))
    assert isinstance(found, Bug)
    return found


@pytest.mark.skipif(strongest() == "limits", reason="this kernel or container allows no namespaces")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("language", ["python", "java"])
def test_harm_is_judged_and_not_done(language: str, tmp_path: Path) -> None:
    if language == "java" and (not ALL or shutil.which("javac") is None):
        pytest.skip("with LUTHIER_TEST_HOSTILE=1 and a JDK only")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    before = hash_folder(outside)
    names = list(PYTHON if language == "python" else JAVA) if ALL else list(QUICK)
    judge = Judge(tmp_path / "memory.jsonl", LIMITS, num_workers=2)
    target = bug(language)
    found = judge.judge([(target, function(language, name, str(outside))) for name in names])
    for name, judgement in zip(names, found, strict=True):
        assert judgement.verdict in ("test-failed", "timeout", "out-of-memory", "passed"), (name, judgement)
        assert judgement.verdict != "passed" or name in HARMLESS, (name, judgement)
        assert judgement.fence == strongest()
    assert hash_folder(outside) == before
    assert not [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    (after,) = judge.judge([(target, target.fixed)])  # the judge lives
    assert after.verdict == "passed", after
