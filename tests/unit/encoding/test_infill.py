"""Gaps by exact spans, on a tokenizer with a token for each byte."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from tests.fixtures.plain_tokenizer import plain_tokenizer

from luthier.encoding.infill import (
    SENTINELS,
    Gap,
    Gaps,
    Infill,
    before_line_break,
    draw_gap,
    filled,
    gap_spans,
    infill_prompt,
    infilled,
    sentinels,
    stop_tokens,
    without_overlap,
)
from luthier.errors import UserError
from luthier.records import Example, Span

NEW = SENTINELS["new"]
PLAIN = plain_tokenizer(special=NEW.tokens)


def mark(token: str) -> Span:
    return Span(token, "sentinel", control=True, apart=True)


BEFORE, BEHIND, HERE = map(mark, NEW.tokens[:3])
TRAINED = [Span("X", "middle", 1.0, apart=True), Span(NEW.end, "end", 1.0, control=True, apart=True)]


def gap(prefix: str = "abc", suffix: str = "defgh", max_length: int = 8, **options: Any) -> list[Span]:
    options = {"order": "psm", "marks": NEW, "tokenizer": PLAIN, **options}
    return gap_spans(prefix, suffix, "X", max_length=max_length, **options)


def test_the_far_end_of_a_suffix_goes_first_then_the_prefix() -> None:
    front = Span("abc", "prefix", trim="left", priority=1)
    back = [Span("de", "suffix", trim="right", priority=2), Span("fgh", "suffix", trim="right", priority=0)]
    assert gap() == [BEFORE, front, BEHIND, *back, HERE, *TRAINED]
    assert gap(order="spm") == [BEFORE, BEHIND, *back, HERE, front, *TRAINED]
    assert [s.text for s in gap(max_length=16) if s.name == "suffix"] == ["defg", "h"]
    assert [s.text for s in gap(max_length=20) if s.name == "suffix"] == ["defgh"]
    assert [s.text for s in gap(max_length=10) if s.name == "suffix"] == ["de", "fgh"], "a quarter, rounded"
    assert gap("", "") == [BEFORE, BEHIND, HERE, *TRAINED]


def test_context_stands_before_the_prefix_and_behind_what_leads_it() -> None:
    marks = SENTINELS["codellama"]
    held = Span("files", "file", trim="drop", priority=3)
    alone = gap(marks=marks)
    assert alone[1] == Span(" abc", "prefix", trim="left", priority=1)
    assert gap(marks=marks, context=[held])[1:4] == [
        Span(" ", "prefix"), held, Span("abc", "prefix", trim="left", priority=1),
    ]  # fmt: skip


def test_prefix_and_suffix_are_trained_but_for_what_is_too_much() -> None:
    def parts(max_length: int, tokenizer: Any = PLAIN) -> list[tuple[str, float, str]]:
        found = gap(max_length=max_length, loss="all", tokenizer=tokenizer)
        return [(s.text, s.weight, s.trim) for s in found if s.name in ("prefix", "suffix")]

    whole = [("abc", 1.0, "never"), ("defgh", 1.0, "never")]
    assert parts(13) == whole and parts(99) == whole
    assert parts(14, plain_tokenizer(bos=True, special=NEW.tokens)) == whole
    # One token too many, and four for what a cut may gain.
    cut = [("abc", 0, "left"), ("def", 1.0, "never"), ("gh", 0, "right")]
    assert parts(12) == cut and parts(13, plain_tokenizer(bos=True, special=NEW.tokens)) == cut
    assert parts(9) == [("abc", 0, "left"), ("defgh", 0, "right")]
    assert parts(1) == [("abc", 0, "left"), ("defgh", 0, "right")]
    by_one = gap("abcd", "efgh", max_length=12, loss="all")
    assert [(s.text, s.weight) for s in by_one if s.name == "suffix"] == [("efg", 1.0), ("h", 0)]
    long = gap("abcdefgh", "ij", max_length=14, loss="all")
    assert [(s.text, s.weight) for s in long if s.name in ("prefix", "suffix")] == [
        ("abcde", 0),
        ("fgh", 1.0),
        ("ij", 1.0),
    ]
    assert [
        (s.text, s.weight) for s in gap("abcde", "ij", max_length=11, loss="all") if s.name == "prefix"
    ] == [("abcde", 0)]


def test_a_prompt_is_all_before_the_middle() -> None:
    for order, asked in (("psm", "psm"), ("mixed", "psm"), ("spm", "spm")):
        options = Infill(order=order, sentinels="new")
        assert infill_prompt("abc", "defgh", options, PLAIN, 8) == gap(order=asked)[:-2]


@pytest.mark.parametrize(
    ("prefix", "before", "line_break"),
    [
        ("a\n", "a", "\n"),
        ("a\n \t", "a", "\n \t"),
        ("a\r\n ", "a", "\r\n "),
        ("a \n\n", "a", " \n\n"),
        ("a ", "a ", ""),
        ("", "", ""),
    ],
)
def test_a_line_break_before_a_gap_goes_to_the_middle(prefix: str, before: str, line_break: str) -> None:
    assert before_line_break(prefix, NEW) == (before, line_break)
    assert before_line_break(prefix, SENTINELS["starcoder"]) == (prefix, "")
    options = Infill(sentinels="new")
    asked = infill_prompt(prefix, "s", options, PLAIN, 30)
    assert asked == infill_prompt(before, "s", options, PLAIN, 30)
    assert filled(line_break + "bc", prefix, "s", options, PLAIN) == "bc"
    example = Example("r", [Span("unused", "text", 1.0)], "g")
    row = infilled(
        example,
        Infill(rate=1, sentinels="new"),
        PLAIN,
        max_length=30,
        seed=0,
        gap=lambda _: Gap(prefix, "s", "bc"),
    )
    assert [span for span in row.spans if not span.weight] == asked
    held = Span("files", "file", trim="drop")
    drawn = Gap(prefix, "s", "bc", [held])
    options = Infill(rate=1, sentinels="new")
    assert held in infilled(example, options, PLAIN, max_length=30, seed=0, gap=lambda _: drawn).spans
    assert [span.text for span in row.spans if span.weight] == [line_break + "bc", NEW.end]
    least = len(line_break + "bc") + len(NEW.tokens)  # all else may give way
    for length, has_gap in ((least - 1, False), (least, True)):
        made = infilled(
            example,
            Infill(rate=1, sentinels="new"),
            PLAIN,
            max_length=length,
            seed=0,
            gap=lambda _: Gap(prefix, "s", "bc"),
        )
        assert (made is not example) == has_gap


def test_a_gap_is_made_where_its_middle_has_room() -> None:
    example = Example(
        "r", [Span("abcd", "text", 1.0), Span("</s>", "end", 1.0, control=True)], "g", {"line": 1}
    )
    asked: list[random.Random] = []

    def drawn(draw: random.Random) -> Gap:
        asked.append(draw)
        return Gap("a", "e", "bcd")

    def made(length: int, tokenizer: Any = PLAIN, name: str = "new") -> Example:
        options = Gaps(rate=1.0, order="spm", sentinels=name)
        return infilled(example, options, tokenizer, max_length=length, seed=0, gap=drawn)

    assert made(7).meta == {"line": 1, "infill": "spm"} and made(6) == example
    assert [s.text for s in made(7).spans] == [
        *(s.text for s in (BEFORE, BEHIND)),
        "e",
        HERE.text,
        "a",
        "bcd",
        NEW.end,
    ]
    with_bos = plain_tokenizer(bos=True, special=NEW.tokens)
    assert made(8, with_bos).meta != example.meta and made(7, with_bos) == example
    spaced = plain_tokenizer(special=SENTINELS["codellama"].tokens)
    assert made(8, spaced, "codellama").meta != example.meta and made(7, spaced, "codellama") == example
    assert infilled(example, None, PLAIN, max_length=99, seed=0, gap=drawn) == example
    assert infilled(example, Gaps(rate=1.0), PLAIN, max_length=99, seed=0, gap=lambda _: None) == example
    # The draw is of seed and id, and begins behind the one of the rate.
    first = random.Random("0 infill r")
    first.random()
    again = random.Random()
    asked.clear()
    infilled(
        example,
        Gaps(rate=1.0),
        PLAIN,
        max_length=99,
        seed=0,
        gap=lambda draw: again.setstate(draw.getstate()),
    )
    assert again.random() == first.random()


def test_the_text_of_a_row_gets_its_gap_without_its_control_tokens() -> None:
    example = Example("r", [Span("ab\ncd\n", "text", 1.0), Span("</s>", "end", 1.0, control=True)], "g")
    found = infilled(example, Infill(rate=1.0, spans="lines", max_lines=1), PLAIN, max_length=99, seed=1)
    middle = next(s.text for s in found.spans if s.name == "middle")
    front, back = ("".join(s.text for s in found.spans if s.name == name) for name in ("prefix", "suffix"))
    assert (
        middle in ("ab\n", "\ncd\n")
        and front + middle + back == "ab\ncd\n"
        and "</s>" not in "".join(s.text for s in found.spans)
    )
    assert infilled(example, Infill(rate=1.0), PLAIN, max_length=4, seed=1) == example


class _Scripted(random.Random):
    """Gives the places that it was told, and counts how often it was asked."""

    def __init__(self, places: list[int], number: int = 1) -> None:
        super().__init__(0)
        self.places, self.number, self.asked = places, number, 0

    def sample(self, population: Any, k: int, **_: Any) -> list[int]:
        self.asked += 1
        assert set(self.places) <= set(population) and k == 2
        return self.places

    def randint(self, a: int, b: int) -> int:
        assert (a, b) == (1, 2)
        return self.number


def test_a_gap_ends_with_the_last_of_its_lines() -> None:
    text, options = "ab\ncd\nef", Infill(max_lines=2)
    assert draw_gap(text, Infill(), _Scripted([8, 0])) == (0, 8)
    assert draw_gap(text, options, _Scripted([1, 8], 1)) == (1, 3)
    assert draw_gap(text, options, _Scripted([1, 8], 2)) == (1, 6)
    assert draw_gap(text, options, _Scripted([3, 8], 1)) == (3, 6)
    assert draw_gap(text, options, _Scripted([4, 5], 1)) == (4, 5)
    assert draw_gap(text, options, _Scripted([7, 8], 2)) == (7, 8)


def test_a_gap_without_visible_text_is_drawn_anew_so_often() -> None:
    blank = _Scripted([2, 4])
    assert draw_gap("ab  cd", Infill(), blank) is None and blank.asked == 16
    assert draw_gap("a\nb", Infill(spans="lines"), _Scripted([0, 2])) == (0, 2)
    for text, spans in (("a", "characters"), ("ab\n", "lines"), ("", "characters")):
        never = _Scripted([0, 1])
        assert draw_gap(text, Infill(spans=spans), never) is None and never.asked == 0


def test_sentinels_are_those_of_the_vocabulary() -> None:
    both = plain_tokenizer(special=[*SENTINELS["starcoder"].tokens, *NEW.tokens])
    assert sentinels(both, "auto") == SENTINELS["starcoder"] and sentinels(both, "new") == NEW
    with pytest.raises(UserError) as raised:
        sentinels(PLAIN, "starcoder")
    assert raised.value.what == (
        "the tokenizer lacks '<fim_prefix>', '<fim_suffix>', '<fim_middle>', '<|endoftext|>' of the sentinel tokens of starcoder; "
        "sets that it has: new"
    )
    assert raised.value.fix.startswith("set it to one that it has, or for tokens of your own set")
    for name, what in (("new", "sets that it has: none"), ("auto", "has none of the known sets")):
        with pytest.raises(UserError, match=what) as raised:
            sentinels(plain_tokenizer(), name)
        assert raised.value.fix.startswith("for tokens of your own set task.infill.sentinels=new")
        assert raised.value.where == "recipe key task.infill.sentinels"


def test_what_ends_a_middle() -> None:
    star = SENTINELS["starcoder"]
    assert stop_tokens(star.tokens) == {"<|endoftext|>"}
    assert stop_tokens([*star.tokens, "<file_sep>", "x"]) == {"<|endoftext|>", "<file_sep>"}
    assert stop_tokens([*star.tokens[1:], "<file_sep>"]) == set()


def test_eight_visible_characters_are_an_overlap() -> None:
    assert without_overlap("x\nabcd efgh", "\nabcd efgh\nmore") == "x"
    assert without_overlap("x\nabcd efg", "\nabcd efgh") == "x\nabcd efg"
    assert without_overlap("abcdefgh", "abcdefgh") == "" and without_overlap("x", "y") == "x"
    assert without_overlap("abcdefghabcdefgh", "abcdefghabcdefgh12") == "", "the longest one"


def test_the_families_have_the_tokens_that_their_models_were_trained_with() -> None:
    # As the tokenizers of codellama/CodeLlama-7b-hf, bigcode/starcoder2-3b, Qwen/Qwen2.5-Coder-1.5B and
    # deepseek-ai/deepseek-coder-1.3b-base spell them.
    assert {name: (*marks.tokens, marks.lead, *marks.stops) for name, marks in SENTINELS.items()} == {
        "codellama": ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", " "),
        "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>", "", "<file_sep>"),
        "qwen2.5-coder": (
            "<|fim_prefix|>",
            "<|fim_suffix|>",
            "<|fim_middle|>",
            "<|endoftext|>",
            "",
            "<|file_sep|>",
        ),
        "deepseek-coder": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<｜end▁of▁sentence｜>", ""),
        "new": ("<|prefix|>", "<|suffix|>", "<|middle|>", "<|end_of_middle|>", ""),
    }


def test_the_defaults_are_those_of_pretraining_in_the_literature() -> None:
    options = Infill()
    assert (options.rate, options.order, options.sentinels, options.loss) == (0.5, "psm", "auto", "middle")
    assert (options.spans, options.max_lines) == ("characters", None) and gap(loss="middle") == gap()


def test_mixed_orders_are_drawn() -> None:
    options = Infill(rate=1.0, order="mixed")
    examples = [Example(f"r{i}", [Span("abc = def", "text")], "g") for i in range(20)]
    made = [infilled(one, options, PLAIN, max_length=99, seed=0) for one in examples]
    assert {one.meta["infill"] for one in made} == {"psm", "spm"}


def test_a_piece_that_is_no_control_token_is_no_sentinel() -> None:
    backend = SimpleNamespace(token_to_id=lambda _: 5)
    spelled = SimpleNamespace(hf=SimpleNamespace(backend_tokenizer=backend), encode=lambda *_, **__: [1, 2])
    with pytest.raises(UserError, match="none of the known sets"):
        sentinels(spelled, "auto")
