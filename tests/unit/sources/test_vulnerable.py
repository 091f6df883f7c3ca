"""Sources of vulnerable code, what is taken out of it, and whether its names give it away."""

import gzip
import itertools
import json
import os
from pathlib import Path

import pytest
from tests.fixtures.juliet import WAYS, write_juliet

from luthier.check.leak_probe import functions_of, judged, probe
from luthier.encoding.anonymous import GIVEAWAY, identifiers
from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.sources.cwe_pairs import CwePairs
from luthier.sources.juliet import Juliet

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", "data")) / "repair"
SVEN = pytest.mark.skipif(not DATA.is_dir(), reason="the rows are not there (LUTHIER_TEST_DATA)")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_juliet(tmp_path_factory.mktemp("juliet"))


def records(source: Juliet | CwePairs) -> list[Record]:
    return [item for item in source.records() if isinstance(item, Record)]


def test_bad_functions_are_paired_with_good_ones_of_their_part(tree: Path) -> None:
    found = records(Juliet(path=str(tree), clean=False))
    assert (
        len(found) == 3 * 10 * 3 * 2 + 3 * 10 * 3
    )  # templates x ways x variants; two good halves in Java, one in Python
    java = next(
        r
        for r in found
        if r.id.endswith(
            "CWE193_Off_by_One_Error__file_do_01.bad:CWE193_Off_by_One_Error__file_do_01.goodG2B"
        )
    )
    assert java.fields["cwe"] == "CWE-193" and java.fields["language"] == "java"
    assert "void bad(" in java.fields["before"] and "void goodG2B(" in java.fields["after"]
    assert not any("goodG2B();" in r.fields["after"] for r in found), "what only calls the others"


def test_a_path_may_begin_with_the_home_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree.parent))
    at_home = Juliet(path=f"~/{tree.name}", clean=False)
    assert [item.id for item in at_home.pairs()] == [item.id for item in Juliet(path=str(tree)).pairs()]
    assert at_home.own_fingerprint() == Juliet(path=str(tree)).own_fingerprint()


def test_variants_of_a_template_are_one_group(tree: Path) -> None:
    found = records(Juliet(path=str(tree)))
    by_template: dict[str, set[str]] = {}
    for record in found:
        by_template.setdefault(record.id.partition(":")[0].rpartition("_")[0], set()).add(record.group)
    assert len(by_template) == 6 * len(WAYS)
    assert all(len(groups) == 1 for groups in by_template.values())
    assert len({record.group for record in found}) > 6


def test_a_template_is_one_group_in_several_folders(tmp_path: Path) -> None:
    for number in range(1, 4):
        folder = tmp_path / f"s{number:02d}"
        folder.mkdir()
        for template, name in (("file_read", "f"), ("url_read", "g")):
            halves = [
                f"def {half}(a):\n    return {name}(a, {number}, {half == 'bad'})\n"
                for half in ("bad", "good1")
            ]
            (folder / f"CWE129_Index__{template}_{number:02d}.py").write_text("\n\n".join(halves))
    found = records(Juliet(path=str(tmp_path)))
    assert len(found) == 6
    groups = {
        template: {r.group for r in found if template in r.id} for template in ("file_read", "url_read")
    }
    assert [len(of_one) for of_one in groups.values()] == [1, 1] and len({r.group for r in found}) == 2


def test_all_texts_are_numbered_where_that_is_asked_for(tmp_path: Path) -> None:
    sides = {
        side: f"def f(a):\n    return run('{text}', a)\n" for side, text in (("before", "x"), ("after", "y"))
    }
    (tmp_path / "a.jsonl").write_text(json.dumps({**sides, "cwe": "CWE-89"}))
    options = {"path": str(tmp_path / "a.jsonl"), "before": "before", "after": "after", "language": "python"}
    for texts, count in (("telling", 0), ("all", 1)):
        [found] = records(CwePairs(**options, group_column=None, texts=texts))
        assert found.fields["before"].count("text_") == found.fields["after"].count("text_") == count
        assert found.fields["before"] != found.fields["after"]


def test_nothing_that_gives_the_answer_away_is_left(tree: Path) -> None:
    for record in records(Juliet(path=str(tree))):
        for side in ("before", "after"):
            assert not GIVEAWAY.search(str(record.fields[side])), record.fields[side]
            assert "/*" not in record.fields[side] and "#" not in record.fields[side]


def test_functions_alone_are_numbered_alone(tree: Path) -> None:
    found = records(Juliet(path=str(tree), rows="functions"))
    assert {(r.fields["label"], r.fields["cwe"] == "none") for r in found} == {
        ("vulnerable", False),
        ("fixed", True),
    }
    for one in found[:20]:
        numbers = {
            name
            for name in identifiers(one.fields["text"], one.fields["language"])
            if name.startswith("var_")
        }
        assert numbers == {f"var_{i + 1}" for i in range(len(numbers))}, "a gap would tell of the other side"


@pytest.mark.parametrize("rows", ["fixes", "functions"])
def test_names_tell_all_before_cleaning_and_nothing_after(tree: Path, rows: str) -> None:
    before = probe(Juliet(path=str(tree), rows=rows, clean=False))
    after = probe(Juliet(path=str(tree), rows=rows))
    assert before is not None and after is not None
    assert before.accuracy > 0.99 and not before.is_chance
    assert after.is_chance and abs(after.accuracy - 0.5) < 0.1
    assert after.interval[1] - after.interval[0] > 0.01


def test_the_probe_is_scikit_learn_s_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    import numpy as np

    from luthier.check import leak_probe

    draw = np.random.default_rng(0)
    labels = draw.random(120) < 0.3
    names = [
        [f"n{i}" for i in draw.integers(0, 30, 5)] + ["x"] * int(label and draw.random() < 0.5)
        for label in labels
    ]
    features = leak_probe._features(names)
    ours = leak_probe._fitted(features, labels, features)
    weights = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    theirs = linear.LogisticRegression(C=120.0, tol=1e-8, max_iter=5000).fit(
        features, labels, sample_weight=weights
    )
    np.testing.assert_allclose(ours, theirs.decision_function(features), atol=2e-3)


def test_the_probe_judges_on_groups_that_it_has_not_seen() -> None:
    names = [[f"n{i}"] for i in range(400)]
    groups = [f"{i // 4}" for i in range(400)]
    blind = judged(names, [bool(i % 2) for i in range(400)], groups)
    assert blind.is_chance, "what is learned of a group is of no use for the others"
    seeing = judged(
        [[*n, f"side{i % 2}"] for i, n in enumerate(names)], [bool(i % 2) for i in range(400)], groups
    )
    assert seeing.accuracy == 1.0 and not seeing.is_chance


@pytest.mark.parametrize("rows", ["fixes", "functions"])
def test_the_probe_sees_both_sides_of_each_fix(tree: Path, rows: str) -> None:
    texts, labels, groups = functions_of(Juliet(path=str(tree), rows=rows))
    assert len(texts) == len(groups) == 2 * sum(labels)


def test_a_folder_without_test_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no test case"):
        list(Juliet(path=str(tmp_path)).records())


def write_rows(path: Path) -> Path:
    rows = [
        {"cwe": "cwe-089", "func_src_before": "def f(a):\n    return a\n", "func_src_after": "def f(a):\n    return g(a)\n", "file_name": "a.py", "commit_link": "c1"},
        {"cwe": "CWE_79", "func_src_before": "int f(int a) { return a; }", "func_src_after": "int f(int a) { return h(a); }", "file_name": "a.cc", "commit_link": "c1"},
        {"cwe": "unknown", "func_src_before": "def k():\n    pass\n", "func_src_after": "def k():\n    return\n", "file_name": "a.py", "commit_link": "c2"},
        {"cwe": "cwe-1", "func_src_before": "def k(bad):\n    return bad\n", "func_src_after": "def k(good):\n    return good\n", "file_name": "a.py", "commit_link": "c2"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_with_a_cwe_are_read_and_grouped_by_commit(tmp_path: Path) -> None:
    found = list(CwePairs(path=str(write_rows(tmp_path / "rows.jsonl"))).records())
    kept = [item for item in found if isinstance(item, Record)]
    assert [(r.fields["cwe"], r.fields["language"]) for r in kept] == [("CWE-89", "python"), ("CWE-79", "c")]
    assert kept[0].group == kept[1].group
    reasons = {item.reason for item in found if isinstance(item, Dropped)}
    assert reasons == {"no-cwe", "unchanged"}, "names alone are no fix"
    told = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (tmp_path / "alone.jsonl").write_text(
        "".join(json.dumps({**row, "commit_link": None}) + "\n" for row in told)
    )
    alone = [r for r in CwePairs(path=str(tmp_path / "alone.jsonl")).records() if isinstance(r, Record)]
    assert alone[0].group != alone[1].group, "rows without a group are none together"


@pytest.mark.parametrize("rows", ["fixes", "functions"])
def test_functions_of_a_benchmark_are_known_before_they_are_cleaned(tmp_path: Path, rows: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    bench = tmp_path / "bench.jsonl"
    bench.write_text(
        json.dumps({"before": "def f(a):\n    return a  # bad\n", "after": "def f(a):\n    pass\n"})
    )
    raw = {"type": "repair-pairs", "path": str(bench), "language": "python"}
    cleaned = {"type": "cwe-pairs", "path": str(path)}
    for benchmark, left in ((raw, {"CWE-79"}), (cleaned, set())):
        found = list(CwePairs(path=str(path), rows=rows, benchmarks=[benchmark]).records())
        assert {r.fields["cwe"] for r in found if isinstance(r, Record)} - {"none"} == left
        inside = [item.id for item in found if isinstance(item, Dropped) and item.reason == "in-benchmark"]
        assert len(inside) == 2 - len(left)


def test_a_chain_of_fixes_is_one_group_whatever_its_names_become(tmp_path: Path) -> None:
    texts = [f"def f(a, b):\n    return {value}(a, b)\n" for value in ("g", "h", "k")]
    rows = [
        {"cwe": "CWE-89", "func_src_before": before, "func_src_after": after, "file_name": "a.py"}
        for before, after in itertools.pairwise(texts)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = records(CwePairs(path=str(tmp_path / "rows.jsonl"), group_column=None, names="all"))
    assert first.fields["after"] != second.fields["before"], "numbered apart"
    assert first.group == second.group


@SVEN
def test_real_rows_are_cleaned(tmp_path: Path) -> None:
    with gzip.open(DATA / "sven-val.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = file.readlines()
    found = list(CwePairs(path=str(DATA / "sven-val.jsonl.gz")).records())
    kept = [item for item in found if isinstance(item, Record)]
    assert len(kept) > 0.9 * len(lines), [item for item in found if isinstance(item, Dropped)]
    left = [
        n for r in kept for n in identifiers(r.fields["before"], r.fields["language"]) if GIVEAWAY.search(n)
    ]
    assert left == []
