from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.check.columns import marked
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.models.forward import base_model
from luthier.records import Finding, Split
from luthier.registry import check


@check("positions")
def positions(context: CheckContext) -> Iterator[Finding]:
    """Rows are no longer than the positions that the model was made for.

    What it does: compares the longest of all rows, and ``data.max_length``, with the model's ``max_position_embeddings``,
    or with what its RoPE scaling makes of them. Where text is generated, the prompts of those rows with
    ``evaluate.max_new_tokens`` behind them have to fit as well: an error where positions are a table, which a longer text
    runs out of, and a warning where they are rotary, since most texts end sooner.

    Why is this bad: beyond its positions a model falls off a cliff, or crashes; nothing in the training loss of the
    other rows shows it.

    Example: ``max_length: 4096`` for a model of 2,048 positions.

    Fix: ``data.max_length`` within the model's, less ``evaluate.max_new_tokens`` if text is generated; ``model.rope`` with a
    factor that reaches so far; or a model with longer positions.

    Catalogue: 54
    """
    config = base_model(context.model).config
    limit = _limit(config)
    if limit is None:
        raise Skip("the model's config names no number of positions")
    context.looked_at()
    lengths = {split: rows.lengths() for split, rows in context.rows.items()}
    longest = max((int(some.max(initial=0)) for some in lengths.values()), default=0)
    beyond = marked(context, {split: some > limit for split, some in lengths.items()})
    if beyond.count:
        yield Finding(
            "positions",
            "error",
            f"{beyond} are longer than the model's {limit} positions, the longest has {longest}",
            beyond.where,
            context.fix(
                f"data.max_length={limit}, or model.rope={{factor: {-(-longest // limit)}}}",
                f"cut or drop what is longer than {limit} tokens",
            ),
            measured=longest,
            expected=f"at most {limit}",
        )
    if isinstance(context, RunContext):
        yield from _generated(context, limit, rotary=bool(getattr(config, "rope_parameters", None)))
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


def _generated(context: RunContext, limit: int, *, rotary: bool) -> Iterator[Finding]:
    """Prompts that fit by themselves, and not with what may be generated after them."""
    new = context.recipe.evaluate.max_new_tokens
    asked: dict[Split, bool] = {
        "eval": context.recipe.train.num_samples > 0,
        "test": context.recipe.evaluate.generate,
    }
    if context.objective != "tokens":
        return
    prompts = {
        split: context.rows[split].column("num_prompt_tokens").to_numpy()
        for split, generates in asked.items()
        if generates and split in context.rows
    }
    # The last token that is generated is read by nothing.
    beyond = marked(
        context,
        {
            split: (some + new - 1 > limit) & (context.rows[split].lengths() <= limit)
            for split, some in prompts.items()
        },
    )
    if not beyond.count:
        return
    longest = max(int(prompts[split].max()) for split in beyond.ids)
    fits = f", or evaluate.max_new_tokens={limit - longest + 1}" if longest < limit else ""
    yield Finding(
        "positions",
        "warning" if rotary else "error",
        f"{beyond} have so long a prompt (up to {longest} tokens) that {new} generated tokens go beyond the model's {limit} "
        "positions",
        beyond.where,
        f"data.max_length={max(1, limit - new)}{fits}",
        measured=longest + new - 1,
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
