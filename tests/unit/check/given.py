"""Rows, a tokenizer and a model as something to check, without files around them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier import registry
from luthier.check.context import CheckContext
from luthier.check.tokenised import store, to_rows
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding


class Given(CheckContext):
    """A context of items as a collator would give them."""

    model_name = "given"

    def __init__(
        self,
        folder: Path,
        items: Sequence[dict[str, Any]],
        hf: Any,
        model: Any = None,
        pad_id: int | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = TextTokenizer(hf)
        if model is not None:
            self.model = model
        rows = [row for i, item in enumerate(items) for row in to_rows(str(i), item, self.tokenizer, pad_id)]
        if rows and "label" in rows[0].meta:
            self.objective = "classes"
        self._rows = {"train": store((replace(row, group="") for row in rows), folder / "train.arrow")}

    @property
    def rows(self) -> Any:
        return self._rows

    def found(self, check: str) -> list[Finding]:
        return found(self, check)


def found(context: CheckContext, check: str) -> list[Finding]:
    """What a check finds."""
    return list(registry.lookup("check", check, "test")(context))
