import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer
from tests.fixtures.synthetic_run import write_run

from luthier.errors import UserError
from luthier.evaluate import significance
from luthier.report import compare, compare_files
from luthier.run_folder import RunFolder, read_json, read_jsonl, write_json, write_text


def paired(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stands in for the bootstrap: means, and an interval of a fixed width."""
    base, tuned = (
        sum(row[side]["scores"]["exact_match"] for row in rows) / len(rows) for side in ("base", "tuned")
    )
    entry = {
        "base": base,
        "tuned": tuned,
        "difference": tuned - base,
        "interval": [tuned - base - 0.01, tuned - base + 0.01],
    }
    return {"metrics": {"exact_match": {**entry, "better": "higher", "unit": "share"}}}


def change(run: RunFolder, **values: Any) -> None:
    rows = read_jsonl(run.predictions)
    for row in rows:
        row.update({name: value(row) for name, value in values.items()})
    write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in rows))


def printed(comparison: compare.Comparison) -> str:
    console = Console(file=io.StringIO(), width=120)
    for table in compare.tables(comparison):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_tuned_models_of_two_runs_are_paired(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "[b]"), write_run(tmp_path / "b")
    change(second, tuned=lambda row: row["tuned"] | {"scores": {"exact_match": 1.0, "edit_similarity": 1.0}})
    result = compare.compare([first, second], paired)
    [entry] = result.against_first["exact_match"]
    assert entry is not None and entry["tuned"] == "100.0%" and entry["verdict"] == "better"
    assert result.metrics["loss"][0] is not None and result.notes == []
    text = printed(result)
    assert "[b]" in text and "Exact match" in text and "better" in text


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"id": lambda row: row["id"] + "x"}, "they share 0"), ({"target": lambda row: "other"}, "another target"),
     ({"tuned": lambda row: row["tuned"] | {"scores": {"bleu": 1.0}}}, "other metrics")],
)  # fmt: skip
def test_other_rows_are_shown_but_not_tested(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    change(second, **changed)
    result = compare.compare([first, second], paired)
    assert why in result.notes[0] and result.against_first["exact_match"] == [None]
    assert "Against" not in printed(result)


def test_one_run_or_one_without_scores_is_the_users_mistake(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with pytest.raises(UserError, match="two or more"):
        compare.compare([run], paired)
    trained = write_run(tmp_path / "b", stage="train")
    with pytest.raises(
        UserError, match=r"(?s)not evaluated yet.*luthier evaluate \S+/b.*no run in this folder.*/none"
    ):
        compare.compare([run, trained, RunFolder(tmp_path / "none")], paired)


def bootstrap(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return significance.compare(rows, 200, 0)


def test_other_tokens_leave_only_figures_that_compare(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    change(second, tuned=lambda row: row["tuned"] | {"num_tokens": row["tuned"]["num_tokens"] + 1})
    result = compare.compare([first, second], bootstrap)
    assert result.against_first["loss"] == [None] and result.against_first["token_accuracy"] == [None]
    assert result.against_first["bits_per_byte"][0] and "other tokens" in result.notes[0]


def test_strata_part_the_rows_and_name_what_has_few_values(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    for run in (first, second):
        change(
            run, meta=lambda row: {"category": ["call", "import"][len(row["id"]) % 2], "unique": row["id"]}
        )
    change(
        second,
        tuned=lambda row: (
            row["tuned"] | {"scores": {"exact_match": float(row["meta"]["category"] == "call")}}
        ),
    )
    change(first, tuned=lambda row: row["tuned"] | {"scores": {"exact_match": 0.0}})
    [strata] = compare.compare([first, second], bootstrap).strata
    assert "unique" not in strata and sum(part["rows"] for part in strata["category"].values()) == 120
    assert strata["category"]["call"]["metrics"]["exact_match"]["figures"]["difference"] == 1
    assert strata["category"]["import"]["metrics"]["exact_match"]["figures"]["difference"] == 0
    assert sum(part["rows"] for part in strata["length"].values()) == 120
    [only] = compare.compare([first, second], bootstrap, ["group"]).strata
    assert list(only) == ["group"]
    with pytest.raises(UserError, match="no field 'colour'"):
        compare.compare([first, second], bootstrap, ["colour"])


def test_the_strata_that_a_task_names_are_fields_by_their_own_names(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    for run in (first, second):  # as project-completion writes them
        change(run, meta=lambda row: {
            "line": len(row["id"]), "path": row["id"], "context": [["py", row["id"]]],
            "strata": {"project": ["x", "y"][len(row["id"]) % 2], "category": "infile"},
        })  # fmt: skip
    change(
        second,
        tuned=lambda row: (
            row["tuned"] | {"scores": {"exact_match": float(row["meta"]["strata"]["project"] == "x")}}
        ),
    )
    change(first, tuned=lambda row: row["tuned"] | {"scores": {"exact_match": 0.0}})
    result = compare.compare([first, second], bootstrap)
    assert "project" in result.strata[0] and "strata" not in result.strata[0]
    parts = result.strata[0]["project"]
    assert {value: part["metrics"]["exact_match"]["figures"]["difference"] for value, part in parts.items()} == {
        "x": 1, "y": 0,
    }  # fmt: skip
    [only] = compare.compare([first, second], bootstrap, ["category"]).strata
    assert only["category"]["infile"]["rows"] == 120
    with pytest.raises(UserError, match="no field 'strata'"):
        compare.compare([first, second], bootstrap, ["strata"])
    # McNemar's test stands in the terminal and in every table.
    won = parts["x"]["rows"]
    whole = result.against_first["exact_match"][0]["mcnemar"]
    assert (whole["only_base"], whole["only_tuned"]) == (0, won) and whole["p_value"] == pytest.approx(
        2 * 0.5**won
    )
    p = f"p = {whole['p_value']:.2g}"
    assert f"+{won} −0 rows, McNemar {p}" in printed(result)
    assert f"; {p})" in compare_files.markdown(result) and f"; {p})" in compare_files.latex(result)
    lines = list(csv.DictReader(io.StringIO(compare_files.table_csv(result))))
    tested = {(line["field"], line["value"]): line for line in lines if line["metric"] == "exact_match"}
    for key in (("project", "x"), ("", "")):
        assert tested[key]["only_run"] == (str(won) if tested[key]["run"] == result.names[1] else "")
    assert [line["p_value"] for line in lines if line["metric"] == "bits_per_byte"] == [""] * len(
        [line for line in lines if line["metric"] == "bits_per_byte"]
    )


def test_wins_and_losses_are_the_rows_that_differ_most(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    ids = [row["id"] for row in read_jsonl(first.predictions)]
    for run, right in ((first, ids[0]), (second, ids[1])):
        change(
            run,
            tuned=lambda row, right=right: (
                row["tuned"] | {"scores": {"exact_match": float(row["id"] == right)}}
            ),
        )
    [examples] = compare.compare([first, second], bootstrap).examples
    assert [(row["id"], row["gain"]) for row in examples] == [(ids[1], 1.0), (ids[0], -1.0)]


def test_classifiers_are_compared_by_their_answers(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    for run, seed in ((first, 1), (second, 2)):
        draw, said = random.Random(0), random.Random(seed)
        change(run, labels=lambda row, draw=draw: sorted({draw.choice("abc"), draw.choice("abc")}))
        change(run, tuned=lambda row, said=said: {
            "output": "", "labels": said.choice([row["labels"], ["a"], []]), "loss_nats": said.random(), "num_tokens": 1,
            "scores": {"accuracy": float(said.random() < 0.5)},
        })  # fmt: skip
        change(run, base=lambda row: row["tuned"], target_bytes=lambda row: None)
        write_json(run.scores, {**read_json(run.scores), **bootstrap(list(read_jsonl(run.predictions)))})
    result = compare.compare([first, second], bootstrap)
    assert result.against_first.keys() == {"macro_f1", "loss", "accuracy"} and not result.notes
    rows = [list(read_jsonl(run.predictions)) for run in (first, second)]
    hot = MultiLabelBinarizer(classes=list("abc"))
    true = hot.fit_transform([row["labels"] for row in rows[0]])
    for side, of_run in zip(("base", "tuned"), rows, strict=True):
        answers = hot.transform([row["tuned"]["labels"] for row in of_run])
        figures = {name: test["figures"][side] for name, [test] in result.against_first.items() if test}
        assert figures["macro_f1"] == pytest.approx(f1_score(true, answers, average="macro"))
        assert figures["loss"] == pytest.approx(fmean(row["tuned"]["loss_nats"] for row in of_run))
    assert result.strata[0]["length"] and result.examples[0]


def test_files_hold_the_same_figures(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "x_1" / "run"), write_run(tmp_path / "y&^2" / "run", hostile=True)
    change(second, id=lambda row: row["id"], target=lambda row: row["target"])
    rows = read_jsonl(first.predictions)
    own = {row["id"]: row for row in rows}
    change(second, tuned=lambda row: row["tuned"] | {"output": "<script>window.harmed = true</script>"})
    write_text(second.predictions, "".join(json.dumps({**own[id_], "tuned": row["tuned"]}) + "\n"
               for id_, row in zip(own, read_jsonl(second.predictions), strict=True)))  # fmt: skip
    result = compare.compare([first, second], bootstrap)
    page = compare_files.write(tmp_path / "out", result)
    assert compare_files.short_names(result.names) == ["x_1/run", "y&^2/run"]
    table = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    [line] = [
        line
        for line in table
        if line["run"].endswith("y&^2/run") and line["metric"] == "bits_per_byte" and not line["field"]
    ]
    [entry] = result.against_first["bits_per_byte"]
    assert entry is not None and float(line["difference"]) == entry["figures"]["difference"]
    assert float(line["low"]) <= float(line["difference"]) <= float(line["high"])
    latex, markdown = ((tmp_path / "out" / name).read_text() for name in ("table.tex", "table.md"))
    assert (
        r"x\_1/run &" in latex
        and r"y\&\textasciicircum{}2/run &" in latex
        and latex.count(r"\\") == 3
        and entry["difference"] in markdown
    )
    html = page.read_text()
    assert (
        "<script>" not in html and "y&amp;^2/run" in html and "data:image/png" in html and "By length" in html
    )
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["names"] == result.names
    with pytest.raises(UserError, match="is a run folder"):
        compare_files.write(first.path, result)


@pytest.mark.parametrize(
    ("paths", "names"),
    [(["runs/a", "runs/b"], ["a", "b"]), (["s/a/run", "s/b/run/"], ["a/run", "b/run"]), (["a", "a"], ["a (1)", "a (2)"]),
     (["a/x", "a/x/x"], ["x", "x/x"]), (["a", "b/c"], ["a", "b/c"])],
)  # fmt: skip
def test_runs_are_named_by_what_tells_them_apart(paths: list[str], names: list[str]) -> None:
    assert compare_files.short_names(paths) == names
