"""Proof of bugs, verdicts by adapter, and a judge that nothing makes judge twice."""

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.execution import adapters, sandbox
from luthier.execution import judge as judging
from luthier.execution.adapters import JUNIT, Adapter, Judgement, adapter, junit_cases
from luthier.execution.bugs import Bug, bug_of
from luthier.execution.feedback import failed_case
from luthier.execution.judge import Judge
from luthier.execution.sandbox import Limits, Outcome
from luthier.records import Dropped, Record

QUICK = Limits(timeout_s=30, memory_mib=512, disk_mib=16)
WRONG, RIGHT = "def f(x):\n    return x - 1\n", "def f(x):\n    return x + 1\n"
needs_java = pytest.mark.skipif(shutil.which("javac") is None, reason="needs a JDK")


def bug(name: str = "b", before: str = WRONG, after: str = RIGHT, **fields: Any) -> Bug:
    usual = {"language": "python", "path": "a.py", "tests": {"type": "asserts", "code": "assert f(1) == 2"}}
    tree = {"before": before, "after": after, **usual, **fields}
    tree.setdefault("files", {tree["path"]: before} if "tree" not in fields else {})
    found = bug_of(Record(name, tree, "g"))
    assert isinstance(found, Bug), found
    return found


def verdicts(
    target: Bug, functions: Sequence[str | None], tmp_path: Path, limits: Limits = QUICK
) -> list[str]:
    return [
        found.verdict
        for found in Judge(tmp_path / "memory", limits).judge([(target, text) for text in functions])
    ]


def test_a_function_is_put_in_by_bytes_and_not_by_its_text() -> None:
    twice = f"é = 1\n{WRONG}class A:\n    pass\n{WRONG}"
    start = twice.encode().rindex(WRONG.encode())
    found = bug(files={"a.py": twice}, start=start)
    assert found.patched(RIGHT) == f"é = 1\n{WRONG}class A:\n    pass\n{RIGHT}"
    assert found.buggy == WRONG
    assert bug(files={"a.py": f"# \udce9\n{WRONG}"}).patched(RIGHT) == f"# \udce9\n{RIGHT}"
    odd = WRONG.replace("x - 1", "'\udce9'")
    assert bug(before=odd).patched(odd.replace("x", "y")) == odd.replace("x", "y")
    assert (found.group, found.context, bug(context="import os\n").context) == ("g", "", "import os\n")
    for fields, reason, detail in (
        ({"files": {"a.py": twice}}, "place-unknown", "stands 2 times in a.py"),
        ({"files": {"a.py": twice}, "start": 3}, "not-in-file", "byte 3 of a.py"),
        ({"files": {}}, "no-file", "a.py is neither"),
        ({"tests": {}}, "no-bug", "tests has no type"),
        ({"path": None}, "no-bug", "'path' holds NoneType"),
        ({"files": ["a.py"]}, "no-bug", "'files' holds list"),
        ({"files": {"a.py": WRONG, "b.py": 3}}, "no-bug", "b.py is no text"),
        ({"tree": 3}, "no-bug", "'tree' holds int"),
        ({"start": "3"}, "no-bug", "'start' holds str"),
        ({"language": "cobol"}, "unknown-language", "'cobol'"),
    ):
        tree = {"before": WRONG, "after": RIGHT, "language": "python", "path": "a.py", "files": {"a.py": WRONG},
                "tests": {"type": "asserts", "code": ""}, **fields}  # fmt: skip
        dropped = bug_of(Record("b", tree, "g"))
        assert isinstance(dropped, Dropped) and (dropped.id, dropped.reason) == ("b", reason)
        assert detail in dropped.detail


def test_each_verdict_of_a_python_program(tmp_path: Path) -> None:
    functions = [
        RIGHT, "def f(x):\n    return x + 2\n", "def f(x)\n", "def f(x):\n    while 1: pass\n",
        "def f(x):\n    return len(bytes(1 << 40))\n", "def f(x):\n  return x-1  # same\n", None,
        "import os\nos._exit(0)\n",
    ]  # fmt: skip
    assert verdicts(bug(), functions, tmp_path, Limits(timeout_s=4, memory_mib=300)) == [
        "passed", "test-failed", "compile-error", "timeout", "out-of-memory", "no-change", "not-judged", "test-failed",
    ]  # fmt: skip


def test_a_bug_is_proven_before_anything_is_judged_on_it(tmp_path: Path) -> None:
    bugs = [
        bug("good"),
        bug("fixed-fails", after="def f(x):\n    return 7\n"),
        bug("fixed-broken", after="def f(x):\n    return (\n"),
        bug("buggy-passes", before="def f(x):\n    return 1 + x\n"),
        bug("buggy-broken", before="def f(x) return\n"),
    ]
    proofs = Judge(tmp_path / "memory", QUICK).prove(bugs)
    assert {name: proof.reason for name, proof in proofs.items()} == {
        "good": "", "fixed-fails": "fixed-test-failed", "fixed-broken": "fixed-compile-error",
        "buggy-passes": "buggy-passed", "buggy-broken": "buggy-compile-error",
    }  # fmt: skip
    assert proofs["good"].detail.startswith("test-failed: ") and "AssertionError" in proofs["good"].detail
    assert "AssertionError" in proofs["fixed-fails"].detail and "SyntaxError" in proofs["buggy-broken"].detail


def test_a_bug_whose_runs_differ_is_flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Coin:
        falls = itertools.count()

        def steps(self, bug: Bug) -> list[Any]:
            return []

        def files(self, bug: Bug, function: str) -> dict[str, str]:
            return {}

        def judge(self, bug: Bug, function: str, limits: Limits) -> Judgement:
            good = function == RIGHT and next(self.falls) % 2 == 0
            return Judgement(verdict="passed" if good else "test-failed")

    monkeypatch.setattr(judging, "adapter", lambda bug: Coin())
    (proof,) = Judge(tmp_path / "memory", QUICK).prove([bug()]).values()
    assert proof.reason == "flaky" and "fixed" in proof.detail


def test_what_ran_is_not_run_again_and_a_half_line_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "memory"
    first = Judge(memory, QUICK)
    wanted = [(bug(), RIGHT), (bug(), RIGHT), (bug(), "def f(x):\n    return 0\n")]
    steps: list[tuple[str, int, int]] = []
    found = first.judge(wanted, lambda *step: steps.append(step))
    assert first.num_run == 2 and steps == [("judging candidates", 1, 2), ("judging candidates", 2, 2)]
    same, nothing = first.judge([(bug(), WRONG), (bug(), None)])
    assert first.num_run == 2 and same.feedback is not None and same.feedback.unchanged
    assert not nothing.compiled and (nothing.feedback.stage, nothing.message) == (
        "extract",
        "the output gives no function",
    )
    whole = memory.read_bytes()
    second = Judge(memory, QUICK)
    assert second.judge(wanted) == found and second.num_run == 0 and memory.read_bytes() == whole
    memory.write_bytes(whole[:-9])
    third = Judge(memory, QUICK)
    assert [j.verdict for j in third.judge(wanted)] == [j.verdict for j in found] and third.num_run == 1
    assert memory.read_bytes().count(b"\n") == 2
    other = Judge(memory, Limits(timeout_s=31))
    other.judge(wanted[:1])
    assert other.num_run == 1  # under other limits it may be another verdict

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(judging, "adapter", stopped)
    with pytest.raises(KeyboardInterrupt):
        Judge(memory, QUICK).judge([*wanted, (bug(), "def f(x):\n    return 5\n")])
    assert memory.read_bytes().count(b"\n") == 3


def test_memory_that_is_only_named_is_not_used_up(tmp_path: Path) -> None:
    named = [
        "def f(x):\n    raise ValueError('no MemoryError, no OutOfMemoryError')\n",
        "def f(x):\n    print('MemoryError')\n",
        "def f(x):\n    raise MemoryError('too much')\n",
    ]
    assert verdicts(bug(), named, tmp_path) == ["test-failed", "test-failed", "out-of-memory"]
    target = bug(tests={"type": "command", "compile": "cat a.py; exit 1", "test": "true"})
    compiled = [
        "A.java:3: error: cannot find symbol\nthrow new OutOfMemoryError(x);\n  symbol: class OutOfMemoryError\n",
        "\n\nThe system is out of resources.\njava.lang.OutOfMemoryError: Java heap space\n\tat A.f\n",
    ]
    found = Judge(tmp_path / "memory", QUICK).judge([(target, text) for text in compiled])
    assert [j.verdict for j in found] == ["compile-error", "out-of-memory"]
    slow = bug(tests={"type": "command", "compile": "sleep 9", "test": "true", "timeout_s": 0.5})
    (late,) = Judge(tmp_path / "memory", QUICK).judge([(slow, RIGHT)])
    assert late.verdict == "timeout" and not any(j.compiled for j in (*found, late))
    (failed,) = Judge(tmp_path / "memory", QUICK).judge([(bug(), named[0])])
    assert failed.compiled


def test_a_bug_that_cannot_be_run_is_left_out_alone(tmp_path: Path) -> None:
    bugs = [
        bug("good"),
        bug("option", tests={"type": "pytest"}),
        bug("outside", files={"a.py": WRONG, "../b.py": ""}),
        bug("tool", tests={"type": "nothing"}),
    ]
    judge = Judge(tmp_path / "memory", QUICK)
    proofs = judge.prove(bugs)
    assert [proof.reason for proof in proofs.values()] == ["", *["not-runnable"] * 3]
    assert "paths" in proofs["option"].detail and "'../b.py' is not inside" in proofs["outside"].detail
    with pytest.raises(UserError, match="no way to test"):
        judge.prove(bugs[3:])
    assert verdicts(bugs[0], ["def f(x):\n    return '\ud800'\n"], tmp_path) == ["not-judged"]


def test_a_report_is_read_whole_or_called_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = """print('<a>', *(f"<testcase name='a-long-name-of-a-test-case-{n}'/>" for n in range(30000)), '</a>')"""
    tests = {"type": "command", "test": "python3 b.py > out.xml", "results": ["out.xml"], "disk_mib": 20}
    target = bug(tests=tests, files={"a.py": WRONG, "b.py": write})
    (whole,) = Judge(tmp_path / "memory", QUICK).judge([(target, RIGHT)])
    assert whole.verdict == "passed" and len(whole.tests) == 30000
    monkeypatch.setattr(sandbox, "_COLLECT_BYTES", 1 << 20)
    (cut,) = Judge(tmp_path / "other", QUICK).judge([(target, RIGHT)])
    assert (cut.verdict, cut.message) == ("test-failed", "report-too-large: out.xml")
    assert cut.feedback is not None and cut.feedback.error == cut.message


def test_a_program_has_the_room_that_its_bug_asks_for(tmp_path: Path) -> None:
    code = "open('x', 'wb').write(bytes(20 << 20)); assert f(1) == 2"
    for room, verdict in ((None, "test-failed"), (40, "passed")):
        target = bug(tests={"type": "asserts", "code": code, "disk_mib": room})
        assert verdicts(target, [RIGHT], tmp_path) == [verdict]


def test_maven_finds_what_it_needs_in_a_folder_that_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, repository = tmp_path / "bin" / "mvn", tmp_path / "m2"
    repository.mkdir()
    (repository / "junit.jar").write_text("")
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\n"
        'for word; do case "$word" in -Dmaven.repo.local=*) folder="${word#*=}" ;; esac; done\n'
        '[ "$MAVEN_OPTS" = -Xmx256m ] && [ -f "$folder/junit.jar" ] && ! touch "$folder/x" && touch "$HOME/y"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    for folder, verdict in ((repository, "passed"), (tmp_path / "nowhere", "test-failed")):
        command = f"mvn -o -q -Dmaven.repo.local={folder} test"
        tests = {"type": "command", "test": command, "environment": {"MAVEN_OPTS": "-Xmx256m"}}
        assert verdicts(bug(tests=tests), [RIGHT], tmp_path) == [verdict]
    assert not (repository / "x").exists()


def project(folder: Path) -> Path:
    (folder / "src" / "pkg").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "src" / "pkg" / "__init__.py").write_text(f"import os\n\n\n{WRONG}")
    (folder / "tests" / "test_f.py").write_text(
        "import pkg\n\n\ndef test_f():\n    assert pkg.f(1) == 2\n\n\ndef test_other():\n    pass\n"
    )
    return folder


def test_a_project_with_pytest(tmp_path: Path) -> None:
    tests = {"type": "pytest", "paths": ["tests"], "import_from": ["src"]}
    target = bug(tree=str(project(tmp_path / "p")), path="src/pkg/__init__.py", tests=tests)
    judge = Judge(tmp_path / "memory", QUICK)
    tamper = "open('tests/test_f.py', 'w').write('def test_f(): pass')\n" + WRONG
    (good, bad, cheat) = judge.judge(
        [(target, text) for text in (RIGHT, "def f(x):\n    return 1 / 0\n", tamper)]
    )
    assert good.verdict == "passed" and good.tests == {
        "tests.test_f::test_f": True,
        "tests.test_f::test_other": True,
    }
    assert not bad.tests["tests.test_f::test_f"]
    assert (
        bad.verdict == "test-failed"
        and bad.failing == "tests.test_f::test_f"
        and "ZeroDivisionError" in bad.message
    )
    assert cheat.verdict == "test-failed" and "it changed tests/test_f.py" in cheat.message
    assert (tmp_path / "p" / "tests" / "test_f.py").read_text().startswith("import pkg")
    (proof,) = judge.prove([target]).values()
    assert (proof.reason, proof.failing, proof.tests) == (
        "",
        "tests.test_f::test_f",
        ("tests.test_f::test_f",),
    )
    (same,) = judge.judge([(target, WRONG)])
    assert (same.feedback.actual, same.feedback.expected, same.feedback.unchanged) == ("0", "2", True)


def test_any_command(tmp_path: Path) -> None:
    tests = {"type": "command", "compile": "grep -q ok a.txt", "test": "grep -q right a.txt; s=$?; cp r.xml out.xml; exit $s",
             "results": ["out.xml"], "environment": {"X": "1"}}  # fmt: skip
    xml = "<testsuite><testcase classname='A' name='b'/><testcase name='c'><skipped/></testcase></testsuite>"
    target = bug(
        before="wrong ok",
        after="right ok",
        language="c",
        path="a.txt",
        files={"a.txt": "wrong ok", "r.xml": xml},
        tests=tests,
    )
    assert verdicts(target, ["right ok", "other ok", "right"], tmp_path) == [
        "passed",
        "test-failed",
        "compile-error",
    ]
    (found,) = Judge(tmp_path / "memory", QUICK).judge([(target, "right ok")])
    assert found.tests == {"A::b": True}
    bomb = "<!DOCTYPE a [<!ENTITY b 'c'>]><a><testcase name='x'><error>&b;</error></testcase></a>"
    assert junit_cases(bomb) == {} and failed_case(bomb) is None
    assert junit_cases("no xml") == {} and junit_cases("<a><testcase name='x'><error/></testcase></a>") == {
        "x": False
    }


STAND_IN = """#!/bin/sh
# The command interface of Defects4J, on a folder with one Python file.
case "$1" in
  compile) exec /bin/sh -c 'grep -q "def f(x):" A.java' ;;
  test) [ "$2" = "-r" ] || exit 9
        printf 'testF(org.A)\\ntestG(org.A)\\n' > all_tests
        if grep -q "x + 1" A.java; then echo "Failing tests: 0"; else echo "Failing tests: 1"; echo "  - org.A::testF"; fi ;;
esac
"""


def test_defects4j_by_its_command_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "defects4j"
    tool.parent.mkdir()
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    checkout = tmp_path / "Lang-1"
    checkout.mkdir()
    (checkout / "A.java").write_text(WRONG)
    target = bug("Lang-1", tree=str(checkout), path="A.java", tests={"type": "defects4j"})
    judge = Judge(tmp_path / "memory", QUICK)
    proof = judge.prove([target])["Lang-1"]
    assert (proof.reason, proof.failing) == ("", "org.A::testF")
    found = judge.judge([(target, RIGHT), (target, "x"), (target, WRONG + "y")])
    assert [j.verdict for j in found] == ["passed", "compile-error", "test-failed"]
    assert [j.tests for j in found] == [
        {"org.A::testF": True, "org.A::testG": True}, {}, {"org.A::testF": False, "org.A::testG": True},
    ]  # fmt: skip


JAVA_WRONG = "    static int f(int x) { return x - 1; }\n"
MAIN = "public class Main { public static void main(String[] a) { if (A.f(1) != 2) throw new AssertionError(); } }\n"


@needs_java
def test_java_with_a_main_class(tmp_path: Path) -> None:
    files = {"A.java": f"class A {{\n{JAVA_WRONG}}}\n", "Main.java": MAIN}
    target = bug(before=JAVA_WRONG, after=JAVA_WRONG.replace("-", "+"), language="java", path="A.java", files=files,
                 tests={"type": "java", "main": "Main", "heap_mib": 64})  # fmt: skip
    functions = [
        target.fixed,
        JAVA_WRONG.replace("1", "2"),
        "static int f() {",
        JAVA_WRONG.replace("return", "System.exit(0); return"),
    ]
    found = Judge(tmp_path / "memory", Limits(timeout_s=30)).judge([(target, text) for text in functions])
    assert [j.verdict for j in found] == ["passed", "test-failed", "compile-error", "test-failed"]
    assert "A.java:" in found[2].message


@needs_java
@pytest.mark.skipif(not all(Path(jar).is_file() for jar in JUNIT), reason="needs Debian's junit4")
def test_java_with_junit(tmp_path: Path) -> None:
    test = "import org.junit.*; public class ATest { @Test public void one() { Assert.assertEquals(2, A.f(1)); } @Test public void two() { } }\n"
    files = {"A.java": f"class A {{\n{JAVA_WRONG}}}\n", "ATest.java": test}
    target = bug(before=JAVA_WRONG, after=JAVA_WRONG.replace("-", "+"), language="java", path="A.java", files=files,
                 tests={"type": "java", "junit": ["ATest"], "heap_mib": 64})  # fmt: skip
    good, bad = Judge(tmp_path / "memory", Limits(timeout_s=30)).judge(
        [(target, target.fixed), (target, JAVA_WRONG.replace("1", "3"))]
    )
    assert good.verdict == "passed" and good.tests == {"one(ATest)": True, "two(ATest)": True}
    assert (bad.verdict, bad.failing) == ("test-failed", "one(ATest)")
    assert bad.tests == {"one(ATest)": False, "two(ATest)": True} and bad.feedback.expected == "2"
    leaves = JAVA_WRONG.replace("return", "System.exit(0); return")
    (early,) = Judge(tmp_path / "memory", Limits(timeout_s=30)).judge([(target, leaves)])
    assert early.verdict == "test-failed" and "one(ATest)" not in early.tests


def test_a_wrong_way_to_test_is_said() -> None:
    for tests, words in (({"type": "junit5"}, "no way to test called 'junit5'"), ({"type": "java"}, "one of main and junit"),
                         ({"type": "pytest"}, "paths"), ({"type": "asserts", "code": "", "x": 1}, "x")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            adapter(bug(tests=tests))


def test_the_same_function_in_another_tree_is_another_program(tmp_path: Path) -> None:
    keys = set()
    for name in ("one", "other", "same"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text(WRONG)
        (tmp_path / name / "b.py").write_text(name.replace("same", "one"))
        keys.add(Judge(tmp_path / "memory", QUICK)._key(bug(tree=str(tmp_path / name)), RIGHT, 0))
    assert len(keys) == 2


def test_java_without_junit_needs_none_and_guards_the_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "JUNIT", ("/nowhere/junit4.jar",))
    monkeypatch.setattr(adapters, "_java_tool", str)
    files = {"A.java": JAVA_WRONG, "B.java": "", "a.txt": ""}
    for tests, path in (({"main": "B"}, "out:c"), ({"junit": ["B"]}, "")):
        target = bug(before=JAVA_WRONG, after="", language="java", path="A.java", files=files,
                     tests={"type": "java", "class_path": ["c"], "guard": ["a.txt"], **tests})  # fmt: skip
        kind = adapter(target)
        assert sorted(kind.guarded(target)) == ["B.java", "a.txt"]
        if not path:
            with pytest.raises(UserError, match=r"there is no /nowhere/junit4\.jar"):
                kind.steps(target)
            continue
        for step in kind.steps(target):
            assert step.command[step.command.index("-cp") + 1] == path.replace(":", os.pathsep)
        assert list(kind.steps(target)[0].command[-3:]) == ["A.java", "B.java", "LuthierRun.java"]


def test_another_java_judges_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(command: Sequence[str], **_: Any) -> Any:
        return SimpleNamespace(stderr=" ".join(command))

    monkeypatch.setattr(judging, "strongest", lambda: "limits")
    monkeypatch.setattr(judging.subprocess, "run", asked)
    here = judging._surroundings.__wrapped__()
    assert "java -version" in here
    keys = []
    for found in (here, here, "another"):
        monkeypatch.setattr(judging, "_surroundings", lambda found=found: found)
        keys.append(Judge(tmp_path / "judged.jsonl", QUICK)._key(bug(), RIGHT, 0))
    assert keys[0] == keys[1] != keys[2]


def test_pytest_guards_its_tests_and_reads_no_settings_of_the_project() -> None:
    target = bug(tests={"type": "pytest", "paths": ["t/a.py::test_f", "u"], "guard": ["c.txt", "a.py"]})
    kind = adapter(target)
    assert sorted(kind.guarded(target)) == ["c.txt", "t/a.py", "u"]
    compiled, test = kind.steps(target)
    assert (compiled.name, test.name) == ("compile", "test") and compiled.command[-1] == "a.py"
    assert test.command[-2:] == ["t/a.py::test_f", "u"] and "/dev/null" in test.command
    assert (
        test.environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
        == test.environment["PYTHONDONTWRITEBYTECODE"]
        == "1"
    )
    assert not kind.passed(outcome(code=0), {})  # what ran no test has shown nothing
    own = bug(tests={"type": "pytest", "paths": ["u"], "config": True, "python": "p", "options": ["-x"]})
    for step in adapter(own).steps(own):
        assert step.command[0] == "p" and "/dev/null" not in step.command
    assert adapter(own).steps(own)[1].command[-2:] == ["-x", "u"]


def test_limits_of_a_bug_and_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Limits] = []

    def run(self: Adapter, target: Bug, function: str, limits: Limits) -> list[Outcome]:
        given.append(limits)
        return [Outcome("exited", 1, "", 0.5, "limits", False, "test")]

    monkeypatch.setattr(Adapter, "run", run)
    command = {"type": "command", "test": "true", "timeout_s": 3, "disk_mib": 7}
    for target in (bug(), bug(tests=command)):
        adapter(target).judge(target, RIGHT, QUICK)
    assert given == [QUICK, Limits(3, 512, 7, 256, address_space=False)]


def outcome(
    status: Any = "exited", code: int = 1, output: str = "", name: str = "test", **more: Any
) -> Outcome:
    return Outcome(status, code, output, 0.25, "limits", False, name, **more)


@pytest.mark.parametrize(
    ("last", "verdict", "message"),
    [
        (outcome(code=0), "passed", ""),
        (outcome(code=0, tampered=["t", "u"]), "test-failed", "it changed t, u"),
        (outcome(code=0, name="compile"), "compile-error", ""),
        (outcome(name="compile"), "compile-error", ""),
        (outcome("killed", -9, "x"), "test-failed", "killed; x"),
        (outcome("too-many-processes", -9, "x"), "test-failed", "too-many-processes; x"),
        (outcome("timeout", -9, "x"), "timeout", "x"),
        (outcome("timeout", -9, "x", "compile"), "timeout", "x"),
        (outcome("out-of-memory", -9, "x"), "out-of-memory", "x"),
        (outcome(output="\n".join(f"{n}\n" for n in range(20))), "test-failed", "\n".join(map(str, range(8, 20)))),
        (outcome(output="\n".join(map(str, range(20))), name="compile"), "compile-error", "\n".join(map(str, range(12)))),
    ],
)  # fmt: skip
def test_what_became_of_the_last_step_is_the_verdict(last: Outcome, verdict: str, message: str) -> None:
    target = bug(tests={"type": "command", "test": "true"})
    found = adapter(target).read(target, [outcome(code=0, name="compile"), last])
    assert (found.verdict, found.message, found.seconds) == (verdict, message, 0.5)
    assert found.compiled == (last.name == "test") and found.fence == "limits"


@pytest.mark.parametrize(
    ("status", "error"),
    [("out-of-memory", "more than 512 MiB"), ("killed", "killed"), ("timeout", "no end after 30 s")],
)
def test_a_limit_that_was_broken_is_said_to_the_model(status: str, error: str) -> None:
    target = bug(tests={"type": "command", "test": "true"})
    last = outcome(status, -9)
    found = adapter(target).feedback(target, RIGHT, last, adapter(target).read(target, [last]), QUICK)
    assert found.error == error


def test_a_case_that_failed_once_has_failed() -> None:
    cases = (
        "<testcase name='a'/><testcase name='a'><failure/></testcase><testcase name='a'/><testcase name='b'/>"
    )
    assert junit_cases(f"<a>{cases}</a>") == {"a": False, "b": True}
    java = adapter(bug(tests={"type": "java", "junit": ["T"]}))
    noted = outcome(files={"luthier-cases": "+ a\n- a\n+ a\n+ b\n"})
    assert java.test_cases(noted) == {"a": False, "b": True}
    for names in (("luthier-end", "luthier-cases"), ("luthier-end",), ()):  # one failed, none ran, cut short
        done = outcome(code=0, files=dict.fromkeys(names, "- a\n" if "luthier-cases" in names else ""))
        assert not java.passed(done, java.test_cases(done))
    done = outcome(code=0, files={"luthier-end": "", "luthier-cases": "+ a\n"})
    assert java.passed(done, java.test_cases(done))
    assert adapter(bug(tests={"type": "java", "main": "M"})).passed(done, {})
