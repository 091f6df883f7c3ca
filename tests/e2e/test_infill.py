"""Fill-in-the-middle from the recipe to the command line, on the tiny model."""

from pathlib import Path

import pytest
from tests.fixtures.tiny_run import write_recipe
from typer.testing import CliRunner

from luthier import pipeline
from luthier.cli import app
from luthier.encoding.infill import SENTINELS
from luthier.models.load import load_tokenizer
from luthier.rows import Rows
from luthier.run_folder import read_json

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
TOKENS = list(SENTINELS["new"].tokens)


def test_rows_with_gaps_are_trained_and_asked_for(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path,
        task={
            "type": "line-completion",
            "min_context_tokens": 8,
            "infill": {"rate": 0.5, "order": "mixed", "spans": "lines"},
        },
        model={"new_tokens": TOKENS},
        train={"max_steps": 3},
    )
    place = pipeline.train(path, folder=tmp_path / "run")
    tokenizer = load_tokenizer(pipeline.read(path).model)
    rows = [*Rows(place.rows("train"))]
    end = tokenizer.hf.convert_tokens_to_ids(TOKENS[3])
    gaps = [row for row in rows if "infill" in row.meta]
    assert 0.2 < len(gaps) / len(rows) < 0.8
    for row in gaps:
        assert row.input_ids[-1] == end and row.loss_weights[-1] == 1 and len(row.input_ids) <= 96
    said = read_json(place.ledger)["splits"]
    assert said["train"]["infill"]["rate"] == len(gaps) / len(rows)
    assert said["train"]["infill"]["psm"] + said["train"]["infill"]["spm"] == pytest.approx(
        len(gaps) / len(rows)
    )
    assert "infill" not in said["eval"] and not any("infill" in row.meta for row in Rows(place.rows("eval")))
    ask = ["generate", str(place.path), "--prompt", "def f(a):\n", "--suffix", "    return a\n", "--max-new-tokens", "4"]  # fmt: skip
    result = CliRunner().invoke(app, ask)
    assert result.exit_code == 0, result.output


def test_a_suffix_needs_a_run_that_learned_gaps(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, train={"max_steps": 1})
    place = pipeline.train(path, folder=tmp_path / "run")
    with pytest.raises(pipeline.UserError, match="did not learn to fill gaps"):
        from luthier.evaluate.prompt import complete

        complete(pipeline.read(path), place, "def f(", suffix="\n")
