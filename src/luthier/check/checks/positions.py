from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.check.columns import marked
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.models.forward import base_model
from luthier.records import Finding
from luthier.registry import check


@check("positions")
def positions(context: CheckContext) -> Iterator[Finding]:
    """Rows are no longer than the positions that the model was made for.

    What it does: compares the longest of all rows, and ``data.max_length``, with the model's ``max_position_embeddings``,
    or with what its RoPE scaling makes of them.

    Why is this bad: beyond its positions a model falls off a cliff, or crashes; nothing in the training loss of the
    other rows shows it.

    Example: ``max_length: 4096`` for a model of 2,048 positions.

    Fix: ``data.max_length`` within the model's, ``model.rope`` with a factor that reaches so far, or a model with longer
    positions.

    Catalogue: 54
    """
    limit = _limit(base_model(context.model).config)
    if limit is None:
        raise Skip("the model's config names no number of positions")
    context.looked_at(f"all {sum(map(len, context.rows.values())):,} rows")
    longest = 0
    for split, rows in context.rows.items():
        lengths = rows.lengths()
        longest = max(longest, int(lengths.max(initial=0)))
        beyond = marked(context, split, lengths > limit)
        if beyond.count:
            yield Finding(
                "positions",
                "error",
                f"{beyond} of the {split} split are longer than the model's {limit} positions, the longest has {lengths.max()}",
                beyond.where,
                context.fix(
                    f"data.max_length={limit}, or model.rope={{factor: {-(-int(lengths.max()) // limit)}}}",
                    f"cut or drop what is longer than {limit} tokens",
                ),
                measured=int(lengths.max()),
                expected=f"at most {limit}",
            )
    wanted = context.recipe.data.max_length if isinstance(context, RunContext) else 0
    if longest <= limit < wanted:
        yield Finding(
            "positions",
            "warning",
            f"data.max_length is {wanted}, but the model has {limit} positions; no row is that long yet",
            "recipe key data.max_length",
            f"data.max_length={limit}, or model.rope={{factor: {-(-wanted // limit)}}}",
            measured=wanted,
            expected=f"at most {limit}",
        )


def _limit(config: Any) -> int | None:
    """Positions that the model may be used with; None if its config does not say."""
    limit = next(
        (n for name in ("max_position_embeddings", "n_positions") if (n := getattr(config, name, None))), None
    )
    rope = getattr(config, "rope_parameters", None) or {}
    if limit and rope.get("rope_type", "default") != "default" and rope.get("factor"):
        original = rope.get("original_max_position_embeddings") or limit
        return max(int(limit), int(rope["factor"] * original))
    return int(limit) if limit else None
