"""Project-level completion: the next line of a file, with other files of its project before it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from luthier.encoding.code_lines import Line, code_lines, target_spans
from luthier.encoding.infill import Gap, Infill, draw_gap, infilled
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.projects.categories import LineCategories
from luthier.projects.composers import COMPOSERS, Kept, Target, fit
from luthier.projects.copying import copied_line
from luthier.projects.project import File, Project
from luthier.records import Dropped, Example, Record, Span, Split
from luthier.registry import task
from luthier.sources.project_files import gives_rows
from luthier.tasks import Task, text_of

# Tokens kept free, since pieces that are counted apart may break otherwise where they meet.
_SLACK = 8
_HASHES = ("python", "cython", "bash", "ruby", "r", "perl", "yaml", "toml", "elixir", "julia", "powershell")


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Lines of a file, by index, from ``first`` up to ``end``."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class _Before:
    """What stands before the lines of a stretch.

    Attributes:
        spans: Context, the file's title, and the part of the prefix that may be cut.
        near: Index of the first line of the prefix that is never cut.
        kept: The context's pieces.
    """

    spans: list[Span]
    near: int
    kept: list[Kept]


@task("project-completion")
class ProjectCompletion(Task):
    """The next line of code, given files of its project and the text before it.

    A file is taken in stretches of lines. What stands before a stretch is the same for all its lines: pieces of the project
    as ``composer`` chooses and orders them, the file's own path, and its text before. A training row is a stretch in which
    every eligible line is a target; a row for evaluation asks for one line of a stretch. Both come from the same function.

    Of ``data.max_length`` tokens ``stretch_share`` are for the stretch, at least ``prefix_share`` for the text before it (if
    there is so much), and the rest for the project; what that leaves over goes to the text before. Whole files that do not fit give way to
    their skeletons, those to their beginnings, far ones first.

    Records need the fields ``text``, ``path``, ``language`` and ``project`` and may have ``role``: the sources ``git``, ``sdists``,
    ``release-pair`` and ``long-code-arena`` give them.
    """

    metrics: ClassVar[tuple[str, ...]] = ("exact_match", "edit_similarity")
    stop_pattern: ClassVar[str | None] = r"\S[^\n]*\n"

    composer: Literal[
        "none", "alphabetical", "path-distance", "imports-first", "same-folder", "file-length",
        "retrieval", "skeletons", "half-memory", "shuffled",
    ] = "path-distance"  # fmt: skip
    """What of the project stands before a file: nothing, its files in some order (nearest last), parts of them that share words with what
    stands before the target (``retrieval``), far files without bodies (``skeletons``), half of all lines, or files in any order."""
    from_project: Literal["own", "other"] = "own"
    """Whose files these are; ``other`` takes the next project of the source, to see what a context is worth that cannot help."""
    stretch_share: float = Field(0.25, gt=0, lt=1)
    """Share of ``data.max_length`` for the lines that are completed."""
    prefix_share: float = Field(0.25, gt=0, lt=1)
    """Share of ``data.max_length`` below which the text before these lines is never cut."""
    min_chars: int = Field(6, ge=1)
    """Visible characters that a line needs to be a target."""
    max_chars: int = Field(300, ge=1)
    """Visible characters above which a line is only context."""
    comment_prefixes: tuple[str, ...] = ("#", "//", "/*", "*")
    """A line that begins with one of these is only context."""
    max_train_rows_per_file: int | None = Field(None, ge=1)
    """Stretches taken of one file for training at most, drawn by the seed."""
    stretches_per_file: int = Field(1, ge=1)
    """Stretches of one file that evaluation rows are taken from, drawn by the seed."""
    max_lines_per_file: int = Field(10, ge=1)
    """Evaluation rows taken of one file at most, drawn by the seed."""
    categories: list[Literal["committed", "inproject", "infile", "common", "non_informative", "random"]] = []
    """Evaluation rows are lines of these categories (by name) only; empty takes all."""
    infill: Infill | None = None
    """Fill-in-the-middle for a share of the training rows: the gap lies in the stretch, whose rest is the suffix."""

    _project: tuple[Sequence[Record], Project] | None = PrivateAttr(None)
    _other: tuple[Sequence[Record], Project] | None = PrivateAttr(None)
    _counts: dict[str, list[int]] = PrivateAttr(default_factory=dict)

    def neighbourhood(self, record: Record) -> str | None:
        """The record's project: its field, its group, or all of the source where files are groups of their own."""
        group = "the source" if record.group == record.id else record.group
        return str(record.fields.get("project") or group)

    def duplicate_text(self, record: Record) -> str:
        """The code of a file that gives rows; files that are only shown are no copies of anything."""
        return text_of(record, "text") if gives_rows(record) else ""

    def prompt(self, text: str, tokenizer: TextTokenizer) -> list[Span]:
        """The text up to its last visible character, as the contexts of rows end."""
        return super().prompt(text.rstrip(), tokenizer)

    def answer(self, text: str) -> str:
        """The first visible line."""
        return next((line for line in text.split("\n") if line.strip()), "")

    def baseline(self, prompt: str) -> str | None:
        """The line that followed where the prompt's last lines stood before."""
        return copied_line(prompt)

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """Stretches for training, single lines of some stretches for evaluation."""
        text = record.fields.get("text")
        if not isinstance(text, str) or not isinstance(record.fields.get("path"), str):
            yield Dropped(record.id, "no-text", f"neither text nor path; it has: {', '.join(record.fields)}")
            return
        if not gives_rows(record):
            yield Dropped(record.id, "context-only", str(record.fields["role"]), budgeted=False)
            return
        lines = code_lines(
            text,
            tokenizer.boundaries(text),
            min_chars=self.min_chars,
            max_chars=self.max_chars,
            comment_prefixes=self.comment_prefixes,
        )
        file = _Completed(record, text, lines, tokenizer)
        stretches = file.stretches(int(self.stretch_share * max_length))
        draw = random.Random(f"{seed} {record.id}")
        if split == "train":
            stretches = [s for s in stretches if any(line.eligible for line in lines[s.first : s.end])]
            if self.max_train_rows_per_file and len(stretches) > self.max_train_rows_per_file:
                chosen = draw.sample(range(len(stretches)), self.max_train_rows_per_file)
                stretches = [stretches[i] for i in sorted(chosen)]
            asked: dict[_Stretch, dict[int, str]] = {stretch: {} for stretch in stretches}
        else:
            labels = LineCategories(self._own(record), file.path, text, file.language)
            asked, refused = self._asked(file, labels, stretches, draw)
            yield from refused
        if not asked and (split == "train" or not refused):
            detail = "every line is blank, a comment, too short or too long, or of another category"
            yield Dropped(record.id, "no-eligible-line", detail, budgeted=False)
            return
        project = self._shown(record)
        for stretch, wanted in asked.items():
            before = self._before(file, stretch, project, max_length, seed)
            if split == "train":
                near = lines[before.near : stretch.end]
                spans = [*before.spans, *target_spans(text, near, stretch.first - before.near)]
                number = file.number(stretch.first)
                example = Example(f"{record.id}#{number}", spans, record.group, {"line": number + 1})
                yield infilled(
                    example, self.infill, tokenizer, max_length=max_length, seed=seed,
                    gap=self._gap(file, stretch, before),
                )  # fmt: skip
            else:
                yield from self._cuts(file, labels, before, wanted)

    def _gap(
        self, file: _Completed, stretch: _Stretch, before: _Before
    ) -> Callable[[random.Random], Gap | None]:
        """Draws a gap in a stretch."""
        start, end = file.lines[stretch.first].start, file.lines[stretch.end - 1].stop
        prefix = file.text[file.lines[before.near].start : start]
        text = file.text[start:end]

        def drawn(draw: random.Random) -> Gap | None:
            place = draw_gap(text, self.infill, draw) if self.infill else None
            return place and Gap(
                prefix + text[: place[0]], text[place[1] :], text[slice(*place)], before.spans
            )

        return drawn

    def _asked(
        self,
        file: _Completed,
        labels: LineCategories,
        stretches: Sequence[_Stretch],
        draw: random.Random,
    ) -> tuple[dict[_Stretch, dict[int, str]], list[Dropped]]:
        """The lines to complete, by stretch and index, with their categories: given ones, or some that are drawn.

        Of the given ones also those that cannot be asked for, with the reason.
        """
        given = file.record.fields.get("completion_lines")
        refused: list[Dropped] = []
        if given is not None:
            wanted, refused = self._given(file, given, stretches)
            order, most = list(stretches), len(wanted)
        else:
            wanted = {
                i: labels.by_name(file.number(i))
                for i, line in enumerate(file.lines)
                if line.eligible and i > 0
            }
            order, most = list(stretches), self.max_lines_per_file
            draw.shuffle(order)
            if self.categories:
                wanted = {i: name for i, name in wanted.items() if name in self.categories}
        found: dict[_Stretch, dict[int, str]] = {}
        for stretch in order:
            inside = [i for i in range(stretch.first, stretch.end) if i in wanted]
            left = most - sum(map(len, found.values()))
            if inside and left > 0 and (given is not None or len(found) < self.stretches_per_file):
                chosen = sorted(draw.sample(inside, min(left, len(inside))))
                found[stretch] = {i: wanted[i] for i in chosen}
        return dict(sorted(found.items(), key=lambda item: item[0].first)), refused

    def _given(
        self, file: _Completed, given: Mapping[str, Sequence[int]], stretches: Sequence[_Stretch]
    ) -> tuple[dict[int, str], list[Dropped]]:
        """Lines that the data asks for, by index, with their categories; and those that cannot be asked for."""
        index = {file.number(i): i for i in range(len(file.lines))}
        fitting = {i for stretch in stretches for i in range(stretch.first, stretch.end)}
        wanted: dict[int, str] = {}
        refused = []
        for number, category in sorted((n, name) for name, numbers in given.items() for n in numbers):
            place = index.get(number)
            if place is None:
                reason, detail = "no-such-line", "a blank line, or behind the end"
            elif self.categories and category not in self.categories:
                reason, detail = "other-category", category
            elif place == 0:
                reason, detail = "first-line", "nothing of the file stands before it"
            elif place not in fitting:
                reason = "line-too-long"
                detail = f"{file.tokens(place, place + 1)} tokens, over stretch_share of data.max_length"
            else:
                wanted[place] = category
                continue
            budgeted = reason != "other-category"
            refused.append(
                Dropped(f"{file.record.id}#{number}", reason, f"line {number + 1}: {detail}", budgeted)
            )
        return wanted, refused

    def _before(
        self, file: _Completed, stretch: _Stretch, project: Project, max_length: int, seed: int
    ) -> _Before:
        """Context and prefix of a stretch within the budget: what is sure of its room first, then the project, then the rest."""
        budget = max_length - len(file.tokenizer.prefix_ids) - _SLACK
        title = _title(file.language)
        used = self._tokens(title(file.path), file.tokenizer)[-1] + file.tokens(stretch.first, stretch.end)
        near = file.line_before(stretch.first, int(self.prefix_share * max_length))
        used += file.tokens(near, stretch.first)
        target = Target(file.path, file.text[: file.lines[stretch.first].start], file.text, file.language)
        draw = random.Random(f"{seed} {file.record.id} {stretch.first}")
        pieces = COMPOSERS[self.composer](project, target, draw)
        kept = fit(pieces, budget - used, lambda text: self._tokens(text, file.tokenizer), title)
        left = budget - used - sum(piece.num_tokens for piece in kept)
        far = file.line_within(near, left)
        spans = [
            Span(piece.text, piece.kind, trim="drop", priority=place + 1) for place, piece in enumerate(kept)
        ]
        spans.append(Span(title(file.path), "path"))
        cut = file.text[file.lines[far].start : file.lines[near].start]
        spans.append(Span(cut, "prefix", trim="left"))
        return _Before(spans, near, kept)

    def _cuts(
        self, file: _Completed, labels: LineCategories, before: _Before, wanted: dict[int, str]
    ) -> Iterator[Example]:
        """One row for each line that is asked for."""
        shown = {line.strip() for piece in before.kept for line in piece.text.split("\n")}
        for index, category in wanted.items():
            line, number = file.lines[index], file.number(index)
            start = file.lines[before.near].start
            spans = [
                *before.spans,
                Span(file.text[start : line.start], "prefix"),
                Span(file.text[line.start : line.stop], "target", weight=1.0),
            ]
            visible = file.text[line.first : line.end]
            meta = {
                "line": number + 1,
                "path": file.path,
                "context": [[piece.kind, piece.path] for piece in before.kept],
                "strata": {
                    "project": str(self.neighbourhood(file.record)),
                    "category": category,
                    "category by import": labels.by_import(number),
                    "verbatim in context": "yes" if visible in shown else "no",
                },
            }
            yield Example(f"{file.record.id}#{number}", spans, file.record.group, meta)

    def _own(self, record: Record) -> Project:
        key = str(self.neighbourhood(record))
        records = record.neighbours.get(key, [record])
        if self._project is None or self._project[0] is not records:
            self._project = (records, _project(key, records))
            self._counts.clear()
        return self._project[1]

    def _shown(self, record: Record) -> Project:
        """The project whose files are the context."""
        if self.from_project == "own":
            return self._own(record)
        keys = sorted(record.neighbours)
        own = str(self.neighbourhood(record))
        if len(keys) < 2:
            raise UserError(
                "the source has a single project, so that there is no other one to take the context from",
                "recipe key task.from_project",
                "name two projects and more, or set task.from_project=own",
            )
        other = next(after for before, after in pairwise([*keys, *keys]) if before == own)
        records = record.neighbours[other]
        if self._other is None or self._other[0] is not records:
            self._other = (records, _project(other, records))
        return self._other[1]

    def _tokens(self, text: str, tokenizer: TextTokenizer) -> list[int]:
        """Tokens of a text up to the end of each of its lines, the last of them all."""
        if text not in self._counts:
            starts = tokenizer.encode_with_starts(text, first=False, control=False)[1]
            ends = np.cumsum([len(line) for line in text.splitlines(keepends=True)])
            found = np.searchsorted(starts, ends)
            found[-1:] = len(starts)
            self._counts[text] = found.tolist()
        return self._counts[text]


class _Completed:
    """A file that is completed, with the tokens that each of its lines begins and ends at when it is encoded whole."""

    def __init__(self, record: Record, text: str, lines: list[Line], tokenizer: TextTokenizer) -> None:
        self.record, self.text, self.lines, self.tokenizer = record, text, lines, tokenizer
        self.path: str = record.fields["path"]
        self.language: str = record.fields.get("language") or "python"
        starts = tokenizer.encode_with_starts(text, first=True, control=False)[1]
        self._begins = np.searchsorted(starts, [line.start for line in lines])
        self._stops = np.searchsorted(starts, [line.stop for line in lines])
        self._numbers = np.cumsum([0, *(text.count("\n", a.first, b.first) for a, b in pairwise(lines))])
        if lines:
            self._numbers += text.count("\n", 0, lines[0].first)

    def number(self, index: int) -> int:
        """Number of a line in the text, from 0."""
        return int(self._numbers[index])

    def tokens(self, first: int, end: int) -> int:
        """Tokens of some lines, by index."""
        return int(self._stops[end - 1] - self._begins[first]) if end > first else 0

    def line_before(self, index: int, num_tokens: int) -> int:
        """The last line with at least so many tokens from its beginning to that of another; the first if there is none."""
        return max(0, int(np.searchsorted(self._begins, self._begins[index] - num_tokens, side="right")) - 1)

    def line_within(self, index: int, num_tokens: int) -> int:
        """The first line with at most so many tokens from its beginning to that of another."""
        return min(index, int(np.searchsorted(self._begins, self._begins[index] - max(0, num_tokens))))

    def stretches(self, num_tokens: int) -> list[_Stretch]:
        """The lines behind the first, in stretches of at most so many tokens; a longer line is in none."""
        found = []
        first = 1  # before the first line stands nothing of the file
        while first < len(self.lines):
            end = first
            while end < len(self.lines) and self.tokens(first, end + 1) <= num_tokens:
                end += 1
            if end > first:
                found.append(_Stretch(first, end))
            first = max(end, first + 1)
        return found


def _project(name: str, records: Sequence[Record]) -> Project:
    shown: list[File] = []
    changed: list[File] = []
    for record in records:
        fields = record.fields
        if isinstance(fields.get("text"), str) and isinstance(fields.get("path"), str):
            files = changed if fields.get("role") in ("added", "changed") else shown
            files.append(File(fields["path"], fields["text"], fields.get("language") or "python"))
    return Project(name, shown, changed)


def _title(language: str) -> Callable[[str], str]:
    """The line that names a file, as a comment of the language."""
    mark = "#" if language in _HASHES else "//"
    return lambda path: f"{mark} {path}\n"
