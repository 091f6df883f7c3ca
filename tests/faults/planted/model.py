"""Defects of models and of what collators make for them, and healthy set-ups near the thresholds of these checks."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.faults.suite import Said, check_recipe, healthy, planted
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import make_tokenizer
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import luthier
from luthier.models import packed

Weights = dict[str, torch.Tensor]


def lora(model: PreTrainedModel, task_type: str | None = "CAUSAL_LM", **settings: Any) -> Any:
    """The model with a small adapter."""
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, task_type=task_type, **settings))


def folder_of(folder: Path, model: PreTrainedModel | None = None) -> tuple[Path, Weights]:
    """A model folder, and the weights in its file."""
    tiny_trainer.save_folder(folder, model)
    return folder / "model.safetensors", load_file(folder / "model.safetensors")


def write(path: Path, weights: Weights) -> None:
    save_file({name: w.contiguous() for name, w in weights.items()}, path, {"format": "pt"})


def audit_folder(folder: Path, **settings: Any) -> Said:
    """A Trainer with the model of a folder, loaded as people do it."""
    return luthier.audit(tiny_trainer.trainer(AutoModelForCausalLM.from_pretrained(folder), **settings))


# Weights


@planted("initial-loss", catalogue=(70,), where="model folder")
def weights_under_a_prefix(folder: Path) -> Said:
    """All tensors of the model folder have a prefix that the class does not know, as a compiled wrapper saves them."""
    path, weights = folder_of(folder)
    write(path, {f"_orig_mod.{name}": w for name, w in weights.items()})
    return audit_folder(folder)


@planted("weights", catalogue=(70,), where="model folder")
def one_layer_under_another_name(folder: Path) -> Said:
    """The feed-forward matrices of one layer have another name in the model's file, so that they are drawn anew."""
    path, weights = folder_of(folder)
    write(path, {name.replace("layers.1.mlp", "layers.1.ffn"): w for name, w in weights.items()})
    return audit_folder(folder)


@planted("initial-loss", catalogue=(70,), where="model", severity="warning")
def weights_never_loaded(folder: Path) -> Said:
    """The model is made of its config, and its weights are never loaded."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(tiny_trainer.config("qwen3", initializer_range=0.02))
    return luthier.audit(tiny_trainer.trainer(made))


@planted("initial-loss", catalogue=(70,), where="model folder")
def final_norm_scaled_in_the_file(folder: Path) -> Said:
    """The gains of the last norm in the model's file are 64 times what they were."""
    path, weights = folder_of(folder)
    write(path, {n: w * 64 if n == "model.norm.weight" else w for n, w in weights.items()})
    return audit_folder(folder)


@planted("initial-loss", catalogue=(70,), where="model")
def head_scaled_after_loading(folder: Path) -> Said:
    """Code between loading and training multiplies the output head by 64."""
    folder_of(folder)
    made = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        made.lm_head.weight.mul_(64)
    return luthier.audit(tiny_trainer.trainer(made))


@planted("initial-loss", catalogue=(59,), where="tokenizer folder")
def ids_of_another_tokenizer(folder: Path) -> Said:
    """The rows were tokenised by a tokenizer that numbers the same tokens otherwise."""
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()

    def other(index: int) -> int:
        return 3 + order[index - 3] % 397 if 3 <= index < 400 else index

    items = tiny_trainer.items(48)
    for item in items:
        item["labels"] = [other(i) if i >= 0 else i for i in item["labels"]]
        item["input_ids"] = [other(i) for i in item["input_ids"]]
    folder_of(folder)
    return audit_folder(folder, train=items)


@planted("initial-loss", catalogue=(71,), where="model folder")
def norm_of_nan(folder: Path) -> Said:
    """One number of a norm in the model's file is NaN."""
    path, weights = folder_of(folder)
    weights["model.layers.0.input_layernorm.weight"][3] = torch.nan
    write(path, weights)
    return audit_folder(folder)


@planted("initial-loss", catalogue=(30, 36), where="model")
def loss_that_shifts_twice(folder: Path) -> Said:
    """A loss function of one's own shifts labels that were shifted before."""
    made = tiny_trainer.model()

    def loss(logits: torch.Tensor, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
        return functional.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten())

    made.loss_function = loss
    return luthier.audit(tiny_trainer.trainer(made))


@planted("initial-loss", catalogue=(31,), where="model")
def loss_that_sums(folder: Path) -> Said:
    """A loss function of one's own adds the tokens' losses up in place of their mean."""
    made = tiny_trainer.model()

    def loss(logits: torch.Tensor, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )

    made.loss_function = loss
    return luthier.audit(tiny_trainer.trainer(made))


@planted("weights", catalogue=(59, 71), where="recipe")
def added_rows_of_nan(folder: Path) -> Said:
    """The model folder of a recipe has embedding rows behind the vocabulary, which nobody set: NaN."""
    made = tiny_trainer.model(vocab_size=len(make_tokenizer()) + 8)
    with torch.no_grad():
        made.model.embed_tokens.weight[-8:] = torch.nan
    tiny_trainer.save_folder(folder / "model", made)
    return check_recipe(folder)


@planted("weights", catalogue=(59,), where="model", severity="warning")
def added_rows_too_long(folder: Path) -> Said:
    """New rows of the embedding are drawn with a spread 50 times that of the others."""
    made = tiny_trainer.model()
    usual = made.model.embed_tokens.weight.std().item()
    made.resize_token_embeddings(len(make_tokenizer()) + 4, mean_resizing=False)
    with torch.no_grad():
        made.model.embed_tokens.weight[-4:].normal_(std=50 * usual)
    return luthier.audit(tiny_trainer.trainer(made))


@planted("weights", catalogue=(71,), where="model folder")
def matrix_of_one_number(folder: Path) -> Said:
    """A projection in the model's file is 0.01 throughout."""
    path, weights = folder_of(folder)
    weights["model.layers.1.self_attn.o_proj.weight"].fill_(0.01)
    write(path, weights)
    return audit_folder(folder)


@planted("weights", catalogue=(70,), where="model")
def layer_left_on_the_meta_device(folder: Path) -> Said:
    """One layer's weights are on the meta device, where they have no numbers."""
    made = tiny_trainer.trainer()
    made.model.model.layers[1].mlp.to("meta")  # Trainer itself refuses to take it
    return luthier.audit(made)


# Heads


def classify(model: Any, **settings: Any) -> Said:
    return luthier.audit(tiny_trainer.class_trainer(model, **settings))


@planted("class-head", catalogue=(71,), where="model", severity="warning")
def hidden_states_too_large_for_a_head(folder: Path) -> Said:
    """The last norm in front of a fresh head has gains of 32."""
    made = tiny_trainer.classifier()
    with torch.no_grad():
        made.model.norm.weight.fill_(32.0)
    return classify(made)


@planted("class-head", catalogue=(71,), where="model", severity="warning")
def head_with_large_weights(folder: Path) -> Said:
    """A fresh head is drawn with a spread of 2 in place of 0.1."""
    made = tiny_trainer.classifier(num_labels=40)
    with torch.no_grad():
        made.score.weight.normal_(std=2.0)
    return classify(made, num_labels=40)


@planted("class-head", catalogue=(71,), where="model")
def head_of_unset_memory(folder: Path) -> Said:
    """One row of the head holds 1e37, as memory does that nobody wrote to."""
    made = tiny_trainer.classifier()
    with torch.no_grad():
        made.score.weight[2] = 1e37
    return classify(made)


@planted("class-head", catalogue=(63,), where="adapter")
def head_left_out_of_the_adapter(folder: Path) -> Said:
    """A classifier gets an adapter without task_type, which neither trains nor saves its new head."""
    return classify(lora(tiny_trainer.classifier(), None, target_modules=["q_proj", "v_proj"]))


@planted("class-head", catalogue=(62, 63), where="adapter")
def head_trained_and_not_saved(folder: Path) -> Said:
    """The new head of a classifier with an adapter is made trainable by hand, so that the adapter does not save it."""
    made = lora(tiny_trainer.classifier(), None, target_modules=["q_proj", "v_proj"])
    made.base_model.model.score.requires_grad_(True)
    return classify(made)


@planted("class-head", catalogue=(44,), where="data file", severity="warning")
def labels_numbered_otherwise(folder: Path) -> Said:
    """A classifier that knows its classes goes on with labels that are numbered in another order."""
    made = taught_classifier()
    items = tiny_trainer.class_items(60, 5)
    for item in items:
        item["labels"] = (item["labels"] + 2) % 5
    return classify(made, train=items)


def taught_classifier() -> PreTrainedModel:
    """A classifier that knows the classes of ``class_items``."""
    made = tiny_trainer.classifier("llama").train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    collate = DataCollatorWithPadding(make_tokenizer())
    items = tiny_trainer.class_items(60, 5, seed=3) + tiny_trainer.class_items(60, 5)
    for step in range(90):
        made(**collate([items[(8 * step + i) % len(items)] for i in range(8)])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return made


@planted("pooled-position", catalogue=(53,), where="model folder")
def config_with_another_padding_token(folder: Path) -> Said:
    """The config's pad_token_id is 0, and the tokenizer pads with 2."""
    tiny_trainer.save_folder(folder, tiny_trainer.classifier())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
    return classify(AutoModelForSequenceClassification.from_pretrained(folder))


@planted("pooled-position", catalogue=(53,), where="model folder")
def config_without_a_padding_token(folder: Path) -> Said:
    """The config of a classifier that is trained a row at a time names no padding token; evaluation takes eight."""
    tiny_trainer.save_folder(folder, tiny_trainer.classifier("mistral"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    made = AutoModelForSequenceClassification.from_pretrained(folder)
    return classify(made, per_device_train_batch_size=1)


@planted("pooled-position", catalogue=(53,), where="model")
def head_that_reads_the_first_token(folder: Path) -> Said:
    """A decoder's head is told to read the first token of a row, as an encoder's does."""
    made = tiny_trainer.classifier("qwen3")
    made.score.register_forward_hook(lambda module, arguments, output: output[:, :1].expand_as(output))
    return classify(made)


@planted("pooled-position", catalogue=(53,), where="rows file")
def rows_for_a_head_that_reads_padding(folder: Path) -> Said:
    """A file of tokenised rows for a model folder whose config and tokenizer pad with different tokens."""
    tiny_trainer.save_folder(folder / "model", tiny_trainer.classifier())
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"pad_token_id": 1}))
    lines = (json.dumps(item) + "\n" for item in tiny_trainer.class_items(60, 5))
    (folder / "rows.jsonl").write_text("".join(lines))
    return luthier.audit(model=folder / "model", rows=folder / "rows.jsonl")


# Tied embeddings


@planted("tied-embeddings", catalogue=(60,), where="adapter", severity="warning")
def adapter_on_a_tied_head(folder: Path) -> Said:
    """An adapter on the output head of a model that ties it to its embedding."""
    made = lora(tiny_trainer.model(tie_word_embeddings=True), target_modules=["q_proj", "lm_head"])
    return luthier.audit(tiny_trainer.trainer(made))


@planted("tied-embeddings", catalogue=(60,), where="adapter", severity="note")
def copy_of_one_tied_embedding(folder: Path) -> Said:
    """modules_to_save names the head of a model that ties it to its embedding."""
    made = tiny_trainer.model(tie_word_embeddings=True)
    return luthier.audit(
        tiny_trainer.trainer(lora(made, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    )


@planted("tied-embeddings", catalogue=(60,), where="model")
def embeddings_shared_behind_the_config(folder: Path) -> Said:
    """Head and embedding are made one tensor, and the config still says that they are two."""
    made = tiny_trainer.model(tie_word_embeddings=True)
    made.config.tie_word_embeddings = False
    return luthier.audit(tiny_trainer.trainer(made))


@planted("tied-embeddings", catalogue=(60,), where="model folder", severity="warning")
def embeddings_apart_behind_the_config(folder: Path) -> Said:
    """The model's file holds two matrices, and its config says that they are one."""
    folder_of(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return audit_folder(folder)


# Number formats


@planted("precision", catalogue=(72,), where="Trainer arguments", severity="note")
def weights_kept_in_bf16(folder: Path) -> Said:
    """A model loaded in bf16 is trained in full with bf16=True, which makes no copy in fp32."""
    made = tiny_trainer.model().to(torch.bfloat16)
    return luthier.audit(tiny_trainer.trainer(made, bf16=True, learning_rate=1e-4))


@planted("precision", catalogue=(73,), where="model")
def weights_kept_in_fp16(folder: Path) -> Said:
    """A model is halved to fp16 and trained as it is."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model().half()))


@planted("precision", catalogue=(73,), where="Trainer arguments")
def outputs_beyond_fp16(folder: Path) -> Said:
    """A model made in bf16 whose feed-forward layer gives numbers beyond 65504 is to be trained in fp16."""
    made = tiny_trainer.model("qwen3")
    with torch.no_grad():  # what the next norm takes back
        made.model.layers[1].mlp.down_proj.weight.mul_(2e4)
    trainer = tiny_trainer.trainer(made)
    trainer.args.fp16 = True  # the processor here has none
    return luthier.audit(trainer)


@planted("precision", catalogue=(73,), where="Trainer arguments", severity="warning")
def bf16_model_trained_in_fp16(folder: Path) -> Said:
    """A model folder written in bf16 is loaded in fp32 and to be trained in fp16."""
    tiny_trainer.save_folder(folder, tiny_trainer.model("mistral").to(torch.bfloat16))
    trainer = tiny_trainer.trainer(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    trainer.args.fp16 = True  # the processor here has none
    return luthier.audit(trainer)


@planted("precision", catalogue=(72,), where="model", severity="warning")
def one_layer_in_another_format(folder: Path) -> Said:
    """One layer is left in bf16 among others in fp32, under autocast."""
    made = tiny_trainer.model("llama", num_hidden_layers=4)
    made.model.layers[2].to(torch.bfloat16)
    return luthier.audit(tiny_trainer.trainer(made, bf16=True))


@planted("precision", catalogue=(72,), where="Trainer arguments")
def formats_that_nothing_casts(folder: Path) -> Said:
    """A model in bf16 gets a head in fp32, and the arguments name no autocast."""
    made = tiny_trainer.model().to(torch.bfloat16)
    made.lm_head.float()
    return luthier.audit(tiny_trainer.trainer(made))


# Attention, caches, positions


@planted("attention", catalogue=(55,), where="model")
def attention_that_forgets_its_scale(folder: Path) -> Said:
    """A registered attention of one's own scales by the wrong width of a head."""

    def fast(module: Any, query: Any, key: Any, value: Any, mask: Any, **settings: Any) -> Any:
        settings["scaling"] = 1.0
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **settings)

    made = with_attention(fast)
    try:
        return luthier.audit(tiny_trainer.trainer(made))
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["planted"]


@planted("causality", catalogue=(46, 55), where="model")
def attention_that_looks_ahead(folder: Path) -> Said:
    """A registered attention of one's own drops the causal mask."""

    def both_ways(module: Any, query: Any, key: Any, value: Any, mask: Any, **settings: Any) -> Any:
        settings["is_causal"] = False
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, **settings)

    made = with_attention(both_ways)
    try:
        return luthier.audit(tiny_trainer.trainer(made))
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["planted"]


def with_attention(function: Any) -> PreTrainedModel:
    """A model that uses an attention function registered as ``planted``."""
    ALL_ATTENTION_FUNCTIONS.register("planted", function)
    made = tiny_trainer.model()
    made.config._attn_implementation_internal = "planted"
    return made


@planted("causality", catalogue=(55,), where="model folder")
def config_of_an_embedding_model(folder: Path) -> Said:
    """The config says is_causal: false, as that of an embedding model made from a decoder does."""
    folder_of(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    return audit_folder(folder)


@planted("cache", catalogue=(51, 57), where="model")
def cache_that_forgets_positions(folder: Path) -> Said:
    """With a cache each new token is taken for the first of its row."""
    made = tiny_trainer.model()

    def first(module: Any, arguments: Any, inputs: dict[str, Any]) -> Any:
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            inputs = {**inputs, "position_ids": torch.zeros_like(inputs["position_ids"])}
        return arguments, inputs

    made.model.register_forward_pre_hook(first, with_kwargs=True)
    return luthier.audit(tiny_trainer.trainer(made))


@planted("dropout-off", catalogue=(79,), where="model")
def dropout_that_stays_on(folder: Path) -> Said:
    """A layer of one's own calls dropout with training=True."""
    made = tiny_trainer.model()
    made.model.norm.register_forward_hook(
        lambda module, arguments, output: functional.dropout(output, 0.1, training=True)
    )
    return luthier.audit(tiny_trainer.trainer(made))


class LeftCollator(tiny_trainer.Collator):
    """Pads on the left, with a mask and without positions."""

    mask = True

    def __call__(self, batch: list[tiny_trainer.Item]) -> dict[str, torch.Tensor]:
        turned = super().__call__([{k: v[::-1] for k, v in item.items()} for item in batch])
        made = {name: value.flip(-1) for name, value in turned.items()}
        return made if self.mask else {k: v for k, v in made.items() if k != "attention_mask"}


@planted("padding-invariance", catalogue=(51,), where="collator")
def left_padding_without_positions(folder: Path) -> Said:
    """A GPT-2 is trained on rows padded on the left, and nobody gives position_ids."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model("gpt2"), collator=LeftCollator()))


@planted("padding-invariance", catalogue=(52, 55), where="model")
def attention_that_sees_padding(folder: Path) -> Said:
    """Rows are padded on the left, and a registered attention of one's own drops the padding mask."""

    def fast(module: Any, query: Any, key: Any, value: Any, mask: Any, **settings: Any) -> Any:
        settings["is_causal"] = True
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, **settings)

    made = with_attention(fast)
    try:
        return luthier.audit(tiny_trainer.trainer(made, collator=LeftCollator()))
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["planted"]


# Packing


class Flattening(DataCollatorWithFlattening):
    """Joins the rows of a batch, with whatever is to tell them apart."""

    def __init__(self, *, mask: str = "", positions: bool = True) -> None:
        super().__init__(return_position_ids=True)
        self.mask, self.positions = mask, positions

    def __call__(self, features: Any, return_tensors: Any = None, separator_id: Any = None) -> Any:
        kept = [{k: v for k, v in f.items() if k != "attention_mask"} for f in features]
        batch = super().__call__(kept, return_tensors, separator_id)
        if self.mask:
            ones = torch.ones_like(batch["input_ids"])
            numbers = (batch["position_ids"] == 0).cumsum(-1)
            batch["attention_mask"] = ones if self.mask == "ones" else numbers
        if not self.positions:
            del batch["position_ids"]
        return batch


@planted("packing", catalogue=(46, 50), where="collator")
def packs_with_a_mask_of_ones(folder: Path) -> Said:
    """A padding-free collator gives position_ids and a mask of ones, behind which sdpa does not see where rows begin."""
    return luthier.audit(tiny_trainer.trainer(collator=Flattening(mask="ones")))


@planted("packing", catalogue=(46,), where="collator")
def packs_with_a_mask_of_numbers(folder: Path) -> Said:
    """A packing collator numbers its rows in the mask, which nothing but patched attention understands."""
    made = tiny_trainer.model("qwen3")
    return luthier.audit(tiny_trainer.trainer(made, collator=Flattening(mask="numbers", positions=False)))


@planted("packing", catalogue=(48,), where="collator")
def packs_for_a_model_with_a_state(folder: Path) -> Said:
    """Rows are packed for a Mamba, whose state runs on from row to row."""
    made = tiny_trainer.model("mamba")
    return luthier.audit(tiny_trainer.trainer(made, collator=Flattening(mask="numbers", positions=False)))


@planted("packing", catalogue=(48,), where="rows file")
def packed_file_for_a_model_with_a_state(folder: Path) -> Said:
    """A file whose rows are packed by position_ids, for a Mamba."""
    tiny_trainer.save_folder(folder / "model", tiny_trainer.model("mamba"))
    items = tiny_trainer.items(60)
    with open(folder / "rows.jsonl", "w") as file:
        for first, second in zip(items[::2], items[1::2], strict=True):
            row = {name: first[name] + second[name] for name in ("input_ids", "labels")}
            row["position_ids"] = [*range(len(first["input_ids"])), *range(len(second["input_ids"]))]
            file.write(json.dumps(row) + "\n")
    return luthier.audit(model=folder / "model", rows=folder / "rows.jsonl")


@planted("packing", catalogue=(46,), where="model")
def packs_of_a_recipe_that_leak(folder: Path) -> Said:
    """The attention that a recipe's packs go through takes all rows of a pack for one."""

    own = packed.inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "inputs", lambda lengths, device: own((sum(lengths),), device))
        return check_recipe(folder)


@planted("joined-rows", catalogue=(46,), where="collator", severity="warning")
def rows_joined_without_a_sign(folder: Path) -> Said:
    """A collator joins the rows of a batch into one and says nothing of where they begin."""
    return luthier.audit(tiny_trainer.trainer(collator=Flattening(positions=False)))


@planted("joined-rows", catalogue=(46,), where="data file", severity="warning")
def rows_joined_into_blocks(folder: Path) -> Said:
    """Prompts with answers are joined and cut into blocks of 64 tokens, trained on throughout."""
    ids = [i for item in tiny_trainer.items(200) for i in item["input_ids"]]
    blocks = [ids[i : i + 64] for i in range(0, len(ids) - 64, 64)]
    items = [{"input_ids": b, "attention_mask": [1] * 64, "labels": list(b)} for b in blocks]
    return luthier.audit(tiny_trainer.trainer(train=items))


# Healthy


@healthy
def llama_in_bf16_with_an_adapter(folder: Path) -> Said:
    """A Llama loaded in bf16 whose adapter is in fp32, under autocast."""
    made = lora(tiny_trainer.model().to(torch.bfloat16))
    return luthier.audit(tiny_trainer.trainer(made, bf16=True))


@healthy
def qwen3_tied_with_trained_tokens(folder: Path) -> Said:
    """A Qwen3 with tied embeddings, an adapter, and a few rows of the embedding trained beside it."""
    made = lora(
        tiny_trainer.model("qwen3", tie_word_embeddings=True),
        target_modules=["q_proj", "v_proj"],
        trainable_token_indices={"embed_tokens": [5, 6]},
    )
    return luthier.audit(tiny_trainer.trainer(made))


@healthy
def mistral_with_a_window_in_packs(folder: Path) -> Said:
    """A Mistral with a sliding window of 16 tokens and a padding-free collator that gives position_ids alone."""
    made = tiny_trainer.model("mistral", sliding_window=16)
    return luthier.audit(tiny_trainer.trainer(made, collator=Flattening()))


@healthy
def gpt2_with_an_adapter(folder: Path) -> Said:
    """A GPT-2 with an adapter, whose positions are learned, padded on the right."""
    return luthier.audit(tiny_trainer.trainer(lora(tiny_trainer.model("gpt2"))))


@healthy
def gpt2_in_packs(folder: Path) -> Said:
    """A GPT-2, whose positions are learned, in packs with position_ids that begin anew."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model("gpt2"), collator=Flattening()))


@healthy
def mamba_with_an_adapter(folder: Path) -> Said:
    """A Mamba with an adapter on the projections in front of its mixers."""
    return luthier.audit(tiny_trainer.trainer(lora(tiny_trainer.model("mamba"), target_modules=["in_proj"])))


@healthy
def llama_padded_on_the_left(folder: Path) -> Said:
    """A Llama, whose positions are relative, padded on the left with a mask."""
    return luthier.audit(tiny_trainer.trainer(collator=LeftCollator()))


@healthy
def llama_with_new_tokens(folder: Path) -> Said:
    """A Llama from a folder with tokens added, whose rows start as the mean of the others."""
    folder_of(folder)
    made = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|fim|>", "<|sep|>"])
    made.resize_token_embeddings(len(tokenizer))
    return luthier.audit(tiny_trainer.trainer(made, tokenizer=tokenizer))


@healthy
def qwen3_with_eager_attention(folder: Path) -> Said:
    """A Qwen3 with eager attention and checkpointed activations."""
    made = tiny_trainer.model("qwen3")
    made.set_attn_implementation("eager")
    return luthier.audit(tiny_trainer.trainer(made, gradient_checkpointing=True))


@healthy
def classifier_of_llama_with_an_adapter(folder: Path) -> Said:
    """A classifier made of a Llama's folder, with an adapter that trains and saves the new head."""
    folder_of(folder)
    made = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    return classify(lora(made, "SEQ_CLS"))


@healthy
def classifier_of_gpt2(folder: Path) -> Said:
    """A classifier with a GPT-2, padded on the right."""
    return classify(tiny_trainer.classifier("gpt2"))


@healthy
def classifier_of_mistral_padded_on_the_left(folder: Path) -> Said:
    """A classifier with a Mistral, padded on the left."""
    made = tiny_trainer.class_trainer(tiny_trainer.classifier("mistral"))
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    made.processing_class, made.data_collator = tokenizer, DataCollatorWithPadding(tokenizer)
    return luthier.audit(made)


@healthy
def classifier_that_goes_on(folder: Path) -> Said:
    """A classifier that knows its classes already and is trained further."""
    return classify(taught_classifier())


def sft_trainer(model: PreTrainedModel, **settings: Any) -> Any:
    """TRL's SFTTrainer over rows that are tokenised already, packed by TRL itself."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    columns = ("input_ids", "labels")
    rows = [{name: item[name] for name in columns} for item in tiny_trainer.items(60)]
    packing = {"packing": True, "max_length": 128, "learning_rate": 1e-3, "bf16": False}
    kept = {"per_device_train_batch_size": 4, "max_steps": 20, "use_cpu": True, "report_to": []}
    return SFTTrainer(
        model,
        args=SFTConfig(output_dir=tempfile.mkdtemp(), save_strategy="no", **kept, **packing, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )


@healthy
def packs_of_trl(folder: Path) -> Said:
    """TRL's SFTTrainer with packing, a Qwen3 and sdpa: position_ids that begin anew, and no mask."""
    return luthier.audit(sft_trainer(tiny_trainer.model("qwen3")))


@planted("packing", catalogue=(48,), where="Trainer arguments")
def packs_of_trl_for_a_model_with_a_state(folder: Path) -> Said:
    """TRL's SFTTrainer packs rows for a Mamba."""
    return luthier.audit(sft_trainer(tiny_trainer.model("mamba")))


@planted("joined-rows", catalogue=(46,), where="Trainer arguments", severity="warning")
def wrapped_packs_of_trl(folder: Path) -> Said:
    """TRL's SFTTrainer packs with packing_strategy="wrapped", which joins rows and cuts them anywhere."""
    return luthier.audit(sft_trainer(tiny_trainer.model("qwen3"), packing_strategy="wrapped"))


class TwoPacks(Flattening):
    """Joins the rows of a batch to two packs, the shorter one padded."""

    def __call__(self, features: Any, return_tensors: Any = None, separator_id: Any = None) -> Any:
        half = len(features) // 2 or 1
        packs = [super(TwoPacks, self).__call__(part) for part in (features[:half], features[half:]) if part]
        longest = max(pack["input_ids"].shape[1] for pack in packs)
        fill = {"input_ids": 2, "labels": -100, "position_ids": 0, "attention_mask": 0}
        return {
            name: torch.cat(
                [
                    functional.pad(pack[name], (0, longest - pack[name].shape[1]), value=fill[name])
                    for pack in packs
                ]
            )
            for name in packs[0]
        }


@planted("packing", catalogue=(47,), where="model")
def limits_lost_in_larger_batches(folder: Path) -> Said:
    """A patch of the model keeps packed rows apart in batches of one sequence, and forgets it in those of more."""
    made = tiny_trainer.model()

    def forget(module: Any, arguments: Any, inputs: dict[str, Any]) -> Any:
        positions = inputs.get("position_ids")
        if positions is not None and len(positions) > 1:
            inputs = {**inputs, "position_ids": torch.arange(positions.shape[1]).expand_as(positions)}
        return arguments, inputs

    made.model.register_forward_pre_hook(forget, with_kwargs=True)
    return luthier.audit(tiny_trainer.trainer(made, collator=TwoPacks()))


@healthy
def several_packs_a_batch(folder: Path) -> Said:
    """A Llama and a collator that makes two packs of each batch, told apart by position_ids."""
    return luthier.audit(tiny_trainer.trainer(collator=TwoPacks()))
