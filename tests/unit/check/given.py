"""Items as a collator would give them, a tokenizer and a model as something to check, without files around them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.fixtures.given_rows import GivenRows

from luthier import registry
from luthier.check.context import CheckContext
from luthier.check.tokenised import to_rows
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.records import Finding


class Given(GivenRows):
    """A context of items."""

    def __init__(
        self,
        folder: Path,
        items: Sequence[dict[str, Any]],
        hf: Any,
        model: Any = None,
        pad_id: int | None = None,
    ) -> None:
        tokenizer = TextTokenizer(hf)
        rows = [row for i, item in enumerate(items) for row in to_rows(str(i), item, tokenizer, pad_id)]
        super().__init__(folder, tokenizer, train=[replace(row, group="") for row in rows])
        self.quick = False
        if model is not None:
            self.model = model
        if rows and "label" in rows[0].meta:
            self.objective = "classes"

    def found(self, check: str) -> list[Finding]:
        return found(self, check)


def found(context: CheckContext, check: str) -> list[Finding]:
    """What a check finds."""
    return list(registry.lookup("check", check, "test")(context))
