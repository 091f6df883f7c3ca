"""Fill-in-the-middle on tokenizers of several kinds, each with the sentinels of a family of models."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fixtures.tokenizers import characters, with_sentinels
from tests.property.test_encoding import TEXT
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.infill import (
    MIN_OVERLAP,
    SENTINELS,
    Gap,
    Infill,
    before_line_break,
    draw_gap,
    filled,
    gap_spans,
    infill_prompt,
    infilled,
    sentinels,
    without_overlap,
)
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Dropped, Example, Row, Span

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
OPTIONS = st.builds(
    Infill,
    rate=st.just(1.0),
    order=st.sampled_from(["psm", "spm", "mixed"]),
    spans=st.sampled_from(["characters", "lines"]),
    max_lines=st.none() | st.integers(1, 3),
    loss=st.sampled_from(["middle", "all"]),
)
LINES = st.lists(TEXT, min_size=2, max_size=5).map("\n".join)


families = pytest.mark.parametrize("name", SENTINELS)


def example(text: str) -> Example:
    return Example("row", [Span(text, "context"), Span("\n", "target", weight=1.0)], "group", {"line": 3})


def parts(spans: list[Span], lead: str) -> tuple[str, str, str]:
    prefix, suffix, middle = (
        "".join(s.text for s in spans if s.name == name) for name in ("prefix", "suffix", "middle")
    )
    assert prefix.startswith(lead)
    return prefix[len(lead) :], suffix, middle


@families
def test_prefix_middle_and_suffix_are_the_text(name: str) -> None:
    tokenizer, marks = with_sentinels(name), SENTINELS[name]
    made = 0

    @QUICK
    @given(LINES, OPTIONS, st.integers(0, 99))
    def check(text: str, options: Infill, seed: int) -> None:
        nonlocal made
        before = example(text)
        after = infilled(before, options, tokenizer, max_length=10_000, seed=seed)
        if "infill" not in after.meta:
            assert after == before
            return
        made += 1
        prefix, suffix, middle = parts(list(after.spans), marks.lead)
        assert prefix + middle + suffix == text + "\n" and middle.strip()
        assert after.meta == {"line": 3, "infill": after.meta["infill"]}
        order = [s.text for s in after.spans if s.control]
        assert order == [marks.prefix, marks.suffix, marks.middle, marks.end]
        names = [s.name for s in after.spans if s.name in ("prefix", "suffix")]
        if prefix and suffix:
            first = "prefix" if after.meta["infill"] == "psm" else "suffix"
            assert names[0] == first or (marks.lead and first == "prefix")
        if options.order != "mixed":
            assert after.meta["infill"] == options.order
        if options.max_lines:
            assert len(middle.strip().split("\n")) <= options.max_lines + (options.spans == "characters")

    check()
    assert made > 10


@families
def test_the_prompt_of_inference_is_what_training_had_before_the_middle(name: str) -> None:
    tokenizer, marks = with_sentinels(name), SENTINELS[name]

    @QUICK
    @given(TEXT, TEXT, TEXT.filter(str.strip), st.sampled_from(["psm", "spm"]), st.integers(12, 80))
    def check(prefix: str, suffix: str, middle: str, order: str, max_length: int) -> None:
        options = Infill(rate=1, order=order, sentinels=name)
        plain = Example("row", [Span(prefix + middle + suffix, "text", weight=1.0)], "group")
        made = infilled(
            plain,
            options,
            tokenizer,
            max_length=max_length,
            seed=0,
            gap=lambda _: Gap(prefix, suffix, middle),
        )
        row = encode(made, tokenizer, max_length)
        if isinstance(row, Dropped) or "infill" not in made.meta:
            return
        room = max_length - (len(row.input_ids) - row.num_prompt_tokens)
        asked = Example("row", infill_prompt(prefix, suffix, options, tokenizer, max_length), "group")
        assert encode_prompt(asked, tokenizer, room) == row.input_ids[: row.num_prompt_tokens].tolist()
        assert row.input_ids[-1] == tokenizer.hf.convert_tokens_to_ids(marks.end)
        assert row.loss_weights[-1] == 1 and int(row.input_ids[-1]) in tokenizer.stop_ids
        assert row.target == before_line_break(prefix, marks)[1] + middle
        assert filled(row.target, prefix, "", options, tokenizer) == middle

    check()


@families
@pytest.mark.parametrize("loss", ["middle", "all"])
def test_a_chunk_that_fits_still_fits_with_its_gap(name: str, loss: str) -> None:
    tokenizer = with_sentinels(name)

    @QUICK
    @given(LINES, st.integers(0, 99), st.sampled_from(["psm", "spm"]))
    def check(text: str, seed: int, order: str) -> None:
        length = max(24, len(tokenizer.encode(text, first=True)) + len(tokenizer.prefix_ids))
        options = Infill(rate=1.0, loss=loss, order=order)
        made = infilled(
            Example("r", [Span(text, "context")], "g"), options, tokenizer, max_length=length, seed=seed
        )
        if "infill" in made.meta:
            row = encode(made, tokenizer, length)
            assert isinstance(row, Row), row
            kept = [n for n in row.span_names if n in ("prefix", "suffix")]
            if (
                loss == "all" and kept and not row.trimmed
            ):  # nothing had to give way: all of the text is trained
                special = sum(int(i) in tokenizer.special_ids for i in row.input_ids) - 1
                assert int((row.loss_weights == 0).sum()) == special

    check()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_realised(rate: float) -> None:
    tokenizer, options = with_sentinels("new"), Infill(rate=rate, order="mixed")
    text = "alpha = 1\nbeta = 2\ngamma = alpha + beta\n"
    made = [
        infilled(Example(f"r{i}", [Span(text, "x")], "g"), options, tokenizer, max_length=200, seed=0).meta
        for i in range(2000)
    ]
    orders = [meta["infill"] for meta in made if meta]
    assert abs(len(orders) / 2000 - rate) < 0.04  # over three standard deviations
    assert abs(orders.count("psm") / len(orders) - 0.5) < 0.13


def test_sentinels_spelled_in_data_stay_text() -> None:
    tokenizer, marks = with_sentinels("starcoder"), SENTINELS["starcoder"]
    spans = gap_spans(
        "<fim_middle>",
        "<fim_prefix>",
        "<|endoftext|>",
        order="psm",
        marks=marks,
        tokenizer=tokenizer,
        max_length=500,
    )
    row = encode(Example("r", spans, "g"), tokenizer, 500)
    special = [tokenizer.decode([i]) for i in row.input_ids if int(i) in tokenizer.special_ids]
    assert special == list(marks.tokens)
    assert not row.lossy


def test_codellama_has_its_space_before_the_prefix_and_no_other() -> None:
    tokenizer = with_sentinels("codellama")
    spans = gap_spans(
        "def f", "x", "(y)", order="psm", marks=SENTINELS["codellama"], tokenizer=tokenizer, max_length=99
    )
    row = encode(Example("r", spans, "g"), tokenizer, 99)
    tokens = tokenizer.hf.convert_ids_to_tokens(row.input_ids.tolist())
    assert tokens == ["<s>", "▁<PRE>", "▁def", "▁f", "▁<SUF>", "x", "▁<MID>", "(", "y", ")", "▁<EOT>"]


def test_a_long_suffix_loses_its_end_and_a_long_prefix_its_beginning() -> None:
    tokenizer = with_sentinels("new")
    spans = gap_spans(
        "p" * 300 + "Q",
        "R" + "s" * 300,
        "m",
        order="psm",
        marks=SENTINELS["new"],
        tokenizer=tokenizer,
        max_length=100,
    )
    row = encode(Example("r", spans, "g"), tokenizer, 100)
    text = tokenizer.decode(row.input_ids)
    assert len(row.input_ids) == 100 and text.startswith("<|prefix|>p") and "pQ<|suffix|>Rs" in text
    assert text.count("s") - "<|suffix|>".count("s") >= 20 and text.count("p") > 50


@QUICK
@given(TEXT, TEXT, st.integers(0, 40))
def test_only_the_overlap_with_the_suffix_is_cut(middle: str, suffix: str, length: int) -> None:
    output = middle + suffix[:length]
    cut = without_overlap(output, suffix)
    assert output.startswith(cut)
    gone = output[len(cut) :]
    assert suffix.startswith(gone) and (not gone or len("".join(gone.split())) >= MIN_OVERLAP)
    if len("".join(suffix[:length].split())) >= MIN_OVERLAP:
        assert len(cut) <= len(middle)


def test_a_bracket_in_common_is_no_overlap() -> None:
    assert without_overlap("f(x)", ")\nreturn x\n") == "f(x)"
    assert without_overlap("f(x\n    return total", "\n    return total\n") == "f(x"


def test_gaps_reach_every_place() -> None:
    draw, text = random.Random(0), "ab\ncd\nef"
    by_lines = {draw_gap(text, Infill(spans="lines"), draw) for _ in range(300)}
    assert by_lines == {(0, 3), (0, 6), (0, 8), (3, 6), (3, 8), (6, 8)}
    single = {draw_gap(text, Infill(spans="lines", max_lines=1), draw) for _ in range(300)}
    assert single == {(0, 3), (3, 6), (6, 8)}
    ends = {gap for _ in range(5000) if (gap := draw_gap(text, Infill(), draw))}
    assert {a for a, _ in ends} == set(range(8)) and {b for _, b in ends} == set(range(1, 9))
    assert draw_gap("one line", Infill(spans="lines"), draw) is None
    assert draw_gap(" " * 50, Infill(), draw) is None


def test_sentinels_that_the_vocabulary_lacks_are_refused_with_those_that_it_has() -> None:
    from luthier.errors import UserError

    assert sentinels(with_sentinels("starcoder"), "auto") == SENTINELS["starcoder"]
    with pytest.raises(UserError) as raised:
        sentinels(with_sentinels("starcoder"), "codellama")
    assert "'▁<PRE>'" in raised.value.what and "sets that it has: starcoder" in raised.value.what
    with pytest.raises(UserError) as raised:
        sentinels(characters(), "auto")
    tokens = json.loads(raised.value.fix.partition("model.new_tokens=")[2].strip("'"))
    assert tokens == list(SENTINELS["new"].tokens)
    added = TextTokenizer(PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(characters().hf.backend_tokenizer.to_str()), eos_token="</s>"
    )).add_tokens(tokens)  # fmt: skip
    assert sentinels(added, "auto") == SENTINELS["new"]
    assert added.hf.convert_tokens_to_ids("<|end_of_middle|>") in added.stop_ids
