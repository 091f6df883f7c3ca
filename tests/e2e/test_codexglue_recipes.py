"""The recipes for CodeXGLUE's files run on files in that format, from rows to scores."""

import random
from pathlib import Path

import pytest
from tests.fixtures.tiny_model import save_model
from tests.fixtures.tiny_run import write_code

from luthier import pipeline, recipe_file
from luthier.run_folder import read_json, read_jsonl
from luthier.sources.code_tokens import Kept, normalise

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
JAVA = """package p{0};
import java.util.List;
public class Item{0} {{
    // {2}
    private int count{1} = {2};
    public int total{0}(List<String> names{1}) {{
        int sum = {2};
        for (String name : names{1}) {{ sum += name.length() * {3}; log("{1}", 'c'); }}
        return sum > {3} ? count{1} : sum + {0};
    }}
}}
"""


def files(folder: Path, language: str) -> list[str]:
    if language == "python":
        # Literals become one, so that a name has to tell files apart from their first line on.
        paths = sorted(write_code(folder / "code", 9).iterdir())
        return [f"import {path.stem}\n{path.read_text()}" for path in paths]
    draw = random.Random(0)
    return [JAVA.format(*draw.sample(range(100, 999), 4)) for _ in range(4)]


@pytest.mark.parametrize("language", ["python", "java"])
def test_a_recipe_runs_on_files_in_the_format(language: str, tmp_path: Path) -> None:
    texts = [normalise(text, language, Kept()) for text in files(tmp_path, language)]
    place = {}
    for name, part in (("train", texts[:-2]), ("dev", texts[-2:-1]), ("test", texts[-1:])):
        place[name] = tmp_path / f"{name}.txt"
        place[name].write_text("".join(f"{text}\n" for text in part))
    save_model(tmp_path / "model")
    keys = [
        f"model.name={tmp_path / 'model'}", "model.precision=fp32", f"data.source.path={place['train']}",
        f"data.eval_source.path={place['dev']}", f"data.test_source.path={place['test']}", "data.near_duplicates='off'",
        "train.max_steps=1", "evaluate.max_new_tokens=4", "evaluate.num_bootstrap=100", "check.waive=[initial-loss]",
    ]  # fmt: skip
    run = pipeline.run(recipe_file.load(f"codexglue-{language}", keys), folder=tmp_path / "run")
    assert read_json(run.findings)["ok"]
    assert {"codexglue_exact_match", "codexglue_edit_similarity"} <= read_json(run.scores)["metrics"].keys()
    assert [row["step"] for row in read_jsonl(run.history) if "loss" in row] == [1]
    predictions = list(read_jsonl(run.predictions))
    ends = ("<EOL>", "</s>") if language == "python" else (";", "{", "}", "</s>")
    assert any(row["prompt"].startswith("<s> ") for row in predictions)  # others were trimmed at the left
    assert all(row["target"].rstrip().endswith(ends) for row in predictions)
