from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from luthier.check.columns import Offenders, count, flat, marked, row_hashes, text_hashes
from luthier.check.context import CheckContext, Skip
from luthier.records import Finding
from luthier.registry import check
from luthier.rows import Rows, read_batches

# A template that leaves the question out gives all rows one prompt; many answers to one question are rarely meant so.
MOST_SHARE_OF_ONE_PROMPT = 0.5
# Labels by people disagree on a few percent of short texts (Northcutt et al. 2021, arXiv:2103.14749: 3.3% on average).
MOST_LABELS_WRONG = 0.05
# Several answers to one prompt can be wanted (samples, references); from a tenth of the rows one should know.
WORTH_A_NOTE = 0.1
FEWEST_ROWS = 20


@check("conflicting-targets")
def conflicting_targets(context: CheckContext) -> Iterator[Finding]:
    """Equal prompts have equal targets.

    What it does: compares hashes of what stands before the first trained token, and of what follows, over all training
    rows with one trained stretch; with labels, hashes of texts and labels. A warning when one prompt has over half of the
    rows; when texts with several labels make over 5% of the labels impossible to get right; a note when over 10% of the
    rows have a prompt with several answers.

    Why is this bad: no model can be right on both of two rows that ask the same and answer differently. When all rows
    ask the same, the question never reached the prompt.

    Example: a template with the column ``instruction`` (``Classify this review.``) that leaves out ``input``; texts
    labelled by two people, once each.

    Fix: use all columns that the answer depends on; keep one label a text, by majority.

    Catalogue: 1, 44
    """
    if context.objective == "tags":
        raise Skip("the model is trained to label each token")
    rows = context.training_rows(FEWEST_ROWS)
    if isinstance(rows.row(0).meta.get("label"), float):
        raise Skip("labels are numbers of a scale, which differ a little as a rule")
    if context.objective == "classes":
        prompts, targets, counted = row_hashes(rows), text_hashes(rows, "target"), rows.lengths() > 0
    else:
        prompts, targets, counted = _hashes(rows)
    if counted.sum() < FEWEST_ROWS:
        raise Skip(f"fewer than {FEWEST_ROWS} training rows have a prompt and one answer behind it")
    context.looked_at(f"{counted.sum():,} of {len(rows):,} training rows")
    places = np.flatnonzero(counted)
    groups, num_answers, wrong = _disagreement(prompts[places], targets[places])
    sizes = np.bincount(groups)
    bad = np.zeros(len(rows), dtype=bool)
    bad[places] = num_answers[groups] > 1
    found = marked(context, {"train": bad})
    found.num_rows = len(places)
    largest = int(np.argmax(sizes))
    share = sizes[largest] / len(places)
    if num_answers[largest] > 1 and share > MOST_SHARE_OF_ONE_PROMPT:
        yield _one_prompt(context, found, sizes[largest], num_answers[largest], len(places))
    elif context.objective == "classes":
        yield from _labels(found, wrong, len(places))
    elif found.share > WORTH_A_NOTE:
        repeated = int((num_answers > 1).sum())
        yield found.finding(
            "conflicting-targets",
            "note",
            f"{found} have a prompt that other rows answer differently; there are {repeated:,} such prompts",
            "if one answer is right, keep that one; if all are, this is as it should be",
            WORTH_A_NOTE,
        )


def _one_prompt(
    context: CheckContext, found: Offenders, size: int, num_answers: int, num_rows: int
) -> Finding:
    what = "text" if context.objective == "classes" else "prompt"
    return Finding(
        "conflicting-targets",
        "warning",
        f"{size:,} of {num_rows:,} rows ({size / num_rows:.2%}) have one and the same {what}, "
        f"with {num_answers:,} different targets: what they depend on is not in the {what}",
        found.where,
        context.fix(
            "use the column that holds the question in task.prompt_template (or in the messages)",
            "put the column that holds the question into what is tokenised",
        ),
        measured=round(float(size / num_rows), 4),
        expected=f"at most {MOST_SHARE_OF_ONE_PROMPT}",
    )


def _labels(found: Offenders, wrong: int, num_rows: int) -> Iterator[Finding]:
    share = wrong / num_rows
    if share > MOST_LABELS_WRONG:
        yield Finding(
            "conflicting-targets",
            "warning",
            f"{found} have a text that other rows label differently, so that no classifier is right on more than "
            f"{1 - share:.2%} of them: {wrong:,} labels ({share:.2%}) are impossible",
            found.where,
            "keep one label for each text, by majority, or add to the text what the label depends on",
            measured=round(share, 4),
            expected=f"at most {MOST_LABELS_WRONG}",
        )
    elif found.count:
        yield Finding(
            "conflicting-targets",
            "note",
            f"{found} have a text that other rows label differently; {wrong:,} labels ({share:.2%}) are impossible",
            found.where,
            "keep one label for each text, by majority",
            measured=round(share, 4),
            expected=0,
        )


def _disagreement(prompts: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Which prompt each row has, how many different targets each prompt has, and the rows that must be wrong.

    Those are all but the ones with the most frequent target of their prompt.
    """
    _, groups = np.unique(prompts, return_inverse=True)
    order = np.lexsort((targets, groups))
    group, target = groups[order], targets[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(group) != 0) | (np.diff(target) != 0)
    starts = np.flatnonzero(new)
    num_answers = np.bincount(group[starts])
    most = np.zeros(len(num_answers), np.int64)
    np.maximum.at(most, group[starts], np.diff(np.append(starts, len(order))))
    return groups, num_answers, len(prompts) - int(most.sum())


def _hashes(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of each row's prompt and of the rest, int64; and which rows have one trained stretch behind a prompt.

    A row that is trained from its first or second token on has no prompt, but BOS at most.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for batch in read_batches(rows.path, ["input_ids", "loss_weights", "num_prompt_tokens"]):
        offsets, ids = flat(batch.column("input_ids"))
        trained = batch.column("loss_weights").values.to_numpy() != 0
        begins = trained & ~np.concatenate([[False], trained[:-1]])
        begins[offsets[:-1][np.diff(offsets) > 0]] = trained[offsets[:-1][np.diff(offsets) > 0]]
        stretches = count(begins, offsets[:-1], offsets[1:])
        num_prompt = batch.column("num_prompt_tokens").to_numpy()
        content, size = ids.tobytes(), ids.itemsize
        borders = (offsets[:-1] + num_prompt).tolist()
        spans = list(zip(pairwise(offsets.tolist()), borders, strict=True))
        prompt = [hash(content[a * size : b * size]) for (a, _), b in spans]
        target = [hash(content[b * size : c * size]) for (_, c), b in spans]
        parts.append((np.array(prompt), np.array(target), (stretches == 1) & (num_prompt > 1)))
    return tuple(map(np.concatenate, zip(*parts, strict=True)))  # type: ignore[return-value]  # three of them
