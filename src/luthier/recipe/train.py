"""The section ``train``: the training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.recipe.options import Auto, Options, Share

# Tokens that go through the model at once where nothing is tried: in checks and in evaluation.
TOKENS_AT_ONCE = 4096
_Beta = Annotated[float, Field(ge=0, lt=1)]
Watcher = Literal[
    "watch-loss-spike",
    "watch-loss-rise",
    "watch-loss-stuck",
    "watch-gradient-exploding",
    "watch-gradient-vanishing",
    "watch-overfitting",
    "watch-throughput",
    "watch-memory",
]


class Train(Options):
    """The training loop."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the training rows; ``max_steps`` or ``max_tokens`` may end earlier."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps at most."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens trained on at most, context included, to the nearest whole step of rows of average length."""
    batch_size: int = Field(8, ge=1)
    """Rows of one optimizer step, over all micro-batches and ranks."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Tokens, padding included, that go through the model at once; a single longer row goes alone. ``auto`` is what memory holds, tried before the first step, on a processor 8,192 at most. Changes memory and speed, never the result."""
    gradient_checkpointing: bool | Auto = "auto"
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time. ``auto`` is where the longest row does not fit without."""
    packing: bool | Auto = "auto"
    """Rows one after another without padding, none of which sees another; ``auto`` is wherever the model allows it. Changes speed, never the result."""
    compile: bool | Auto = "auto"
    """Compile the decoder's layers; ``auto`` is where a run is long enough to earn it back and a measurement shows that it helps."""
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"] = "adamw"
    """``adamw`` is torch's; the others are bitsandbytes' (extra ``luthier[quantised]``), with a state of 8 bits, or one that moves out of a GPU's memory when that is full (``paged``: NVIDIA GPUs only)."""
    sharding: Literal["none", "fsdp"] = "none"
    """How several processes share the model: ``none`` has a whole copy in each; ``fsdp`` has weights, gradients and optimizer state in shards (torch's FSDP2). Changes memory and speed, never the result."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Experiment trackers that get each line of the history as well; one that fails is left out, and the run goes on."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after warm-up; linear and cosine end at ``final_learning_rate_share`` of the peak."""
    final_learning_rate_share: Share = 0.0
    """Where linear and cosine schedules end, as a share of the peak."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up, in place of ``warmup_share``."""
    warmup_share: Share = 0.05
    """Warm-up as a share of all steps, when ``warmup_steps`` is not given."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW decay of matrices; vectors (norms, biases) are never decayed."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """AdamW averaging factors."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW epsilon."""
    max_gradient_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this norm; ``null`` clips nothing."""
    eval_every_steps: int | None = Field(None, ge=1)
    """Evaluate each N steps; excludes ``eval_every_tokens``. Without either: ten times a run."""
    eval_every_tokens: int | None = Field(None, ge=1)
    """Evaluate each N training tokens."""
    num_samples: int = Field(4, ge=0)
    """Rows of the eval split for which text is generated at each evaluation."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Write a checkpoint each N steps; without it, at each evaluation."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept on disk; the best one is kept besides."""
    balance_classes: Share = 0.0
    """How far rows are drawn by class, where a head gives rows one label: 0 takes each row once an epoch, 1 each class equally often; in between, classes count by their size to the power of the rest."""
    best_metric: Literal["loss", "bits_per_byte", "token_accuracy", "accuracy", "macro_f1"] = "loss"
    """Eval metric that chooses the best checkpoint; the last two are of tasks that label rows with a head, which have no ``bits_per_byte`` or ``token_accuracy``."""
    early_stop_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better ``best_metric``."""
    stop_on: list[Watcher] = []
    """Watchers that stop the run when they speak, with a checkpoint (exit code 1); all others warn. A loss that is not finite always stops it."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the result."""

    @property
    def best_direction(self) -> Literal["min", "max"]:
        """Whether a lower or a higher ``best_metric`` is better."""
        return "min" if self.best_metric in ("loss", "bits_per_byte") else "max"

    @property
    def tokens_at_once(self) -> int:
        """``micro_batch_tokens``, where nothing is tried."""
        return TOKENS_AT_ONCE if self.micro_batch_tokens == "auto" else self.micro_batch_tokens

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.eval_every_steps and self.eval_every_tokens:
            raise ValueError("eval_every_steps and eval_every_tokens exclude each other; keep one")
        if self.sharding != "none" and self.compile is True:
            raise ValueError("compile and sharding exclude each other; use compile=auto")
        return self
