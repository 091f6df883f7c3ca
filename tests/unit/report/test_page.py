import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.fixtures.synthetic_ontology import write_ontology
from tests.fixtures.synthetic_run import CLOSING, IMAGE, SCRIPT, write_run

from luthier.evaluate.significance import compare
from luthier.recipe import Recipe
from luthier.records import Row
from luthier.report import curves, ontology, page, sections
from luthier.run_folder import RunFolder, read_json, read_jsonl, write_json, write_text

RECIPE = Recipe(name="stdlib-lines")


class Parsed(HTMLParser):
    """The tags of a page, the text of its scripts, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = None

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data


def render(run: RunFolder, recipe: Recipe = RECIPE, **pieces: list[page.ShownRow]) -> Parsed:
    return Parsed(
        page.write(run, recipe, rows_shown=pieces.get("rows_shown", [])).read_text(encoding="utf-8")
    )


def test_a_part_of_a_merged_start_is_said_to_be_both(tmp_path: Path) -> None:
    model = {"adapter": None, "freeze": ["embed"], "start_from": "runs/first", "start_mode": "merge"}
    text = render(write_run(tmp_path), Recipe.model_validate({"model": model})).text
    assert "a part of its own weights trained, from the adapter runs/first (merge), fine-tuned for" in text


def test_what_cannot_be_seen_in_the_titles_of_a_graph_is_named(tmp_path: Path) -> None:
    write_ontology(RunFolder(tmp_path), 20, title="ab\u202edc")
    view = ontology.view(RunFolder(tmp_path))
    assert view is not None and "U+202E" in view["graph"] and "\\u202e" not in view["graph"]


def test_the_result_stands_in_one_sentence_with_its_interval(tmp_path: Path) -> None:
    text = render(write_run(tmp_path)).text
    assert "On 120 held-out rows from 40 groups, exact match rose from" in text
    assert "95% interval +" in text and "no clear difference" not in text


def test_an_interval_over_zero_is_no_clear_difference(tmp_path: Path) -> None:
    text = render(write_run(tmp_path, clear=False)).text
    assert "there is no clear difference: exact match went from" in text and "which includes zero" in text
    assert "▲ better" not in text


@pytest.mark.parametrize(
    ("better", "low", "high", "verdict"),
    [("higher", 0.01, 0.03, "better"), ("higher", -0.03, -0.01, "worse"), ("lower", -0.03, -0.01, "better"),
     ("lower", 0.01, 0.03, "worse"), ("lower", -0.01, 0.03, "unclear"), ("higher", 0.0, 0.03, "unclear")],
)  # fmt: skip
def test_verdicts_follow_interval_and_direction(better: str, low: float, high: float, verdict: str) -> None:
    middle = (low + high) / 2
    entry = {
        "base": 0.5,
        "tuned": 0.5 + middle,
        "difference": middle,
        "interval": [low, high],
        "better": better,
        "unit": "share",
    }
    scores = {"num_rows": 9, "num_groups": 3, "metrics": {"exact_match": entry}}
    assert sections.metrics(scores)[0]["verdict"] == verdict
    assert sections.headline(scores)[1] == verdict
    assert ("worse than the base" in sections.headline(scores)[0]) == (verdict == "worse")


def test_without_an_interval_nothing_is_claimed() -> None:
    entry = {
        "base": 0.1,
        "tuned": 0.9,
        "difference": 0.8,
        "interval": None,
        "better": "higher",
        "unit": "share",
    }
    scores = {"num_rows": 9, "num_groups": 1, "metrics": {"exact_match": entry}}
    assert sections.headline(scores)[1] == "untested"
    entry |= {"base": None, "tuned": None, "difference": None}
    assert sections.metrics(scores)[0]["base"] == "–"


def test_a_small_end_of_an_interval_keeps_its_sign() -> None:
    assert sections.number(-0.0002, "share", signed=True) == "−0.02 points"
    assert sections.number(0.0, "share", signed=True) == "0.0 points"


def test_means_over_groups_stand_beside_means_over_rows_and_strata_have_all_that_was_generated(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path)
    rows = [
        {"group": group, "meta": {"strata": {"kind": kind}}, "target_bytes": 4}
        | {
            side: {"loss_nats": 1, "weighted_nats": 1, "weight": 1, "num_tokens": 1, "num_correct": 1}
            | {"scores": {"exact_match": score, "edit_similarity": score / 2}}
            for side, score in (("base", 0), ("tuned", right))
        }
        for group, kind, right in (("a", "x", 1), ("a", "x", 1), ("a", "y", 1), ("b", "y", 0))
    ]
    write_json(run.scores, {"split": "test", **compare(rows, 10, 0), "seconds": {}})
    text = " ".join(render(run).text.split())
    # Three of four rows; all of the one group and none of the other.
    assert "higher is better 0.0% 75.0% +75.0 points" in text
    assert "Exact match, mean over groups 0.0% 50.0% +50.0 points" in text
    assert "Edit similarity, mean over groups 0.0% 25.0% +25.0 points" in text
    assert "95% intervalEdit similarity" in text  # a column of the table by kind
    assert "0.0% → 25.0%" in text and "0.0% → 50.0%" in text  # edit similarity of y and of x
    scores = read_json(run.scores) | {"num_groups": 4}  # every row a group: the same figures again
    assert sections.macro(scores) == {}


STAGES = {
    "nothing": "Nothing has been prepared yet.",
    "prepare": "Prepared, but neither checked nor trained yet.",
    "check": "Prepared and checked, but not trained yet.",
    "stopped": "the history reaches step 300",
    "train": "Trained, but not compared",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_stopped_anywhere_has_a_page_that_says_so(tmp_path: Path, stage: str) -> None:
    run = RunFolder(tmp_path) if stage == "nothing" else write_run(tmp_path, stage=stage)
    text = render(run).text
    assert STAGES[stage] in text and "luthier run" in text
    assert "Not evaluated yet." in text and "No predictions yet." in text


def test_a_damaged_file_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_text(run.scores, '{"metrics"')
    write_text(run.predictions, "no json\n")
    text = render(run).text
    assert "scores.json is damaged" in text and "predictions.jsonl is damaged" in text
    assert "Savitzky" in text


def test_waived_errors_stand_at_the_top(tmp_path: Path) -> None:
    text = render(write_run(tmp_path)).text
    assert text.index("1 error was waived.") < text.index("Base against tuned")
    assert "lossless-tokenizer" in text and "✓ prompt-parity" in text


def test_what_the_ledger_counts_is_shown_and_a_wrong_sum_too(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    text = render(run).text
    assert (
        "near-duplicate" in text
        and "context trimmed in 1,333 rows (33%)" in text
        and "the ledger has a defect" not in text
    )
    ledger = read_json(run.ledger)
    ledger["rows"]["kept"] -= 1
    write_json(run.ledger, ledger)
    assert "the ledger has a defect" in render(run).text


def test_predictions_shown_do_not_depend_on_outcomes_or_order(tmp_path: Path) -> None:
    rows = read_jsonl(write_run(tmp_path).predictions)
    shown = [row["id"] for row in sections.predictions(rows, 20)]
    for row in rows:
        row["tuned"]["scores"]["exact_match"] = 1 - row["tuned"]["scores"]["exact_match"]
    assert [row["id"] for row in sections.predictions(rows[::-1], 20)] == shown
    assert len(shown) == 20 and shown != [row["id"] for row in rows[:20]]


def test_runs_without_generated_text_are_shown_too(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    rows = read_jsonl(run.predictions)
    for row in rows:
        for side in ("base", "tuned"):
            del row[side]["output"], row[side]["scores"]
    write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in rows))
    parsed = render(run)
    assert "only tuned right" not in parsed.text and "loss" in parsed.text


def test_no_text_from_data_becomes_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path, hostile=True)
    row = Row(SCRIPT, IMAGE, [1, 2, 3], [0.0, 0.5, 1.0], [-1, 0, 0], [CLOSING], 1, "", 0, trimmed={IMAGE: 3})
    recipe = RECIPE.model_copy(update={"description": SCRIPT, "name": CLOSING, "task": {"type": IMAGE}})
    parsed = render(run, recipe, rows_shown=[page.ShownRow(row, ["<s>", IMAGE, CLOSING], SCRIPT)])
    assert [tag for tag, _ in parsed.tags].count("script") == 2 and len(parsed.scripts) == 2
    assert "harmed" not in "".join(parsed.scripts)
    assert {name for _, attributes in parsed.tags for name in attributes if name.startswith("on")} == set()
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert all((attributes["src"] or "").startswith("data:image/png") for attributes in images)
    for text in (SCRIPT, IMAGE, CLOSING, "{{ 7 * 7 }}", "⟨U+D800⟩", "⟨U+202E⟩", "␀"):
        assert text in parsed.text
    assert "\x00" not in parsed.text and "\u202e" not in parsed.text


def test_nothing_is_fetched(tmp_path: Path) -> None:
    parsed = render(write_run(tmp_path))
    for _, attributes in parsed.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_the_charts_have_the_history_thinned_to_its_extremes(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_steps=9000)
    chart = json.loads(render(run).scripts[0])
    losses = {row["step"]: row["loss"] for row in read_jsonl(run.history) if "loss" in row}
    assert len(chart["steps"]) <= 3002 < chart["total"] == 9000
    assert {min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)} <= set(chart["steps"])
    assert {
        len(chart[name]) for name in ("loss", "smoothed", "norm", "rate", "speed", "memory", "tokens")
    } == {len(chart["steps"])}


def test_a_row_shows_every_token_with_its_weight(tmp_path: Path) -> None:
    row = Row(
        "a.py#1",
        "a.py",
        [1, 2, 3, 4],
        [0.0, 0.0, 1.0, 0.5],
        [0, 0, 1, 1],
        ["context", "target"],
        2,
        "cd",
        2,
        trimmed={"context": 7, "far": 9},
    )
    parsed = render(write_run(tmp_path), rows_shown=[page.ShownRow(row, ["x", "y", " z", "\n"])])
    weights = [
        a.get("title")
        for tag, a in parsed.tags
        if tag == "span" and (a.get("class") or "") == "token trained" and "title" in a
    ]
    assert weights == ["weight 1.0", "weight 0.5"]
    assert (
        "2 trained with weight 0.5, 1" in parsed.text
        and "7 tokens cut" in parsed.text
        and "dropped whole" in parsed.text
    )


def test_a_very_long_row_leaves_out_only_context_and_counts_it() -> None:
    row = Row(
        "a",
        "a",
        range(9000),
        [0.0] * 8990 + [1.0] * 10,
        [0] * 8990 + [1] * 10,
        ["context", "target"],
        8990,
        "",
        0,
    )
    shown = page._row(page.ShownRow(row, ["x"] * 9000))
    context, target = shown["spans"]
    assert len(context["tokens"]) + context["hidden"] == 8990 and context["hidden"] > 7000
    assert len(target["tokens"]) == 10 and shown["names"][0]["tokens"] == 8990


def test_what_watchers_found_is_on_the_page_in_the_charts_and_in_the_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path, hostile=True)
    finding = {"check": "watch-loss-spike", "severity": "warning", "what": SCRIPT, "where": "step 200", "fix": "look at it",
               "measured": 9.5, "expected": 1.2}  # fmt: skip
    rows = read_jsonl(run.history)
    rows[200]["findings"] = [finding]
    write_text(run.history, "".join(json.dumps(row) + "\n" for row in rows))
    assert curves.draw(run, 21)
    page_ = render(run)
    assert SCRIPT in page_.text and "watch-loss-spike" in page_.text and "a watcher spoke" in page_.text
    data = json.loads(page_.scripts[0])
    assert data["marks"] == [{"step": 200, "check": "watch-loss-spike"}]
    assert len(page_.scripts) == 2
