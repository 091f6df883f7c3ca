"""Judged candidates: a line each, a table of bugs by rank, and what they come to, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.encoding.lexer import normalised
from luthier.errors import UserError
from luthier.evaluate.candidates import Asked
from luthier.evaluate.significance import Ratio, mcnemar, with_intervals
from luthier.execution.adapters import VERDICTS, Judgement
from luthier.execution.judge import Judge, Proof
from luthier.execution.sandbox import Limits
from luthier.metrics.code import same_tree
from luthier.recipe import Recipe
from luthier.records import Dropped, Progress
from luthier.run_folder import logger, read_json, write_json, write_jsonl
from luthier.sources.text_rows import Bad, read_rows

Judged = tuple[Asked, Mapping[str, Any], Judgement]
_RANKS = (1, 3, 5, 10)
_LONGEST_LINE = 16 << 20  # bytes
_ORDERS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "score": lambda row: -row["score"],
    "mean-logprob": lambda row: -row["logprob"] / max(1, row["num_tokens"]),
    "agreement": lambda row: -row["agreement"],
    "tests": lambda row: row["verdict"] != "passed",
}


@dataclass(frozen=True, slots=True)
class Proven:
    """Bugs that can be judged on, and who judges.

    Attributes:
        judge: Runs candidates as the recipe allows.
        proofs: Of all bugs by id.
        asked: Those that are proven.
        left_out: All others.
    """

    judge: Judge
    proofs: Mapping[str, Proof]
    asked: list[Asked]
    left_out: list[Dropped]


def prove(
    asked: Sequence[Asked],
    left_out: Sequence[Dropped],
    recipe: Recipe,
    memory: Path,
    progress: Progress | None,
) -> Proven:
    """The bugs with their proofs; arguments as in ``judge_candidates``."""
    settings = recipe.repair
    limits = Limits(timeout_s=settings.timeout_s, memory_mib=settings.memory_mib, disk_mib=settings.disk_mib)
    judge = Judge(memory, limits, None if settings.num_workers == "auto" else settings.num_workers)
    proofs = judge.prove([each.bug for each in asked], progress)
    failed = (Dropped(name, proof.reason, proof.detail) for name, proof in proofs.items() if proof.reason)
    return Proven(
        judge, proofs, [each for each in asked if not proofs[each.bug.id].reason], [*left_out, *failed]
    )


def judge_candidates(
    asked: Sequence[Asked],
    left_out: Sequence[Dropped],
    candidates: Mapping[str, Sequence[Mapping[str, Any]]],
    recipe: Recipe,
    folder: Path,
    memory: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes ``verdicts.jsonl`` and ``repair.json`` into a folder; returns the latter's content.

    Args:
        asked: The bugs.
        left_out: Bugs that nothing was asked about.
        candidates: Of each bug by id, best first.
        recipe: The run's.
        folder: Where to write.
        memory: Verdicts by content, shared by all that judge the same bugs.
        progress: Called with a label, what is done and all.
    """
    proven = prove(asked, left_out, recipe, memory, progress)
    wanted = [
        (each, {**row, "written_rank": rank})
        for each in proven.asked
        for rank, row in enumerate(candidates[each.bug.id], 1)
    ]
    found = proven.judge.judge([(each.bug, row["function"]) for each, row in wanted], progress)
    judged: list[Judged] = [
        (each, row, judgement) for (each, row), judgement in zip(wanted, found, strict=True)
    ]
    if recipe.repair.rank_by == "tests":
        judged = by_tests(judged)
    rows: list[dict[str, Any]] = []
    ranks: Counter[str] = Counter()
    for each, row, judgement in judged:
        ranks[each.bug.id] += 1
        rows.append(
            {
                "bug": each.bug.id,
                "group": each.bug.group,
                "rank": ranks[each.bug.id],
                **judgement.model_dump(mode="json"),
                "exact": row["function"] == each.fixed,
                "ast": same_tree(row["function"], each.fixed, each.bug.language),
                **{key: row[key] for key in row if key != "output"},
            }
        )
    write_jsonl(folder / "verdicts.jsonl", rows)
    results = summary(rows, {each.bug.id: each.bug.group for each in proven.asked}, proven.left_out, recipe)
    results["bugs"] = {
        each.bug.id: shown(each, proven.proofs[each.bug.id], results["table"][each.bug.id])
        for each in proven.asked
    }
    write_json(folder / "repair.json", results)
    return results


def by_tests(judged: Sequence[Judged]) -> list[Judged]:
    """Judged candidates by verdict and then by test cases that passed, bug by bug, and otherwise in their order.

    The first of those that say the same is the one that the others are duplicates of.
    """
    of: dict[str, list[Judged]] = {}
    for one in judged:
        of.setdefault(one[0].bug.id, []).append(one)
    found: list[Judged] = []
    for ones in of.values():
        # By the rank that its duplicates name.
        same = [row["duplicate_of"] or rank for rank, (_, row, _) in enumerate(ones, 1)]
        order = sorted(
            range(len(ones)),
            key=lambda i: (VERDICTS.index(ones[i][2].verdict), -sum(ones[i][2].tests.values())),
        )
        firsts: dict[int, int] = {}
        for rank, i in enumerate(order, 1):
            each, row, judgement = ones[i]
            first = firsts.setdefault(same[i], rank)
            found.append((each, {**row, "duplicate_of": first if first < rank else None}, judgement))
    return found


def summary(
    rows: Sequence[Mapping[str, Any]], groups: Mapping[str, str], left_out: Sequence[Dropped], recipe: Recipe
) -> dict[str, Any]:
    """What the verdicts come to. Candidates are ranked, so plausible@k is whether any of a bug's first k passes.

    The denominator is fixed: every bug was judged, or is left out by reason.

    Args:
        rows: Of ``verdicts.jsonl``.
        groups: Group of each judged bug by id.
        left_out: The other bugs.
        recipe: The run's.
    """
    most = recipe.repair.num_candidates
    bugs = list(groups)
    of: dict[str, list[Mapping[str, Any]]] = {name: [] for name in bugs}
    for row in sorted(rows, key=lambda r: r["rank"]):
        of[row["bug"]].append(row)
    scores: dict[str, list[float]] = {}
    for k in sorted({k for k in (*_RANKS, most) if k <= most}):
        for name, good in (
            ("plausible", _passes),
            ("exact", lambda r: r["exact"]),
            ("ast", lambda r: r["ast"]),
        ):
            scores[f"{name}@{k}"] = [float(any(good(r) for r in of[bug][:k])) for bug in bugs]
    shares: dict[str, Callable[[Mapping[str, Any]], bool]] = {
        "compile_rate": lambda r: r["compiled"],
        "distinct_rate": lambda r: r["duplicate_of"] is None,
        "unchanged_rate": lambda r: r["unchanged"],
    }
    pairs = {name: Ratio.mean(values) for name, values in scores.items()}
    for name, good in shares.items():
        pairs[name] = Ratio(
            [sum(good(r) for r in of[bug]) for bug in bugs], [float(len(of[bug])) for bug in bugs]
        )
    return {
        **judged_and_not(len(bugs), left_out),
        "num_candidates": most,
        "metrics": with_intervals(
            pairs, list(groups.values()), num_resamples=recipe.evaluate.num_bootstrap, seed=recipe.seed
        ),
        "verdicts_by_rank": {
            verdict: [
                sum(1 for r in rows if r["rank"] == k and r["verdict"] == verdict) for k in range(1, most + 1)
            ]
            for verdict in VERDICTS
        },
        "plausible_at_1_by_order": {
            order: _mean([float(bool(of[b]) and _passes(_first(of[b], by))) for b in bugs])
            for order, by in _ORDERS.items()
        },
        "fences": sorted({r["fence"] for r in rows if r["fence"]}),
        "table": {bug: [r["verdict"] for r in of[bug]] for bug in bugs},
    }


def _first(rows: Sequence[Mapping[str, Any]], by: Callable[[Mapping[str, Any]], float]) -> Mapping[str, Any]:
    """The first row by an order; of equal ones that which was written first, whatever the tests made of it."""
    return min(rows, key=lambda row: (by(row), row["written_rank"]))


def judged_and_not(num_judged: int, left_out: Sequence[Dropped]) -> dict[str, Any]:
    """How many bugs were judged, and the others by reason."""
    reasons: dict[str, list[str]] = {}
    for dropped in left_out:
        reasons.setdefault(dropped.reason, []).append(dropped.id)
    return {
        "num_bugs": num_judged + len(left_out),
        "num_judged": num_judged,
        "left_out": {reason: sorted(names) for reason, names in sorted(reasons.items())},
        "left_out_why": {dropped.id: dropped.detail for dropped in left_out},
    }


def compare_repairs(one: Path, other: Path) -> dict[str, Any]:
    """Bugs that both, only one, or only the other of two results repaired, and McNemar's test; on the bugs that both judged.

    Args:
        one: Folder with ``repair.json``.
        other: The other one.
    """
    tables = [read_json(folder / "repair.json")["table"] for folder in (one, other)]
    names = sorted(set(tables[0]) & set(tables[1]))
    repaired = [["passed" in table[name] for name in names] for table in tables]
    only_one, only_other, p_value = mcnemar(*repaired)
    return {
        "num_bugs": len(names),
        "not_in_both": sorted(set(tables[0]) ^ set(tables[1])),
        "common": [n for n, a, b in zip(names, *repaired, strict=True) if a and b],
        "only_first": [n for n, a, b in zip(names, *repaired, strict=True) if a and not b],
        "only_second": [n for n, a, b in zip(names, *repaired, strict=True) if b and not a],
        "mcnemar": {"only_first": only_one, "only_second": only_other, "p_value": p_value},
    }


class _Given(BaseModel):
    """A line of another tool's candidates; what else stands in it is not looked at."""

    bug: str
    function: str | None = None
    logprob: float = 0.0
    num_tokens: int = 1
    score: float | None = None


def given_candidates(path: Path, asked: Sequence[Asked], recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """Candidates of another tool by bug: lines with ``bug`` and ``function`` (null: it found none), best first, and maybe ``logprob``, ``num_tokens`` and ``score``.

    Lines of other bugs, and those behind the last candidate that is judged, are left out and counted in the log.

    Raises:
        UserError: The file, or a line of it, cannot be read.
    """
    bugs = {each.bug.id: each for each in asked}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in bugs}
    seen: dict[tuple[str, str], int] = {}
    left_out: Counter[str] = Counter()
    for number, row in read_rows(str(path), "jsonl", _LONGEST_LINE):
        line = _given(row, f"{path}:{number}")
        if line.bug not in bugs:
            left_out["of bugs that are not asked about"] += 1
            continue
        rows, asked_one = found[line.bug], bugs[line.bug]
        if len(rows) == recipe.repair.num_candidates:
            left_out["more than repair.num_candidates"] += 1
            continue
        language = asked_one.bug.language
        same = "" if line.function is None else normalised(line.function, language)
        rank = len(rows) + 1
        rows.append(
            {"function": line.function, "logprob": line.logprob, "num_tokens": line.num_tokens,
             "score": float(-rank) if line.score is None else line.score, "ended": True, "agreement": int(bool(same)),
             "unchanged": same == normalised(asked_one.place.text, language),
             "duplicate_of": seen.get((line.bug, same)) if same else None}
        )  # fmt: skip
        seen.setdefault((line.bug, same), rank)
    for reason, count in left_out.items():
        logger.warning("%s: %d candidates left out: %s", path, count, reason)
    return found


def _given(row: dict[str, Any] | Bad, where: str) -> _Given:
    problem = f"{row.reason}: {row.detail}" if isinstance(row, Bad) else ""
    try:
        if not isinstance(row, Bad):
            return _Given(**row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    raise UserError(problem, where, 'write a line a candidate: {"bug": "ID", "function": "TEXT"}')


def _passes(row: Mapping[str, Any]) -> bool:
    return bool(row["verdict"] == "passed")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def shown(each: Asked, proof: Proof, verdicts: Sequence[str]) -> dict[str, Any]:
    """What the page says of a bug."""
    return {
        "path": each.bug.path,
        "language": each.bug.language,
        "buggy": each.place.text,
        "fixed": each.fixed,
        "symptom": proof.detail[:1000],
        "failing": list(proof.tests[:20]),
        "trimmed": each.trimmed,
        "repaired": "passed" in verdicts,
    }
