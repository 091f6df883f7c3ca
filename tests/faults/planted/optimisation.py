"""Defects of the training step, the optimizer, the schedule, adapters and the choice of the best checkpoint."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.faults.suite import Said, check_recipe, healthy, planted
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import make_tokenizer
from torch.nn import functional
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    Trainer,
    default_data_collator,
    get_scheduler,
)

import luthier


def lora(model: Any, **settings: Any) -> Any:
    chosen = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(model, LoraConfig(**chosen))


@contextmanager
def pretended(made: Trainer, num_ranks: int) -> Iterator[Trainer]:
    """A Trainer in a process that takes itself for one of several."""
    states = [made.args.distributed_state, made.accelerator.state]
    before = [state.num_processes for state in states]
    for state in states:
        state.num_processes = num_ranks
    try:
        yield made
    finally:
        for state, number in zip(states, before, strict=True):
            state.num_processes = number


# Accumulation


@planted("accumulation", catalogue=(32,), where="Trainer arguments")
def head_of_280_classes_that_drops_the_number_of_items(folder: Path) -> Said:
    """A fresh Qwen3 classifier of 280 classes under a Trainer that accumulates twelve times (transformers#47688)."""
    return luthier.audit(
        tiny_trainer.class_trainer(
            num_labels=280, train=tiny_trainer.class_items(560, 280), gradient_accumulation_steps=12
        )
    )


@planted("accumulation", catalogue=(32,), where="Trainer arguments")
def head_under_an_adapter_that_drops_the_number_of_items(folder: Path) -> Said:
    """The same with LoRA around it and eight micro-batches."""
    model = lora(tiny_trainer.classifier(), task_type="SEQ_CLS")
    return luthier.audit(tiny_trainer.class_trainer(model, gradient_accumulation_steps=8))


@planted("accumulation", catalogue=(32,), where="Trainer arguments")
def token_head_that_drops_the_number_of_items(folder: Path) -> Said:
    """A Qwen3 that tags tokens under a Trainer that accumulates four times."""
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(tiny_trainer.config("qwen3", num_labels=3))
    items = [{**item, "labels": [i % 3 for i in item["input_ids"]]} for item in tiny_trainer.items(40)]
    collator = DataCollatorForTokenClassification(make_tokenizer())
    return luthier.audit(
        tiny_trainer.trainer(model, train=items, collator=collator, gradient_accumulation_steps=4)
    )


@planted("accumulation", catalogue=(33, 34), where="Trainer arguments")
def head_that_is_counted_once_a_rank(folder: Path) -> Said:
    """A classifier whose head drops the number of items, on two ranks, without accumulation."""
    with pretended(tiny_trainer.class_trainer(), 2) as made:
        return luthier.audit(made)


@planted("accumulation", catalogue=(31,), where="Trainer arguments")
def loss_function_that_takes_the_mean_of_a_micro_batch(folder: Path) -> Said:
    """A ``compute_loss_func`` that ignores ``num_items_in_batch``, with four micro-batches."""

    def mean(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    made = tiny_trainer.trainer(gradient_accumulation_steps=4)
    made.compute_loss_func = mean
    return luthier.audit(made)


class OwnLoss(Trainer):
    """A loss of one's own, as many write it: the mean of a micro-batch."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.of(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss

    def of(self, logits: Any, labels: Any) -> Any:
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@planted("accumulation", catalogue=(31,), where="Trainer subclass")
def trainer_of_ones_own_that_takes_the_mean_of_a_micro_batch(folder: Path) -> Said:
    """A ``compute_loss`` of one's own around a model with ``**kwargs``, with eight micro-batches."""
    return luthier.audit(tiny_trainer.trainer(cls=OwnLoss, gradient_accumulation_steps=8))


@planted("accumulation", catalogue=(30,), where="Trainer arguments", severity="warning")
def mean_of_means(folder: Path) -> Said:
    """A causal model that does not take the number of items, with answers of 2 to 20 tokens and eight micro-batches."""
    model = tiny_trainer.model()
    model.accepts_loss_kwargs = False
    items = []
    for index, item in enumerate(tiny_trainer.items(48)):
        cut = len(item["input_ids"]) - (2 if index % 2 else 16)
        items.append({**item, "labels": [-100] * cut + item["input_ids"][cut:]})
    return luthier.audit(tiny_trainer.trainer(model, train=items, gradient_accumulation_steps=8))


# What a step computes


class DividesTwice(OwnLoss):
    loss_is_scaled_for_ga = False

    def of(self, logits: Any, labels: Any) -> Any:
        return super().of(logits, labels) / self.args.gradient_accumulation_steps


@planted("step-loss", catalogue=(31,), where="Trainer subclass")
def loss_that_is_divided_twice(folder: Path) -> Said:
    """A ``compute_loss`` that divides by the accumulation steps, as the Trainer does after it."""
    return luthier.audit(tiny_trainer.trainer(cls=DividesTwice, gradient_accumulation_steps=4))


class Unshifted(OwnLoss):
    def of(self, logits: Any, labels: Any) -> Any:
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@planted("step-loss", catalogue=(37,), where="Trainer subclass")
def labels_that_are_not_shifted(folder: Path) -> Said:
    """A ``compute_loss`` that compares logits and labels at the same positions."""
    return luthier.audit(tiny_trainer.trainer(cls=Unshifted))


class Smoothed(OwnLoss):
    def of(self, logits: Any, labels: Any) -> Any:
        return self.label_smoother({"logits": logits}, labels)  # type: ignore[misc]


@planted("step-loss", catalogue=(37,), where="Trainer subclass")
def smoothed_labels_that_are_not_shifted(folder: Path) -> Said:
    """Label smoothing on a path of its own that forgets the shift (transformers#17987)."""
    return luthier.audit(tiny_trainer.trainer(cls=Smoothed, label_smoothing_factor=0.1))


class CountsAll(OwnLoss):
    def of(self, logits: Any, labels: Any) -> Any:
        total = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        return total / (labels != -100).sum()


@planted("step-loss", catalogue=(36,), where="Trainer subclass")
def first_tokens_that_are_counted(folder: Path) -> Said:
    """A loss that is divided by the first tokens too, which nothing predicts (transformers#46204)."""
    items = [{**i, "input_ids": i["input_ids"][:8], "labels": i["input_ids"][:8], "attention_mask": [1] * 8} for i in tiny_trainer.items(48)]  # fmt: skip
    return luthier.audit(tiny_trainer.trainer(train=items, cls=CountsAll))


class Summed(OwnLoss):
    def of(self, logits: Any, labels: Any) -> Any:
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )


@planted("step-loss", catalogue=(31,), where="Trainer subclass")
def loss_that_is_summed(folder: Path) -> Said:
    """A loss that is the sum over all tokens."""
    return luthier.audit(tiny_trainer.trainer(cls=Summed))


@planted("gradient-norm", catalogue=(32,), where="Trainer subclass", severity="warning")
def every_step_is_clipped_to_nothing(folder: Path) -> Said:
    """A summed loss over long answers under the usual limit of 1 for the gradient's norm."""
    items = [{**item, "labels": item["input_ids"]} for item in tiny_trainer.items(48)]
    return luthier.audit(tiny_trainer.trainer(train=items, cls=Summed))


class Overflowing(OwnLoss):
    def of(self, logits: Any, labels: Any) -> Any:
        return super().of((logits * 2e4).half().float(), labels)


@planted("gradient-norm", catalogue=(40, 73), where="Trainer subclass")
def logits_that_overflow_in_fp16(folder: Path) -> Said:
    """Logits that are scaled beyond the range of fp16, which the log will show as the mean of other steps."""
    return luthier.audit(tiny_trainer.trainer(cls=Overflowing))


# Adapters


@planted("adapter-targets", catalogue=(61,), where="adapter config")
def target_that_matches_nothing(folder: Path) -> Said:
    """An adapter for ``q_proj``, ``v_proj`` and ``fc1``, which a Llama does not have."""
    model = lora(tiny_trainer.model(), target_modules=["q_proj", "v_proj", "fc1"])
    return luthier.audit(tiny_trainer.trainer(model))


@planted("adapter-targets", catalogue=(62,), where="adapter config")
def target_that_is_excluded(folder: Path) -> Said:
    """An output head that is among an adapter's targets and among those to leave out."""
    model = lora(tiny_trainer.model(), target_modules=["q_proj", "lm_head"], exclude_modules=["lm_head"])
    return luthier.audit(tiny_trainer.trainer(model))


@planted("adapter-targets", catalogue=(61,), where="adapter config", severity="warning")
def pattern_for_layers_of_one_digit(folder: Path) -> Said:
    """A pattern for target modules that matches layers 0 to 9 of twelve."""
    pattern = r".*layers\.[0-9]\.(self_attn\.[qv]_proj|mlp\.up_proj)"
    model = lora(tiny_trainer.model(num_hidden_layers=12), target_modules=pattern)
    return luthier.audit(tiny_trainer.trainer(model))


@planted("adapter-targets", catalogue=(69,), where="adapter folder")
def adapter_that_was_loaded_for_inference(folder: Path) -> Said:
    """An adapter that is loaded to train on, without ``is_trainable=True``."""
    lora(tiny_trainer.model()).save_pretrained(folder / "adapter")
    return luthier.audit(
        tiny_trainer.trainer(PeftModel.from_pretrained(tiny_trainer.model(), folder / "adapter"))
    )


# Gradients


@planted("gradients", catalogue=(69,), where="model")
def frozen_model(folder: Path) -> Said:
    """A model of which nothing is trainable."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model().requires_grad_(False)))


@planted("gradients", catalogue=(68,), where="model")
def hidden_states_that_are_detached(folder: Path) -> Said:
    """A hook that detaches what the first layer gives."""
    model = lora(tiny_trainer.model())
    layers = model.get_base_model().model.layers
    layers[0].register_forward_hook(lambda module, inputs, output: output.detach())
    return luthier.audit(tiny_trainer.trainer(model))


@planted("gradients", catalogue=(68,), where="model")
def reentrant_checkpointing_before_frozen_embeddings(folder: Path) -> Said:
    """Reentrant checkpointing that is switched on by hand, under an adapter and a head that is trained."""
    model = lora(tiny_trainer.classifier(), task_type="SEQ_CLS")
    reentrant = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=True)
    model.get_base_model()._set_gradient_checkpointing(True, reentrant)
    return luthier.audit(tiny_trainer.class_trainer(model))


@planted("gradients", catalogue=(58,), where="tokenizer")
def new_token_under_an_adapter(folder: Path) -> Said:
    """A new token in the rows, an embedding that was resized for it, and an adapter that leaves the embedding frozen."""
    tiny_trainer.save_folder(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|tool|>"])
    model.resize_token_embeddings(len(tokenizer))
    items = tiny_trainer.items(48)
    for item in items:
        item["input_ids"][1] = len(tokenizer) - 1
    return luthier.audit(
        tiny_trainer.trainer(
            lora(model, target_modules=["q_proj", "v_proj"]), train=items, tokenizer=tokenizer
        )
    )


# The optimizer


def with_optimizer(optimizer: Any, model: Any, scheduler: Any = None, **settings: Any) -> Said:
    made = tiny_trainer.trainer(model, **settings)
    made.optimizer, made.lr_scheduler = optimizer, scheduler
    return luthier.audit(made)


@planted("parameter-groups", catalogue=(69,), where="Trainer arguments")
def optimizer_of_another_model(folder: Path) -> Said:
    """An optimizer that was made over the parameters of a model that was then loaded again."""
    stale = tiny_trainer.model()
    return with_optimizer(torch.optim.AdamW(stale.parameters(), lr=1e-3), tiny_trainer.model())


@planted("parameter-groups", catalogue=(74,), where="Trainer arguments")
def parameters_in_no_group(folder: Path) -> Said:
    """Groups by name that forget embedding and head."""
    model = tiny_trainer.model()
    named = [p for n, p in model.named_parameters() if "layers" in n]
    return with_optimizer(torch.optim.AdamW(named, lr=1e-3), model)


@planted("parameter-groups", catalogue=(74,), where="Trainer arguments", severity="warning")
def decay_on_norms(folder: Path) -> Said:
    """Weight decay on the final norm of a Mamba, whose name the Trainer's patterns miss."""
    return luthier.audit(
        tiny_trainer.trainer(
            tiny_trainer.model("mamba"), weight_decay=0.1, learning_rate=1e-2, max_steps=100, eval_steps=20
        )
    )


@planted("update-size", catalogue=(72,), where="Trainer arguments")
def updates_that_bf16_rounds_away(folder: Path) -> Said:
    """A model in bf16 that is trained whole at a learning rate of 1e-6."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model().bfloat16(), bf16=True, learning_rate=1e-6))


@planted("update-size", catalogue=(72,), where="Trainer arguments", severity="warning")
def updates_that_bf16_rounds_away_in_part(folder: Path) -> Said:
    """A model in bf16 that is trained whole at a learning rate of 5e-5."""
    return luthier.audit(tiny_trainer.trainer(tiny_trainer.model().bfloat16(), bf16=True, learning_rate=5e-5))


@planted("update-size", catalogue=(72,), where="Trainer arguments")
def optimizer_with_a_learning_rate_of_zero(folder: Path) -> Said:
    """An optimizer whose learning rate was left at 0 for a scheduler that does not set it."""
    model = tiny_trainer.model()
    return with_optimizer(torch.optim.AdamW(model.parameters(), lr=0.0), model)


@planted("overfit-batch", catalogue=(69,), where="Trainer arguments")
def optimizer_that_goes_uphill(folder: Path) -> Said:
    """An optimizer with ``maximize=True``, copied from reinforcement learning."""
    model = tiny_trainer.model()
    return with_optimizer(torch.optim.AdamW(model.parameters(), lr=1e-3, maximize=True), model)


@planted("overfit-batch", catalogue=(69,), where="collator")
def labels_that_are_drawn_anew(folder: Path) -> Said:
    """A collator of a classifier that draws the labels at random for each batch."""
    made = tiny_trainer.class_trainer()
    collate = made.data_collator
    made.data_collator = lambda items: {**collate(items), "labels": torch.randint(0, 5, (len(items),))}
    return luthier.audit(made)


# The schedule


@planted("schedule", catalogue=(75,), where="Trainer arguments", severity="warning")
def cosine_over_the_steps_without_accumulation(folder: Path) -> Said:
    """A cosine that was made for all micro-batches, passed to a Trainer that accumulates eight times."""
    model = tiny_trainer.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    cosine = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=160)
    return with_optimizer(optimizer, model, cosine, gradient_accumulation_steps=8)


@planted("schedule", catalogue=(76,), where="Trainer arguments")
def no_whole_batch(folder: Path) -> Said:
    """A batch larger than the data, and incomplete batches are dropped."""
    return luthier.audit(
        tiny_trainer.trainer(per_device_train_batch_size=64, dataloader_drop_last=True, eval_steps=1)
    )


@planted("schedule", catalogue=(76,), where="recipe", severity="warning")
def checkpoints_beyond_the_run(folder: Path) -> Said:
    """The recipe's checkpoints are further apart than the run is long."""
    return check_recipe(folder, train={"checkpoint_every_steps": 1000})


@planted("schedule", catalogue=(76,), where="Trainer arguments", severity="note")
def epochs_that_are_not_used(folder: Path) -> Said:
    """Five epochs and ``max_steps`` for less than two."""
    return luthier.audit(tiny_trainer.trainer(num_train_epochs=5, max_steps=20))


# The best checkpoint


def choosing(metric: str, **settings: Any) -> Trainer:
    return tiny_trainer.trainer(
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        save_strategy="steps",
        save_steps=5,
        **settings,
    )


@planted("best-checkpoint", catalogue=(42,), where="Trainer arguments")
def most_errors_are_best(folder: Path) -> Said:
    """The best checkpoint is chosen by an error rate, whose name does not end with "loss"."""
    made = choosing("eval_error_rate")
    made.compute_metrics = lambda prediction: {"error_rate": 0.5}
    return luthier.audit(made)


@planted("best-checkpoint", catalogue=(41,), where="Trainer arguments")
def loss_that_evaluation_does_not_give(folder: Path) -> Said:
    """The best checkpoint is chosen by ``eval_loss``, but labels are looked for under another name."""
    return luthier.audit(choosing("eval_loss", label_names=["targets"]))


@planted("best-checkpoint", catalogue=(41,), where="Trainer arguments")
def metric_that_evaluation_does_not_give(folder: Path) -> Said:
    """The best checkpoint is chosen by ``eval_f1``, which no ``compute_metrics`` returns."""
    return luthier.audit(choosing("eval_f1"))


@planted("best-checkpoint", catalogue=(39,), where="Trainer subclass")
def evaluation_that_is_not_a_number(folder: Path) -> Said:
    """Eval rows without any label, whose loss is 0 by 0."""
    items = [{**item, "labels": [-100] * len(item["labels"])} for item in tiny_trainer.items(12, seed=1)]
    return luthier.audit(choosing("eval_loss", eval=items, cls=OwnLoss))


# Columns, ranks and workers


@planted("dropped-columns", catalogue=(27,), where="data set", severity="warning")
def weights_that_are_dropped(folder: Path) -> Said:
    """A column of loss weights that ``remove_unused_columns`` drops before the collator."""
    items = [{**item, "loss_weights": [1.0] * len(item["input_ids"])} for item in tiny_trainer.items(48)]
    return luthier.audit(tiny_trainer.trainer(train=items))


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Rows one after another, to whoever asks."""

    def __iter__(self) -> Iterator[tiny_trainer.Item]:
        yield from tiny_trainer.items(48)


@planted("ranks", catalogue=(25,), where="data set")
def workers_that_read_the_same_stream(folder: Path) -> Said:
    """A stream that does not ask which worker reads it, and four workers."""
    return luthier.audit(tiny_trainer.trainer(train=Stream(), dataloader_num_workers=4))  # type: ignore[arg-type]


@planted("ranks", catalogue=(33,), where="Trainer arguments", severity="warning")
def ranks_that_weigh_the_same(folder: Path) -> Said:
    """Four ranks whose losses are averaged whatever their numbers of tokens."""
    with pretended(tiny_trainer.trainer(average_tokens_across_devices=False), 4) as made:
        return luthier.audit(made)


@planted("ranks", catalogue=(35,), where="Trainer arguments")
def two_devices_in_one_process(folder: Path) -> Said:
    """Two devices under ``nn.DataParallel``."""
    made = tiny_trainer.trainer()
    made.args._n_gpu = 2
    return luthier.audit(made)


# Healthy set-ups near the limits of these checks


@healthy
def trainer_with_an_adapter_that_chooses_by_loss(folder: Path) -> Said:
    """A Trainer with LoRA and dropout that accumulates eight times and keeps the checkpoint with the least loss."""
    made = choosing(
        "eval_loss", model_=lora(tiny_trainer.model(), lora_dropout=0.1), gradient_accumulation_steps=8
    )
    return luthier.audit(made)


@healthy
def trainer_in_full_with_decay(folder: Path) -> Said:
    """A Trainer with a tiny Qwen3 in full, weight decay, warm-up and label smoothing."""
    return luthier.audit(
        tiny_trainer.trainer(
            tiny_trainer.model("qwen3"), weight_decay=0.1, warmup_steps=0.1, label_smoothing_factor=0.1
        )
    )


@healthy
def trainer_with_its_own_optimizer(folder: Path) -> Said:
    """A Trainer that is given SGD with momentum and a cosine of its own length."""
    model = tiny_trainer.model("mistral")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return with_optimizer(optimizer, model, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20))


@healthy
def adapter_in_bf16(folder: Path) -> Said:
    """LoRA around a tiny Qwen3 in bf16."""
    return luthier.audit(tiny_trainer.trainer(lora(tiny_trainer.model("qwen3").bfloat16()), bf16=True))


@healthy
def whole_model_under_autocast(folder: Path) -> Said:
    """A model in fp32 that is trained whole with products in bf16, at a small learning rate."""
    return luthier.audit(tiny_trainer.trainer(bf16=True, learning_rate=1e-5, gradient_accumulation_steps=4))


@healthy
def classifier_with_an_adapter(folder: Path) -> Said:
    """A fresh classifier with LoRA for classification, whose base model does not take the number of items."""
    base = tiny_trainer.classifier()
    base.accepts_loss_kwargs = False
    model = lora(base, task_type="SEQ_CLS")
    return luthier.audit(tiny_trainer.class_trainer(model, gradient_accumulation_steps=8))


@healthy
def random_model_of_twelve_layers(folder: Path) -> Said:
    """LoRA at attention only, in all twelve layers of a Llama, with checkpointed activations."""
    model = lora(tiny_trainer.model(num_hidden_layers=12), target_modules=["q_proj", "v_proj"])
    return luthier.audit(tiny_trainer.trainer(model, gradient_checkpointing=True))


@healthy
def own_loss_that_divides_by_all_items(folder: Path) -> Said:
    """A ``compute_loss_func`` that divides the sum by ``num_items_in_batch``, with four micro-batches."""

    def total(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

    made = tiny_trainer.trainer(gradient_accumulation_steps=4)
    made.compute_loss_func = total
    return luthier.audit(made)


class DividesItself(OwnLoss):
    def of(self, logits: Any, labels: Any) -> Any:
        return super().of(logits, labels) / self.args.gradient_accumulation_steps


@healthy
def own_loss_that_divides_by_the_accumulation_steps(folder: Path) -> Said:
    """A ``compute_loss`` that divides by ``gradient_accumulation_steps`` where the Trainer does not, over equal rows."""
    items = [
        {**item, "labels": [-100] * (len(item["labels"]) - 3) + item["labels"][-3:]}
        for item in tiny_trainer.items(48)
    ]
    return luthier.audit(tiny_trainer.trainer(train=items, cls=DividesItself, gradient_accumulation_steps=4))


def sft(folder: Path, **settings: Any) -> Trainer:
    from trl import SFTConfig, SFTTrainer

    tokenizer = make_tokenizer()
    rows = []
    for item in [*tiny_trainer.items(48), *tiny_trainer.items(12, seed=1)]:
        prompt = [i for i, label in zip(item["input_ids"], item["labels"], strict=True) if label < 0]
        answer = [label for label in item["labels"] if label > 2]
        rows.append({"prompt": tokenizer.decode(prompt), "completion": tokenizer.decode(answer)})
    arguments = {
        "output_dir": str(folder),
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "max_length": 128,
        "disable_tqdm": True,
        **settings,
    }
    return SFTTrainer(
        tiny_trainer.model("qwen3"),
        args=SFTConfig(**arguments),
        train_dataset=datasets.Dataset.from_list(rows[:48]),
        eval_dataset=datasets.Dataset.from_list(rows[48:]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM"),
    )


@healthy
def sft_trainer(folder: Path) -> Said:
    """TRL's SFTTrainer with prompts and completions, LoRA, checkpointed activations and four micro-batches."""
    return luthier.audit(sft(folder, gradient_accumulation_steps=4))


@healthy
def sft_trainer_with_packs(folder: Path) -> Said:
    """The same with packed rows, which the collator joins without padding."""
    return luthier.audit(
        sft(folder, packing=True, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    )


@healthy
def rows_padded_to_a_fixed_length(folder: Path) -> Said:
    """Rows that are padded beforehand, a collator that cannot pad, and four micro-batches."""
    made = []
    for item in [*tiny_trainer.items(48), *tiny_trainer.items(12, seed=1)]:
        lacking = 48 - len(item["input_ids"])
        fill = {"input_ids": 2, "attention_mask": 0, "labels": -100}
        made.append({name: item[name] + [value] * lacking for name, value in fill.items()})
    return luthier.audit(
        tiny_trainer.trainer(
            train=made[:48], eval=made[48:], collator=default_data_collator, gradient_accumulation_steps=4
        )
    )
