"""The training loop: one optimizer step is one weighted mean over all its tokens, however it is split up.

``batch_size`` rows of the shuffled stream -> micro-batches of similar length -> backward of (sum of weight x nll) /
(sum of weight of the whole step, over all ranks) -> clip -> AdamW.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import FrameType
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from luthier.encoding.batches import Batch, Classes, collate, shuffled
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import Interrupted, Refused
from luthier.metrics.classes import class_counts, macro_f1
from luthier.metrics.loss import bits_per_byte, perplexity, token_accuracy
from luthier.models.classifier import head_of, uniform_loss
from luthier.models.engine import Engine
from luthier.models.forward import base_model, row_logits, token_scores
from luthier.models.generate import generate
from luthier.models.memory import give_back, in_use, is_out_of_memory, peak
from luthier.models.sharded import is_sharded, whole
from luthier.recipe import Recipe
from luthier.records import Finding, Row
from luthier.rows import Rows
from luthier.run_folder import RunFolder, logger, read_json, write_json
from luthier.schedule import eval_interval, learning_rate, num_warmup_steps, total_steps
from luthier.train import checkpoint
from luthier.train.checkpoint import Progress, trainable
from luthier.train.history import History
from luthier.train.optimizer import adamw
from luthier.train.ranks import Ranks
from luthier.train.trackers import Trackers
from luthier.train.watch import Setting, Watch

# Rows of the stream over which the loss of guessing is taken, where it depends on them.
_ROWS_GUESSED = 2048
# Micro-batches are of a new length each, and what is freed leaves holes between them: resident memory grows for hundreds of steps.
_GIVE_BACK_EVERY = 10
_ENDING = b"\nending after the step or evaluation under way, with a checkpoint; Ctrl-C again ends at once\n"

Say = Callable[[str, int, int], None]


@dataclass
class Loop:
    """What stays the same over all steps of a run."""

    recipe: Recipe
    run: RunFolder
    model: PreTrainedModel | PeftModel
    tokenizer: TextTokenizer
    train_rows: Rows
    eval_rows: Rows
    stop_pattern: str | None
    ranks: Ranks = field(default_factory=Ranks)
    engine: Engine = Engine()  # noqa: RUF009 # frozen
    epoch_weights: Callable[[Row, int], Row] | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return total_steps(self.recipe.train, len(self.train_rows), self._num_tokens)

    @cached_property
    def classes(self) -> Classes | None:
        """How rows are drawn by class; None where each is drawn once an epoch."""
        balance = self.recipe.train.balance_classes
        labels = self.train_rows.labels() if balance else None
        return None if labels is None else Classes(labels, balance)

    @cached_property
    def _num_tokens(self) -> int:
        return int(self.train_rows.lengths().sum())


def train(loop: Loop, key: str, say: Say | None = None) -> Progress:
    """Trains to the end, from the newest checkpoint if there is one, and leaves the chosen weights in the model.

    Args:
        loop: Model in training form; rows as prepared.
        key: Hash of everything that decides the result; a checkpoint of another key is refused.
        say: Called with a line of figures, the step and the number of steps; in an evaluation with its rows instead.

    Returns:
        Where the run ended.

    Raises:
        Refused: The loss or a gradient is not finite (the rows are named); or a checkpoint was saved, and a watcher of
            ``train.stop_on`` speaks.
        Interrupted: A checkpoint was saved after Ctrl-C or SIGTERM.
    """
    settings, run = loop.recipe.train, loop.run
    optimizer = adamw(loop.model.named_parameters(), settings)
    resumed = checkpoint.latest(run, key)
    if resumed:
        progress = checkpoint.load(resumed, loop.model, optimizer)
        logger.info("resuming from %s", resumed)
    else:
        progress = Progress(next_eval_tokens=settings.eval_every_tokens or 0)
    history = History(run.history, progress.step if resumed else None, writes=loop.ranks.is_first)
    trackers = Trackers(loop.recipe, run, progress.step, writes=loop.ranks.is_first)
    total = loop.total_steps
    watch = Watch(_setting(loop, total), history.kept)
    if not resumed and len(loop.eval_rows):
        before = {"step": 0, "epoch": 0.0, "tokens": 0, "eval": evaluate(loop, progress, say)}
        watch.see(before)
        history.append(before)
        trackers.log(before)
    started, stop_on = time.perf_counter() - progress.seconds, set(settings.stop_on)
    with _interruption() as interrupted, closing(trackers):
        while progress.step < total and not _stopped_early(progress, settings.early_stop_patience):
            row = _step(loop, optimizer, progress)
            progress.seconds = time.perf_counter() - started
            due = _eval_due(progress, total, loop.recipe)
            if due and len(loop.eval_rows):
                row["eval"] = evaluate(loop, progress, say)
                progress.seconds = time.perf_counter() - started
            found = watch.see(row)
            if found:
                row["findings"] = [asdict(finding) for finding in found]
            history.append(row | {"seconds": round(progress.seconds, 3)})
            trackers.log(row)
            for finding in found:
                logger.warning("step %d: %s: %s", progress.step, finding.check, finding.what)
            if say:
                say(_figures(row), progress.step, total)
            stopping = [finding for finding in found if finding.check in stop_on]
            # What one process hears or sees of itself, a signal or its speed, all of them act on after the same step.
            leaving, stopped = (n > 0 for n in loop.ranks.sum([interrupted.is_set(), bool(stopping)]))
            if _checkpoint_due(progress, row, due, total, loop.recipe) or leaving or stopped:
                first = loop.ranks.is_first
                checkpoint.save(run, progress, loop.model, optimizer, key, writes=first)
                if first:
                    checkpoint.remove_old(run, settings.keep_checkpoints, progress.best_step)
                loop.ranks.wait()
            if leaving:
                raise Interrupted(
                    f"interrupted after step {progress.step} of {total}; a checkpoint was saved",
                    str(run.checkpoints),
                    "run the same command again to go on from there",
                )
            if stopped:
                raise _stopped_by(stopping, progress.step, total, run)
    if settings.keep == "best" and progress.best_step not in (None, progress.step):
        checkpoint.load_weights(run.checkpoints / f"step-{progress.best_step}", loop.model)
    return progress


def _stopped_by(findings: Sequence[Finding], step: int, total: int, run: RunFolder) -> Refused:
    names = ", ".join(finding.check for finding in findings) or "a watcher of another process"
    return Refused(
        f"{names} stopped the run after step {step} of {total}: {'; '.join(f.what for f in findings)}",
        str(run.history),
        "; ".join(f.fix for f in findings)
        + "; a checkpoint was saved: the same command goes on from it all the same",
    )


def _setting(loop: Loop, total: int) -> Setting:
    head = head_of(base_model(loop.model))
    chance = math.log(base_model(loop.model).config.get_text_config().vocab_size)
    if head is not None:
        rows = loop.train_rows
        count = min(len(rows), _ROWS_GUESSED) if head.levels() else 0
        chance = uniform_loss(
            head, (rows.row(i) for i in shuffled(0, count, len(rows), loop.recipe.seed, loop.classes))
        )
    return Setting(chance, num_warmup_steps(loop.recipe.train, total))


def _step(loop: Loop, optimizer: torch.optim.Optimizer, progress: Progress) -> dict[str, Any]:
    """One optimizer step; returns its line of the history."""
    settings = loop.recipe.train
    began = time.perf_counter()
    rate = learning_rate(progress.step + 1, loop.total_steps, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    # Dropout draws by step and rank alone, so that a resumed run draws what an uninterrupted one does.
    torch.manual_seed(loop.recipe.seed + 1_000_003 * (progress.step + 1) + 7_919 * loop.ranks.index)
    position = progress.step * settings.batch_size
    indices = shuffled(position, settings.batch_size, len(loop.train_rows), loop.recipe.seed, loop.classes)
    rows = [loop.train_rows.row(i) for i in indices]
    if loop.epoch_weights:
        num_rows = len(loop.train_rows)
        rows = [loop.epoch_weights(row, (position + k) // num_rows) for k, row in enumerate(rows)]
    loss = accumulate_gradients(loop, rows)
    parameters = list(trainable(loop.model).values())
    norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm or math.inf)))
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise _not_finite(loop, rows, loss, norm, progress.step + 1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    progress.step += 1
    tokens = sum(len(row.input_ids) for row in rows)
    progress.tokens += tokens
    progress.trained_tokens += sum(int((row.loss_weights != 0).sum()) for row in rows)
    if progress.step % _GIVE_BACK_EVERY == 0:
        give_back()
    return {
        "step": progress.step,
        "epoch": round(progress.step * settings.batch_size / len(loop.train_rows), 6),
        "tokens": progress.tokens,
        "trained_tokens": progress.trained_tokens,
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": rate,
        "tokens_per_s": round(tokens / (time.perf_counter() - began), 1),
        "memory_gib": round(in_use(loop.ranks.device) / 2**30, 3),
        "peak_memory_gib": round(peak(loop.ranks.device) / 2**30, 3),
    }


def accumulate_gradients(
    loop: Loop, rows: Sequence[Row], groups: Sequence[Sequence[int]] | None = None
) -> float:
    """Adds the gradients of a step's rows and returns its loss: the weighted mean over all of their tokens.

    Ranks take rows in turn. Dividing once, by the weight of the whole step, is what makes the result independent of
    micro-batches and ranks; gradients of ranks are therefore added, not averaged.

    Args:
        loop: Model and settings.
        rows: Of the whole step.
        groups: Indices into this rank's rows of each micro-batch; as they fit, if not given.
    """
    ranks = loop.ranks
    total_weight = float(sum(row.loss_weights.sum() for row in rows))
    own = rows[ranks.index :: ranks.count]
    shortest = min(rows, key=lambda row: len(row.input_ids))
    while True:
        try:
            loss = _backward(loop, own, shortest, groups, total_weight)
            break
        except (RuntimeError, MemoryError) as error:
            made = groups or loop.engine.groups([len(row.input_ids) for row in own])
            if not is_out_of_memory(error) or groups or all(len(group) == 1 for group in made):
                raise
            if is_sharded(loop.model):
                raise  # the other processes are in the middle of the same pass
        _halve(loop)
    if not is_sharded(loop.model):  # else each backward pass has added them up
        ranks.sum_gradients(list(trainable(loop.model).values()))
    return ranks.sum([float(loss)])[0]


def _backward(
    loop: Loop, rows: Sequence[Row], idle: Row, groups: Sequence[Sequence[int]] | None, total_weight: float
) -> Tensor:
    loss = torch.zeros((), device=loop.ranks.device)
    for batch in _batches(loop, rows, idle, groups):
        part = token_scores(loop.model, batch, plain=loop.engine.plain_head).weighted_sum() / total_weight
        part.backward()
        loss += part.detach()
    return loss


def _halve(loop: Loop) -> None:
    """Half as many tokens at once from now on; what the step had added up is forgotten, and it begins anew."""
    loop.model.zero_grad(set_to_none=True)
    most = loop.engine.micro_batch_tokens
    loop.engine = replace(loop.engine, micro_batch_tokens=most // 2)
    if loop.ranks.is_first and loop.run.environment.is_file():
        # Whoever goes on begins with what is known to fit.
        write_json(loop.run.environment, read_json(loop.run.environment) | {"engine": loop.engine.to_dict()})
    logger.warning("train: out of memory with %d tokens at once; going on with %d", most, most // 2)
    give_back()


def _batches(
    loop: Loop, rows: Sequence[Row], idle: Row, groups: Sequence[Sequence[int]] | None = None
) -> Iterator[Batch]:
    """Micro-batches of this rank's rows.

    Where weights are in shards, passes through the model wait for those of other ranks: a rank that has fewer
    micro-batches than another one adds some of the row ``idle``, in which no token has a weight.
    """
    parts = [
        [rows[i] for i in group]
        for group in groups or loop.engine.groups([len(row.input_ids) for row in rows])
    ]
    if is_sharded(loop.model):
        weightless = replace(idle, loss_weights=np.zeros_like(idle.loss_weights))
        parts += [[weightless]] * (loop.ranks.most(len(parts)) - len(parts))
    for part in parts:
        yield loop.engine.batch(part).to(loop.ranks.device)


@torch.no_grad()
def evaluate(loop: Loop, progress: Progress, say: Say | None = None) -> dict[str, Any]:
    """The eval split's losses as weighted means over all tokens, and what the model now writes for a few rows."""
    began = time.perf_counter()
    loop.model.eval()
    ranks = loop.ranks
    rows = [loop.eval_rows.row(i) for i in range(ranks.index, len(loop.eval_rows), ranks.count)]
    sums = dict.fromkeys(("weighted", "weight", "nats", "tokens", "correct"), 0.0)
    head = head_of(base_model(loop.model))
    counts = np.zeros((3, len(head.names) if head else 0))
    done = 0
    for batch in _batches(loop, rows, loop.eval_rows.row(0)):
        if say:
            say("eval loss", done, len(rows))
        done = min(len(rows), done + batch.num_rows)
        scores = token_scores(loop.model, batch, plain=loop.engine.plain_head)
        sums["weighted"] += float(scores.weighted_sum())
        sums["weight"] += float(scores.weights_N.sum())
        sums["nats"] += float(scores.nll_N.sum())
        sums["tokens"] += len(scores.nll_N)
        sums["correct"] += int(scores.correct_N.sum())
        if head is not None and not head.several:
            counts += class_counts(
                scores.labels_N.cpu().numpy(), scores.best_N.cpu().numpy(), counts.shape[1]
            )
    sums = dict(zip(sums, ranks.sum(list(sums.values())), strict=True))
    num_bytes = ranks.sum([sum(row.target_bytes for row in rows)])[0]
    writes = ranks.is_first or is_sharded(loop.model)  # shards of all are needed to write
    sample = _samples if head is None else _class_samples
    samples = sample(loop, loop.eval_rows[: loop.recipe.train.num_samples]) if writes else []
    loop.model.train()
    loss = sums["weighted"] / sums["weight"]
    if not math.isfinite(loss):
        raise Refused(
            f"the eval loss is {loss} after step {progress.step}",
            str(loop.run.history),
            "lower train.learning_rate, or set model.precision=fp32; earlier checkpoints are kept",
        )
    result = {
        "loss": loss,
        "perplexity": perplexity(min(loss, 700.0)),  # infinity is no JSON
        "bits_per_byte": bits_per_byte(sums["nats"], max(1, round(num_bytes))),
        "token_accuracy": token_accuracy(int(sums["correct"]), int(sums["tokens"])),
        "num_tokens": int(sums["tokens"]),
    }
    if head is not None:
        result = {"loss": loss, "accuracy": sums["correct"] / sums["tokens"], "num_rows": int(sums["tokens"])}
        if not head.several:
            result["macro_f1"] = macro_f1(*np.array(ranks.sum(counts.ravel().tolist())).reshape(3, -1))
    return result | {
        "best": _note_best(progress, result[loop.recipe.train.best_metric], loop.recipe.train.best_direction),
        "seconds": round(time.perf_counter() - began, 3),
        "samples": samples,
    }


def _samples(loop: Loop, rows: Sequence[Row]) -> list[dict[str, str]]:
    outputs = generate(
        loop.model,
        loop.tokenizer,
        [row.input_ids[: row.num_prompt_tokens].tolist() for row in rows],
        max_new_tokens=loop.recipe.evaluate.max_new_tokens,
        stop_pattern=loop.stop_pattern,
    )
    return [
        {
            "id": row.id,
            "prompt": loop.tokenizer.decode(row.input_ids[: row.num_prompt_tokens], first=True)[-500:],
            "target": row.target,
            "output": output.text,
        }
        for row, output in zip(rows, outputs, strict=True)
    ]


def _class_samples(loop: Loop, rows: Sequence[Row]) -> list[dict[str, str]]:
    """The classes that a head gives a few rows."""
    head, samples = head_of(base_model(loop.model)), []
    assert head is not None
    for row in rows:
        logits_C = row_logits(base_model(loop.model), collate([row], 0).to(loop.ranks.device))[0]
        given = (logits_C > 0).nonzero()[:, 0].tolist() if head.several else [int(logits_C.argmax())]
        samples.append(
            {
                "id": row.id,
                "prompt": loop.tokenizer.decode(row.input_ids.tolist(), first=True)[-500:],
                "target": row.target,
                "output": ", ".join(head.names[i] for i in given) or "(none)",
            }
        )
    return samples


def _note_best(progress: Progress, value: float, direction: str) -> bool:
    """Whether this evaluation is the best of those after training began; step 0 is the base model's."""
    if progress.step == 0:
        return False
    better = progress.best_value is None or (
        value < progress.best_value if direction == "min" else value > progress.best_value
    )
    if better:
        progress.best_step, progress.best_value, progress.evals_without_better = progress.step, value, 0
    else:
        progress.evals_without_better += 1
    return better


def _stopped_early(progress: Progress, patience: int | None) -> bool:
    return patience is not None and progress.evals_without_better >= patience


def _eval_due(progress: Progress, total: int, recipe: Recipe) -> bool:
    settings = recipe.train
    if settings.eval_every_tokens:
        due = progress.tokens >= progress.next_eval_tokens
        while progress.tokens >= progress.next_eval_tokens:
            progress.next_eval_tokens += settings.eval_every_tokens
    else:
        due = progress.step % eval_interval(settings, total) == 0
    return due or progress.step == total


def _checkpoint_due(
    progress: Progress, row: dict[str, Any], eval_due: bool, total: int, recipe: Recipe
) -> bool:
    every = recipe.train.checkpoint_every_steps
    planned = progress.step % every == 0 if every else eval_due
    return planned or progress.step == total or bool(row.get("eval", {}).get("best"))


def _not_finite(loop: Loop, rows: Sequence[Row], loss: float, norm: float, step: int) -> Refused:
    """The refusal that names the rows which alone give a loss or gradient that is not finite."""
    bad = []
    for row in rows:
        loop.model.zero_grad(set_to_none=True)
        alone = accumulate_gradients(loop, [row])
        gradients = [whole(p.grad) for p in trainable(loop.model).values() if p.grad is not None]
        if not math.isfinite(alone) or not all(bool(torch.isfinite(g).all()) for g in gradients):
            bad.append(row.id)
    loop.model.zero_grad(set_to_none=True)
    names = ", ".join(bad[:10]) if bad else "no row alone, only all together"
    kept = checkpoint.steps(loop.run)
    return Refused(
        f"step {step} has a loss of {loss} and a gradient norm of {norm}; not finite alone: {names}",
        f"rows of step {step}: {', '.join(row.id for row in rows[:20])}",
        "look at these rows with `luthier show`, lower train.learning_rate or set model.precision=fp32; "
        + (f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint had been written"),
    )


def _figures(row: dict[str, Any]) -> str:
    text = f"loss {row['loss']:.4f} · {row['tokens_per_s']:.0f} tokens/s"
    text += f" · eval {row['eval']['loss']:.4f}" if "eval" in row else ""
    return text + "".join(f" · ! {finding['check']}" for finding in row.get("findings", ()))


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the step under way ends and a checkpoint is saved; a second Ctrl-C does not wait."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ

    def note(number: int, _frame: FrameType | None) -> None:
        if event.is_set() and number == signal.SIGINT and not under_torchrun:  # which sends it on once more
            raise KeyboardInterrupt
        if not event.is_set():
            os.write(2, _ENDING)  # a logger may be in the middle of a line
        event.set()

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
