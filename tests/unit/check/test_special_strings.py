from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.given_rows import GivenRows, row
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from luthier import registry
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding

CONTROL = ["<s>", "</s>", "<start>", "<head>", "<end>", "<tool>"]
BOS, EOS, START, HEAD, END, TOOL = range(6)
USER, NEWLINE = 20, 21


def check(folder: Path, rows: list[list[int]], objective: str = "tokens") -> list[Finding]:
    vocabulary = {**{name: i for i, name in enumerate(CONTROL)}, **{f"w{i} ": i for i in range(6, 2000)}}
    hf = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w6 ")),
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=CONTROL[2:],
    )
    context = GivenRows(folder, TextTokenizer(hf), train=[row(i, ids) for i, ids in enumerate(rows)])
    context.objective = objective  # type: ignore[assignment]
    return list(registry.lookup("check", "special-strings", "test")(context))


def text(draw: np.random.Generator, *inside: int) -> list[int]:
    words = draw.integers(100, 2000, 8).tolist()
    return [*words[:4], *inside, *words[4:]]


def chatml(draw: np.random.Generator, *inside: int, turns: int = 1) -> list[int]:
    ids: list[int] = []
    for turn in range(turns):
        asked = text(draw, *inside) if not turn else text(draw)
        ids += [START, USER, *asked, END, NEWLINE, START, USER + 5, *text(draw), END, NEWLINE]
    return ids[:-1]


def llama3(draw: np.random.Generator, *inside: int, opens: int = END) -> list[int]:
    head = [START, USER, HEAD]
    return [BOS, *head, *text(draw, *inside), opens, *head, *text(draw), END]


def plain(draw: np.random.Generator, *inside: int, turns: int = 1) -> list[int]:
    asked = [text(draw, *inside) if not turn else text(draw) for turn in range(turns)]
    return [BOS] + [i for part in asked for i in (USER, *part, EOS)]


@pytest.mark.parametrize(
    ("form", "inside"),
    [
        (chatml, END),
        (chatml, START),
        (llama3, END),
        (llama3, START),
        (llama3, HEAD),
        (plain, EOS),
        (plain, BOS),
    ],
)
def test_control_tokens_inside_text(tmp_path: Path, form: object, inside: int) -> None:
    draw = np.random.default_rng(0)
    rows = [form(draw, *([inside] if i in (7, 30) else [])) for i in range(60)]  # type: ignore[operator]
    (found,) = check(tmp_path, rows)
    assert found.severity == "warning" and found.measured == 2
    assert found.where == "data/train.arrow: 7, 30" and CONTROL[inside] in found.what


def test_forms_of_conversations_are_left_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    cases = {
        "chatml": [chatml(draw, turns=3 if i % 20 == 0 else 1) for i in range(60)],
        "chatml cut": [chatml(draw)[3 * (i % 20 == 0) : 20 if i % 9 == 0 else None] for i in range(60)],
        "llama3": [llama3(draw, opens=TOOL if i % 20 == 0 else END) for i in range(60)],
        # No opener but BOS: later turns of a few rows begin with the words that rows begin with.
        "vicuna": [plain(draw, turns=2 if i % 20 == 0 else 1) for i in range(60)],
        "packed": [plain(draw) + (plain(draw) if i % 3 else []) for i in range(60)],
        "documents": [text(draw, *([EOS] if i % 2 else [])) for i in range(60)],
        "few": [chatml(draw, *([END] if i == 7 else [])) for i in range(19)],
    }
    for name, rows in cases.items():
        (tmp_path / name).mkdir()
        assert check(tmp_path / name, rows) == [], name


def test_pairs_of_texts_for_a_classifier_are_left_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    rows = [[BOS, *text(draw), EOS, *([*text(draw), EOS] if i % 20 == 0 else [])] for i in range(60)]
    assert check(tmp_path, rows, "classes") == []
