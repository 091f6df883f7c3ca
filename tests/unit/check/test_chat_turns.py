"""Turns are found by the markup of any chat template, which no code here knows."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures import chats
from tests.fixtures.tiny_model import make_tokenizer
from tests.fixtures.tokenizers import characters, mistral, smollm

from luthier.check.chat_turns import find, openers, rendered, turns
from luthier.check.context import Skip
from luthier.encoding.text_tokenizer import TextTokenizer

CHATML = {"assistant": "<|im_start|>assistant", "user": "<|im_start|>user", "system": "<|im_start|>system"}
HEADER = "<|start_header_id|>{}<|end_header_id|>"


def test_openers_of_templates_as_models_ship_them() -> None:
    llama = {role: HEADER.format(role) for role in ("assistant", "user", "tool", "system")}
    assert openers(TextTokenizer(chats.llama3())).texts == llama
    assert openers(TextTokenizer(make_tokenizer())).texts == CHATML | {"tool": "<|im_start|>tool"}
    assert openers(smollm()).texts == CHATML | {"tool": "<|im_start|>tool"}
    assert openers(mistral()).texts == {"assistant": "[/INST]", "user": "[INST]"}
    qwen = openers(TextTokenizer(chats.tokenizer(chats.QWEN3))).texts
    assert {role: qwen[role] for role in ("assistant", "user")} == {
        k: CHATML[k] for k in ("assistant", "user")
    }
    r1 = chats.tokenizer(chats.R1, ["<|User|>", "<|Assistant|>"])
    assert openers(TextTokenizer(r1)).texts == {"assistant": "<|Assistant|>", "user": "<|User|>"}


def test_openers_of_every_template_that_trl_ships() -> None:
    """No opener holds the end of the turn before, which the assistant is to learn."""
    trl = pytest.importorskip("trl")
    files = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    assert len(files) > 40
    num_found = 0
    for file in files:
        template = file.read_text()
        names = set(re.findall(r"<[|｜]?[\w｜▁|]+[|｜]?>|\[/?INST\]", template))
        tokenizer = TextTokenizer(
            chats.tokenizer(template, sorted(names - {"<think>"}), bos_token="<|endoftext|>")
        )
        try:
            found = openers(tokenizer).texts
        except Skip:
            continue
        num_found += 1
        for role, text in found.items():
            assert not re.search(r"end_of_turn|END_OF_TURN|eot_id|im_end|<turn\|>|end▁of", text), (
                file.name,
                role,
            )
            assert "given0answer" not in text and "asked0question" not in text
        assert found["user"] != found["assistant"]
    assert num_found > 40


def test_no_openers_without_control_tokens() -> None:
    plain = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}"
    with pytest.raises(Skip, match="plain text"):
        openers(TextTokenizer(chats.tokenizer(plain)))
    with pytest.raises(Skip, match="no chat template"):
        openers(characters())
    with pytest.raises(Skip, match="refuses"):
        openers(TextTokenizer(chats.tokenizer("{{ raise_exception('no') }}")))
    assert (
        rendered(
            TextTokenizer(chats.tokenizer("{{ raise_exception('no') }}")), [chats.conversations(1)[0][0]]
        )
        is None
    )


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=6),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
)
def test_find_is_what_a_search_row_by_row_finds(rows: list[list[int]], pattern: list[int]) -> None:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    ids = np.array([i for row in rows for i in row], np.int32)
    expected = [
        int(offset) + place
        for offset, row in zip(offsets, rows, strict=False)
        for place in range(len(row) - len(pattern) + 1)
        if row[place : place + len(pattern)] == pattern
    ]
    assert find(offsets, ids, pattern).tolist() == expected


@pytest.mark.parametrize("tool", [False, True])
def test_turns_of_rows_are_those_of_their_messages(tool: bool) -> None:
    hf = chats.llama3()
    given_ = chats.conversations(5, turns=2, tool=tool)
    rows = chats.rows(hf, given_)
    offsets = np.cumsum([0, *(len(row.input_ids) for row in rows)]).astype(np.int32)
    ids = np.concatenate([row.input_ids for row in rows])
    found = turns(offsets, ids, openers(TextTokenizer(hf)))
    roles = [[found.names[r] for r in found.roles[found.rows == i]] for i in range(5)]
    assert roles == [[message["role"] for message in messages] for messages in given_]
    tokenizer = TextTokenizer(hf)
    said = [tokenizer.decode(ids[a:b]) for a, b in zip(found.body, found.end, strict=True)]
    contents = [message["content"] for messages in given_ for message in messages]
    assert all(content in text for content, text in zip(contents, said, strict=True))
    assert (found.begin[1:] >= found.end[:-1]).all()


def test_no_turns_in_plain_rows() -> None:
    found = turns(np.array([0, 3]), np.array([5, 6, 7]), openers(TextTokenizer(make_tokenizer())))
    assert not len(found.begin) and not len(found.rows)
