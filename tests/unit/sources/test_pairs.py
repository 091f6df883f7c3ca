"""Fixes from rows, diffs and histories: what is kept, how it is grouped, what is left out."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.sources.diffs import Diffs
from luthier.sources.git_fixes import GitFixes
from luthier.sources.pairs import Components, RepairPairs, changed_functions


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def method(body: str) -> str:
    return f"  int f() {{\n    {body}\n  }}\n"


def test_chains_of_fixes_are_one_group(tmp_path: Path) -> None:
    bodies = [
        ("return 1;", "return 2;"),
        ("return 2 ; // now", "return 3;"),
        ("return 8;", "return 9;"),
        ("a();", "a();"),
    ]
    path = jsonl(tmp_path / "a.jsonl", [{"b": method(b), "a": method(a)} for b, a in bodies])
    source = RepairPairs(path=path, before="b", after="a")
    found = list(source.records())
    records = [item for item in found if isinstance(item, Record)]
    assert len(records) == 3 and records[0].group == records[1].group != records[2].group
    assert [item.reason for item in found if isinstance(item, Dropped)] == ["unchanged"]
    assert records[0].fields == {
        "before": method("return 1;"),
        "after": method("return 2;"),
        "language": "java",
    }


def test_functions_of_a_benchmark_are_left_out_on_either_side(tmp_path: Path) -> None:
    pairs = [("return 1;", "return 2;"), ("return 3;", "return  7;"), ("return 5;", "return 6;")]
    path = jsonl(tmp_path / "a.jsonl", [{"before": method(b), "after": method(a)} for b, a in pairs])
    bench = jsonl(tmp_path / "b.jsonl", [{"before": method("return 0;"), "after": method("return 1 ;")},
                                         {"before": method("return 7;"), "after": method("return 77;")}])  # fmt: skip
    source = RepairPairs(path=path, benchmarks=[{"type": "repair-pairs", "path": bench}])
    found = list(source.records())
    assert [type(item).__name__ for item in found] == ["Dropped", "Dropped", "Record"]
    assert {item.reason for item in found if isinstance(item, Dropped)} == {"in-benchmark"}
    assert source.fingerprint() != RepairPairs(path=path).fingerprint()
    empty = jsonl(tmp_path / "c.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match="no record with before and after"):
        list(RepairPairs(path=path, benchmarks=[{"type": "files", "path": empty}]).records())


def test_the_language_may_go_by_the_file(tmp_path: Path) -> None:
    rows = [
        {"before": "x = 1\n", "after": "x = 2\n", "file_name": name} for name in ("a/b.py", "c.cpp", "d.txt")
    ]
    found = list(
        RepairPairs(
            path=jsonl(tmp_path / "a.jsonl", rows), language="path", path_column="file_name"
        ).records()
    )
    assert [r.fields["language"] if isinstance(r, Record) else r.reason for r in found] == [
        "python",
        "c",
        "unknown-language",
    ]


def test_the_smallest_number_names_a_component() -> None:
    parts = Components()
    for pair in ((9, 5), (7, 3), (5, 7)):
        parts.join(*pair)
    assert {parts.root(n) for n in (9, 5, 7, 3)} == {3} and parts.root(4) == 4


DIFF = """diff --git a/A.java b/A.java
--- a/A.java\t2020
+++ b/A.java\t2021
@@ -1,7 +1,8 @@
 class A {
   int f() {
--- x;
-    return 1;
+++ y;
+    y--;
+    return 2;
   }
   int g;
 }
"""


def test_diffs_are_read_by_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "one.diff").write_text(DIFF)
    (found,) = Diffs(path=str(tmp_path / "one.diff")).records()
    assert isinstance(found, Record)
    assert found.fields["before"] == "  int f() {\n-- x;\n    return 1;\n  }\n"
    assert found.fields["after"] == "  int f() {\n++ y;\n    y--;\n    return 2;\n  }\n"


def test_diffs_in_folders_of_one_name_are_read_with_their_line_ends(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name / "same").mkdir(parents=True)
        (tmp_path / name / "same" / "one.diff").write_bytes(DIFF.replace("\n", "\r\n").encode())
    first, second = Diffs(path=str(tmp_path / "*/same/*.diff")).records()
    assert isinstance(first, Record) and first.id.startswith("x/same/one.diff#0")
    assert second.id.startswith("y/same/one.diff#0")
    assert first.fields["before"].count("\r\n") == first.fields["before"].count("\n") > 1


def test_diffs_that_hold_no_whole_function_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.diff").write_text(DIFF + "@@ -90,1 +91,1 @@\n-a\n+b\n")
    (tmp_path / "b.diff").write_text(DIFF.replace("A.java", "A.txt"))
    (tmp_path / "c.diff").write_text("nothing\n")
    (tmp_path / "d.diff").write_bytes(b"\xff")
    found = list(Diffs(path=str(tmp_path / "*.diff")).records())
    assert [item.reason for item in found if isinstance(item, Dropped)] == [
        "several-hunks", "unknown-language", "no-diff", "not-utf8",
    ]  # fmt: skip
    with pytest.raises(UserError, match="no file matches"):
        list(Diffs(path=str(tmp_path / "*.patch")).records())


LOOP = """def total(rows):
    found = 0
    for row in rows:
        found += row
"""


@pytest.mark.parametrize(
    ("behind", "whole"),
    [
        ("    a()\n    b()\n    c()\n", False),  # as many lines as stand before the change: it may go on
        ("    a()\n    b()\n", True),  # the file ends
        ("    a()\n    b()\n    return found\n\ndef other():\n", True),
    ],
)
def test_a_function_that_the_diff_may_cut_off_is_no_pair(tmp_path: Path, behind: str, whole: bool) -> None:
    lines = [f" {line}\n" for line in LOOP.splitlines()[:3]] + [
        "-        found += row\n",
        "+        found += 1\n",
    ]
    lines += [f" {line}\n" for line in behind.splitlines()]
    count = 4 + behind.count("\n")
    text = f"--- a/a.py\n+++ b/a.py\n@@ -9,{count} +9,{count} @@\n" + "".join(lines)
    (tmp_path / "a.diff").write_text(text)
    (found,) = Diffs(path=str(tmp_path / "a.diff")).records()
    assert isinstance(found, Record) == whole
    assert whole or (isinstance(found, Dropped) and found.reason == "cut-off" and found.budgeted)


def test_a_function_with_an_open_brace_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "a.diff").write_text(
        "--- a/A.java\n+++ b/A.java\n@@ -3,4 +3,4 @@\n   int f() {\n     int x = 0;\n-    x--;\n+    x++;\n     g(x);\n"
    )
    found = list(Diffs(path=str(tmp_path / "a.diff")).records())
    assert found and not [item for item in found if isinstance(item, Record)]


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_fixes_are_found_in_a_history(tmp_path: Path) -> None:
    code, test = tmp_path / "a.py", tmp_path / "test_a.py"
    git(tmp_path, "init", "-q")

    def commit(message: str, text: str) -> None:
        code.write_text(text)
        test.write_text(f"# {message}\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", message)

    first = "import os\n\n\ndef f(x):\n    return x\n\n\ndef g(x):\n    def h():\n        return 1\n    return h\n"
    commit("Fix the first", first)
    commit("Fixed f: off by one", first.replace("return x", "return x + 1"))
    commit("Add a feature", first)
    commit("bug in h", first.replace("return 1", "return 2"))
    commit("fix much", first + "y = 1\n" * 50)
    commit("fix the import", (first + "y = 1\n" * 50).replace("os", "sys"))
    found = list(GitFixes(path=str(tmp_path)).records())
    assert [(r.fields["name"], r.fields["context"]) for r in found if isinstance(r, Record)] == [
        ("f", "import os\n"), ("g.h", "import os\n"),
    ]  # fmt: skip
    assert [r.fields["after"] for r in found if isinstance(r, Record)][
        1
    ] == "    def h():\n        return 2\n"
    reasons = [r.reason for r in found if isinstance(r, Dropped)]
    assert reasons == ["new-or-deleted", "too-large-a-fix", "no-function-changed"]
    for wrong in ("nowhere", "a.py"):  # the second is a file
        with pytest.raises(UserError, match="git says"):
            list(GitFixes(path=str(tmp_path), revision=wrong).records())
    git(tmp_path, "branch", "a.py")
    assert len(list(GitFixes(path=str(tmp_path), revision="a.py").records())) == len(found)
    with pytest.raises(ValueError, match="is no revision"):
        GitFixes(path=str(tmp_path), revision=f"--output={tmp_path / 'written'}")


def test_a_path_that_is_not_utf8_is_written_out(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    for message in ("one", "Fix two"):
        (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text(f"def f():\n    return '{message}'\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", message)
    (found,) = GitFixes(path=str(tmp_path)).records()
    assert isinstance(found, Record) and found.id.endswith(":caf\\xe9.py:f")


def test_overloads_are_matched_by_their_parameters() -> None:
    one = "  int f(int a) { return a; }\n"
    two = "  int f(int a, List<String> b) { return a + 1; }\n"
    new = "  int f(long c) { return 7; }\n"

    def found(*sides: str, language: Any = "java") -> list[tuple[str, str]]:
        wrapped = (
            [f"class A {{\n{side}}}\n".encode() for side in sides]
            if language == "java"
            else [s.encode() for s in sides]
        )
        return [
            (item.fields["before"], item.fields["after"])
            if isinstance(item, Record)
            else (item.id, item.reason)
            for item in changed_functions("a", *wrapped, language)
        ]

    fixed = two.replace("+ 1", "- 1")
    assert found(one + two, new + one + fixed) == [(two, fixed)]  # one above them is added
    assert found(one + two, fixed + one) == [(two, fixed)]
    renamed = one.replace("int a", "int x").replace("return a", "return x")
    assert found(one + two, renamed + two) == [(one, renamed)]
    assert found(one, one.replace("int a", "long a")) == [(one, one.replace("int a", "long a"))]
    assert found(two + new, one + fixed) == [("a:A.f#2", "overloads-differ"), (two, fixed)]
    getter, setter = "@property\ndef x(s):\n    return 1\n", "@x.setter\ndef x(s, v):\n    s.y = v\n"
    other = setter.replace("= v", "= -v")
    assert found(setter, getter + other, language="python") == [(setter, other)]
    again = "def x(s):\n    return 2\n"
    assert found(getter + again, again, language="python") == [
        ("a:x", "overloads-differ"), ("a:x#2", "overloads-differ"),
    ]  # fmt: skip
