"""HumanEval-Infilling: HumanEval's solutions with a gap, and the tests that a filled one must pass."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source
from luthier.sources.files import Files

_COLUMNS = {
    "id": "task_id",
    "prefix": "prompt",
    "suffix": "suffix",
    "middle": "canonical_solution",
    "test": "test",
    "entry_point": "entry_point",
}


@source("humaneval-infilling")
class HumanEvalInfilling(Source):
    """The benchmark's JSONL files (single-line, multi-line, random-span), as they lie in its repository's ``data``.

    Fields of a record: ``prefix``, ``suffix``, ``middle``, ``test``, ``entry_point``. All gaps of one problem are a
    group. Test rows: train on none of them.

    Source: Bavarian et al. 2022, arXiv:2207.14255; github.com/openai/human-eval-infilling, MIT.
    """

    path: str
    """A file such as ``HumanEval-SingleLineInfilling.jsonl.gz``."""

    def records(self) -> Iterator[Record | Dropped]:
        """One for each gap."""
        for item in self._files().records():
            if isinstance(item, Record):
                problem = "/".join(str(item.fields["id"]).split("/")[1:3])
                if not problem.startswith("HumanEval/"):
                    raise UserError(
                        f"{item.fields['id']!r} is no task of HumanEval-Infilling",
                        item.id,
                        "name one of its files: github.com/openai/human-eval-infilling, folder data",
                    )
                item = Record(item.id, item.fields, problem)
            yield item

    def fingerprint(self) -> str:
        """Hash of the file."""
        return self._files().fingerprint()

    def _files(self) -> Files:
        return Files(path=self.path, columns=_COLUMNS, id_column="task_id")
