"""Luthier's watchers in anybody's training: a callback for a transformers ``Trainer``."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from luthier.errors import UserError
from luthier.models.memory import in_use
from luthier.models.sharded import whole
from luthier.records import Finding
from luthier.run_folder import logger
from luthier.train.watch import Setting, Watch
from luthier.train.watchers import DOCUMENTED, OWN, not_finite

# Under fp16 the first steps look for a loss scale: a few of them overflow and are skipped, which is as it should be.
FP16_SKIPPED_LOGS = 5


class WatchCallback(TrainerCallback):
    """Watches a ``Trainer``'s training: spikes, divergence, over-fitting, dying gradients, lost speed, leaking memory, NaN.

        trainer.add_callback(luthier.WatchCallback(stop_on=["watch-overfitting", "watch-not-finite"]))
        trainer.train()

    A watcher speaks once, through the logger ``luthier`` (on standard error unless set otherwise). Losses are seen as often as they are
    logged, so ``logging_steps=1`` shows most; speed and memory are measured at every step. A run that goes on from a checkpoint is judged with
    the log that the checkpoint holds. Of several processes the first one speaks.

    Args:
        stop_on: Names of watchers that end the training when they speak, after the step under way.

    Attributes:
        findings: What was found so far.

    Raises:
        UserError: ``stop_on`` names a watcher that does not exist.
    """

    def __init__(self, stop_on: Collection[str] = ()) -> None:
        for name in stop_on:
            if name not in DOCUMENTED:
                raise UserError(
                    f"there is no watcher named {name!r}",
                    "WatchCallback(stop_on=)",
                    f"one of: {', '.join(DOCUMENTED)}",
                )
        self.stop_on = frozenset(stop_on)
        self.findings: list[Finding] = []
        self._watch = Watch(Setting(is_recipe=False))
        self._began = 0.0
        self._bad_logs = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins anew, with what a checkpoint has logged."""
        setting = Setting(
            chance_loss=_chance_loss(kwargs.get("model")),
            warmup_steps=args.get_warmup_steps(state.max_steps),
            is_recipe=False,
            speed_unit="steps/s",
        )
        self._watch, self.findings, self._bad_logs = Watch(setting), [], 0
        for entry in state.log_history if state.global_step else ():
            self.findings += self._watch.see(_row(entry, int(entry["step"]), entry.get("epoch") or 0.0))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes the time; what lies between steps (evaluation, saving) does not count."""
        self._began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks at speed and memory."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        row = {
            "step": state.global_step,
            "tokens_per_s": 1 / seconds,
            "memory_gib": in_use(args.device) / 2**30,
        }
        self._tell(self._watch.see(row), args, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at what was logged, and whether the parameters are still numbers."""
        row = _row(logs or {}, state.global_step, state.epoch or 0.0)
        if "loss" not in row and "eval" not in row:
            return
        found = self._watch.see(row)
        if not any(finding.check == "watch-not-finite" for finding in self.findings):
            found += self._not_finite(args, state, row, kwargs.get("model"))
        self._tell(found, args, control)

    def _tell(self, found: list[Finding], args: TrainingArguments, control: TrainerControl) -> None:
        for finding in found:
            self.findings.append(finding)
            # Speed and memory are each process's own: one that ends alone would leave the others waiting for it.
            stops = finding.check in self.stop_on and (finding.check not in OWN or args.world_size == 1)
            if args.process_index == 0:
                end = ", so training ends here" if stops else ""
                logger.warning("%s: %s%s; %s", finding.check, finding.what, end, finding.fix)
            if stops:
                control.should_training_stop = True

    def _not_finite(
        self, args: TrainingArguments, state: TrainerState, row: dict[str, Any], model: Any
    ) -> list[Finding]:
        """A loss, gradient or parameter that is not finite; the ``Trainer``'s own filter hides the loss."""
        loss = row.get("loss", row.get("eval", {}).get("loss", 0.0))
        norm = row.get("gradient_norm", 0.0)
        if "loss" in row:
            self._bad_logs = 0 if math.isfinite(norm) else self._bad_logs + 1
        overflows = args.fp16 and self._bad_logs < FP16_SKIPPED_LOGS
        found = not_finite(state.global_step, loss, norm, _broken_parameters(model), overflows=overflows)
        return [found] if found else []


def _row(logs: dict[str, Any], step: int, epoch: float) -> dict[str, Any]:
    """A ``Trainer``'s log as an object of ``history.jsonl``."""
    row: dict[str, Any] = {"step": step, "epoch": epoch}
    if "loss" in logs:
        row["loss"] = float(logs["loss"])
        if logs.get("grad_norm") is not None:
            row["gradient_norm"] = float(logs["grad_norm"])
    if "eval_loss" in logs:
        row["eval"] = {"loss": float(logs["eval_loss"])}
    return row


def _chance_loss(model: Any) -> float | None:
    """Loss of a model that finds all classes or tokens equally likely; None if it is of another kind."""
    config = getattr(model, "config", None)
    names = [type(model).__name__, *(getattr(config, "architectures", None) or ())]
    if config is None:
        return None
    if any("Classification" in name for name in names):
        several = getattr(config, "problem_type", None) == "multi_label_classification"
        num_labels = getattr(config, "num_labels", 0)
        return math.log(num_labels) if num_labels > 1 and not several else None
    if not isinstance(config, PreTrainedConfig):
        return None
    size = getattr(config.get_text_config(), "vocab_size", 0)
    return math.log(size) if size > 1 else None


def _broken_parameters(model: Any) -> list[str]:
    """Names of trained parameters that hold a number that is not finite."""
    if model is None:
        return []
    sums: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            total = whole(parameter.detach().sum(dtype=torch.float32))
            sums.setdefault(parameter.device, {})[name] = total
    # One answer from each device: asking for every parameter would wait for the GPU as often.
    finite = {device: torch.stack(list(of.values())).isfinite().tolist() for device, of in sums.items()}
    return [
        name for device, of in sums.items() for name, good in zip(of, finite[device], strict=True) if not good
    ]
