"""What each section of the page shows, worked out from the files of a run: plain values for the template."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from luthier.report.history import History, KeyFigures, Smoothed, epoch_starts, finite, warmup_end
from luthier.report.safe import code, differences

_MOST_POINTS = 3000
_LABELS = {
    "loss": "Loss",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
    "token_accuracy": "Token accuracy",
    "macro_f1": "Macro F1",
    "top_5_accuracy": "Top-5 accuracy",
}
# The first of these that was measured makes the headline; the order is fixed, so that no run can choose its own.
_HEADLINE = ("exact_match", "edit_similarity", "macro_f1", "bits_per_byte", "loss")
_KINDS = {
    (False, False): "neither",
    (False, True): "tuned",
    (True, False): "base",
    (True, True): "both",
}  # base, tuned right


def number(value: Any, unit: str = "", *, signed: bool = False) -> str:
    """A measured value for reading: shares as per cent, others with three decimals or as many digits as tell."""
    x = finite(value)
    if x is None:
        return "–"
    if unit == "share":
        text = _unless_nought(f"{abs(100 * x):.1f}", 100 * x) + (" points" if signed else "%")
    elif unit:
        text = _unless_nought(f"{abs(x):.3f}", x)
    elif 0.1 <= abs(x) < 100:
        text = f"{abs(x):.3f}"
    else:
        text = f"{abs(x):.3g}" if abs(x) < 1e6 else f"{abs(x):.2e}"
    sign = "−" if x < 0 else "+" if signed and x > 0 else ""
    return sign + text


def _unless_nought(text: str, x: float) -> str:
    """The text, or two digits that tell where it would round to nought: the sign of an end of an interval matters."""
    return f"{abs(x):.2g}" if x and not float(text) else text


def label(name: str) -> str:
    """The name of a metric as a reader writes it."""
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def metrics(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a metric: both values, difference, interval, a verdict, and where the interval lies on its own scale."""
    rows = []
    for name, entry in scores["metrics"].items():
        unit, better = entry.get("unit", ""), entry["better"]
        interval = entry.get("interval")
        low, high = (finite(interval[0]), finite(interval[1])) if interval else (None, None)
        difference = finite(entry["difference"])
        row: dict[str, Any] = {
            "name": name,
            "label": label(name),
            "base": number(entry["base"], unit),
            "tuned": number(entry["tuned"], unit),
            "difference": number(difference, unit, signed=True),
            "interval": None,
            "better": better,
            "unit": {
                "nats": "nats a row" if "classification" in scores else "nats a token",
                "bits": "bits",
            }.get(unit, ""),
            "verdict": "untested",
            "rose": difference is not None and difference > 0,
        }
        if low is not None and high is not None and difference is not None:
            row["interval"] = (
                f"{number(low, unit, signed=True)} to {number(high, unit, signed=True)}".replace(
                    " points to", " to"
                )
            )
            gain = (low, high) if better == "higher" else (-high, -low)
            row["verdict"] = "better" if gain[0] > 0 else "worse" if gain[1] < 0 else "unclear"
            # To the right is better, whatever the metric's direction; the scale is the metric's own.
            point = difference if better == "higher" else -difference
            reach = max(abs(gain[0]), abs(gain[1]), abs(point)) or 1.0
            place = {
                "low": gain[0],
                "high": gain[1],
                "point": point,
                "stem": min(point, 0),
                "end": max(point, 0),
            }
            row["place"] = {key: round(50 + 46 * x / reach, 2) for key, x in place.items()}
        rows.append(row)
    # Generated text first, then what is measured with the target given.
    order = ["bits_per_byte", "token_accuracy", "loss", "perplexity"]
    return sorted(rows, key=lambda row: order.index(row["name"]) if row["name"] in order else -1)


def headline(scores: Mapping[str, Any]) -> tuple[str, str]:
    """The result in one sentence, and its verdict: ``better``, ``worse``, ``unclear`` or ``untested``."""
    rows = {row["name"]: row for row in metrics(scores)}
    name = next((name for name in _HEADLINE if name in rows), next(iter(rows), None))
    if name is None:
        return "Nothing was measured on the test rows.", "untested"
    row = rows[name]
    what = row["label"][0].lower() + row["label"][1:]
    where = f"On {scores['num_rows']:,} held-out rows from {scores['num_groups']:,} groups, "
    change = f"from {row['base']} to {row['tuned']}"
    other = "n-gram baseline" if scores.get("base_is") == "baseline" else "base model"
    if other == "n-gram baseline":
        change = f"from {row['base']} (n-gram baseline) to {row['tuned']} (tuned model)"
    interval = f"{row['difference']}, 95% interval {row['interval']}"
    if row["verdict"] == "untested":
        return (
            f"{where}{what} went {change}; without an interval nobody can say whether that is chance.",
            "untested",
        )
    if row["verdict"] == "unclear":
        return (
            f"{where}there is no clear difference: {what} went {change} ({interval}, which includes zero).",
            "unclear",
        )
    verb = "rose" if row["rose"] else "fell"
    judgement = "" if row["verdict"] == "better" else f" The tuned model is worse than the {other}."
    return f"{where}{what} {verb} {change} ({interval}).{judgement}", row["verdict"]


def macro(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of generated text as means over groups, in the form of ``metrics``, by name; none where each row is a group."""
    found = scores.get("macro") or {}
    if scores["num_groups"] in (1, scores["num_rows"]):
        return {}
    entries = {name: {**scores["metrics"][name], **entry} for name, entry in found.items()}
    return {row["name"]: row for row in metrics({**scores, "metrics": entries})}


_MOST_STRATA = 12
_MOST_BESIDE = 2


def strata(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table for each stratum that the rows name: for its values the rows and the first metric of generated text.

    Beside it stand both values of up to two more, as ``beside``; their names are the table's ``beside``.
    """
    tables = []
    for name, values in (scores.get("strata") or {}).items():
        rows = []
        for value, part in sorted(values.items(), key=lambda item: -item[1]["num_rows"])[:_MOST_STRATA]:
            entries = {row["name"]: row for row in metrics(part)}
            shown = next((entries[key] for key in _HEADLINE if key in entries), None)
            if shown is None:
                continue
            others = [entries[key] for key in part.get("macro") or {} if key != shown["name"]]
            sizes = {key: part[key] for key in ("num_rows", "num_groups")}
            rows.append({"value": value, **sizes, **shown, "beside": others[:_MOST_BESIDE]})
        if rows:
            beside = [row["label"] for row in rows[0]["beside"]]
            left_out = len(values) - len(rows)
            tables.append({"name": name, "rows": rows, "beside": beside, "left_out": left_out})
    return tables


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them: ``42 s``, ``6 min 36 s``, ``3 h 05 min``."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return (
        f"{minutes} min {rest:02d} s"
        if minutes
        else f"{seconds:.0f} s"
        if seconds >= 1
        else f"{seconds:.2g} s"
    )


def figures(key: KeyFigures, smoothed: Smoothed) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Key figures in groups: (group, [(name, value, remark)]); what is not known is left out."""

    def some(entries: Sequence[tuple[str, Any, str, str]]) -> list[tuple[str, str, str]]:
        return [(name, text, remark) for name, value, text, remark in entries if value is not None]

    line = "smoothed" if smoothed.values else "one step"
    at_best = f"step {key.best_step:,}" if key.best_step is not None else ""
    if key.best_epoch is not None:
        at_best += f", epoch {key.best_epoch:.2f}"
    fell = (
        ""
        if key.improvement is None
        else "from the first evaluation to the best one" + (" (it rose)" if key.improvement < 0 else "")
    )
    gap = "last validation loss minus training loss"
    groups = [
        ("Validation loss", some([
            ("first", key.eval_first, number(key.eval_first, "nats"), "before training"),
            ("best", key.eval_best, number(key.eval_best, "nats"), at_best),
            ("last", key.eval_last, number(key.eval_last, "nats"), ""),
            ("improvement", key.improvement, number(key.improvement, "share"), fell)])),
        ("Training loss", some([
            ("first", key.train_first, number(key.train_first, "nats"), "one step"),
            ("best", key.train_best, number(key.train_best, "nats"), line),
            ("last", key.train_last, number(key.train_last, "nats"), line),
            ("improvement", key.train_improvement, number(key.train_improvement, "share"), "from the first step to the last"),
            ("generalisation gap", key.generalisation_gap, number(key.generalisation_gap, "nats", signed=True), gap)])),
        ("Effort", some([
            ("steps", key.last_step, f"{key.last_step or 0:,}", "" if key.epochs is None else f"{key.epochs:.2f} epochs"),
            ("tokens", key.tokens, short(key.tokens), "" if key.trained_tokens is None else f"{short(key.trained_tokens)} of them trained"),
            ("training time", key.seconds, duration(key.seconds), ""),
            ("speed", key.tokens_per_s, f"{key.tokens_per_s or 0:,.0f} tokens/s", "median"),
            ("peak memory", key.peak_memory_gib, f"{key.peak_memory_gib or 0:.2f} GiB", "")])),
    ]  # fmt: skip
    return [(group, entries) for group, entries in groups if entries]


def short(count: float | None) -> str:
    """A large count in three digits."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if count is not None and count >= size:
            return f"{count / (1e3 if unit == ' k' else size):.3g}{unit}"
    return "–" if count is None else f"{count:,.0f}"


def chart_data(history: History, smoothed: Smoothed) -> dict[str, Any]:
    """The series for the page's charts. Long runs are thinned: of each stretch the steps of lowest and highest loss stay."""
    raw = history.series("loss")
    kept = list(range(len(raw)))
    if len(kept) > _MOST_POINTS:
        stretch = len(kept) / (_MOST_POINTS // 2)
        chosen = {0, len(kept) - 1}
        for _, group in groupby(kept, key=lambda index: int(index // stretch)):
            known = [index for index in group if raw[index] is not None]
            if known:
                losses = {index: raw[index] or 0.0 for index in known}
                chosen |= {min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)}
        kept = sorted(chosen)

    def thin(values: Sequence[float | None]) -> list[float | None]:
        return [None if values[i] is None else float(f"{values[i]:.5g}") for i in kept] if values else []

    names = {
        "loss": "loss",
        "norm": "gradient_norm",
        "rate": "learning_rate",
        "speed": "tokens_per_s",
        "memory": "memory_gib",
    }
    return {
        "steps": [history.steps[index]["step"] for index in kept],
        "epochs": thin(history.series("epoch")),
        "tokens": [history.steps[index].get("tokens") for index in kept],
        **{short_name: thin(history.series(name)) for short_name, name in names.items()},
        "smoothed": thin(smoothed.values),
        "evals": [
            {
                "step": row["step"],
                "loss": finite(row["eval"].get("loss")),
                "best": bool(row["eval"].get("best")),
            }
            for row in history.evals
        ],
        "starts": epoch_starts(history),
        "warmup": warmup_end(history),
        "marks": [{"step": found["step"], "check": found["check"]} for found in history.findings],
        "total": len(raw),
    }


def ledger(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The picture of what went in, was kept and was dropped, of records and of rows, and of each split's lengths."""
    stages = []
    for name in ("records", "rows"):
        stage = tree[name]
        total, most = stage["in"], max((entry["count"] for entry in stage["dropped"].values()), default=1)
        reasons = [
            {
                "reason": reason,
                "share": entry["count"] / total if total else 0,
                "width": 100 * entry["count"] / max(most, 1),
                **entry,
            }
            for reason, entry in sorted(stage["dropped"].items(), key=lambda pair: -pair[1]["count"])
        ]
        by_rule = sum(entry["count"] for entry in reasons if not entry["budgeted"])
        faulty = sum(entry["count"] for entry in reasons if entry["budgeted"])
        parts = [("kept", stage["kept"]), ("by rule", by_rule), ("faulty", faulty)]
        stages.append({
            "name": name, "in": total, "kept": stage["kept"], "reasons": reasons, "balanced": stage["kept"] + by_rule + faulty == total,
            "parts": [{"name": part, "count": count, "width": 100 * count / total if total else 0} for part, count in parts],
        })  # fmt: skip
    splits = []
    for name, split in tree["splits"].items():
        length = split.get("length") or {}
        histogram = length.get("histogram") or {"edges": [], "counts": []}
        tallest = max(histogram["counts"], default=0) or 1
        bars = [
            {"from": low, "to": high, "count": count, "height": 100 * count / tallest}
            for low, high, count in zip(
                histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False
            )
        ]
        trained = split["trained_tokens"] / split["tokens"] if split["tokens"] else None
        cut = [
            {"span": span, "share": 100 * entry["rows"] / max(split["rows"], 1), **entry}
            for span, entry in split.get("trimmed", {}).items()
        ]
        splits.append(
            {"name": name, **split, "length": length, "bars": bars, "trained_share": trained, "trimmed": cut}
        )
    return {"stages": stages, "splits": splits, "duplicates": tree.get("duplicates"), "drop_share": tree.get("drop_share"),
            "drop_budget": tree.get("drop_budget")}  # fmt: skip


def tail(prompt: str, *, lines: int = 10, characters: int = 700) -> Markup:
    """The end of a prompt as HTML, with what is left out before it counted."""
    kept = "".join(prompt.splitlines(keepends=True)[-lines:])[-characters:]
    left = len(prompt) - len(kept)
    before = (
        Markup('<span class="cut">… {:,} characters before</span>\n').format(left) if left else Markup("")
    )
    return before + code(kept)


def predictions(rows: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Predictions side by side. The choice is by a hash of the id, so that no outcome makes a row likelier to be shown."""
    shown = []
    chosen = sorted(
        rows, key=lambda row: hashlib.sha256(row["id"].encode("utf-8", "surrogatepass")).digest()
    )[:count]
    for row in chosen:
        sides = []
        for side in ("base", "tuned"):
            output, scores = row[side].get("output"), row[side].get("scores") or {}
            exact = scores.get("exact_match", scores.get("accuracy"))
            sides.append({
                "name": side,
                "output": None if output is None else differences(output, row["target"]),
                "scores": [(label(name), number(score, "share")) for name, score in scores.items() if name not in ("exact_match", "accuracy")],
                "exact": None if exact is None else exact >= 1,
                "loss": _row_loss(row[side]),
            })  # fmt: skip
        base, tuned = (side["exact"] for side in sides)
        kind = "unknown" if base is None or tuned is None else _KINDS[bool(base), bool(tuned)]
        shown.append({"id": row["id"], "group": row["group"], "prompt": tail(row["prompt"]), "target": code(row["target"], marks=True),
                      "sides": sides, "kind": kind})  # fmt: skip
    return shown


def _row_loss(side: Mapping[str, Any]) -> str | None:
    """A row's loss in nats per trained token, weighted as in training where the row has that sum."""
    for sum_name, count_name in (("weighted_nats", "weight"), ("loss_nats", "num_tokens")):
        total, count = finite(side.get(sum_name)), finite(side.get(count_name))
        if total is not None and count:
            return number(total / count, "nats")
    return None


def samples(history: History) -> list[dict[str, Any]]:
    """Generations of the same rows over the evaluations; equal ones in a row are told once."""
    seen: dict[str, dict[str, Any]] = {}
    for row in history.evals:
        for sample in row["eval"].get("samples") or ():
            entry = seen.setdefault(sample["id"], {"id": sample["id"], "prompt": tail(sample["prompt"]),
                                                   "target": code(sample["target"], marks=True), "outputs": []})  # fmt: skip
            outputs = entry["outputs"]
            if outputs and outputs[-1]["text"] == sample["output"]:
                outputs[-1]["last"] = row["step"]
            else:
                outputs.append({"first": row["step"], "last": row["step"], "text": sample["output"],
                                "shown": differences(sample["output"], sample["target"]),
                                "exact": sample["output"] == sample["target"]})  # fmt: skip
    return list(seen.values())
