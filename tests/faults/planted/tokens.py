"""Tokens, labels, masks and templates: what goes wrong between a text and the batch that the model gets."""

import argparse
import inspect
import json
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from tests.faults.suite import Said, check_recipe, healthy, planted
from tests.fixtures import chats, tiny_trainer
from tests.fixtures.tiny_model import TEXTS, make_tokenizer
from tests.fixtures.tokenizers import mistral, wordpiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Trainer,
)

import luthier

IGNORED = tiny_trainer.IGNORED
# Those that the WordPiece tokenizer of the tests was trained on.
WORDS = [
    "def",
    "add",
    "a",
    "b",
    "return",
    "+",
    "for",
    "name",
    "in",
    "names",
    "print",
    "class",
    "Row",
    "pass",
    "import",
    "os",
    "sys",
    "(",
    ")",
    ":",
    ",",
]
Item = dict[str, Any]


def rows_file(folder: Path, items: list[Item], hf: Any = None, **settings: Any) -> Said:
    """``luthier.audit`` of a JSON lines file and the folder of a model that knows a little."""
    hf = hf or make_tokenizer()
    model = settings.pop("model", None)
    if model is None:
        plain = len(hf) == len(make_tokenizer())
        model = tiny_trainer.model() if plain else chats.model(hf, items, **settings)
    tiny_trainer.save_folder(folder / "model", model, hf)
    (folder / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return luthier.audit(model=folder / "model", rows=folder / "rows.jsonl")


def chat_trainer(
    hf: Any, *, turns: int = 1, tool: bool = False, spoil: Any = None, **settings: Any
) -> Trainer:
    """A Trainer over conversations whose items ``spoil`` changes."""
    train = chats.items(hf, chats.conversations(48, turns, tool=tool))
    eval = chats.items(hf, chats.conversations(12, turns, seed=5, tool=tool))
    made = settings.pop("model", None) or chats.model(hf, train)
    for item in [*train, *eval] if spoil else []:
        spoil(item)
    return chats.trainer(hf, train, eval, model=made, **settings)


def without_labels(items: list[Item]) -> list[Item]:
    """The same rows for a collator that makes labels itself."""
    return [{name: item[name] for name in ("input_ids", "attention_mask")} for item in items]


def as_item(prompt: list[int], answer: list[int]) -> Item:
    """A row of which the answer is trained."""
    ids = prompt + answer
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [IGNORED] * len(prompt) + answer,
    }


def learned(*modules: ModuleType) -> PreTrainedTokenizerFast:
    """A tokenizer of 1,000 tokens that has learned its merges from the source of some modules."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator((inspect.getsource(module) for module in modules), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=special[1], eos_token=special[2], pad_token=special[2]
    )


def adding_bos() -> PreTrainedTokenizerFast:
    """Llama 3's tokens, as a tokenizer that puts BOS before each text."""
    hf = chats.llama3()
    hf.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", hf.bos_token_id)]
    )
    return hf


def other_padding() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a padding token of its own."""
    return chats.tokenizer(tokens=["<|pad|>"], pad_token="<|pad|>")


def collated(change: Any, **settings: Any) -> Said:
    """``luthier.audit`` of a healthy Trainer whose collator's batches are changed."""

    class Changed(chats.Padded):
        def __call__(self, batch: list[Item]) -> dict[str, torch.Tensor]:
            return change(super().__call__(batch))

    hf = settings.pop("tokenizer", None) or other_padding()
    train = tiny_trainer.items(48)
    model = settings.pop("model", None) or chats.model(hf, train)
    collator = Changed(hf.pad_token_id, **{k: settings.pop(k) for k in ("side", "without") if k in settings})
    return luthier.audit(
        tiny_trainer.trainer(model, train=train, collator=collator, tokenizer=hf, **settings)
    )


# Labels


@planted("labels", catalogue=(37,), where="collator")
def labels_that_are_shifted_already(folder: Path) -> Said:
    """The collator shifts labels by one, and the model shifts them again."""

    def shift(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch | {"labels": torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)}

    return collated(shift)


@planted("labels", catalogue=(14,), where="collator")
def labels_of_another_row(folder: Path) -> Said:
    """The collator gives each row the labels of the row before it in the batch."""
    whole = [{**item, "labels": list(item["input_ids"])} for item in tiny_trainer.items(48)]

    class Rolled(chats.Padded):
        def __call__(self, batch: list[Item]) -> dict[str, torch.Tensor]:
            made = super().__call__(batch)
            return made | {"labels": made["labels"].roll(1, dims=0)}

    hf = other_padding()
    model = chats.model(hf, whole)
    return luthier.audit(
        tiny_trainer.trainer(model, train=whole, collator=Rolled(hf.pad_token_id), tokenizer=hf)
    )


@planted("labels", catalogue=(14,), where="collator")
def labels_padded_on_the_other_side(folder: Path) -> Said:
    """The collator pads ids on the left and labels on the right."""

    def part(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = [
            torch.cat([labels[mask == 1], labels[mask == 0]])
            for labels, mask in zip(batch["labels"], batch["attention_mask"], strict=True)
        ]
        return batch | {"labels": torch.stack(rows)}

    return collated(part, side="left")


@planted("labels", catalogue=(14,), where="collator")
def tokens_masked_for_a_causal_model(folder: Path) -> Said:
    """DataCollatorForLanguageModeling is left at ``mlm=True`` for a model that writes from left to right."""
    hf = chats.tokenizer(tokens=["<|mask|>", "<|pad|>"], pad_token="<|pad|>", mask_token="<|mask|>")
    train, eval = (without_labels(tiny_trainer.items(count, seed=count)) for count in (48, 8))
    model = chats.model(hf, tiny_trainer.items(48))
    collator = DataCollatorForLanguageModeling(hf, mlm=True)
    return luthier.audit(tiny_trainer.trainer(model, train=train, eval=eval, collator=collator, tokenizer=hf))


# Padding


@planted("padding", catalogue=(5,), where="collator")
def labels_on_padding(folder: Path) -> Said:
    """Rows are padded to one length, and labels are a copy of all ids."""

    def copy(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        missing = 64 - batch["input_ids"].shape[1]
        ids = torch.nn.functional.pad(batch["input_ids"], (0, missing), value=376)
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, missing))
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}

    return collated(copy)


@planted("padding", catalogue=(51,), where="collator")
def padding_before_rows_without_a_mask(folder: Path) -> Said:
    """The collator pads on the left and returns no attention mask."""
    return collated(lambda batch: batch, side="left", without=["attention_mask"])


@planted("padding", catalogue=(51,), where="collator")
def positions_that_do_not_count(folder: Path) -> Said:
    """The collator returns ``position_ids`` of zeros."""
    return collated(lambda batch: batch | {"position_ids": torch.zeros_like(batch["input_ids"])})


@planted("padding", catalogue=(51,), where="collator", severity="warning")
def gpt2_rows_padded_on_the_left(folder: Path) -> Said:
    """Training rows of a GPT-2, whose positions are learned one by one, are padded on the left."""
    model = chats.model(other_padding(), tiny_trainer.items(48), family="gpt2")
    return collated(lambda batch: batch, side="left", model=model)


@planted("padding-waste", catalogue=(56,), where="tokenizer arguments", severity="warning")
def rows_padded_to_a_length_that_none_has(folder: Path) -> Said:
    """Rows are stored as ``padding="max_length"`` made them, at four times the length of their text."""
    items = []
    for item in tiny_trainer.items(48):
        missing = 160 - len(item["input_ids"])
        fill = {"input_ids": 2, "attention_mask": 0, "labels": IGNORED}
        items.append({name: item[name] + [value] * missing for name, value in fill.items()})
    return luthier.audit(tiny_trainer.trainer(train=items))


# Ends


@planted("stop-token", catalogue=(5,), where="collator")
def end_masked_because_it_is_padding(folder: Path) -> Said:
    """DataCollatorForLanguageModeling with a tokenizer whose padding token is EOS."""
    items = [
        {name: item[name] for name in ("input_ids", "attention_mask")} for item in tiny_trainer.items(48)
    ]
    collator = DataCollatorForLanguageModeling(make_tokenizer(), mlm=False)
    return luthier.audit(tiny_trainer.trainer(train=items, eval=items[:8], collator=collator))


@planted("stop-token", catalogue=(13,), where="data set")
def end_of_turn_left_out_of_the_mask(folder: Path) -> Said:
    """The labels of a chat end with the last word of the answer, before ``<|eot_id|>``."""

    def spoil(item: Item) -> None:
        item["labels"] = [IGNORED if i == end else i for i in item["labels"]]

    hf = chats.llama3()
    end = hf.eos_token_id
    return luthier.audit(chat_trainer(hf, spoil=spoil))


@planted("stop-token", catalogue=(6, 9), where="tokenizer folder")
def end_of_turn_that_nothing_takes_for_an_end(folder: Path) -> Said:
    """Rows end with ``<|im_end|>``, and EOS of tokenizer and model is ``<|endoftext|>``, as in a base model."""
    hf = make_tokenizer()
    train = chats.items(hf, chats.conversations(48))
    hf.eos_token = hf.pad_token = "<|endoftext|>"
    return rows_file(folder, train, hf, model=chats.model(hf, train))


@planted("special-ids", catalogue=(6, 9), where="model folder", severity="warning")
def another_end_in_the_generation_config(folder: Path) -> Said:
    """``generation_config.json`` stops at a token that no row is trained to end with."""
    model = tiny_trainer.model()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=0, pad_token_id=2)
    return rows_file(folder, tiny_trainer.items(48), model=model)


@planted("truncation", catalogue=(16, 18), where="data set")
def answers_cut_at_the_maximum_length(folder: Path) -> Said:
    """``max_length`` is shorter than most rows, which lose the end of their answers."""
    hf = chats.llama3()
    train = chats.items(hf, chats.conversations(60, turns=3))
    model = chats.model(hf, train)
    length = sorted(len(item["input_ids"]) for item in train)[10]
    cut = [{name: values[:length] for name, values in item.items()} for item in train]
    return luthier.audit(
        chats.trainer(hf, cut, chats.items(hf, chats.conversations(8, 3, seed=5)), model=model)
    )


@planted("truncation", catalogue=(17, 18), where="rows file", severity="warning")
def a_few_answers_cut_in_a_file(folder: Path) -> Said:
    """A prepared file was cut at a length that every eighth row reaches."""
    items = tiny_trainer.items(64)
    for item in items[::8]:
        prompt = item["input_ids"][:-4]
        item.update({name: values[:64] for name, values in as_item(prompt, prompt * 3).items()})
    return rows_file(folder, items)


@planted("untrained-row", catalogue=(2, 3), where="data set")
def prompts_that_fill_the_maximum_length(folder: Path) -> Said:
    """Rows are cut from the right at a length that their prompts fill, so that nothing of the answers is left."""
    items = tiny_trainer.items(48)
    for item, further in zip(items[16:], tiny_trainer.items(32, seed=3), strict=True):
        item["labels"] = [IGNORED] * len(further["labels"]) + item["labels"]
        for name in ("input_ids", "attention_mask"):
            item[name] = further[name] + item[name]
    return luthier.audit(
        tiny_trainer.trainer(train=[{name: values[:42] for name, values in item.items()} for item in items])
    )


@planted("untrained-row", catalogue=(3, 12), where="data set")
def answers_that_the_mask_does_not_find(folder: Path) -> Said:
    """The response template is not what the chat template writes, so every label is -100."""

    def spoil(item: Item) -> None:
        item["labels"] = [IGNORED] * len(item["labels"])

    return luthier.audit(chat_trainer(chats.llama3(), spoil=spoil))


# Beginnings


@planted("bos", catalogue=(7,), where="template")
def bos_from_template_and_tokenizer(folder: Path) -> Said:
    """The chat template writes BOS, and its text is encoded with special tokens once more."""
    hf = adding_bos()
    items = []
    for messages in chats.conversations(48):
        texts = [
            hf.apply_chat_template(part, tokenize=False, add_generation_prompt=len(part) == 1)
            for part in (messages[:1], messages)
        ]
        prompt, whole = (hf(text)["input_ids"] for text in texts)
        items.append(as_item(prompt, whole[len(prompt) :]))
    return rows_file(folder, items, hf)


@planted("bos", catalogue=(8,), where="rows file")
def rows_without_bos(folder: Path) -> Said:
    """Rows for a tokenizer that begins texts with BOS were made by joining pieces without it."""
    hf = adding_bos()
    items = chats.items(hf, chats.conversations(48))
    return rows_file(folder, [{name: values[1:] for name, values in item.items()} for item in items], hf)


# Templates


@planted("template-prefix", catalogue=(10,), where="template", severity="warning")
def template_that_rewrites_history(folder: Path) -> Said:
    """Qwen3's template, which drops thinking from all answers but the last, over conversations of three trained answers."""
    return luthier.audit(chat_trainer(chats.tokenizer(chats.QWEN3), turns=3))


@planted("template-prefix", catalogue=(10,), where="template", severity="warning")
def template_that_rewrites_history_in_a_recipe(folder: Path) -> Said:
    """The same in a recipe of conversations of three rounds."""
    tiny_trainer.save_folder(folder / "model", tokenizer=chats.tokenizer(chats.QWEN3))
    with open(folder / "chats.jsonl", "w") as file:
        for messages in chats.conversations(80, 3):
            file.write(json.dumps({"messages": messages}) + "\n")
    return check_recipe(
        folder,
        task={"type": "instruction", "format": "chat"},
        data={
            "source": {"type": "files", "path": str(folder / "chats.jsonl")},
            "max_length": 400,
            "near_duplicates": "off",
        },
    )


@planted("template-prefix", catalogue=(9,), where="template")
def generation_begins_to_think_and_training_does_not(folder: Path) -> Said:
    """A template whose generation prompt opens ``<think>``, over answers that have none, as those of R1's distilled models."""
    hf = chats.tokenizer(chats.R1, ["<|User|>", "<|Assistant|>", "<think>", "<|pad|>"], pad_token="<|pad|>")
    items = []
    for messages in chats.conversations(48):
        prompt = hf.encode(
            f"<|im_start|><|User|>{messages[0]['content']}<|Assistant|>", add_special_tokens=False
        )
        answer = hf.encode(messages[1]["content"] + "<|im_end|>", add_special_tokens=False)
        items.append(as_item(prompt, answer))
    return luthier.audit(chats.trainer(hf, items[:40], items[40:]))


@planted("template-prefix", catalogue=(9,), where="template", severity="note")
def template_with_the_date_of_the_day(folder: Path) -> Said:
    """Llama 3.2's template, which writes today's date into every prompt."""
    return luthier.audit(chat_trainer(chats.llama3(chats.LLAMA32)))


# Roles


@planted("trained-role", catalogue=(15,), where="data set")
def mask_that_spills_over_a_tool(folder: Path) -> Said:
    """Labels run from the tool's header to the end, so that what the tool said is trained with the answer."""
    hf = chats.llama3()
    header = hf.convert_tokens_to_ids("<|start_header_id|>")

    def spoil(item: Item) -> None:
        ids = item["input_ids"]
        start = [place for place, i in enumerate(ids) if i == header][1]  # user, tool, assistant
        item["labels"] = [IGNORED] * start + ids[start:]

    return luthier.audit(chat_trainer(hf, tool=True, spoil=spoil))


@planted("trained-role", catalogue=(15,), where="data set")
def mask_that_is_inverted(folder: Path) -> Said:
    """The questions have labels, and the answers have none."""

    def spoil(item: Item) -> None:
        item["labels"] = [
            i if label == IGNORED else IGNORED
            for i, label in zip(item["input_ids"], item["labels"], strict=True)
        ]

    return luthier.audit(chat_trainer(chats.llama3(), spoil=spoil))


# Tokenizers


class AddsItsOwn(PreTrainedTokenizerFast):
    """A tokenizer that does in Python what no file of it says."""

    def _encode_plus(self, *arguments: Any, **options: Any) -> Any:
        made = super()._encode_plus(*arguments, **options)
        for name, value in (("input_ids", self.eos_token_id), ("attention_mask", 1)):
            if isinstance(made[name][0], int):
                made[name] = [*made[name], value]
        return made


@planted("tokenizer-reload", catalogue=(8, 9), where="tokenizer")
def tokenizer_that_does_in_python_what_is_not_saved(folder: Path) -> Said:
    """The Trainer's tokenizer is of a subclass that puts EOS behind each text, which its files do not say."""
    hf = make_tokenizer()
    own = AddsItsOwn(
        tokenizer_object=hf.backend_tokenizer,
        **{name: getattr(hf, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
    )
    return luthier.audit(tiny_trainer.trainer(tokenizer=own))


@planted("prompt-parity", catalogue=(9, 21), where="rows file")
def rows_of_another_tokenizer(folder: Path) -> Said:
    """A prepared file was made with the tokenizer of another model of the same vocabulary size."""
    ours, theirs = learned(argparse, textwrap), learned(json.decoder, json.encoder)
    items = []
    for line in [line for line in inspect.getsource(argparse).splitlines() if len(line) > 50][:120:2]:
        ids = theirs.encode(line.strip(), add_special_tokens=False)
        items.append(as_item(ids[:5], [*ids[5:], 2]))
    return rows_file(folder, items, ours, model=chats.model(ours, items))


@planted("prompt-parity", catalogue=(20, 21), where="tokenizer folder", severity="warning")
def tokenizer_with_another_pattern(folder: Path) -> Said:
    """The tokenizer that is saved with the model takes newlines apart, and the rows were made before it did."""
    before, after = make_tokenizer(), make_tokenizer()
    after.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    items = []
    for index in range(60):
        prompt = before.encode(f"# {index} {TEXTS[index % 5]} and", add_special_tokens=False)
        answer = before.encode(f" {TEXTS[index % 4][: 20 + index]}", add_special_tokens=False)
        items.append(as_item(prompt, [*answer, 2]))
    return rows_file(folder, items, after, model=chats.model(before, items))


@planted("tokenizer-loss", catalogue=(20,), where="tokenizer folder", severity="warning")
def text_that_the_tokenizer_does_not_know(folder: Path) -> Said:
    """Rows of an alphabet that the tokenizer has not: a third of their tokens are ``[UNK]``."""
    hf = wordpiece().hf
    items = []
    for index in range(48):
        ids = hf(f"def add{index} ( a , {chr(0x4E00 + index)}{chr(0x4E80 + index)} ) : {index * 7}")[
            "input_ids"
        ]
        items.append({"input_ids": ids, "labels": [IGNORED] * 4 + ids[4:]})
    return rows_file(folder, items, hf)


@planted("natural-boundary", catalogue=(14, 82), where="data set", severity="warning")
def prompts_that_end_with_a_space(folder: Path) -> Said:
    """Prompts end with the space that belongs to the first word of the answer."""
    hf = make_tokenizer()
    items = []
    for index in range(48):
        prompt = hf.encode(f"# task {index}: {TEXTS[index % 5][:30]} ", add_special_tokens=False)
        answer = hf.encode(f"return {index * 7 % 41} in {TEXTS[index % 4][:8]}", add_special_tokens=False)
        items.append(as_item(prompt, [*answer, 2]))
    return luthier.audit(tiny_trainer.trainer(train=items[:40], eval=items[40:]))


# Vocabulary and embeddings


@planted("untrained-embeddings", catalogue=(58, 59), where="model")
def header_tokens_that_the_base_model_never_saw(folder: Path) -> Said:
    """LoRA on a base model whose embeddings of the chat's header tokens are all the same, as reserved tokens are."""
    hf = chats.llama3()
    train = chats.items(hf, chats.conversations(48))
    base = chats.model(hf, train)
    reserved = hf.convert_tokens_to_ids(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    with torch.no_grad():
        base.get_input_embeddings().weight[reserved] = base.get_input_embeddings().weight.mean(0)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    return luthier.audit(
        chats.trainer(hf, train, chats.items(hf, chats.conversations(8, seed=5)), model=model)
    )


@planted("vocabulary", catalogue=(59,), where="tokenizer folder")
def tokens_added_without_room_in_the_model(folder: Path) -> Said:
    """Tokens were added to the tokenizer and stand in the rows, and the model's embedding was not enlarged."""
    hf = chats.tokenizer(tokens=["<|tool|>"])
    items = tiny_trainer.items(48)
    for item in items[::4]:
        item["input_ids"][0] = len(hf) - 1
    return rows_file(folder, items, hf, model=tiny_trainer.model())


@planted("vocabulary", catalogue=(59,), where="collator")
def ids_padded_like_labels(folder: Path) -> Said:
    """The collator pads ids with -100, as it pads labels, and forgets the mask."""
    return collated(
        lambda batch: {
            "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED),
            "labels": batch["labels"],
        }
    )


@planted("positions", catalogue=(54,), where="rows file")
def rows_longer_than_the_model(folder: Path) -> Said:
    """A file holds rows of more tokens than the model has positions."""
    items = tiny_trainer.items(48)
    for item in items[:3]:
        item["labels"] = [IGNORED] * (40 * len(item["labels"][:-8])) + item["labels"][-8:]
        item["input_ids"] = item["input_ids"][:-8] * 40 + item["input_ids"][-8:]
        item["attention_mask"] = [1] * len(item["labels"])
    return rows_file(folder, items)


# Healthy set-ups


@healthy
def chat_of_three_rounds_in_a_trainer(folder: Path) -> Said:
    """A Trainer over conversations of three rounds through Llama 3's template, with BOS, every answer trained."""
    return luthier.audit(chat_trainer(chats.llama3(), turns=3))


@healthy
def chat_with_a_tool_in_a_trainer(folder: Path) -> Said:
    """A Trainer over conversations in which a tool speaks before each answer, through Llama 3's template."""
    return luthier.audit(chat_trainer(chats.llama3(), turns=2, tool=True))


@healthy
def thinking_in_single_answers(folder: Path) -> Said:
    """A Trainer over single answers that think first, through Qwen3's template."""
    hf = chats.tokenizer(chats.QWEN3)
    items = []
    for index, (question, answer) in enumerate(chats.conversations(60)):
        prompt = hf.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        said = (
            f"<think>\n{TEXTS[index % 5][:20]} makes {index % 23}.\n</think>\n\n{answer['content']}<|im_end|>"
        )
        items.append(as_item(*(hf.encode(text, add_special_tokens=False) for text in (prompt, said))))
    return luthier.audit(chats.trainer(hf, items[:48], items[48:]))


@healthy
def rows_for_mistral(folder: Path) -> Said:
    """A file of conversations of two rounds for Mistral's tokenizer, with BOS and ``[INST]``."""
    hf = mistral().hf
    items = chats.items(hf, chats.conversations(32, 2))
    return rows_file(folder, items, hf, model=chats.model(hf, items, steps=12))


@healthy
def blocks_of_one_stream(folder: Path) -> Said:
    """Blocks of one length cut from a stream of texts with EOS between them, all of it trained, as for pretraining."""
    stream: list[int] = []
    for item in tiny_trainer.items(200):
        stream += item["input_ids"]
    items = [{"input_ids": stream[i : i + 64], "labels": stream[i : i + 64]} for i in range(0, 64 * 60, 64)]
    return rows_file(folder, items, model=chats.model(make_tokenizer(), items))


@healthy
def flattened_batches(folder: Path) -> Said:
    """A Trainer whose collator joins the rows of a batch into one with ``position_ids`` that begin anew."""
    items = [{k: item[k] for k in ("input_ids", "labels")} for item in tiny_trainer.items(48)]
    eval = [{k: item[k] for k in ("input_ids", "labels")} for item in tiny_trainer.items(12, seed=1)]
    return luthier.audit(tiny_trainer.trainer(train=items, eval=eval, collator=DataCollatorWithFlattening()))


@healthy
def prepared_folder_of_axolotl(folder: Path) -> Said:
    """A folder as axolotl prepares it for packing: rows with ``position_ids`` and lengths, which batches join later."""
    items = [
        {**item, "position_ids": list(range(len(item["labels"]))), "length": len(item["labels"])}
        for item in tiny_trainer.items(60)
    ]
    Dataset.from_list(items).save_to_disk(folder / "prepared")
    tiny_trainer.save_folder(folder / "model")
    return luthier.audit(model=folder / "model", rows=folder / "prepared")


@healthy
def prepared_folder_of_llama_factory(folder: Path) -> Said:
    """A folder as LLaMA-Factory tokenises it: train and validation, with its columns for images, videos and audios."""
    splits = {}
    for name, count, seed in (("train", 60, 0), ("validation", 16, 1)):
        items = tiny_trainer.items(count, seed=seed)
        splits[name] = Dataset.from_list(
            [{**item, "images": None, "videos": None, "audios": None} for item in items]
        )
    DatasetDict(splits).save_to_disk(folder / "tokenized")
    tiny_trainer.save_folder(folder / "model")
    return luthier.audit(model=folder / "model", rows=folder / "tokenized")


@healthy
def classifier_that_looks_both_ways(folder: Path) -> Said:
    """A Trainer with a fresh BERT classifier over a WordPiece tokenizer with [CLS] and [SEP]."""
    hf = wordpiece().hf
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(hf),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        pad_token_id=hf.pad_token_id,
    )
    items = []
    draw = torch.Generator().manual_seed(1)
    for index in torch.randperm(72, generator=draw).tolist():
        words = torch.randint(0, len(WORDS), (6 + index % 13,), generator=draw).tolist()
        items.append({**hf(" ".join(WORDS[word] for word in words)), "labels": index % 3})
    return luthier.audit(
        Trainer(
            model=BertForSequenceClassification(config),
            args=tiny_trainer.arguments(),
            train_dataset=items[:60],
            eval_dataset=items[60:],
            data_collator=DataCollatorWithPadding(hf),
            processing_class=hf,
        )
    )
