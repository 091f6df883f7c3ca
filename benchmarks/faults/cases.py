"""The set-ups that every tool is given: healthy ones, and the same with one thing spoilt.

Each function makes one; its docstring is the table's text. A fault states, for the reader to judge by:

- its entries in the catalogue of silent failures,
- ``about``: what a message must say to count as one about this fault (a regular expression, case ignored),
- ``shows``: where the fault can be seen; a tool that is given none of it has "n/a" instead of "silent",
- ``na``: tools in which it cannot be expressed, or which make it impossible, and why.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import base
import torch
from base import BOS, EOS, IGNORED, IM_END, Row, completions, conversations
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

BASE = Path(__file__).resolve().parents[2] / "build" / "faults" / "base"
NUM_ROWS, NUM_EVAL_ROWS = 240, 40
LABELS = ("fruit", "metal", "river", "planet", "colour")

ARGUMENTS = {
    "max_steps": 120,  # two epochs; training-doctor's detectors want up to 100 logged steps
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "eval_strategy": "steps",
    "eval_steps": 40,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


@dataclass
class SetUp:
    """A training as each of the tools takes it.

    Attributes:
        model: What is trained, before adapters.
        tokenizer: Its tokenizer.
        train: Tokenised rows, as somebody's own script makes them for a ``Trainer``.
        eval: Those to evaluate on.
        collator: Makes batches of them.
        rows: The same before tokenisation, for trainers that tokenise; ``None`` gives them the tokenised rows.
        eval_rows: Those to evaluate on.
        peft: Adapters, if any.
        args: Further ``TrainingArguments``.
        mixin: Base classes that override something of the ``Trainer``.
        trainer: Further arguments of the ``Trainer``.
        sft: What is said in ``SFTConfig`` besides.
        factory: What is said in LLaMA-Factory's YAML file besides.
        folder: The model on disk, for LLaMA-Factory.
    """

    model: Any
    tokenizer: Any
    train: Any
    eval: Any
    collator: Any
    rows: list[Row] | None = None
    eval_rows: list[Row] | None = None
    peft: LoraConfig | None = None
    args: dict[str, Any] = field(default_factory=dict)
    mixin: tuple[type, ...] = ()
    trainer: dict[str, Any] = field(default_factory=dict)
    sft: dict[str, Any] = field(default_factory=dict)
    factory: dict[str, Any] = field(default_factory=dict)
    folder: Path = BASE / "llama"


@dataclass(frozen=True)
class Case:
    """One set-up, and how what is said of it is judged."""

    name: str
    text: str
    make: Callable[[], SetUp]
    catalogue: tuple[int, ...] = ()
    about: str = ""
    shows: frozenset[str] = frozenset()
    na: dict[str, str] = field(default_factory=dict)


FAULTS: dict[str, Case] = {}
HEALTHY: dict[str, Case] = {}


def fault(
    *catalogue: int, about: str, shows: str, na: dict[str, str] | None = None
) -> Callable[[Callable[[], SetUp]], Callable[[], SetUp]]:
    """Registers a set-up with something wrong; ``shows`` is separated by commas."""

    def register(make: Callable[[], SetUp]) -> Callable[[], SetUp]:
        name, text = make.__name__, " ".join((make.__doc__ or "").split())
        places = frozenset(place.strip() for place in shows.split(","))
        FAULTS[name] = Case(name, text, make, catalogue, about, places, na or {})
        return make

    return register


def healthy(na: dict[str, str] | None = None) -> Callable[[Callable[[], SetUp]], Callable[[], SetUp]]:
    """Registers a set-up with nothing wrong."""

    def register(make: Callable[[], SetUp]) -> Callable[[], SetUp]:
        name, text = make.__name__, " ".join((make.__doc__ or "").split())
        HEALTHY[name] = Case(name, text, make, na=na or {})
        return make

    return register


def trainer(setup: SetUp, **more: Any) -> Trainer:
    """The set-up as a user of ``Trainer`` writes it."""
    model = get_peft_model(setup.model, setup.peft) if setup.peft else setup.model
    cls = type("Trainer", (*setup.mixin, Trainer), {}) if setup.mixin else Trainer
    args = TrainingArguments(output_dir=tempfile.mkdtemp(), **{**ARGUMENTS, **setup.args})
    given = {"processing_class": setup.tokenizer, "data_collator": setup.collator, **setup.trainer, **more}
    return cls(
        model=model, args=args, train_dataset=dataset(setup.train), eval_dataset=dataset(setup.eval), **given
    )


def dataset(rows: Any) -> Any:
    """Rows as a data set of ``datasets``."""
    return Dataset.from_list(rows) if isinstance(rows, list) else rows


# What most set-ups begin with.


def llama(**settings: Any) -> Any:
    """The taught Llama."""
    return AutoModelForCausalLM.from_pretrained(BASE / "llama", dtype=torch.float32, **settings)


def gpt2() -> Any:
    """The taught GPT-2."""
    return AutoModelForCausalLM.from_pretrained(BASE / "gpt2", dtype=torch.float32)


def encode(tokenizer: Any, row: Row, *, eos: bool = True, bos: bool = True, max_length: int = 10_000) -> Row:
    """Prompt and completion as ids; only the completion has labels."""
    prompt = tokenizer(row["prompt"], add_special_tokens=bos).input_ids
    target = tokenizer(row["completion"], add_special_tokens=False).input_ids + [EOS] * eos
    ids, labels = prompt + target, [IGNORED] * len(prompt) + target
    return {
        "input_ids": ids[:max_length],
        "attention_mask": [1] * len(ids[:max_length]),
        "labels": labels[:max_length],
    }


def encode_chat(tokenizer: Any, row: Row) -> Row:
    """A conversation by the chat template; what its mask marks has labels."""
    made = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = made["input_ids"], made["assistant_masks"]
    labels = [token if trained else IGNORED for token, trained in zip(ids, mask, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def encode_text(tokenizer: Any, text: str) -> Row:
    """A text and EOS; all of it is learned."""
    ids = [*tokenizer(text).input_ids, EOS]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}


def completing(
    train: list[Row] | None = None, eval: list[Row] | None = None, *, encoded: Any = encode, **changes: Any
) -> SetUp:
    """The Llama on functions to complete, but for what is given."""
    tokenizer = changes.pop("tokenizer", None) or base.load_tokenizer(BASE)
    rows = completions(NUM_ROWS, seed=2) if train is None else train
    eval_rows = completions(NUM_EVAL_ROWS, seed=3) if eval is None else eval
    setup = SetUp(
        model=changes.pop("model", None) or llama(),
        tokenizer=tokenizer,
        train=[encoded(tokenizer, row) for row in rows],
        eval=[encoded(tokenizer, row) for row in eval_rows],
        collator=DataCollatorForSeq2Seq(tokenizer),
        rows=rows,
        eval_rows=eval_rows,
        factory={"template": "llama2"},
    )
    return replace(setup, **changes)


def chatting(template: str = base.CHAT, *, encoded: Any = encode_chat, **changes: Any) -> SetUp:
    """The Llama on conversations, by a template, but for what is given."""
    tokenizer = base.load_tokenizer(BASE)
    tokenizer.chat_template = template
    rows = changes.pop("train", None) or conversations(NUM_ROWS, seed=2)
    eval_rows = changes.pop("eval", None) or conversations(NUM_EVAL_ROWS, seed=3)
    setup = completing(rows, eval_rows, encoded=encoded, tokenizer=tokenizer)
    setup.model.generation_config.eos_token_id = [EOS, IM_END]
    return replace(setup, **changes)


def texts(rows: list[Row]) -> list[Row]:
    """Whole functions as texts."""
    return [{"text": row["prompt"] + row["completion"]} for row in rows]


def reading(**changes: Any) -> SetUp:
    """The GPT-2 on whole functions as texts, but for what is given."""
    tokenizer = changes.get("tokenizer") or base.load_tokenizer(BASE)
    rows, eval_rows = texts(completions(NUM_ROWS, seed=2)), texts(completions(NUM_EVAL_ROWS, seed=3))
    setup = SetUp(
        model=gpt2(),
        tokenizer=tokenizer,
        train=[encode_text(tokenizer, row["text"]) for row in rows],
        eval=[encode_text(tokenizer, row["text"]) for row in eval_rows],
        collator=DataCollatorForSeq2Seq(tokenizer),
        rows=rows,
        eval_rows=eval_rows,
        folder=BASE / "gpt2",
    )
    return replace(setup, **changes)


def kinds(count: int, seed: int, num_labels: int = len(LABELS)) -> list[Row]:
    """Sentences of random words, one of which says the class."""
    draw, vocabulary = random.Random(seed), base.words()
    made = []
    for index in range(count):
        said = draw.choices(vocabulary, k=draw.randint(6, 14))
        label = index % num_labels
        said.insert(draw.randrange(len(said)), LABELS[label])
        made.append({"text": " ".join(said), "label": label})
    draw.shuffle(made)
    return made


def classifying(
    num_labels: int = len(LABELS), *, rows: Callable[[int, int], list[Row]] = kinds, **changes: Any
) -> SetUp:
    """A fresh classification head on the taught Llama, but for what is given."""
    tokenizer = base.load_tokenizer(BASE)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        BASE / "llama", num_labels=num_labels, dtype=torch.float32
    )

    def encoded(row: Row) -> Row:
        return {**tokenizer(row["text"]), "labels": row["label"]}

    setup = SetUp(
        model=model,
        tokenizer=tokenizer,
        train=[encoded(row) for row in rows(NUM_ROWS, 2)],
        eval=[encoded(row) for row in rows(NUM_EVAL_ROWS, 3)],
        collator=DataCollatorWithPadding(tokenizer),
    )
    return replace(setup, **changes)


def classes_280(steps: int, **settings: Any) -> SetUp:
    """A fresh Qwen3 classifier of 280 classes with twelve micro-batches a step."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    ids = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": EOS}
    model = Qwen3ForSequenceClassification(Qwen3Config(num_labels=280, **sizes, **heads, **ids))
    for name, value in settings.items():
        setattr(model, name, value)
    draw = random.Random(0)
    rows = []
    for index in range(560):
        length = draw.randint(8, 24)
        rows.append(
            {
                "input_ids": [draw.randrange(5, 512) for _ in range(length)],
                "attention_mask": [1] * length,
                "labels": index % 280,
            }
        )
    draw.shuffle(rows)
    tokenizer = base.load_tokenizer(BASE)
    args = {"gradient_accumulation_steps": 12, "max_steps": steps, "eval_strategy": "no"}
    return SetUp(model, tokenizer, rows, None, DataCollatorWithPadding(tokenizer), args=args)


def lora(*targets: str, **settings: Any) -> LoraConfig:
    """Adapters of rank 8 on these modules."""
    settings = {"task_type": "CAUSAL_LM", **settings}
    return LoraConfig(r=8, lora_alpha=16, target_modules=list(targets), **settings)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ONLY_LANGUAGE = {
    "trl": "trains language models only",
    "llamafactory": "trains no classifiers of this kind",
}
OWN_TEMPLATES = {"llamafactory": "renders and masks by its own templates"}
OWN_SCRIPT = {"llamafactory": "a YAML file has no place for code of one's own"}


# Healthy set-ups.


@healthy()
def completion() -> SetUp:
    """Llama on prompt and completion, all weights."""
    return completing()


@healthy()
def completion_lora() -> SetUp:
    """The same with LoRA on all projections of attention."""
    return completing(peft=lora(*ATTENTION), factory={"template": "llama2", **factory_lora(*ATTENTION)})


@healthy()
def completion_accumulated() -> SetUp:
    """The same with four micro-batches a step, warm-up, cosine and weight decay."""
    args = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "max_steps": 60}
    args |= {"warmup_steps": 6, "lr_scheduler_type": "cosine", "weight_decay": 0.01, "eval_steps": 20}
    return completing(args=args)


@healthy()
def conversation() -> SetUp:
    """Llama on conversations of two turns; the template marks the answers, their end included."""
    return chatting(sft={"assistant_only_loss": True})


@healthy({"llamafactory": "its sft stage wants prompts"})
def text() -> SetUp:
    """GPT-2 on whole texts."""
    return reading()


@healthy({"trl": "makes its own packs", "llamafactory": "makes its own packs"})
def packed() -> SetUp:
    """Llama on batches packed by `DataCollatorWithFlattening`: positions start anew with each row, and there is no mask."""
    return completing(collator=DataCollatorWithFlattening())


@healthy(ONLY_LANGUAGE)
def classification() -> SetUp:
    """Five classes, a fresh head on the taught Llama."""
    return classifying()


@healthy(ONLY_LANGUAGE)
def classification_280() -> SetUp:
    """280 classes, twelve micro-batches a step, and `accepts_loss_kwargs = False`, which repairs transformers#47688."""
    return classes_280(12, accepts_loss_kwargs=False)


def factory_lora(*targets: str, **settings: Any) -> dict[str, Any]:
    """LoRA as LLaMA-Factory's file says it."""
    return {"finetuning_type": "lora", "lora_rank": 8, "lora_target": ",".join(targets), **settings}


class Flattening(DataCollatorWithFlattening):
    """All rows of a batch behind each other, and an attention mask, as hand-written packing has it."""

    def __call__(self, features: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        batch = super().__call__(features, *args, **kwargs)
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


# Data, labels, templates.


@fault(1, about=r"empty|no (text|target|answer|content)|without (an? )?(answer|target)|blank", shows="rows")
def empty_targets() -> SetUp:
    """A third of the completions are empty."""
    rows = completions(NUM_ROWS, seed=2)
    return completing([{**row, "completion": ""} if n % 3 == 0 else row for n, row in enumerate(rows)])


@fault(
    2,
    about=r"trunc|cut|mask|-100|no trained|without (a )?trained|no labels|nan|zero grad|exactly zero",
    shows="rows, metrics",
)
def cut_targets() -> SetUp:
    """The maximal length of 48 tokens cuts the completion off in most rows."""
    rows = completions(NUM_ROWS, seed=2, length=(8, 24))
    eval_rows = completions(NUM_EVAL_ROWS, seed=3, length=(8, 24))
    return completing(
        rows,
        eval_rows,
        encoded=partial(encode, max_length=48),
        sft={"max_length": 48},
        factory={"template": "llama2", "cutoff_len": 48},
    )


@fault(
    3,
    11,
    about=r"response template|-100|mask|no trained|without (a )?trained|no labels",
    shows="rows",
    na=OWN_TEMPLATES,
)
def response_template_not_found() -> SetUp:
    """The mask is found by searching the response template's ids; where it follows a space they differ, so 40% of the rows have no labels."""
    tokenizer = base.load_tokenizer(BASE)
    template = tokenizer("### Response:", add_special_tokens=False).input_ids

    def encoded(tokenizer: Any, row: Row) -> Row:
        ids = [*tokenizer(row["prompt"] + row["completion"]).input_ids, EOS]
        starts = [n for n in range(len(ids)) if ids[n : n + len(template)] == template]
        start = starts[0] + len(template) if starts else len(ids)
        return {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [IGNORED] * start + ids[start:],
        }

    def rows(count: int, seed: int) -> list[Row]:
        made = []
        for number, row in enumerate(completions(count, seed)):
            gap = " " if number % 5 < 2 else "\n"
            made.append({**row, "prompt": f"{row['prompt']}{gap}### Response:"})
        return made

    return completing(rows(NUM_ROWS, 2), rows(NUM_EVAL_ROWS, 3), encoded=encoded, rows=None)


@fault(
    5,
    about=r"stop|</s>|\beos\b.{0,80}(mask|label|train|learn|last|ignore)|end of",
    shows="rows",
    na=OWN_TEMPLATES | {"trl": "makes the labels itself, which this collator cannot pad"},
)
def eos_masked_as_padding() -> SetUp:
    """Padding is EOS, and transformers' own collator for language models masks every padding id: EOS is never learned."""
    tokenizer = base.load_tokenizer(BASE)
    tokenizer.pad_token = tokenizer.eos_token
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    setup = reading(tokenizer=tokenizer, collator=collator, rows=None)
    for row in [*setup.train, *setup.eval]:
        del row["labels"]
    return setup


@fault(6, about=r"\beos\b|</s>|stop|end of", shows="rows")
def no_eos() -> SetUp:
    """No row ends in EOS (in LLaMA-Factory: template `empty`)."""
    return completing(encoded=partial(encode, eos=False), rows=None, factory={"template": "empty"})


@fault(7, about=r"\bbos\b|begin|twice|double", shows="rows", na=OWN_TEMPLATES)
def double_bos() -> SetUp:
    """Conversations are rendered by the template, which writes BOS, and tokenised as texts, which adds another one."""
    tokenizer = base.load_tokenizer(BASE)

    def rendered(count: int, seed: int) -> list[Row]:
        chats = [row["messages"] for row in conversations(count, seed)]
        return [{"text": tokenizer.apply_chat_template(chat, tokenize=False)} for chat in chats]

    return completing(
        rendered(NUM_ROWS, 2),
        rendered(NUM_EVAL_ROWS, 3),
        encoded=lambda tokenizer, row: encode_text(tokenizer, row["text"]),
    )


@fault(8, about=r"\bbos\b|begin", shows="rows")
def no_bos() -> SetUp:
    """Rows begin without the BOS that the model has always seen (in LLaMA-Factory: template `alpaca`)."""
    return completing(encoded=partial(encode, bos=False), rows=None, factory={"template": "alpaca"})


FORGETFUL = base.CHAT.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ (message['content'] if loop.last else message['content'].split('</think>')[-1]) + '<|im_end|>' }}{% endgeneration %}",
)


@fault(10, about=r"prefix|earlier|history|turn|template", shows="tokenizer", na=OWN_TEMPLATES)
def template_forgets() -> SetUp:
    """The template drops the reasoning of all answers but the last: what was trained is not what is seen a turn later."""

    def thinking(count: int, seed: int) -> list[Row]:
        rows = conversations(count, seed)
        for row in rows:
            for message in row["messages"][1::2]:
                message["content"] = (
                    f"<think>I look for {message['content'].split()[1]}.</think>{message['content']}"
                )
        return rows

    return chatting(
        FORGETFUL,
        train=thinking(NUM_ROWS, 2),
        eval=thinking(NUM_EVAL_ROWS, 3),
        sft={"assistant_only_loss": True},
    )


UNMARKED = base.CHAT.replace("{% generation %}", "").replace("{% endgeneration %}", "")


@fault(
    12,
    3,
    about=r"generation|mask|-100|no trained|nan|no labels|zero grad|exactly zero",
    shows="rows, metrics",
    na=OWN_TEMPLATES,
)
def template_without_marks() -> SetUp:
    """The mask of answers is asked of a template that marks none: nothing is trained."""
    return chatting(UNMARKED, sft={"assistant_only_loss": True})


ENDLESS = base.CHAT.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
)


@fault(13, about=r"stop|end.of.turn|im_end|\beos\b", shows="rows", na=OWN_TEMPLATES)
def end_of_turn_not_marked() -> SetUp:
    """The template marks the answers without the token that ends them."""
    return chatting(ENDLESS, sft={"assistant_only_loss": True})


@fault(
    14,
    82,
    about=r"mismatch|prefix|boundary|inside|whitespace|white space|trailing|natural",
    shows="rows",
)
def prompt_ends_in_white_space() -> SetUp:
    """The line break and indentation that begin a completion stand at the end of the prompt, where no natural token ends."""

    def moved(rows: list[Row]) -> list[Row]:
        return [
            {"prompt": row["prompt"] + "\n    ", "completion": row["completion"].removeprefix("\n    ")}
            for row in rows
        ]

    return completing(
        moved(completions(NUM_ROWS, 2)),
        moved(completions(NUM_EVAL_ROWS, 3)),
        factory={"template": "empty"},
    )


@fault(15, about=r"user|role|prompt|another|im_start|span", shows="rows", na=OWN_TEMPLATES)
def questions_trained() -> SetUp:
    """All after the first answer's start is trained: the later questions too."""

    def encoded(tokenizer: Any, row: Row) -> Row:
        made = encode_chat(tokenizer, row)
        start = next(n for n, label in enumerate(made["labels"]) if label != IGNORED)
        return {**made, "labels": [IGNORED] * start + made["input_ids"][start:]}

    return chatting(encoded=encoded, rows=None)


@fault(16, about=r"trunc|cut|\beos\b|stop|shorten|max_length", shows="rows")
def truncation_cuts_eos() -> SetUp:
    """The maximal length of 96 tokens cuts the end, and EOS with it, off three rows in five."""

    def long(count: int, seed: int) -> list[Row]:
        rows = completions(count, seed)
        draw = random.Random(seed)
        for row in rows:
            row["completion"] = "".join(
                other["completion"] for other in completions(draw.randint(1, 5), draw.randrange(10**6))
            )
        return rows

    return completing(
        long(NUM_ROWS, 2),
        long(NUM_EVAL_ROWS, 3),
        encoded=partial(encode, max_length=96),
        sft={"max_length": 96},
        factory={"template": "llama2", "cutoff_len": 96},
    )


@fault(19, about=r"special|</s>|\beos\b|inject", shows="rows")
def special_strings() -> SetUp:
    """A fifth of the prompts speak of `</s>`, which becomes the token."""
    rows = completions(NUM_ROWS, seed=2)
    return completing(
        [
            {**row, "prompt": "# write </s> last\n" + row["prompt"]} if n % 5 == 0 else row
            for n, row in enumerate(rows)
        ]
    )


@fault(22, about=r"duplic|repeat|identical|same (row|sample)", shows="rows")
def duplicates() -> SetUp:
    """Every training row is there three times."""
    rows = completions(NUM_ROWS // 3, seed=2) * 3
    random.Random(0).shuffle(rows)
    return completing(rows)


@fault(23, about=r"leak|overlap|also (in|appear)|both|contaminat|in train", shows="rows, eval rows")
def leak() -> SetUp:
    """All rows to evaluate on are in the training data as well."""
    rows = completions(NUM_ROWS, seed=2)
    return completing(rows, rows[:NUM_EVAL_ROWS])


@fault(24, about=r"order|shuffl|sorted|\brun\b", shows="rows", na=ONLY_LANGUAGE)
def sorted_classes() -> SetUp:
    """The training rows are streamed from a file that is sorted by class."""
    setup = classifying()
    rows = sorted(setup.train, key=lambda row: row["labels"])
    setup.train = IterableDataset.from_generator(lambda: iter(rows))
    return setup


class Weighted:
    """A ``Trainer`` that weighs rows, where it is given weights."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        weights = inputs.pop("weight", None)
        if weights is None:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)  # type: ignore[misc]
        outputs = model(**{**inputs, "labels": None})
        loss = functional.cross_entropy(
            outputs.logits[:, :-1].transpose(1, 2), inputs["labels"][:, 1:], reduction="none"
        )
        loss = (loss.mean(-1) * weights).sum() / weights.sum()
        return (loss, outputs) if return_outputs else loss


@fault(27, about=r"column|\bweight\b(?! ?decay)|remove_unused", shows="rows, arguments", na=OWN_SCRIPT)
def weights_dropped() -> SetUp:
    """The rows have weights for an overridden `compute_loss`, and `remove_unused_columns` drops them before they get there."""
    setup = completing(mixin=(Weighted,), rows=None)
    for number, row in enumerate([*setup.train, *setup.eval]):
        row["weight"] = [1.0, 0.1][number % 2]
    return setup


# Loss and metrics.


@fault(
    30,
    about=r"accumul|micro.?batch|mean of|batch size|num_items|weigh",
    shows="arguments, model",
    na=OWN_SCRIPT,
)
def mean_of_means() -> SetUp:
    """The model declines `num_items_in_batch`: with eight micro-batches a step, a token of a short row counts many times as much as one of a long row."""

    def uneven(count: int, seed: int) -> list[Row]:
        rows = completions(count, seed)
        for number, row in enumerate(rows):
            if number % 2:
                row["completion"] += "".join(
                    other["completion"] for other in completions(5, seed * 1000 + number)
                )
            else:
                row["completion"] = row["completion"].split(" takes ")[0]
        return rows

    model = llama()
    model.accepts_loss_kwargs = False
    args = {"gradient_accumulation_steps": 8, "per_device_train_batch_size": 1, "max_steps": 30}
    return completing(uneven(NUM_ROWS, 2), uneven(NUM_EVAL_ROWS, 3), model=model, args=args)


def plain_mean(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross entropy as everybody writes it: the mean of a micro-batch."""
    return functional.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


INFLATED = r"accumul|inflat|num_items|\bx ?\d|times|explo|divid"


@fault(31, about=INFLATED, shows="arguments, model, metrics", na=OWN_SCRIPT)
def loss_times_accumulation() -> SetUp:
    """A `compute_loss_func` that ignores `num_items_in_batch`, with eight micro-batches a step: loss and gradient are eightfold."""
    args = {"gradient_accumulation_steps": 8, "per_device_train_batch_size": 1, "max_steps": 30}
    return completing(args=args, trainer={"compute_loss_func": plain_mean})


@fault(32, about=INFLATED, shows="arguments, model, metrics", na=ONLY_LANGUAGE)
def head_ignores_num_items() -> SetUp:
    """`Qwen3ForSequenceClassification`, 280 labels, twelve micro-batches a step: loss and gradient are twelvefold (transformers#47688)."""
    return classes_280(12)


def perplexity(prediction: Any) -> dict[str, float]:
    """Perplexity of the rows evaluated."""
    logits, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    return {"perplexity": math.exp(min(float(plain_mean(type("o", (), {"logits": logits}), labels)), 20))}


@fault(42, about=r"greater_is_better|direction|\bbest\b|worst", shows="arguments", na=OWN_SCRIPT)
def worst_kept_as_best() -> SetUp:
    """The best checkpoint is chosen by perplexity, and without `greater_is_better` the Trainer takes the highest."""
    args = {"metric_for_best_model": "perplexity", "load_best_model_at_end": True}
    args |= {"save_strategy": "steps", "save_steps": 40, "save_total_limit": 1}
    return completing(args=args, trainer={"compute_metrics": perplexity})


@fault(43, about=r"regression|mse|num_labels|problem_type", shows="model, rows", na=ONLY_LANGUAGE)
def classes_as_regression() -> SetUp:
    """Two classes with `num_labels=1`: the head is trained to predict the number of the class by squared error."""
    setup = classifying(num_labels=1, rows=partial(kinds, num_labels=2))
    for row in [*setup.train, *setup.eval]:
        row["labels"] = float(row["labels"])
    return setup


@fault(
    44,
    about=r"class(es)? .{0,40}(never|no row|unused|absent|missing)|labels? .{0,60}(gap|missing|from one|from 1|never|no row)",
    shows="model, rows",
    na=ONLY_LANGUAGE,
)
def labels_from_one() -> SetUp:
    """Labels are counted from one, so the head got one class too many, which no row has."""
    setup = classifying(num_labels=len(LABELS) + 1)
    for row in [*setup.train, *setup.eval]:
        row["labels"] += 1
    return setup


# Attention, positions, packing.


@fault(46, about=r"pack|contaminat|cross|other (row|sample)|leak|flash", shows="rows, model")
def packs_see_each_other() -> SetUp:
    """Rows in one pack attend to each other: a mask of ones comes with the positions of each (in TRL: `packing_strategy="wrapped"`; in LLaMA-Factory: `packing: true`)."""
    sft = {"packing": True, "packing_strategy": "wrapped", "max_length": 256}
    factory = {"template": "llama2", "packing": True, "cutoff_len": 256}
    return completing(collator=Flattening(), sft=sft, factory=factory)


PADS_RIGHT = {
    "trl": "its collator pads on the right whatever the tokenizer says",
    "llamafactory": "pads on the right in training whatever the tokenizer says",
}


@fault(51, about=r"left|padding|position", shows="rows, model", na=PADS_RIGHT)
def left_padding() -> SetUp:
    """GPT-2 with padding on the left: its learned positions count the padding."""
    tokenizer = base.load_tokenizer(BASE)
    tokenizer.padding_side = "left"
    return reading(tokenizer=tokenizer)


@fault(53, about=r"\bpad|pool", shows="rows, model", na=ONLY_LANGUAGE)
def head_reads_padding() -> SetUp:
    """The model's config says another padding id than the collator pads with, so the head reads the last padding."""
    setup = classifying(trainer={"processing_class": None})
    setup.model.config.pad_token_id = EOS
    return setup


@fault(54, about=r"position|longer than|maximum|exceed", shows="rows, model")
def beyond_positions() -> SetUp:
    """Rows of about 350 tokens for a model of 256 positions."""
    lengths = {"length": (110, 130)}
    return completing(
        completions(NUM_ROWS, 2, **lengths),
        completions(NUM_EVAL_ROWS, 3, **lengths),
        factory={"template": "llama2", "cutoff_len": 512},
        args={"max_steps": 40, "eval_steps": 20},
    )


@fault(56, about=r"padding|padded", shows="rows", na={"llamafactory": "pads to the longest row of a batch"})
def padding_to_the_maximum() -> SetUp:
    """Every batch is padded to 256 tokens, its rows have about 60."""
    tokenizer = base.load_tokenizer(BASE)
    collator = DataCollatorForSeq2Seq(tokenizer, padding="max_length", max_length=256)
    return completing(
        tokenizer=tokenizer, collator=collator, args={"max_steps": 60}, sft={"pad_to_multiple_of": 256}
    )


# Weights, adapters, precision, optimisation.


@fault(
    58,
    59,
    about=r"embedding|new token|added|untrained|fim|trainable_token|resize",
    shows="rows, model",
    na={"llamafactory": "trains the embeddings of tokens that it adds"},
)
def new_tokens_frozen() -> SetUp:
    """Three tokens are added and used in every row, but LoRA on attention leaves their embeddings as they were made."""
    tokenizer, model = base.load_tokenizer(BASE), llama()
    tokens = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)

    def marked(rows: list[Row]) -> list[Row]:
        return [{**row, "prompt": tokens[0] + row["prompt"] + tokens[1] + tokens[2]} for row in rows]

    return completing(
        marked(completions(NUM_ROWS, 2)),
        marked(completions(NUM_EVAL_ROWS, 3)),
        model=model,
        tokenizer=tokenizer,
        peft=lora(*ATTENTION),
    )


@fault(60, about=r"\btie|\btied", shows="model")
def tied_head_saved_apart() -> SetUp:
    """LoRA on GPT-2 with `modules_to_save=["lm_head"]`, although head and embeddings are one tensor."""
    return reading(
        peft=lora("c_attn", modules_to_save=["lm_head"], fan_in_fan_out=True),
        rows=completions(NUM_ROWS, 2),
        eval_rows=completions(NUM_EVAL_ROWS, 3),
        factory={"template": "llama2", **factory_lora("c_attn", additional_target="lm_head")},
    )


@fault(61, about=r"query_key_value|match|target", shows="model")
def targets_partly_missing() -> SetUp:
    """Two of three LoRA targets do not exist in this model; one in four projections of attention is trained."""
    targets = ("q_proj", "query_key_value", "dense_h_to_4h")
    return completing(peft=lora(*targets), factory={"template": "llama2", **factory_lora(*targets)})


@fault(
    63,
    about=r"frozen|task_type|modules_to_save|untrained|not trained|never|no gradient",
    shows="model",
    na=ONLY_LANGUAGE,
)
def head_not_trained() -> SetUp:
    """LoRA on a classifier without `task_type`: its fresh head stays random and is not saved."""
    return classifying(peft=lora("q_proj", "v_proj", task_type=None))


@fault(
    69,
    about=r"trainable|no grad|require.?s?_?.?grad|frozen|empty parameter|no gradient",
    shows="model, metrics",
    na={"llamafactory": "loads adapters to train them"},
)
def adapter_not_trainable() -> SetUp:
    """An adapter to go on with is loaded by `PeftModel.from_pretrained`, which freezes it."""
    folder = tempfile.mkdtemp()
    get_peft_model(llama(), lora(*ATTENTION)).save_pretrained(folder)
    return completing(model=PeftModel.from_pretrained(llama(), folder))


@fault(
    70,
    about=r"missing|newly initialized|random|ln V|uniform|not (used|loaded)|unexpected",
    shows="model, metrics",
)
def weights_missing() -> SetUp:
    """Half of the checkpoint's layers have another name, so they are loaded with random weights."""
    folder = Path(tempfile.mkdtemp())
    model, tokenizer = llama(), base.load_tokenizer(BASE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.layers.1.", "model.blocks.1."): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return completing(model=model, folder=folder)


@fault(
    70,
    about=r"random|ln V|uniform|untrained|chance|initial loss|knows nothing",
    shows="model, metrics",
    na={"llamafactory": "has a setting of its own for it, `train_from_scratch`"},
)
def weights_random() -> SetUp:
    """The model to fine-tune was made by `from_config`: all of its weights are random."""
    torch.manual_seed(0)
    return completing(model=AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE / "llama")))


@fault(71, 40, about=r"nan|finite|invalid", shows="model, metrics", na=ONLY_LANGUAGE)
def head_is_nan() -> SetUp:
    """One row of the fresh classification head is NaN."""
    setup = classifying()
    with torch.no_grad():
        setup.model.score.weight[3] = math.nan
    return setup


@fault(
    72,
    about=r"bf16|bfloat16|precision|round|too low|unchanged|barely|tiny|flat",
    shows="model, arguments, metrics",
    na={"llamafactory": "has weights in bfloat16 on GPUs only"},
)
def bfloat16_tiny_rate() -> SetUp:
    """Weights in bfloat16 at a learning rate of 1e-6: nearly all updates are rounded away."""
    return completing(
        model=llama().to(torch.bfloat16),
        args={"learning_rate": 1e-6},
    )


@fault(74, about=r"decay", shows="optimizer", na=OWN_SCRIPT)
def decay_on_all() -> SetUp:
    """An optimizer of one's own decays all parameters of a GPT-2, norms and biases too."""
    setup = reading()
    optimizer = torch.optim.AdamW(setup.model.parameters(), lr=1e-3, weight_decay=0.1)
    return replace(setup, trainer={"optimizers": (optimizer, None)})


@fault(76, about=r"warm.?up|peak|learning.?rate.{0,40}(low|never|reach)", shows="arguments, metrics")
def warmup_beyond_the_end() -> SetUp:
    """A warm-up of 2000 steps in a run of 120: the learning rate ends at 6% of what was set."""
    return completing(args={"warmup_steps": 2000})


class DroppingNorm(nn.Module):
    """A norm followed by dropout as it is often written: without ``training=self.training``."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.norm(hidden), 0.1)


@fault(79, about=r"dropout|evaluat|random|determin", shows="model", na=OWN_SCRIPT)
def dropout_in_evaluation() -> SetUp:
    """A module of one's own calls `functional.dropout` without `training=self.training`: evaluation is noisy too."""
    model = llama()
    model.model.norm = DroppingNorm(model.model.norm)
    return completing(model=model)


@fault(
    about=r"learning.?rate.{0,40}high|diverg|nan|explod|explos|finite|gradient norm .*exceeds",
    shows="arguments, metrics, model",
)
def rate_far_too_high() -> SetUp:
    """A learning rate of 5: the loss jumps and stays high. In no catalogue of silent failures, but what watchers of curves are for."""
    return completing(args={"learning_rate": 5.0})


CASES = {**HEALTHY, **FAULTS}
assert BOS == 1 and len(CASES) == len(HEALTHY) + len(FAULTS)
