"""``luthier.audit``: the checks for anybody's training, before it starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from luthier.check.context import CheckContext, Skip
from luthier.check.runner import Report, check, names_of
from luthier.errors import UserError
from luthier.records import Progress

if TYPE_CHECKING:
    from transformers import Trainer


def audit(
    trainer: Trainer | None = None,
    *,
    model: str | Path | None = None,
    rows: str | Path | None = None,
    eval_rows: str | Path | None = None,
    quick: bool = False,
    only: Collection[str] = (),
    max_rows: int = 20_000,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Report:
    """What would go wrong in a training, without changing anything of it.

        report = luthier.audit(trainer)
        print(report)
        assert report.ok

    Args:
        trainer: A transformers ``Trainer`` or an instance of a subclass (TRL's ``SFTTrainer``), before ``train()``. Its
            parameters, generators and data order are as before afterwards: training gives the same bits as without.
        model: Instead: folder or Hub name of a model with its tokenizer ...
        rows: ... and the tokenised rows that it would be trained on: JSON lines, Parquet, or a folder that
            ``datasets.save_to_disk`` wrote, with ``input_ids``, ``labels`` and ``attention_mask``.
        eval_rows: Those that it would be evaluated on.
        quick: Run only the checks that need no model.
        only: Run only these checks.
        max_rows: Rows of a ``Trainer``'s data set that are read.
        trust_remote_code: Run code that comes with the model.
        progress: Called with a check's name, how many are done and how many there are.

    Raises:
        UserError: Neither a trainer nor model and rows, or both; or a model, file or data set that cannot be read.
    """
    others = {"model": model, "rows": rows, "eval_rows": eval_rows}
    given = [name for name, value in others.items() if value is not None]
    if given if trainer is not None else not {"model", "rows"} <= set(given):
        raise UserError(
            f"there is a trainer, and {' and '.join(given)} as well"
            if trainer
            else "there is nothing to audit",
            "luthier.audit",
            'luthier.audit(trainer), or luthier.audit(model="DIR", rows="rows.jsonl")',
        )
    names_of(only, "--only")  # before data is read
    with TemporaryDirectory(prefix="luthier-audit-") as folder:
        context: CheckContext
        if trainer is None:
            from luthier.check.tokenised import RowsContext

            context = RowsContext(
                str(model),
                rows or "",
                Path(folder),
                eval_rows,
                quick=quick,
                trust_remote_code=trust_remote_code,
            )
            restore = nullcontext()
        else:
            from luthier.check.trainer import TrainerContext, untouched

            with _said_as_mistake():
                context = TrainerContext(trainer, Path(folder), max_rows=max_rows, quick=quick)
            restore = untouched(trainer)  # type: ignore[assignment]
        with restore:
            with _said_as_mistake():
                _ = context.rows  # read once, and first: what kind of training it is shows here
            return check(context, only=only, progress=progress)


@contextmanager
def _said_as_mistake() -> Iterator[None]:
    """Turns the reason why nothing at all can be looked at into an error; a report of skips would look like a pass."""
    try:
        yield
    except Skip as why:
        raise UserError(
            f"this cannot be audited: {why}",
            "luthier.audit",
            "audit a causal language model or a classifier, over rows that can be read more than once",
        ) from why
