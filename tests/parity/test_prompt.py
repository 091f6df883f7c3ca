"""A typed prompt gives the ids that a row of the same text had in training before its target."""

import pytest
from tests.fixtures.tiny_model import make_tokenizer

from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Example, Record, Row
from luthier.tasks.instruction import Instruction
from luthier.tasks.line_completion import LineCompletion

CODE = "".join(
    f"def function_{i}(value):\n    for item in value:\n\n        print(item, {i})\n" for i in range(6)
)


@pytest.fixture
def tokenizer():
    return TextTokenizer(make_tokenizer())


def prompt_ids(task, text, tokenizer, max_length=512):
    return encode_prompt(Example("prompt", task.prompt(text, tokenizer), "prompt"), tokenizer, max_length)


def rows(task, fields, tokenizer, max_length=512):
    for example in task.examples(Record("r", fields, "r"), "test", tokenizer, max_length=max_length, seed=1):
        row = encode(example, tokenizer, max_length)
        assert isinstance(row, Row)
        yield example, row


@pytest.mark.parametrize("max_length", [512, 48])
@pytest.mark.parametrize("ending", ["", "\n", "\n\n        "])
def test_line_completion(tokenizer, max_length, ending):
    """However much of the white space before the line was typed."""
    task = LineCompletion()
    for example, row in rows(task, {"text": CODE}, tokenizer):
        text = example.spans[0].text
        asked = prompt_ids(task, text + ending, tokenizer, max_length)
        assert asked == row.input_ids[: row.num_prompt_tokens].tolist()[-len(asked) :]
        assert len(asked) == min(row.num_prompt_tokens, max_length)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_instruction_chat(tokenizer, system):
    task = Instruction(format="chat", system=system)
    ((_, row),) = rows(task, {"prompt": "What is 1 + 1?", "response": "2"}, tokenizer)
    asked = prompt_ids(task, "What is 1 + 1?", tokenizer)
    assert asked == row.input_ids[: row.num_prompt_tokens].tolist()
    assert tokenizer.decode(asked).endswith("<|im_start|>assistant\n")


def test_instruction_plain(tokenizer):
    task = Instruction(format="plain")
    ((_, row),) = rows(task, {"prompt": "What is 1 + 1?", "response": "2"}, tokenizer)
    assert prompt_ids(task, "What is 1 + 1?", tokenizer) == row.input_ids[: row.num_prompt_tokens].tolist()
