"""A classifier and its n-gram baseline on the same held-out rows: answers, calibration, confusions, and how sure the difference is.

In ``predictions.jsonl`` and ``scores.json`` the baseline stands where generation has the base model: a head that has not
been trained says nothing. N rows, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from scipy.sparse import csr_array
from scipy.special import expit, log_expit
from transformers import PreTrainedModel

from luthier.encoding.batches import collate, micro_batches
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.evaluate import ngrams
from luthier.evaluate.runner import Judging
from luthier.evaluate.significance import compare
from luthier.metrics import classes as metrics
from luthier.models.classifier import head_of, uniform_loss
from luthier.models.forward import base_model, row_logits
from luthier.models.fused import fused_lora
from luthier.models.label_words import LabelTree, label_scores
from luthier.recipe import Head, Recipe
from luthier.records import Progress, Row
from luthier.rows import Rows
from luthier.run_folder import RunFolder, read_json, write_json, write_jsonl
from luthier.tasks.classification import NO_LABEL, Classification

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOP = 5
_MOST_CONFUSIONS = 20
_MOST_ERRORS = 10
_EXAMPLES = 2
_CHARACTERS = 400


@dataclass(frozen=True)
class Answers:
    """What one of the two says of the test rows.

    Attributes:
        logits: Shape (N, C).
        temperature: They are divided by it for probabilities; fitted on the eval rows, 1 without any.
        thresholds: With several labels: the probability from which a class is given, shape (C,).
        raw_error: Expected calibration error before dividing.
    """

    logits: Floats
    temperature: float
    thresholds: Floats | None
    raw_error: float

    @property
    def probabilities(self) -> Floats:
        """Shape (N, C); each class by itself with several labels."""
        if self.thresholds is not None:
            return np.asarray(expit(self.logits))
        return np.exp(metrics.log_probabilities(self.logits, self.temperature))


def evaluate(judging: Judging) -> dict[str, Any]:
    """Writes ``predictions.jsonl`` and ``scores.json`` of the tuned model and its baseline; returns the scores."""
    recipe, run, task, tokenizer = judging.recipe, judging.run, judging.task, judging.tokenizer
    assert isinstance(task, Classification)
    report = judging.progress or (lambda label, done, total: None)
    rows = {split: Rows(run.rows(split)) for split in ("train", "eval", "test") if run.rows(split).is_file()}
    labels: dict[str, Any] = {split: found.labels() for split, found in rows.items() if len(found)}
    names = read_json(run.labels)["names"]
    began = time.perf_counter()
    baseline = ngrams.NGrams(len(names), several=task.several).fit(
        rows["train"], labels["train"], rows.get("eval", ()), labels.get("eval", np.empty(0, np.int64)),
        recipe.seed, lambda done, total: report("baseline", done, total),
    )  # fmt: skip
    base = _answers(task, baseline.logits, rows, labels)
    middle = time.perf_counter()
    with judging.models["tuned"]() as model:
        tuned = _answers(task, _judge(recipe, task, model, tokenizer, names, report), rows, labels)
    seconds = {"base": round(middle - began, 2), "tuned": round(time.perf_counter() - middle, 2)}

    test = rows["test"]
    sides = {"base": base, "tuned": tuned}
    head = task.head(names) or Head(names=tuple(names), hierarchy=task.hierarchy)
    results = {which: _row_results(answers, labels["test"], head) for which, answers in sides.items()}
    texts = [tokenizer.decode(row.input_ids[: row.num_prompt_tokens], first=True) for row in test]
    true = _hot(labels["test"], len(names))
    predictions = [
        {
            "id": row.id,
            "group": row.group,
            "prompt": texts[i],
            "target": row.target.strip(),
            "labels": [names[c] for c in np.flatnonzero(true[i])],
            "meta": row.meta,
            **{which: result[i] for which, result in results.items()},
        }
        for i, row in enumerate(test)
    ]
    scores: dict[str, Any] = {
        "split": "test",
        "base_is": "baseline",
        **compare(predictions, recipe.evaluate.num_bootstrap, recipe.seed),
        "seconds": seconds,
        "classification": {
            "way": task.way,
            "several": task.several,
            "uniform_loss": uniform_loss(head, rows.get("eval", test)),
            "baseline": {"is": ngrams.DESCRIPTION, "num_rows": baseline.num_rows, "epochs": baseline.epochs},
            "unknown_labels": _unknown(run),
            **described(names, sides, labels, texts, test.column("id").to_pylist()),
        },
    }
    write_jsonl(run.predictions, predictions)
    write_json(run.scores, scores)
    return scores


def _judge(
    recipe: Recipe,
    task: Classification,
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    names: Sequence[str],
    report: Progress,
) -> Callable[[Rows], Floats]:
    """The model's scores of rows: logits of its head, or the labels' log-probabilities."""
    model.eval()
    tree = _tree(task, model, tokenizer, names)

    def judge(rows: Rows) -> Floats:
        found = np.empty((len(rows), len(names)))
        done = 0
        extra = 0 if tree is None else len(tree.nodes)
        # Rows of similar length share a batch; their answers go back to their own places.
        with fused_lora(model):
            for group in micro_batches((rows.lengths() + extra).tolist(), recipe.train.tokens_at_once):
                found[group] = _scores(model, tree, [rows.row(i) for i in group])
                done += len(group)
                report("classifying", done, len(rows))
        return found

    return judge


def _tree(
    task: Classification,
    model: PreTrainedModel | PeftModel,
    tokenizer: TextTokenizer,
    names: Sequence[str],
) -> LabelTree | None:
    """The labels' words; none for a model with a head."""
    if head_of(base_model(model)) is not None:
        return None
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return LabelTree.of([[*tokenizer.encode(task.word(name)), *end] for name in names])


@torch.no_grad()
def _scores(model: PreTrainedModel | PeftModel, tree: LabelTree | None, rows: Sequence[Row]) -> Floats:
    """What the model says of some rows as one batch, shape (B, C)."""
    base = base_model(model)
    if tree is not None:
        logits = label_scores(model, tree, rows)
    else:
        logits = row_logits(base, collate(rows, pad_id=0).to(base.device))
    return np.asarray(logits.double().cpu().numpy())


def label_text(
    recipe: Recipe,
    run: RunFolder,
    task: Classification,
    tokenizer: TextTokenizer,
    model: PreTrainedModel | PeftModel,
    ids: Sequence[int],
    *,
    base: bool = False,
) -> str:
    """The likeliest classes of a text, or those that are given, a line each with its probability (of the tuned model calibrated, once evaluated)."""
    names = read_json(run.labels)["names"]
    scores = read_json(run.scores)["classification"] if run.scores.is_file() and not base else None
    weights = np.zeros(len(ids), np.float32)
    weights[-1] = 1.0
    row = Row(
        id="prompt", group="", input_ids=np.array(ids, np.int32), loss_weights=weights,
        span_ids=np.zeros(len(ids), np.int16), span_names=["text"], num_prompt_tokens=len(ids), target="", target_bytes=0,
    )  # fmt: skip
    model.eval()
    logits = _scores(model, _tree(task, model, tokenizer, names), [row])
    if task.several:
        p = expit(logits[0])
        fixed = 0.5 if task.threshold == "fit" else task.threshold  # a fitted one is in the scores
        least = [c["threshold"] for c in scores["classes"]] if scores else [fixed] * len(names)
        order = [int(c) for c in np.argsort(-p, kind="stable") if p[c] >= least[c]]
    else:
        temperature = scores["figures"]["tuned"]["temperature"] if scores else 1.0
        p = np.exp(metrics.log_probabilities(logits, temperature))[0]
        order = [int(c) for c in np.argsort(-p, kind="stable")[:TOP]]
    return "\n".join(f"{p[c]:.4f} {names[c]}" for c in order) or NO_LABEL


def _answers(
    task: Classification,
    judge: Callable[[Rows], Any],
    rows: Mapping[str, Rows],
    labels: Mapping[str, Any],
) -> Answers:
    """The answers on the test rows, with what is fitted on the eval rows."""
    logits = np.asarray(judge(rows["test"]), np.float64)
    held = np.asarray(judge(rows["eval"]), np.float64) if "eval" in labels else None
    if task.several:
        fixed = np.full(logits.shape[1], 0.5 if task.threshold == "fit" else task.threshold)
        fitted = held is not None and task.threshold == "fit"
        thresholds = metrics.fit_thresholds(held, labels["eval"]) if fitted and held is not None else fixed
        p, y = expit(logits).ravel(), labels["test"].ravel() > 0
        return Answers(logits, 1.0, thresholds, metrics.expected_calibration_error(metrics.calibration(p, y)))
    raw = np.exp(metrics.log_probabilities(logits))
    right = raw.argmax(1) == labels["test"]
    error = metrics.expected_calibration_error(metrics.calibration(raw.max(1), right))
    temperature = 1.0 if held is None else metrics.fit_temperature(held, labels["eval"])
    return Answers(logits, temperature, None, error)


def _row_results(answers: Answers, labels: Ints, head: Head) -> list[dict[str, Any]]:
    """One result a row: answer, confidence, loss in nats (not divided by the temperature) and whether it is right."""
    names = head.names
    given = _given(answers)
    results: list[dict[str, Any]] = [
        {"labels": [names[c] for c in np.flatnonzero(given[i])], "num_tokens": 1} for i in range(len(labels))
    ]
    if answers.thresholds is not None:
        nll = -(labels * log_expit(answers.logits) + (1 - labels) * log_expit(-answers.logits)).mean(1)
        right = (given == (labels > 0)).all(1)
        for i, result in enumerate(results):
            result["output"] = ", ".join(result["labels"]) or NO_LABEL
            result["loss_nats"] = float(nll[i])
            result["scores"] = {"accuracy": float(right[i])}
        return results
    log_probs = metrics.log_probabilities(answers.logits)
    said, probabilities = answers.logits.argmax(1), answers.probabilities
    best = np.argsort(answers.logits, axis=1, kind="stable")[:, ::-1][:, :TOP]
    right_at = {"accuracy": said == labels}
    if len(names) > TOP:
        right_at[f"top_{TOP}_accuracy"] = (best == labels[:, None]).any(1)
    for number, level in enumerate(map(np.array, head.levels()), 1):
        right_at[f"accuracy_level_{number}"] = level[said] == level[labels]
    for i, result in enumerate(results):
        result["output"] = names[said[i]]
        result["confidence"] = round(float(probabilities[i, said[i]]), 6)
        result["loss_nats"] = float(-log_probs[i, labels[i]])
        result["scores"] = {name: float(right[i]) for name, right in right_at.items()}
    return results


def _given(answers: Answers) -> NDArray[np.bool_]:
    """Whether each class was given, shape (N, C)."""
    if answers.thresholds is not None:
        return np.asarray(answers.probabilities >= answers.thresholds)
    return _hot(answers.logits.argmax(1), answers.logits.shape[1])


def _hot(labels: Ints, num_classes: int) -> NDArray[np.bool_]:
    """Whether each class is a row's, shape (N, C)."""
    return labels > 0 if labels.ndim > 1 else labels[:, None] == np.arange(num_classes)


def described(
    names: Sequence[str],
    sides: Mapping[str, Answers],
    labels: Mapping[str, Any],
    texts: Sequence[str],
    ids: Sequence[str],
) -> dict[str, Any]:
    """Figures of both (None where nothing was to be measured), classes one by one, calibration, worst confusions and most confident errors."""
    num_classes, true = len(names), _hot(labels["test"], len(names))
    train = _hot(labels["train"], num_classes).sum(0)
    several = sides["tuned"].thresholds is not None
    figures: dict[str, dict[str, float | None]] = {}
    bins: dict[str, list[dict[str, Any]]] = {}
    ratios = {}
    for which, answers in sides.items():
        given = _given(answers)
        counts = (true & given).sum(0).astype(float), true.sum(0).astype(float), given.sum(0).astype(float)
        ratios[which] = metrics.precision_recall_f1(*counts)
        p = answers.probabilities
        confidence, right = (
            (p.ravel(), true.ravel()) if several else (p.max(1), p.argmax(1) == labels["test"])
        )
        found = metrics.calibration(confidence, right)
        bins[which] = [asdict(b) for b in found]
        measured = {
            "accuracy": float((given == true).all(1).mean()),
            "macro_f1": metrics.macro_f1(*counts),
            "micro_f1": metrics.micro_f1(*counts),
            "weighted_f1": metrics.weighted_f1(*counts),
            "expected_calibration_error": metrics.expected_calibration_error(found),
            "uncalibrated_error": answers.raw_error,
            "temperature": answers.temperature,
        }
        if not several:
            confusion = metrics.confusion_matrix(labels["test"], answers.logits.argmax(1), num_classes)
            measured |= {
                "matthews": metrics.matthews(confusion),
                "log_loss": metrics.log_loss(
                    metrics.log_probabilities(answers.logits, answers.temperature), labels["test"]
                ),
            }
            if num_classes > TOP:
                measured[f"top_{TOP}_accuracy"] = metrics.top_k_accuracy(answers.logits, labels["test"], TOP)
        figures[which] = {name: None if np.isnan(value) else value for name, value in measured.items()}
    precision, recall, f1 = ratios["tuned"]
    per_class = [
        {
            "name": name,
            "train_rows": int(train[c]),
            "test_rows": int(true[:, c].sum()),
            "precision": float(precision[c]),
            "recall": float(recall[c]),
            "f1": float(f1[c]),
            "f1_base": float(ratios["base"][2][c]),
            **({"threshold": float(sides["tuned"].thresholds[c])} if sides["tuned"].thresholds is not None else {}),
        }
        for c, name in enumerate(names)
    ]  # fmt: skip
    result: dict[str, Any] = {"figures": figures, "calibration": bins, "classes": per_class}
    wrong = _errors_of_several if several else _errors
    return result | wrong(names, sides["tuned"], labels["test"], texts, ids)


def _errors(
    names: Sequence[str], answers: Answers, labels: Ints, texts: Sequence[str], ids: Sequence[str]
) -> dict[str, Any]:
    said, p = answers.logits.argmax(1), answers.probabilities.max(1)
    wrong = np.flatnonzero(said != labels)

    def shown(i: int) -> dict[str, Any]:
        return {
            "id": ids[i],
            "label": names[labels[i]],
            "answer": names[said[i]],
            "confidence": round(float(p[i]), 4),
            "text": texts[i][:_CHARACTERS],
        }

    kinds, counts = np.unique(labels * len(names) + said, return_counts=True)
    cells = [[*divmod(kind, len(names)), n] for kind, n in zip(kinds.tolist(), counts.tolist(), strict=True)]
    worst = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])
    confusions = []
    for label, answer, count in worst[:_MOST_CONFUSIONS]:
        rows = [int(i) for i in wrong if labels[i] == label and said[i] == answer]
        confusions.append(
            {
                "label": names[label],
                "answer": names[answer],
                "count": count,
                "share": count / int((labels == label).sum()),
                "examples": [shown(i) for i in rows[:_EXAMPLES]],
            }
        )
    sure = wrong[np.argsort(-p[wrong], kind="stable")[:_MOST_ERRORS]]
    return {"confusion": cells, "confusions": confusions, "errors": [shown(int(i)) for i in sure]}


def _errors_of_several(
    names: Sequence[str], answers: Answers, labels: Ints, texts: Sequence[str], ids: Sequence[str]
) -> dict[str, Any]:
    """As ``_errors``: a confusion is a class that is missing where another one is given wrongly; a row is as sure as its surest wrong class."""
    true, given, p = labels > 0, _given(answers), answers.probabilities
    missing, added = true & ~given, given & ~true
    sure_N = np.where(true != given, np.where(given, p, 1 - p), -1.0).max(1)

    def said(row: NDArray[np.bool_]) -> str:
        return ", ".join(names[c] for c in np.flatnonzero(row)) or NO_LABEL

    def shown(i: int) -> dict[str, Any]:
        return {
            "id": ids[i],
            "label": said(true[i]),
            "answer": said(given[i]),
            "confidence": round(float(sure_N[i]), 4),
            "text": texts[i][:_CHARACTERS],
        }

    together = (csr_array(missing, dtype=np.int64).T @ csr_array(added, dtype=np.int64)).tocoo()
    worst = np.argsort(-together.data, kind="stable")[:_MOST_CONFUSIONS]
    confusions = []
    for label, answer, count in zip(
        *(of[worst].tolist() for of in (*together.coords, together.data)), strict=True
    ):
        rows = np.flatnonzero(missing[:, label] & added[:, answer])
        confusions.append(
            {
                "label": names[label],
                "answer": names[answer],
                "count": count,
                "share": count / int(true[:, label].sum()),
                "examples": [shown(int(i)) for i in rows[:_EXAMPLES]],
            }
        )
    order = np.argsort(-sure_N, kind="stable")[:_MOST_ERRORS]
    return {"confusions": confusions, "errors": [shown(int(i)) for i in order if sure_N[i] >= 0]}


def _unknown(run: RunFolder) -> int:
    """Rows of the eval and test splits that were left out because no class has their label."""
    dropped = read_json(run.ledger)["rows"]["dropped"].get("unknown-label")
    return int(dropped["count"]) if dropped else 0
