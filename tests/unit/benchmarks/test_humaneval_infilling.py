"""What the benchmark of gaps asks, what it takes of an answer, and what a stop leaves of it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tests.fixtures.tiny_model import make_model, make_tokenizer

from luthier.encoding.infill import SENTINELS
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.recipe import Model
from luthier.records import Dropped, Record

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture(scope="module")
def run() -> ModuleType:
    place = Path("benchmarks/humaneval-infilling/run.py")
    spec = importlib.util.spec_from_file_location("humaneval_infilling_run", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "humaneval_infilling_run", module)
        spec.loader.exec_module(module)
    return module


def gap(number: int) -> Record:
    fields = {"prefix": f"def f(a):\n    b = {number}\n    ", "suffix": "\n    return b\n", "middle": "b += a",
              "test": "def check(f): assert f(1)", "entry_point": "f"}  # fmt: skip
    return Record(f"HumanEval/{number}/L0", fields, str(number))


def test_the_first_line_counts_from_the_left_even_where_the_suffix_begins_with_it(run: ModuleType) -> None:
    suffix = "    return total + first\n    x\n"
    written = "\n    return total + first\n"
    assert run.middle(written + "    more\n", suffix, first_line=True) == written
    assert run.middle("a = 1\n" + suffix, suffix, first_line=False) == "a = 1\n"


def test_new_sentinels_are_asked_of_no_base_model(run: ModuleType) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(SENTINELS["new"].tokens)})
    settings = Model(name="x", new_tokens=list(SENTINELS["new"].tokens))
    with pytest.raises(SystemExit, match=r"new tokens of this run.*--base --left"):
        run.refuse_new_sentinels(settings, TextTokenizer(tokenizer), trained=False)
    run.refuse_new_sentinels(settings, TextTokenizer(tokenizer), trained=True)
    run.refuse_new_sentinels(Model(name="x"), TextTokenizer(tokenizer), trained=False)


def test_a_row_that_is_none_is_named(run: ModuleType) -> None:
    with pytest.raises(SystemExit, match="a:7: no-text: prefix holds int"):
        run.question(
            Dropped("a:7", "no-text", "prefix holds int"), TextTokenizer(make_tokenizer()), "psm", 64, True
        )


def test_a_stopped_run_goes_on(run: ModuleType, tmp_path: Path) -> None:
    tokenizer, model, path = TextTokenizer(make_tokenizer()), make_model(), tmp_path / "work" / "a.jsonl"
    asked = [run.question(gap(number), tokenizer, "psm", 64, True) for number in range(5)]
    loaded = []

    def lend() -> object:
        loaded.append(1)
        return model

    settings = {"max_new_tokens": 4, "batch_size": 2, "left": True}
    whole = run.completions(asked, lend, tokenizer, path, **settings)
    assert whole.keys() == {q.id for q in asked} and len(path.read_text().splitlines()) == 5
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])
    assert run.completions(asked, lend, tokenizer, path, **settings) == whole
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines) and len(loaded) == 2
    assert run.completions(asked, lend, tokenizer, path, **settings) == whole and len(loaded) == 2
    other = [run.question(gap(9), tokenizer, "psm", 64, True)]
    assert run.completions(other, lend, tokenizer, path, **settings).keys() == {"HumanEval/9/L0"}
