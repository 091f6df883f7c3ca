"""Ontology learning: from a document's title and abstract to its paths in a hierarchy of categories."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from luthier.encoding.chat import chat_spans
from luthier.encoding.templates import RowError, check_template, render
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.ontology.masking import EdgeCounts, masked_weights, mean_weights, paths_of, span_name
from luthier.ontology.paths import PathFormat
from luthier.records import Dropped, Example, Record, Row, Span, Split
from luthier.registry import task
from luthier.rows import Rows
from luthier.tasks import Task

# Stands in for the response while a chat template is rendered.
_PLACE = "x"


@task("ontology")
class Ontology(Task):
    """Write the category paths of a document, one a line: ``root -> node -> node``.

    Records have ``title``, ``abstract`` and ``paths``, each path a list of nodes from the root downwards; a node is its
    title, or ``{id, title}`` where titles are not unique. After training the paths that the model writes for the
    documents of the test split are summed, pruned on the eval split and scored as one graph (``evaluate.ontology``).

    ``loss: masked`` leaves frequent edges out of the loss in proportion, so that the model generalises instead of
    learning the top of the hierarchy by heart: the tokens of node v below u with probability max(0, 1 - M / n(u, v)), n the
    occurrences of the edge in all training paths and M its mean, drawn anew in every epoch. Rows on disk have full
    weights; the eval and test splits always count the whole response.
    """

    metrics: ClassVar[tuple[str, ...]] = ("edge_f1", "path_f1")

    root: str = "Main topic classifications"
    """Title of the root, with which every path begins."""
    separator: str = " -> "
    """What stands between two nodes of a path."""
    prompt_template: str = "Title: {{ title }}\n{{ abstract }}"
    """Jinja template of the prompt over a record's fields. Too long a prompt loses its end."""
    format: Literal["auto", "chat", "plain"] = "auto"
    """``chat`` uses the model's chat template; ``plain`` is prompt, line end, paths and end-of-text; ``auto`` is ``chat`` where the model has one."""
    loss: Literal["plain", "masked", "weighted"] = "masked"
    """``masked`` as above; ``weighted`` weighs each node by min(1, M / n) instead of drawing; ``plain`` counts all alike."""
    bad_titles: Literal["refuse", "escape"] = "refuse"
    """A title that could not be read back (separator, line end or doubled space in it): leave the document out as ``bad-title``, or write the title with single spaces and without the separator (counted in the rows' ``escaped``)."""

    @field_validator("separator")
    @classmethod
    def _separates(cls, separator: str) -> str:
        if not separator.strip() or "\n" in separator:
            raise ValueError(f"the separator {separator!r} needs a visible character and no line end")
        return separator

    @field_validator("prompt_template")
    @classmethod
    def _parses(cls, template: str) -> str:
        check_template(template, "recipe key task.prompt_template")
        return template

    @property
    def paths(self) -> PathFormat:
        """How paths are written and read."""
        return PathFormat(self.root, self.separator)

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """One example a record, its paths in an order drawn by the seed, each once."""
        try:
            paths, titles, num_escaped = self._paths(record)
            random.Random(f"{seed} {record.id}").shuffle(paths)
            spans = self._spans(render(self.prompt_template, record.fields), paths, titles, tokenizer)
        except RowError as error:
            yield Dropped(record.id, error.reason, error.detail)
            return
        meta: dict[str, Any] = {"title": str(record.fields.get("title", "")), "paths": paths}
        if other := {node: title for node, title in titles.items() if title != node}:
            meta["titles"] = other
        if num_escaped:
            meta["escaped"] = num_escaped
        yield Example(record.id, spans, record.group, meta)

    def prompt(self, text: str, tokenizer: TextTokenizer) -> list[Span]:
        """The text in the place of the rendered prompt."""
        return list(takewhile(lambda span: not span.weight, self._spans(text, [], {}, tokenizer)))

    def answer(self, text: str) -> str:
        """The valid paths of the text, one a line, nodes apart by tabs."""
        return "\n".join("\t".join(line.titles) for line in self.paths.parse(text).lines)

    def duplicate_text(self, record: Record) -> str:
        """The prompt: one document may have other paths in another part of the graph."""
        try:
            return render(self.prompt_template, record.fields)
        except RowError:
            return ""

    def epoch_weights(self, rows: Rows, seed: int) -> Callable[[Row, int], Row] | None:
        """Masks drawn for each epoch, or weights by frequency, over the training rows' own edge counts."""
        if self.loss == "plain":
            return None
        counts = EdgeCounts.of(paths_of(rows))
        return masked_weights(counts, seed) if self.loss == "masked" else mean_weights(counts)

    def _paths(self, record: Record) -> tuple[list[list[str]], dict[str, str], int]:
        """Paths of ids, the title of each id, and how many titles were escaped."""
        given = record.fields.get("paths")
        if not isinstance(given, list) or not all(isinstance(path, list) for path in given):
            raise RowError("bad-paths", f"paths is {type(given).__name__}, not a list of lists of nodes")
        paths: dict[tuple[str, ...], None] = {}
        titles: dict[str, str] = {}
        escaped: set[str] = set()
        for path in given:
            ids = []
            for node in path:
                name, title = _node(node)
                if problem := self.paths.problem(title):
                    if self.bad_titles == "refuse":
                        raise RowError("bad-title", f"{title!r}: {problem}")
                    try:
                        title = self.paths.escaped(title)
                    except ValueError as error:
                        raise RowError("bad-title", str(error)) from error
                    escaped.add(name)
                titles[name] = title
                ids.append(name)
            if not ids or titles[ids[0]] != self.root:
                begins = repr(titles[ids[0]]) if ids else "nothing"
                raise RowError("other-root", f"a path begins with {begins}, not {self.root!r}")
            if len(ids) > 1:
                paths[tuple(ids)] = None
        if not paths:
            raise RowError("no-path", "no path goes beyond the root")
        return [list(path) for path in paths], titles, len(escaped)

    def _spans(
        self, prompt: str, paths: list[list[str]], titles: Mapping[str, str], tokenizer: TextTokenizer
    ) -> list[Span]:
        pieces = self.paths.pieces([[titles[node] for node in path] for path in paths])
        names = [
            "root" if p.position == 0 else "separator" if p.position < 0 else span_name(p.path, p.position)
            for p in pieces
        ]
        response = [
            Span(piece.text, name, weight=1.0) for piece, name in zip(pieces, names, strict=True)
        ] or [Span(_PLACE, "separator", weight=1.0)]
        if self.format == "plain" or (self.format == "auto" and not tokenizer.hf.chat_template):
            if tokenizer.eos_id is None:
                raise UserError(
                    "the tokenizer has no end-of-text token, so that no answer would ever end",
                    "recipe key model.name",
                    "set eos_token in the model's tokenizer_config.json",
                )
            end = Span(str(tokenizer.hf.eos_token), "stop", weight=1.0, control=True)
            return [Span(prompt, "prompt", trim="right"), Span("\n", "markup"), *response, end]

        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": _PLACE}]
        spans = []
        for span in chat_spans(turns, [0.0, 1.0], tokenizer):
            if span.weight and not span.control:
                spans += response
            elif span.name == "user":
                spans.append(replace(span, name="prompt", trim="right"))
            else:
                spans.append(span)
        return spans


def _node(node: Any) -> tuple[str, str]:
    """Id and title of a node."""
    if isinstance(node, str):
        return node, node
    if isinstance(node, Mapping) and isinstance(node.get("title"), str):
        return str(node.get("id", node["title"])), node["title"]
    raise RowError("bad-paths", f"{node!r} is no title and no {{id, title}}")
