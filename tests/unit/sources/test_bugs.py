"""Sources of bugs: the project's own rows, HumanEvalPack, planted ones, Defects4J's command line."""

import json
import shutil
from pathlib import Path

import pytest

from luthier.encoding.mutation import Mutation
from luthier.errors import UserError
from luthier.execution.bugs import Bug, bug_of
from luthier.records import Dropped, Record
from luthier.run_folder import write_json
from luthier.sources.bugs import Bugs, Defects4JBugs, HumanEvalPack
from luthier.sources.mutations import Mutations
from luthier.sources.planted import PlantedBugs

CODE = "import os\n\n\ndef f(x):\n    y = x + 1\n    return y\n"


def rows(path: Path, *found: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def test_trees_are_relative_to_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "a.py").write_text(CODE)
    row = {
        "before": CODE[12:],
        "after": "x",
        "language": "python",
        "path": "a.py",
        "tree": "shop",
        "tests": {"type": "asserts"},
    }
    (record,) = Bugs(path=rows(tmp_path / "b.jsonl", row)).records()
    assert isinstance(record, Record)
    bug = bug_of(record)
    assert isinstance(bug, Bug) and bug.tree == tmp_path / "shop" and bug.start == 12
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [r.fields for r in Bugs(path="~/b.jsonl").records()] == [record.fields]


def test_humaneval_pack_gives_the_function_in_its_file(tmp_path: Path) -> None:
    python = {"task_id": "Python/7", "declaration": "import os\n\n\ndef h(): pass\n\n\ndef f(x):\n", "buggy_solution": "    return x\n",
              "canonical_solution": "    return -x\n", "test": "assert f(1) == -1"}  # fmt: skip
    (record,) = HumanEvalPack(path=rows(tmp_path / "p.jsonl", python), language="python").records()
    assert isinstance(record, Record) and (record.id, record.group) == ("Python/7", "7")
    assert record.fields["before"] == "def f(x):\n    return x\n" and isinstance(bug_of(record), Bug)
    java = {"task_id": "Java/7", "declaration": "import java.util.*;\nclass Solution {\n    int f(int x) {\n", "buggy_solution": "        return x;\n    }\n}",
            "canonical_solution": "        return -x;\n    }\n}", "test": "public class Main { }"}  # fmt: skip
    (record,) = HumanEvalPack(path=rows(tmp_path / "j.jsonl", java), language="java").records()
    assert (
        isinstance(record, Record)
        and record.fields["before"] == "    int f(int x) {\n        return x;\n    }\n"
    )
    assert record.fields["files"]["Main.java"] == "import java.util.*;\npublic class Main { }"
    lacking = rows(
        tmp_path / "x.jsonl", {"task_id": "1"}, {**python, "buggy_solution": python["canonical_solution"]}
    )
    assert [d.reason for d in HumanEvalPack(path=lacking, language="python").records() if isinstance(d, Dropped)] == [
        "no-row-of-humaneval-pack", "no-single-function",
    ]  # fmt: skip


def test_planted_bugs_come_from_their_list(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.py").write_text(CODE)
    place = CODE.index("+")
    bug = {"id": "b", "program": "own", "path": "a.py", "function": "f", "operator": "swapped-operator", "start": place,
           "end": place + 1, "text": "-"}  # fmt: skip
    program = {
        "language": "python",
        "tests": {"type": "pytest"},
        "tests_by_path": {"a.py": {"paths": ["t.py"]}},
    }
    write_json(
        tmp_path / "list.json",
        {"programs": {"own": program}, "bugs": [bug, {**bug, "id": "c", "function": "g"}]},
    )
    first, second = PlantedBugs(path=str(tmp_path / "list.json")).records()
    assert isinstance(first, Record) and first.fields["before"] == "def f(x):\n    y = x - 1\n    return y\n"
    assert first.fields["after"] == CODE[12:] and first.fields["context"] == "import os\n"
    found = bug_of(first)
    assert (
        isinstance(found, Bug)
        and found.tests == {"type": "pytest", "paths": ["t.py"]}
        and found.patched(found.fixed) == CODE
    )
    assert first.group == "own/a.py:f"  # and not its program, of which there are few
    assert isinstance(second, Dropped) and second.reason == "no-function"
    with pytest.raises(UserError, match="no list of planted bugs"):
        list(PlantedBugs(path=rows(tmp_path / "x.json", {})).records())
    for broken, why in (
        ({"program": "other"}, "KeyError"),
        ({"path": "b.py"}, "FileNotFoundError"),
        ({"text": 1}, "bug 2"),
    ):
        write_json(tmp_path / "y.json", {"programs": {"own": program}, "bugs": [bug, {**bug, **broken}]})
        with pytest.raises(UserError, match=why):
            list(PlantedBugs(path=str(tmp_path / "y.json")).records())
    assert Mutation("off-by-one", 1, 2, b"").applied(b"abc") == b"ac"


def test_fixes_are_made_of_any_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(CODE + "\n\ndef long():\n" + "    pass\n" * 9)
    source = Mutations(code={"type": "code", "path": str(tmp_path)}, bugs_per_function=2, max_lines=5)
    found = list(source.records())
    records = [item for item in found if isinstance(item, Record)]
    assert [r.fields["after"] for r in records] == [CODE[12:]] * 2
    assert records[0].fields["before"] != records[1].fields["before"] and records[0].group == records[1].group
    assert [d.reason for d in found if isinstance(d, Dropped)] == ["function-too-long"]
    fewer = Mutations(code={"type": "code", "path": str(tmp_path)}, functions_per_file=1)
    assert len(list(fewer.records())) == 1
    assert [r.fields for r in source.records() if isinstance(r, Record)] == [r.fields for r in records]


STAND_IN = """#!/bin/sh
# The command interface of Defects4J on two small projects.
case "$1 $3" in
  "checkout Lang") mkdir -p "$7/src/org"; case "$5" in *b) s=- ;; *) s=+ ;; esac
    printf 'class A {\\n  int f(int x) {\\n    return x %s 1;\\n  }\\n}\\n' $s > "$7/src/org/A.java" ;;
  "export dir.src.classes") echo src ;;
  "export classes.modified") echo org.A ;;
  *) echo "no such project: $3" >&2; exit 2 ;;
esac
"""


def test_defects4j_is_asked_by_its_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "defects4j"
    tool.parent.mkdir()
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    (record,) = Defects4JBugs(bugs=["Lang-1"]).records()
    assert isinstance(record, Record) and record.group == "Lang"
    bug = bug_of(record)
    assert isinstance(bug, Bug) and bug.path == "src/org/A.java" and bug.tests["type"] == "defects4j"
    assert bug.buggy == "  int f(int x) {\n    return x - 1;\n  }\n" and "x + 1" in bug.fixed
    with pytest.raises(UserError, match="no such project: Math"):
        list(Defects4JBugs(bugs=["Math-1"]).records())
    with pytest.raises(UserError, match="no bug of Defects4J"):
        list(Defects4JBugs(bugs=["Lang"]).records())
    if shutil.which("defects4j", path="/usr/bin:/bin") is None:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        with pytest.raises(UserError, match="no command defects4j"):
            list(Defects4JBugs(bugs=["Lang-2"]).records())
