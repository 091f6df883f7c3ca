"""The instruction task, with chat templates in the manner of several model families."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from luthier.encoding.encode import encode
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError, UserErrors
from luthier.recipe import build
from luthier.records import Dropped, Record
from luthier.tasks.instruction import Instruction

# Written for these tests after the ways of ChatML, Llama 3, Mistral (system text in the last user turn, strict order),
# Gemma (no system turn), Qwen 3 (a thinking block in the last answer only) and R1 (thinking in the generation prompt).
CHATML = """
{%- for m in messages %}{% if loop.first and m.role != 'system' %}<s>system
Default.<e>
{% endif %}<s>{{ m.role }}
{{ m.content }}<e>
{% endfor %}{% if add_generation_prompt %}<s>assistant
{% endif %}"""
TRIMS = """
{{- '<b>' }}{% for m in messages %}<s>{{ m.role }}

{{ m.content | trim }}<e>{% endfor %}{% if add_generation_prompt %}<s>assistant

{% endif %}"""
STRICT = """
{{- '<b>' }}{% set ns = namespace(system='') %}{% for m in messages %}
{%- if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}
{%- elif m.role == 'user' %}
{%- if not loop.first and loop.previtem.role == 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<s>' }}{% if loop.index >= messages | length - (0 if add_generation_prompt else 1) %}{{ ns.system }}{% endif %}{{ m.content }}<t>
{%- else %} {{ m.content }}<e>
{%- endif %}{% endfor %}"""
THINKS = """
{%- for m in messages %}<s>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<t>

</t>

{% endif %}{{ m.content.split('</t>')[-1] if m.role == 'assistant' else m.content }}<e>
{% endfor %}{% if add_generation_prompt %}<s>assistant
{% if no_think %}<t>

</t>

{% endif %}{% endif %}"""
FORCED = CHATML.replace("<s>assistant\n{% endif %}", "<s>assistant\n<t>\n{% endif %}")
ENDLESS = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
DEAF = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}")


def tokenizer(template=CHATML, **tokens):
    """Single bytes, so that ids are easy to follow."""
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<b>", "<s>", "<e>", "<t>", "</t>"])
    tokens = {"bos_token": "<b>", "eos_token": "<e>", **tokens}
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **tokens))


def turns(*contents, system=None, **last):
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    messages[-1] |= last
    return [{"role": "system", "content": system}] * (system is not None) + messages


def example(task, fields, tok, split="train"):
    [made] = task.examples(Record("r", fields, "g"), split, tok, max_length=512, seed=0)
    return made


def chat(messages, tok, split="train", **options):
    return example(Instruction(**options), {"messages": messages}, tok, split)


def joined(made):
    return "".join(span.text for span in made.spans)


def trained(made):
    """Text of each stretch that is trained, with its weight."""
    stretches = []
    for before, span in zip([None, *made.spans], made.spans, strict=False):
        if span.weight and before is not None and before.weight == span.weight:
            stretches[-1] = (stretches[-1][0] + span.text, span.weight)
        elif span.weight:
            stretches.append((span.text, span.weight))
    return stretches


# Columns through templates


def test_plain_is_prompt_response_and_end_of_text():
    task = Instruction(format="plain", prompt_template="Q: {{ q }}\nA:", response_template=" {{ a }}")
    made = example(task, {"q": "1+1? <e>", "a": "2"}, tokenizer())
    assert [(s.text, s.name, s.weight, s.trim, s.control) for s in made.spans] == [
        ("Q: 1+1? <e>\nA:", "prompt", 0.0, "left", False),
        (" 2", "response", 1.0, "never", False),
        ("<e>", "stop", 1.0, "never", True),
    ]
    assert made.meta == {"format": "plain"}


def test_columns_become_a_user_and_an_assistant_turn():
    tok = tokenizer()
    made = example(Instruction(system="Be brief."), {"prompt": "hi", "response": "yo"}, tok)
    wanted = turns("hi", "yo", system="Be brief.")
    assert joined(made) == tok.hf.apply_chat_template(wanted, tokenize=False).removesuffix("\n")
    assert trained(made) == [("yo<e>", 1.0)]
    assert made.meta == {"format": "chat"}


def test_auto_is_plain_without_a_chat_template():
    made = example(Instruction(), {"prompt": "hi", "response": "yo"}, tokenizer(None))
    assert made.meta == {"format": "plain"} and joined(made) == "hiyo<e>"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "hi"}, "missing-field"),
        ({"prompt": "hi", "response": None}, "missing-field"),
        ({"prompt": "hi", "response": " \n"}, "empty-target"),
        ({"messages": "hi"}, "bad-messages"),
        ({"messages": ["hi"]}, "bad-messages"),
        ({"messages": [{"role": "user"}, {"role": None, "content": "x"}]}, "bad-messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "bad-messages"),
        ({"messages": []}, "no-target"),
        ({"messages": turns("hi")}, "no-target"),
        ({"messages": turns("hi", "yo", weight=0)}, "no-target"),
        ({"messages": turns("hi", "")}, "empty-target"),
        ({"messages": turns("hi", "yo", weight=-1)}, "bad-messages"),
        ({"messages": turns("hi", "yo", weight=True)}, "bad-messages"),
        ({"messages": turns("hi", "yo", weight=float("nan"))}, "bad-messages"),
        ({"messages": turns("hi", "yo", "ok", weight=2)}, "bad-messages"),
        ({"messages": turns("hi", "yo")[1:]}, "template-refuses"),
    ],
)
def test_rows_that_cannot_be_used_are_dropped_by_reason(fields, reason):
    made = example(Instruction(), fields, tokenizer())
    assert isinstance(made, Dropped) and made.reason == reason and made.budgeted and made.detail


def test_all_mistakes_of_the_options_are_reported_when_the_task_is_built():
    with pytest.raises(UserErrors) as raised:
        build("task", {
            "type": "instruction",
            "format": "plain",
            "system": "x",
            "prompt_template": "a\n{{ b",
            "response_template": "{% if %}",
            "template_options": {"tokenize": True},
        })  # fmt: skip
    assert [error.where for error in raised.value.errors] == [
        "recipe key task.prompt_template, line 2 of the template",
        "recipe key task.response_template, line 1 of the template",
        "recipe key task.template_options",
        "recipe key task.system",
    ]


def test_a_model_that_cannot_be_used_is_an_error_not_a_dropped_row():
    fields = {"prompt": "hi", "response": "yo"}
    with pytest.raises(UserError, match="no chat template"):
        example(Instruction(format="chat"), fields, tokenizer(None))
    with pytest.raises(UserError, match="no chat template"):
        example(Instruction(), {"messages": turns("hi", "yo")}, tokenizer(None))
    with pytest.raises(UserError, match="no system message"):
        example(Instruction(system="x"), fields, tokenizer(None))
    with pytest.raises(UserError, match="no end-of-text"):
        example(Instruction(format="plain"), fields, tokenizer(eos_token=None))
    with pytest.raises(UserError, match="does not parse"):
        example(Instruction(), fields, tokenizer("{% for"))
    with pytest.raises(UserError, match="never end"):
        example(Instruction(), fields, tokenizer(ENDLESS))


# Conversations


@pytest.mark.parametrize(
    "template", [CHATML, TRIMS, STRICT, THINKS], ids=["chatml", "trims", "strict", "thinks"]
)
@pytest.mark.parametrize("contents", [("hi <e>", "yo"), ("\n a", "b ", "{{ c }}", " d <s>\n")])
def test_the_text_is_the_templates_and_the_prompt_that_of_generation(template, contents):
    tok = tokenizer(template)
    messages = turns(*contents)
    made = chat(messages, tok, turn_weights="last")
    whole = tok.hf.apply_chat_template(messages, tokenize=False)
    assert whole.startswith(joined(made)) and whole[len(joined(made)) :].strip() == ""
    prompt = tok.hf.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert "".join(span.text for span in made.spans if not span.weight) == prompt
    assert made.spans[-1].text.endswith("<e>") and made.spans[-1].control


def test_every_assistant_turn_is_trained_through_its_stop_token_with_its_weight():
    made = chat(
        [*turns("a", "b", "c", "d", weight=0.25), {"role": "user", "content": "unanswered"}], tokenizer()
    )
    assert trained(made) == [("b<e>", 1.0), ("d<e>", 0.25)]
    assert joined(made).endswith("d<e>")  # nothing that no trained token sees
    made = chat(turns("a", "b", "c", "d", weight=0), tokenizer())
    assert trained(made) == [("b<e>", 1.0)]


def test_markup_that_the_model_has_to_write_is_trained():
    assert trained(chat(turns("a", "b"), tokenizer(THINKS))) == [("<t>\n\n</t>\n\nb<e>", 1.0)]
    made = chat(turns("a", "b"), tokenizer(THINKS), template_options={"no_think": True})
    assert trained(made) == [("b<e>", 1.0)]


@pytest.mark.parametrize("how", [{"turn_weights": "last"}, {"split": "eval"}, {"split": "test"}])
def test_only_the_last_turn_is_trained_when_asked_and_compared_in_any_case(how):
    assert trained(chat(turns("a", "b", "c", "d"), tokenizer(), **how)) == [("d<e>", 1.0)]


def test_contents_are_data_and_markup_is_control():
    tok = tokenizer()
    row = encode(chat(turns("hi <e>", "<s>yo<e>"), tok), tok, 512)
    assert [tok.decode([i]) for i in row.input_ids if i in tok.special_ids] == [
        "<s>",
        "<e>",
        "<s>",
        "<e>",
        "<s>",
        "<e>",
    ]
    assert row.target == "<s>yo<e>" and not row.lossy
    assert row.input_ids[-1] == tok.eos_id and row.loss_weights[-1] == 1


def test_bos_of_the_template_is_the_only_one():
    tok = tokenizer(STRICT)
    row = encode(chat(turns("hi", "yo"), tok), tok, 512)
    assert [i for i in row.input_ids if i == tok.bos_id] == [tok.bos_id]


def test_trimmed_contents_are_taken_as_the_template_gives_them():
    made = chat(turns("  hi\n", " yo "), tokenizer(TRIMS))
    assert trained(made) == [("yo<e>", 1.0)]


@pytest.mark.parametrize(
    ("template", "messages", "reason", "detail"),
    [
        (STRICT, [*turns("a"), *turns("b", "c")], "template-refuses", "roles must alternate"),
        (THINKS, turns("a", "<t>x</t>b", "c", "d"), "template-changes-content", "'<t>x"),
        (DEAF, turns("a", "b", system="Be brief."), "template-changes-content", "leaves out"),
        (FORCED, turns("a", "b"), "template-rewrites-history", "<t>"),
        (STRICT, turns("a", "b", "c", "d", system="s"), "template-rewrites-history", "before turn 2"),
    ],
)
def test_what_the_template_would_change_is_dropped_with_its_reason(template, messages, reason, detail):
    made = chat(messages, tokenizer(template))
    assert isinstance(made, Dropped) and made.reason == reason and detail in made.detail


def test_a_system_text_in_the_last_user_turn_works_where_only_that_turn_is_trained():
    tok = tokenizer(STRICT)
    made = chat(turns("a", "b", "c", "d", system="s"), tok, turn_weights="last")
    assert joined(made) == "<b><s>a<t> b<e><s>s\n\nc<t> d<e>"


def test_sharegpt_and_null_keys_are_read():
    rows = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a", "weight": None},
    ]
    made = example(Instruction(), {"conversations": rows}, tokenizer())
    assert joined(made) == "<s>system\ns<e>\n<s>user\nq<e>\n<s>assistant\na<e>"


def test_other_roles_go_to_the_template():
    messages = [*turns("a"), {"role": "tool", "content": "42"}, {"role": "assistant", "content": "b"}]
    assert "<s>tool\n42<e>" in joined(chat(messages, tokenizer()))


def test_the_rows_own_system_message_wins():
    made = chat(turns("a", "b", system="own"), tokenizer(), system="recipe's")
    assert "own" in joined(made) and "recipe's" not in joined(made)


def test_a_column_may_be_named_or_passed_over():
    fields = {"messages": turns("a", "b"), "dialog": turns("c", "d"), "prompt": "e", "response": "f"}
    assert trained(example(Instruction(messages="dialog"), fields, tokenizer())) == [("d<e>", 1.0)]
    assert trained(example(Instruction(messages=None), fields, tokenizer())) == [("f<e>", 1.0)]
    assert example(Instruction(messages="other"), fields, tokenizer()).reason == "missing-field"


@pytest.mark.parametrize("template", [CHATML, TRIMS, STRICT], ids=["chatml", "trims", "strict"])
@pytest.mark.parametrize("system", [None, "sys"])
def test_a_long_conversation_loses_whole_rounds_and_is_what_the_template_gives_without_them(template, system):
    tok = tokenizer(template)
    messages = turns("a" * 40, "b" * 40, "c" * 40, "d" * 40, "e" * 40, "f", system=system)
    made = chat(messages, tok, turn_weights="last")
    row = encode(made, tok, 10_000)
    head = [] if system is None else messages[:1]
    kept = messages[len(head) :]
    for _ in range(2):
        kept = kept[2:]
        row = encode(made, tok, len(row.input_ids) - 1)
        expected = tok.hf.apply_chat_template([*head, *kept], tokenize=False)
        assert expected.startswith(tok.decode(row.input_ids, first=True))
        assert row.input_ids[-1] == tok.eos_id
    # At last the last user turn gives way from its left, then the row.
    row = encode(made, tok, len(row.input_ids) - 10)
    assert "e" * 30 + ("<t>" if template == STRICT else "<e>") in tok.decode(row.input_ids)
    assert "e" * 31 not in tok.decode(row.input_ids)
    assert isinstance(encode(made, tok, 5), Dropped)


def test_a_typed_prompt_is_that_of_training():
    tok, task = tokenizer(), Instruction()
    made = example(task, {"prompt": "hi", "response": "yo"}, tok)
    assert "".join(s.text for s in task.prompt("hi", tok)) == "".join(
        s.text for s in made.spans if not s.weight
    )
    assert [span.text for span in Instruction(format="plain").prompt("hi", tok)] == ["hi"]


def test_answers_and_duplicates():
    task = Instruction()
    assert task.answer("\n yes ") == "yes"
    one = Record("1", {"messages": turns("a", "b", system="s"), "id": "1"}, "g")
    other = Record(
        "2",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": "2"},
        "g",
    )
    assert task.duplicate_text(one) == task.duplicate_text(other) == "a\nb"
    assert task.duplicate_text(Record("3", {"prompt": "p", "response": "r", "id": "3"}, "g")) == "p\nr"
    assert (
        task.duplicate_text(Record("4", {"text": "t"}, "g")) == "t"
    )  # a row that is dropped later, with its reason
