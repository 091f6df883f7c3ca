"""Base and tuned model on the same held-out rows, and how sure their difference is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier import registry
from luthier.encoding.batches import collate, micro_batches
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.evaluate.significance import compare
from luthier.metrics import scores_of
from luthier.models.forward import TokenScores, head_is_plain, token_scores
from luthier.models.generate import Output, score_and_generate
from luthier.recipe import Recipe
from luthier.records import Progress, Row
from luthier.rows import Rows
from luthier.run_folder import RunFolder, json_line, read_jsonl, write_json, write_jsonl
from luthier.tasks import Task

Models = Mapping[str, Callable[[], AbstractContextManager[PreTrainedModel | PeftModel]]]


@dataclass(frozen=True, slots=True)
class Judging:
    """What every judge is given.

    Attributes:
        recipe: The run's.
        run: Its prepared folder, with test rows; results go there.
        task: The recipe's.
        tokenizer: The models'.
        models: ``base`` (which may be lacking) and ``tuned``, each a context that lends the model.
        key: Hash of all that the result depends on; without one nothing is kept of an evaluation that was stopped.
        progress: Called with a label, what is done and how much there is.
    """

    recipe: Recipe
    run: RunFolder
    task: Task
    tokenizer: TextTokenizer
    models: Models
    key: str = ""
    progress: Progress | None = None


def evaluate(judging: Judging) -> dict[str, Any]:
    """Writes ``predictions.jsonl`` and, where there are two models to compare, ``scores.json``; returns the scores."""
    recipe, run, task, tokenizer = judging.recipe, judging.run, judging.task, judging.tokenizer
    rows = Rows(run.rows("test"))
    examples = [rows.row(i) for i in range(len(rows))]
    names = list(task.metrics) if recipe.evaluate.metrics == "auto" else recipe.evaluate.metrics
    metrics = {name: registry.lookup("metric", name, "recipe key evaluate.metrics") for name in names}
    results: dict[str, list[dict[str, Any]]] = {}
    seconds: dict[str, float] = {}
    for which, lend in judging.models.items():
        began = time.perf_counter()
        with lend() as model:
            model.eval()
            results[which] = _judge(judging, examples, model, metrics, which)
        seconds[which] = round(time.perf_counter() - began, 2)
    prompts = [tokenizer.decode(row.input_ids[: row.num_prompt_tokens], first=True) for row in examples]
    predictions = [
        {
            "id": row.id,
            "group": row.group,
            "prompt": prompts[i],
            "target": row.target,
            "target_bytes": row.target_bytes,
            "meta": dict(row.meta),
            **{which: result[i] for which, result in results.items()},
        }
        for i, row in enumerate(examples)
    ]
    rules = [task.baseline(prompt) for prompt in prompts] if recipe.evaluate.generate else []
    if any(rule is not None for rule in rules):
        texts = [rule or "" for rule in rules]
        for prediction, text, scored in zip(
            predictions, texts, _scored(task, examples, texts, metrics), strict=True
        ):
            prediction["baseline"] = {"output": text, "scores": scored}
    write_jsonl(run.predictions, predictions)
    shutil.rmtree(_part(judging, "").parent, ignore_errors=True)
    if "base" not in results:
        return {}
    scores = {
        "split": "test",
        **compare(predictions, recipe.evaluate.num_bootstrap, recipe.seed),
        "seconds": seconds,
    }
    write_json(run.scores, scores)
    return scores


@contextmanager
def without_adapter(model: PreTrainedModel | PeftModel) -> Iterator[PreTrainedModel | PeftModel]:
    """The model as it was before its adapter, if it has one."""
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        yield model


def _part(judging: Judging, which: str) -> Path:
    """Where the results of one model are kept until all are there, a line for each batch."""
    return judging.run.path / "evaluated" / f"{which}-{judging.key[:16]}.jsonl"


def _judge(
    judging: Judging,
    rows: Sequence[Row],
    model: PreTrainedModel | PeftModel,
    metrics: Mapping[str, Callable[..., list[float]]],
    which: str,
) -> list[dict[str, Any]]:
    """One result a row: its losses, and with ``evaluate.generate`` its output and scores.

    What a batch came to is on disk before the next begins, so that an evaluation that was stopped goes on.
    """
    recipe, task, part = judging.recipe, judging.task, _part(judging, which)
    known = read_jsonl(part) if judging.key else []
    results: dict[int, dict[str, Any]] = {int(i): result for line in known for i, result in line.items()}
    passes: Iterable[tuple[list[int], TokenScores, list[Output]]]
    if recipe.evaluate.generate:
        passes = score_and_generate(
            model,
            judging.tokenizer,
            rows,
            max_new_tokens=recipe.evaluate.max_new_tokens,
            stop_pattern=task.stop_pattern,
            batch_size=recipe.evaluate.batch_size,
            finished=results.keys(),
        )
    else:
        passes = (
            (indices, scores, [])
            for indices, scores in scored_batches(
                model, rows, recipe.train.tokens_at_once, finished=results.keys()
            )
        )
    part.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(part, known)  # without a line that was cut off
    with open(part, "a", encoding="utf-8") as file:
        for indices, scores, outputs in passes:
            found = dict(zip(indices, row_sums(scores, len(indices)), strict=True))
            for index, output in zip(indices, outputs, strict=False):
                found[index] |= {"output": output.text, "ended": output.ended}
            file.write(json_line(found))
            file.flush()
            results |= found
            if judging.progress:
                judging.progress(which, len(results), len(rows))
    ordered = [results[i] for i in range(len(rows))]
    if recipe.evaluate.generate:
        texts = [result["output"] for result in ordered]
        for result, scored in zip(ordered, _scored(task, rows, texts, metrics), strict=True):
            result["scores"] = scored
    return ordered


def _scored(
    task: Task, rows: Sequence[Row], texts: Sequence[str], metrics: Mapping[str, Callable[..., list[float]]]
) -> list[dict[str, float]]:
    """The metrics of the text for each row, by name."""
    answers = [task.answer_to(row, text) for row, text in zip(rows, texts, strict=True)]
    targets = [task.answer(row.target) for row in rows]
    values = {name: scores_of(metric, answers, targets, rows) for name, metric in metrics.items()}
    return [{name: value[i] for name, value in values.items()} for i in range(len(rows))]


@torch.no_grad()
def scored_batches(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[Row],
    max_tokens: int,
    *,
    finished: Collection[int] = (),
) -> Iterator[tuple[list[int], TokenScores]]:
    """Scores without generating, in batches of similar length; a batch is passed over if all of it is ``finished``."""
    plain: bool | None = None
    gone = set(finished)
    for indices in micro_batches([len(row.input_ids) for row in rows], max_tokens):
        if gone.issuperset(indices):
            continue
        batch = collate([rows[i] for i in indices], pad_id=0).to(model.device)
        if plain is None:
            plain = not head_is_plain(model, collate([rows[indices[0]]], pad_id=0).to(model.device))
        yield indices, token_scores(model, batch, plain=plain)


def row_sums(scores: TokenScores, num_rows: int) -> list[dict[str, Any]]:
    """Sums over the trained tokens of each row, in double precision: whatever shares its batch changes nothing."""
    columns: dict[str, list[Any]] = {
        "loss_nats": _by_row(scores.nll_N, scores, num_rows),
        "weighted_nats": _by_row(scores.nll_N * scores.weights_N, scores, num_rows),
        "weight": _by_row(scores.weights_N, scores, num_rows),
        "num_tokens": [int(n) for n in _by_row(torch.ones_like(scores.nll_N), scores, num_rows)],
        "num_correct": [int(n) for n in _by_row(scores.correct_N, scores, num_rows)],
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(num_rows)]


def _by_row(values_N: torch.Tensor, scores: TokenScores, num_rows: int) -> list[float]:
    total_B = torch.zeros(num_rows, dtype=torch.float64, device=values_N.device)
    sums: list[float] = total_B.index_add_(0, scores.rows_N, values_N.double()).tolist()
    return sums
