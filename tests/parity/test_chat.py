"""Conversations of ours against the ids that the tokenizers' own makers give."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.tokenizers import mistral, smollm

from luthier.encoding.chat import chat_spans
from luthier.encoding.encode import encode
from luthier.records import Example

CONTENT = st.lists(
    st.sampled_from(["def f(x):", "\n    ", "return", " 42", "é", "🙂", "\t", "<", "  ", "it's"]),
    min_size=1,
    max_size=6,
).map("".join)


def row(messages, tokenizer):
    weights = [0.0] * (len(messages) - 1) + [1.0]
    return encode(Example("r", chat_spans(messages, weights, tokenizer), "g"), tokenizer, 100_000)


def turns(contents):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@settings(max_examples=50, deadline=None)
@given(st.lists(CONTENT, min_size=2, max_size=6).filter(lambda contents: len(contents) % 2 == 0))
def test_the_prompt_has_the_ids_that_transformers_gives_for_generation(contents):
    tokenizer, messages = smollm(), turns(contents)
    made = row(messages, tokenizer)
    theirs = tokenizer.hf.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert list(made.input_ids[: made.num_prompt_tokens]) == list(theirs)
    assert made.input_ids[-1] == tokenizer.eos_id


# Without runs of spaces: transformers' conversion of a tokenizer.model merges those otherwise than SentencePiece.
@pytest.mark.parametrize(
    "contents",
    [
        ("Add two numbers.", "def add(a, b): return a + b"),
        ("hi", "yo", "And in </s> Java?", "int x = 1;"),
    ],
)
def test_a_conversation_has_the_ids_that_mistral_common_gives(contents):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the imports, not ours
        from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
        from mistral_common.protocol.instruct.request import InstructRequest
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        reference = MistralTokenizer.v3()
    tokenizer = mistral()
    made = row(turns(contents), tokenizer)
    kinds = (UserMessage, AssistantMessage)
    request = InstructRequest(messages=[kinds[i % 2](content=text) for i, text in enumerate(contents)])
    theirs = reference.instruct_tokenizer.encode_instruct(request).tokens
    assert list(made.input_ids) == theirs
