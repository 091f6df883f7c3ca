"""Rows of a tokenizer with a token for each byte: every figure counted by hand."""

from dataclasses import replace

import numpy as np
import pytest
from tests.fixtures.plain_tokenizer import plain_tokenizer, spaced_tokenizer

from luthier.encoding.encode import encode, encode_prompt
from luthier.records import Dropped, Example, Row, Span

PLAIN, BOS = plain_tokenizer(), plain_tokenizer(bos=True)


def example(*spans: Span, **others: object) -> Example:
    return Example("r", list(spans), "g", **others)


def made(spans: Example, max_length: int = 100, tokenizer: object = PLAIN) -> Row:
    row = encode(spans, tokenizer, max_length)
    assert isinstance(row, Row), row
    return row


def dropped(spans: Example, max_length: int = 100, tokenizer: object = PLAIN) -> tuple[str, str]:
    found = encode(spans, tokenizer, max_length)
    assert isinstance(found, Dropped) and found.id == "r" and found.budgeted
    return found.reason, found.detail


def context(text: str, trim: str = "left", priority: int = 0) -> Span:
    return Span(text, text, trim=trim, priority=priority)


def target(text: str = "TT", weight: float = 1.0, trim: str = "never") -> Span:
    return Span(text, "target", weight, trim)


STOP = Span("</s>", "stop", weight=0.5, control=True)


def test_a_row_holds_its_spans() -> None:
    row = made(replace(example(context("abc"), target("dé", 2.0), STOP), meta={"line": 3}))
    assert (
        row.input_ids.tolist() == [*PLAIN.encode("abcdé"), PLAIN.eos_id] and row.input_ids.dtype == np.int32
    )
    assert row.loss_weights.tolist() == [0, 0, 0, 2, 2, 2, 0.5] and row.loss_weights.dtype == np.float32
    assert row.span_ids.tolist() == [0, 0, 0, 1, 1, 1, 2] and row.span_ids.dtype == np.int16
    assert list(row.span_names) == ["abc", "target", "stop"]
    assert (row.id, row.group, row.meta, row.trimmed, row.lossy) == ("r", "g", {"line": 3}, {}, False)
    assert (row.num_prompt_tokens, row.target, row.target_bytes) == (3, "dé", 3)


def test_the_tokenizers_own_prefix_comes_first_and_once() -> None:
    row = made(example(context("a"), target("b")), tokenizer=BOS)
    assert row.input_ids.tolist() == [BOS.bos_id, *BOS.encode("ab")] and row.input_ids.dtype == np.int32
    assert row.span_ids.tolist() == [2, 0, 1] and list(row.span_names) == ["a", "target", "start"]
    assert row.num_prompt_tokens == 2
    own = made(example(Span("<s>", "markup", control=True), target("b")), tokenizer=BOS)
    assert own.input_ids.tolist() == [BOS.bos_id, *BOS.encode("b")] and list(own.span_names) == [
        "markup",
        "target",
    ]
    assert made(example(target("b")), tokenizer=BOS).num_prompt_tokens == 1


def test_only_what_begins_a_row_gets_the_space_before_a_text() -> None:
    tokenizer = spaced_tokenizer()
    begins, goes_on = tokenizer.encode("a", first=True), tokenizer.encode("b")
    row = made(example(context("a"), target("b")), tokenizer=tokenizer)
    assert row.input_ids.tolist() == [*begins, *goes_on] and not row.lossy
    assert begins != tokenizer.encode("a") and goes_on != tokenizer.encode("b", first=True)


def test_trained_text_is_never_cut() -> None:
    for trim in ("left", "right"):
        with pytest.raises(ValueError, match=f"span 'target' of r is trained and may not be trimmed {trim}"):
            encode(example(context("a"), target("b", trim=trim)), PLAIN, 9)


def test_what_has_no_room_says_why() -> None:
    assert dropped(example(context("abc"))) == ("no-target", "no trained token")
    assert dropped(example(context("abc"), Span("", "target", weight=1.0)))[0] == "no-target"
    assert len(made(example(context("abc"), target("TTTT")), 4 + 1).input_ids) == 5
    assert dropped(example(context("abc"), target("TTTT")), 3) == (
        "target-too-long", "1 tokens over max_length 3 when all that may go is gone",
    )  # fmt: skip
    fixed = example(context("abc", "never"), target("TTTT"))
    assert len(made(fixed, 7).input_ids) == 7
    assert dropped(fixed, 6) == ("too-long", "1 tokens over max_length 6 when all that may go is gone")
    assert dropped(fixed, 4)[0] == "too-long" and dropped(fixed, 3)[0] == "target-too-long"
    assert dropped(example(context("abc"), target()), 2) == (
        "no-context", "nothing stands before the first trained token to predict it from",
    )  # fmt: skip
    assert dropped(example(target()))[0] == "no-context"
    only = example(context("abc"), target("TTTT", trim="drop"))
    assert dropped(only, 3) == ("target-too-long", "no trained span fits into max_length 3")


def test_trained_spans_that_have_gone_are_not_what_is_too_long() -> None:
    turns = example(context("abcde", "never"), target("T" * 20, trim="drop"), target("TT"))
    assert dropped(turns, 6) == ("too-long", "1 tokens over max_length 6 when all that may go is gone")
    assert dropped(turns, 1)[0] == "target-too-long"


def test_the_lowest_priority_gives_way_first_and_no_more_than_needed() -> None:
    spans = example(
        context("abcd", "left", 2), context("efgh", "right", 1), context("ijkl", "never"), target()
    )
    shown = {
        14: "abcdefghijklTT",
        13: "abcdefgijklTT",
        11: "abcdeijklTT",
        10: "abcdijklTT",
        9: "bcdijklTT",
        6: "ijklTT",
    }
    for length, text in shown.items():
        assert PLAIN.decode(made(spans, length).input_ids) == text
    assert made(spans, 9).trimmed == {"efgh": 4, "abcd": 1} and made(spans, 13).trimmed == {"efgh": 1}
    row = made(spans, 6)
    assert list(row.span_names) == ["ijkl", "target"] and row.span_ids.tolist() == [0, 0, 0, 0, 1, 1]


def test_spans_of_one_priority_give_way_in_order_and_those_that_drop_together() -> None:
    both = example(context("abc"), Span("def", "abc", trim="left"), target())
    assert PLAIN.decode(made(both, 4).input_ids) == "efTT"[-4:] and made(both, 4).trimmed == {"abc": 4}
    drops = example(
        context("ab", "drop"), context("cd"), context("ef", "drop"), context("g", "drop", 1), target()
    )
    for length, text in {9: "abcdefgTT", 8: "cdgTT", 5: "cdgTT", 4: "dgTT", 3: "gTT"}.items():
        assert PLAIN.decode(made(drops, length).input_ids) == text
    assert made(drops, 4).trimmed == {"ab": 2, "ef": 2, "cd": 1}


def test_trained_spans_may_be_dropped_when_another_one_stays() -> None:
    turns = example(context("a", "never"), target("bcd", trim="drop"), context("e", "never"), target("fg"))
    assert made(turns, 7).target == "bcdfg"
    row = made(turns, 6)
    assert (row.target, row.target_bytes, row.num_prompt_tokens) == ("fg", 2, 2)


def test_a_labelled_row_has_its_weight_on_the_last_token() -> None:
    spans = example(context("abcd", "right"), label="spam", weight=0.25)
    row = made(spans, 3)
    assert row.loss_weights.tolist() == [0, 0, 0.25] and PLAIN.decode(row.input_ids) == "abc"
    assert (row.num_prompt_tokens, row.target, row.target_bytes, row.trimmed) == (3, "spam", 0, {"abcd": 1})
    assert encode_prompt(spans, PLAIN, 3) == PLAIN.encode("abc")
    for tokenizer in (PLAIN, BOS):
        assert dropped(example(context("", "right"), label="spam"), tokenizer=tokenizer) == (
            "no-text", "there is no text to label",
        )  # fmt: skip
    with pytest.raises(ValueError, match="the text of r does not fit: 1 tokens over max_length 3"):
        encode_prompt(example(context("abcd", "never"), label="x"), PLAIN, 3)


def test_a_prompt_is_what_stands_before_the_first_target_trimmed_alike() -> None:
    spans = example(context("abcd"), context("e", "never"), target("TT"), context("behind"), target("UU"))
    assert encode_prompt(spans, PLAIN, 99) == PLAIN.encode("abcde")
    assert encode_prompt(spans, PLAIN, 3) == PLAIN.encode("cde")
    assert encode_prompt(spans, BOS, 3) == [BOS.bos_id, *BOS.encode("de")]
    assert encode_prompt(example(target()), BOS, 3) == [BOS.bos_id]
    with pytest.raises(ValueError, match="the prompt of r does not fit: over 3 tokens are left"):
        encode_prompt(example(context("abcd", "never"), target()), PLAIN, 3)
    with pytest.raises(ValueError, match="the prompt of r does not fit: nothing stands before"):
        encode_prompt(example(target()), PLAIN, 3)
    assert encode_prompt(example(context("abc", "never"), target()), PLAIN, 3) == PLAIN.encode("abc")


def test_spans_share_tokens_only_among_those_that_are_trained_alike() -> None:
    tokenizer = plain_tokenizer(merges=[("a", "b")])
    joined, apart = tokenizer.encode("ab"), [*tokenizer.encode("a"), *tokenizer.encode("b")]
    assert len(joined) == 1 and len(apart) == 2
    x = Span("x", "x")
    for first, second, ids in (
        (Span("a", "1"), Span("b", "2"), joined),
        (Span("a", "1", 1.0), Span("b", "2", 0.5), joined),
        (Span("a", "1"), Span("b", "2", 1.0), apart),
        (Span("a", "1", apart=True), Span("b", "2"), apart),
        (Span("a", "1"), Span("b", "2", apart=True), apart),
    ):
        row = made(example(x, first, second, target()), tokenizer=tokenizer)
        assert row.input_ids.tolist()[1:-2] == ids
    # A span whose only token begins in the one before it is there all the same.
    whole = made(example(x, target("a"), Span("b", "more", 0.5)), tokenizer=tokenizer)
    assert (whole.target, whole.target_bytes, whole.loss_weights.tolist()) == ("ab", 2, [0, 1])


def test_control_tokens_are_those_of_control_spans_alone() -> None:
    def control(text: str) -> Span:
        return Span(text, "markup", control=True)

    eos = PLAIN.eos_id
    data = made(example(context("</s>"), target("</s>"))).input_ids
    assert eos not in data and PLAIN.decode(data) == "</s></s>"
    assert eos not in made(example(control("q\n"), context("</s>"), target())).input_ids
    mixed = made(
        example(
            control("q</s>r"), context("a</s>"), control("b</s>c</s>"), context("</s"), control(">"), target()
        )
    )
    ids = mixed.input_ids.tolist()
    assert PLAIN.decode(ids) == "q</s>ra</s>b</s>c</s></s>TT"
    assert [i for i, token in enumerate(ids) if token == eos] == [1, 9, 11]
    assert [mixed.span_names[i] for i in mixed.span_ids[:15]] == ["markup"] * 3 + ["a</s>"] * 5 + [
        "markup"
    ] * 4 + ["</s"] * 3


def test_text_that_does_not_come_back_is_named() -> None:
    tokenizer = plain_tokenizer(without="z")
    assert not made(example(context("a"), target("b")), tokenizer=tokenizer).lossy
    assert made(example(context("az"), target("b")), tokenizer=tokenizer).lossy
    assert made(example(context("a"), target("zb")), tokenizer=tokenizer).lossy
