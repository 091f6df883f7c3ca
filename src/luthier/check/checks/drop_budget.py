from __future__ import annotations

import math
from collections.abc import Iterator

from luthier.check.context import CheckContext
from luthier.records import Finding
from luthier.registry import check


@check("drop-budget")
def drop_budget(context: CheckContext) -> Iterator[Finding]:
    """No more was dropped than the recipe allows, and nothing disappeared.

    What it does: reads the ledger: all records and rows that came in are kept or dropped for a counted reason, the files
    hold as many rows as were kept, and the share dropped for other reasons than a rule of the recipe is within
    ``data.drop_budget``.

    Why is this bad: a loader that skips what it cannot read trains on a fraction of the data, and nobody notices.

    Example: 66,317 records in, 0 rows out, exit code 0.

    Fix: mend the most frequent reason (``data/dropped.jsonl`` names every id), or raise ``data.drop_budget`` knowingly.

    Catalogue: 2, 18, 26
    """
    context.looked_at("the ledger of all records and rows")
    ledger, budget = context.ledger, context.recipe.data.drop_budget
    if ledger["drop_share"] > budget:
        reasons = [
            (entry["count"], f"{entry['count']} {level} {reason}")
            for level in ("records", "rows")
            for reason, entry in ledger[level]["dropped"].items()
            if entry["budgeted"]
        ]
        yield Finding(
            "drop-budget",
            "error",
            f"{ledger['drop_share']:.2%} were dropped: {'; '.join(text for _, text in sorted(reasons, reverse=True))}",
            "data/dropped.jsonl",
            f"mend the most frequent reason, or allow it: data.drop_budget={math.ceil(ledger['drop_share'] * 100) / 100}",
            measured=ledger["drop_share"],
            expected=f"at most {budget}",
        )
    for level in ("records", "rows"):
        entry = ledger[level]
        dropped = sum(reason["count"] for reason in entry["dropped"].values())
        if entry["in"] != entry["kept"] + dropped:
            yield _lost(f"{entry['in']} {level} came in, but {entry['kept']} kept + {dropped} dropped")
    stored = sum(len(rows) for rows in context.rows.values())
    if stored != ledger["rows"]["kept"]:
        yield _lost(f"the ledger keeps {ledger['rows']['kept']} rows, but the files hold {stored}")


def _lost(what: str) -> Finding:
    return Finding("drop-budget", "error", what, "data/ledger.json", "delete data/ and prepare anew")
