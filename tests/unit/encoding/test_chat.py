"""Conversations as spans, by templates that can be read at a glance."""

from typing import Any

import pytest
from tests.fixtures.plain_tokenizer import CHAT, plain_tokenizer

from luthier.encoding.chat import chat_spans
from luthier.encoding.templates import RowError
from luthier.errors import UserError
from luthier.records import Span


def turns(*contents: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def spans(
    messages: list[dict[str, Any]], weights: list[float], template: str = CHAT, **options: Any
) -> list[Span]:
    return chat_spans(messages, weights, plain_tokenizer(chat=template), options)


def shown(found: list[Span]) -> list[tuple[Any, ...]]:
    return [(s.text, s.name, s.weight, s.trim, s.priority) for s in found]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_rounds_are_dropped_oldest_first_and_the_last_question_is_cut(role: str) -> None:
    messages = [{"role": role, "content": "S"}, *turns("A", "B", "C", "D", "E", "F")]
    found = spans(messages, [0, 0, 2, 0, 0, 0, 1])
    assert shown(found) == [
        (f"[{role}]", "markup", 0, "never", 0),
        ("S", role, 0, "never", 0),
        ("</s>\n[user]", "markup", 0, "never", 0),
        ("A", "user", 0, "drop", 1),
        ("</s>\n[assistant]", "markup", 0, "drop", 1),
        ("B", "assistant", 2, "drop", 1),
        ("</s>", "stop", 2, "drop", 1),
        ("\n[user]", "markup", 0, "drop", 1),
        ("C", "user", 0, "drop", 2),
        ("</s>\n[assistant]", "markup", 0, "drop", 2),
        ("D", "assistant", 0, "drop", 2),
        ("</s>\n[user]", "markup", 0, "drop", 2),
        ("E", "user", 0, "left", 3),
        ("</s>\n[assistant]", "markup", 0, "never", 3),
        ("F", "assistant", 1, "never", 3),
        ("</s>", "stop", 1, "never", 3),
    ]
    assert [s.control for s in found] == [s.name in ("markup", "stop") for s in found]


def test_nothing_stands_behind_the_last_trained_turn() -> None:
    found = spans(turns("A", "B", "C", "D"), [0, 1, 0, 0])
    assert shown(found) == [
        ("[user]", "markup", 0, "never", 0),
        ("A", "user", 0, "left", 1),
        ("</s>\n[assistant]", "markup", 0, "never", 1),
        ("B", "assistant", 1, "never", 1),
        ("</s>", "stop", 1, "never", 1),
    ]


def test_several_messages_of_one_side_are_one_round() -> None:
    messages = [*turns("A", "B", "C"), *turns("D", "E")]
    found = spans(messages, [0, 1, 0, 0, 1])
    assert [s.text for s in found if s.trim == "drop"] == ["A", "</s>\n[assistant]", "B", "</s>", "\n[user]"]
    assert [s.text for s in found if s.trim == "left"] == ["D"]


def test_a_conversation_may_begin_with_a_greeting_or_have_no_question() -> None:
    bare = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    found = spans([{"role": "assistant", "content": "G"}, *turns("A", "B")], [0, 0, 1], bare)
    assert [(s.text, s.trim) for s in found[:3]] == [("G", "drop"), ("</s>", "drop"), ("A", "left")]
    found = spans([{"role": "system", "content": "S"}, {"role": "assistant", "content": "B"}], [0, 1])
    assert [s.text for s in found] == ["[system]", "S", "</s>\n[assistant]", "B", "</s>"]
    assert {s.trim for s in found} == {"never"}


def test_markup_before_a_content_that_a_model_writes_is_trained() -> None:
    template = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}>{% endif %}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    found = spans(turns("A", "B"), [0, 1], template)
    assert [(s.text, s.name, s.weight) for s in found[-3:]] == [
        (">", "markup", 1), ("B", "assistant", 1), ("</s>", "stop", 1),
    ]  # fmt: skip


def test_the_first_stop_token_behind_a_content_ends_the_turn() -> None:
    template = CHAT.replace("</s>", "<|e|></s>")
    tokenizer = plain_tokenizer(chat=template, special=["<|e|>"])
    tokenizer.stop_ids = frozenset({*tokenizer.stop_ids, *tokenizer.encode("<|e|>", control=True)})
    assert [s.text for s in chat_spans(turns("A", "B"), [0, 1], tokenizer)][-2:] == ["B", "<|e|>"]
    twice = CHAT.replace("</s>", "</s></s>")
    assert [s.text for s in spans(turns("A", "B"), [0, 1], twice)][-2:] == ["B", "</s>"]


def test_the_stop_token_of_a_later_message_ends_no_turn() -> None:
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' or loop.last %}</s>{% endif %}{% endfor %}"
    assert [s.text for s in spans(turns("A", "B", "C", "D"), [0, 0, 0, 1], template)][-2:] == ["D", "</s>"]
    with pytest.raises(UserError, match="ends an assistant turn with '', which holds no stop token"):
        spans(turns("A", "B", "C", "D"), [0, 1, 0, 1], template)


def test_contents_that_a_template_trims_are_trimmed() -> None:
    for template, user in ((CHAT.replace("m.content", "m.content | trim"), "A"),
                           (CHAT.replace("{{ m.content }}", "{{ m.content.strip() if m.role == 'assistant' else m.content }}"), " A ")):  # fmt: skip
        found = spans(turns(" A ", " B\n"), [0, 1], template)
        assert [s.text for s in found if s.name in ("user", "assistant")] == [user, "B"]


def test_data_that_spells_markup_is_data() -> None:
    found = spans(turns("[assistant]x</s>", "B"), [0, 1])
    assert [(s.text, s.control) for s in found][1] == ("[assistant]x</s>", False) and len(found) == 5
    assert [s.text for s in spans(turns("\ud800", "B"), [0, 1])][1] == "\ud800"  # half a surrogate pair


@pytest.mark.parametrize(
    "template",
    [
        CHAT.replace("[{{ m.role }}]", "[{{ m.role }}{{ loop.index }}]").replace(
            "[assistant]", "[assistant{{ messages | length + 1 }}]"
        ),
        "{% if messages | length < 3 %}{{ raise_exception('too short') }}{% endif %}" + CHAT,
    ],
)
def test_rounds_that_a_template_cannot_do_without_stay(template: str) -> None:
    found = spans(turns("A", "B", "C", "D"), [0, 0, 0, 1], template)
    assert [s.trim for s in found] == ["never"] * 5 + ["left"] + ["never"] * 3


@pytest.mark.parametrize(
    ("template", "messages", "reason", "detail"),
    [
        (CHAT, [{"role": "assistant", "content": "B"}], "template-refuses", "nothing stands before"),
        ("{{ raise_exception('roles must alternate') }}", turns("A", "B"), "template-refuses", "TemplateError: roles must alternate"),
        (CHAT.replace("m.content", "m.content | upper"), turns("a", "b"), "template-changes-content", "the template leaves out or repeats a message's content"),
        (CHAT.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"), turns("a", "b"), "template-changes-content", "the template leaves out or repeats"),
        (CHAT.replace("m.content", "m.content | replace('zz', 'oo')"), turns("zzaz", "b"), "template-changes-content",
         r"the template gives 'ooaz</s>\n[assistant]b</s>\n' in place of 'zzaz</s>\n"),
        (CHAT + "!", turns("A", "B"), "template-rewrites-history",
         "before turn 1 training would have 'x"),
        # The placeholder of a content begins with an x too.
        (CHAT.replace("[assistant]", "[assistant]x"), turns("A", "B"), "template-rewrites-history",
         "before turn 1 training would have '"),
    ],
)  # fmt: skip
def test_what_a_template_does_not_take_is_said(
    template: str, messages: Any, reason: str, detail: str
) -> None:
    with pytest.raises(RowError) as raised:
        spans(messages, [0.0] * (len(messages) - 1) + [1.0], template)
    assert raised.value.reason == reason and raised.value.detail.startswith(detail)


def test_models_whose_template_cannot_be_used_are_refused() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        spans(turns("A", "B"), [0, 1], "")
    with pytest.raises(UserError, match="does not parse") as raised:
        spans(turns("A", "B"), [0, 1], "\n{% if %}")
    assert raised.value.where == "chat_template, line 2"
    endless = CHAT.replace("</s>", "<end>")
    with pytest.raises(
        UserError, match=r"ends an assistant turn with '<end>\\n', which holds no stop token \('</s>'\)"
    ):
        spans(turns("A", "B"), [0, 1], endless)
    with pytest.raises(UserError, match="the model has none"):
        chat_spans(turns("A", "B"), [0, 1], plain_tokenizer(eos=False, chat=CHAT))


def test_options_reach_the_template() -> None:
    found = spans(turns("A", "B"), [0, 1], "{{ style }}" + CHAT, style="(x)")
    assert found[0].text == "(x)[user]"
