"""The ledger: everything that came in is either kept or dropped for a reason that is counted and named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from luthier.prepare.split import stable_hash
from luthier.records import Dropped
from luthier.rows import read_batches

Level = Literal["records", "rows"]
_IDS_SHOWN = 20
_HISTOGRAM_BINS = 20


@dataclass
class _Reason:
    count: int = 0
    num_budgeted: int = 0
    ids: list[str] = field(default_factory=list)
    detail: str = ""


class Ledger:
    """Counts what comes in, is kept and is dropped, of records and of rows; every dropped id goes to a file at once.

    Args:
        path: ``dropped.jsonl``, which is written anew.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115  # closed by __exit__
        self._reasons: dict[Level, dict[str, _Reason]] = {"records": {}, "rows": {}}
        self.num_in: Counter[Level] = Counter()
        self.num_kept: Counter[Level] = Counter()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def drop(self, level: Level, dropped: Dropped) -> None:
        """Counts one record or row that is left out; it must have been counted in ``num_in`` as well."""
        reason = self._reasons[level].setdefault(dropped.reason, _Reason())
        reason.count += 1
        reason.num_budgeted += dropped.budgeted
        reason.detail = reason.detail or dropped.detail
        if len(reason.ids) < _IDS_SHOWN:
            reason.ids.append(dropped.id)
        line = {"stage": level, "id": dropped.id, "reason": dropped.reason, "detail": dropped.detail}
        # ASCII, because an id or a detail may hold what UTF-8 cannot write.
        self._file.write(json.dumps(line) + "\n")

    def num_dropped(self, level: Level) -> int:
        """Records or rows dropped so far."""
        return sum(reason.count for reason in self._reasons[level].values())

    def drop_share(self) -> float:
        """The share of budgeted drops, of records or of rows, whichever is worse, in [0, 1].

        What a rule drops, copies or files that are only context, is in neither number: it would hide what is lost of the rest.
        Rows over ``data.max_rows`` are in the whole: they could have been kept.
        """
        shares = []
        for level, reasons in self._reasons.items():
            budgeted = sum(reason.num_budgeted for reason in reasons.values())
            by_rule = sum(r.count - r.num_budgeted for name, r in reasons.items() if name != "over-max-rows")
            wanted = self.num_in[level] - by_rule
            shares.append(budgeted / wanted if wanted else 0.0)
        return max(shares)

    def check(self) -> None:
        """Proves that nothing disappeared: in = kept + dropped, of records and of rows.

        Raises:
            RuntimeError: Something did, which is a defect of Luthier.
        """
        for level in self._reasons:
            came, kept, dropped = self.num_in[level], self.num_kept[level], self.num_dropped(level)
            if came != kept + dropped:
                raise RuntimeError(
                    f"{came} {level} came in, but {kept} kept + {dropped} dropped are {kept + dropped}"
                )

    def summary(self, level: Level) -> dict[str, Any]:
        """What ``ledger.json`` holds under ``records`` and ``rows``."""
        dropped = {
            name: {"count": reason.count, "budgeted": reason.num_budgeted > 0, "ids": reason.ids}
            for name, reason in sorted(self._reasons[level].items())
        }
        return {"in": self.num_in[level], "kept": self.num_kept[level], "dropped": dropped}

    def why(self) -> str:
        """The reasons in one line, the most frequent first, for errors."""
        found = [
            (
                reason.count,
                f"{reason.count} {level} {name} (first: {reason.ids[0]}{': ' if reason.detail else ''}{reason.detail})",
            )
            for level, reasons in self._reasons.items()
            for name, reason in reasons.items()
        ]
        return "; ".join(text for _, text in sorted(found, reverse=True)) or "nothing was dropped"


def describe(path: Path) -> dict[str, Any]:
    """What ``ledger.json`` says of one split, counted on the file itself: rows, groups, tokens, lengths, trims, gaps."""
    lengths: list[np.ndarray] = [np.empty(0, np.int64)]
    groups: list[np.ndarray] = [np.empty(0, np.uint64)]
    trained = target_bytes = 0
    trimmed: dict[str, dict[str, int]] = {}
    gaps: Counter[str] = Counter()
    for batch in read_batches(path):
        lengths.append(np.diff(batch.column("input_ids").offsets.to_numpy()).astype(np.int64))
        groups.append(hash_names(batch.column("group")))
        trained += int(np.count_nonzero(batch.column("loss_weights").values.to_numpy()))
        target_bytes += sum(batch.column("target_bytes").to_pylist())
        for text in batch.column("trimmed").to_pylist():
            for name, num_tokens in json.loads(text).items():
                entry = trimmed.setdefault(name, {"rows": 0, "tokens": 0})
                entry["rows"] += 1
                entry["tokens"] += num_tokens
        for text in batch.column("meta").to_pylist():
            if '"infill"' in text and isinstance(order := json.loads(text).get("infill"), str):
                gaps[order] += 1
    all_lengths = np.concatenate(lengths)
    shares = {order: count / len(all_lengths) for order, count in sorted(gaps.items())}
    return {
        "rows": len(all_lengths),
        "groups": len(np.unique(np.concatenate(groups))),
        "tokens": int(all_lengths.sum()),
        "trained_tokens": trained,
        "target_bytes": target_bytes,
        "length": _lengths(all_lengths),
        "trimmed": dict(sorted(trimmed.items())),
        **({"infill": {"rate": gaps.total() / len(all_lengths), **shares}} if gaps else {}),
    }


def hash_names(names: pa.Array | Iterable[str]) -> np.ndarray:
    """``stable_hash`` of each name, uint64, shape (num_names,)."""
    values = names.to_pylist() if isinstance(names, pa.Array) else list(names)
    return np.array([stable_hash(name) for name in values], np.uint64)


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    if not len(lengths):
        return {"min": 0, "p50": 0, "p90": 0, "p99": 0, "max": 0, "histogram": {"edges": [], "counts": []}}
    low, high = int(lengths.min()), int(lengths.max())
    edges = np.unique(np.linspace(low, high + 1, _HISTOGRAM_BINS + 1).round().astype(np.int64))
    counts, _ = np.histogram(lengths, edges)
    percentiles = {f"p{p}": int(np.percentile(lengths, p, method="higher")) for p in (50, 90, 99)}
    return {
        "min": low,
        **percentiles,
        "max": high,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
