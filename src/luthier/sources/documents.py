"""What sources of documents with category paths share: the form of their records, and the split by top-level nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from luthier.errors import UserError
from luthier.ontology.linearise import parts
from luthier.records import Dropped, Record
from luthier.sources import Source


class Documents(Source):
    """Base of sources whose records have ``title``, ``abstract`` and ``paths``.

    A path is a list of nodes from the root downwards; a node is its title, or ``{id, title}`` where titles are not unique.

    With ``part`` the top-level nodes (the second of each path) are shuffled: half are for testing, three tenths of the
    rest for evaluation, the rest for training. A document keeps the paths of the part. Name the same source as
    ``data.source``, ``data.eval_source`` and ``data.test_source``, each with its part: deeper nodes may then be in
    several parts, but a document that is in several is kept in the test part, or else in the one for evaluation.
    """

    part: Literal["all", "train", "eval", "test"] = "all"
    """Top-level nodes whose paths are taken."""
    part_seed: int = Field(0, ge=0)
    """Seed of the shuffle of top-level nodes."""

    @abstractmethod
    def documents(self) -> Iterator[Record | Dropped]:
        """All documents with all of their paths; the same stream each time."""

    def records(self) -> Iterator[Record | Dropped]:
        """The documents of the part."""
        if self.part == "all":
            yield from self.documents()
            return
        tops = (
            _id(path[1])
            for item in self.documents()
            if isinstance(item, Record)
            for path in _paths(item)
            if len(path) > 1
        )
        part_of = parts(tops, self.part_seed)
        if self.part not in part_of.values():
            raise UserError(
                f"{len(part_of)} top-level nodes are too few for a part {self.part!r}",
                "part",
                "split by group instead: part: all, with data.splits",
            )
        for item in self.documents():
            if isinstance(item, Dropped):
                yield item
                continue
            paths = [path for path in _paths(item) if len(path) > 1]
            kept = [path for path in paths if part_of[_id(path[1])] == self.part]
            if kept:
                yield Record(item.id, {**item.fields, "paths": kept}, item.group)
            elif not paths:  # the task says what is wrong with it
                yield item
            else:
                yield Dropped(item.id, "other-part", "all of its paths are in other parts", budgeted=False)


def _paths(record: Record) -> Sequence[Sequence[Any]]:
    paths = record.fields.get("paths")
    if not isinstance(paths, list) or not all(isinstance(path, list) for path in paths):
        return []
    return paths


def _id(node: Any) -> str:
    return str(node.get("id", node.get("title"))) if isinstance(node, Mapping) else str(node)
