"""Library-based generation: a whole program that uses a library, from what the library's own example says of itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field, PrivateAttr

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.projects import library
from luthier.projects.project import File, Project
from luthier.records import Dropped, Example, Record, Split
from luthier.registry import task
from luthier.sources.project_files import gives_rows
from luthier.tasks.instruction import Instruction

_FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PROMPT = (
    "Write a Python program that uses the library {{ library }}. Answer with code only, without comments.\n\n{{ instruction }}"
    "{% if names %}\n\nNames of the library that may help: {{ names | join(', ') }}{% endif %}\n\n"
)


@task("library-generation")
class LibraryGeneration(Instruction):
    """Write a program that uses a library, from the docstring of one of the library's own examples.

    Of an example that was made of a notebook its first words are the instruction. Names that the example calls or imports are masked in the
    instruction where they are written as names. The target is the example without docstring and comments. Records come from a source of projects whose ``complete`` names the examples (``**/examples/**``) with
    ``group_by: file``; all other files are the library. Prompts are rendered as those of ``instruction``, over the fields
    ``instruction``, ``library``, ``names`` and ``response``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("chrf", "api_recall", "api_recall_resolved", "syntax_valid")

    prompt_template: str = _PROMPT
    """Jinja template of the prompt over ``instruction``, ``library`` and ``names``."""
    messages: str | None = None
    """Not used here: rows are examples, not conversations."""
    num_names: int = Field(0, ge=0)
    """So many of the library's names, found by BM25 with the instruction, stand in the prompt (20 in Long Code Arena); 0 gives none."""
    min_apis: int = Field(3, ge=1)
    """Examples that call fewer different names of the library are left out as ``few-apis``."""

    _library: tuple[Sequence[Record], Project, list[str], library.HelpfulNames] | None = PrivateAttr(None)

    def neighbourhood(self, record: Record) -> str | None:
        """The record's project."""
        return str(record.fields.get("project") or record.group)

    def duplicate_text(self, record: Record) -> str:
        """The example; files of the library are no copies of anything."""
        if gives_rows(record):
            return str(record.fields.get("text", ""))
        return hashlib.sha256(record.id.encode("utf-8", "surrogatepass")).hexdigest()

    def answer(self, text: str) -> str:
        """The code: what stands in the first fence, if there is one."""
        fenced = _FENCE.search(text)
        return (fenced[1] if fenced else text).strip()

    def examples(
        self, record: Record, split: Split, tokenizer: TextTokenizer, *, max_length: int, seed: int
    ) -> Iterator[Example | Dropped]:
        """The row of an example, if its docstring says what it does and its program calls enough of the library."""
        if not gives_rows(record):
            yield Dropped(record.id, "context-only", "a file of the library", budgeted=False)
            return
        parts = library.split_example(str(record.fields.get("text", "")))
        if parts is None:
            yield Dropped(
                record.id,
                "no-instruction",
                "neither docstring nor heading, or no program behind it",
                budgeted=False,
            )
            return
        project, names, helpful = self._own(record)
        docstring, program = parts
        apis = library.called_apis(program, names)
        own = library.packages(project)
        resolved = library.resolved_calls(program, own)
        if len(apis) < self.min_apis or not resolved:
            yield Dropped(record.id, "few-apis", f"it calls {len(apis)} names of the library", budgeted=False)
            return
        instruction = library.masked(docstring, library.answers(program, names, own))
        fields = {
            "instruction": instruction,
            "library": project.name,
            "names": helpful.best(instruction, self.num_names) if self.num_names else [],
            "response": program,
        }
        meta = {
            "apis": apis,
            "resolved": resolved,
            "packages": sorted(own),
            "strata": {"library": project.name},
        }
        made = Record(record.id, fields, record.group)
        for item in super().examples(made, split, tokenizer, max_length=max_length, seed=seed):
            yield replace(item, meta={**item.meta, **meta}) if isinstance(item, Example) else item

    def _own(self, record: Record) -> tuple[Project, list[str], library.HelpfulNames]:
        key = str(self.neighbourhood(record))
        records = record.neighbours.get(key, [record])
        if self._library is None or self._library[0] is not records:
            files = [
                File(r.fields["path"], r.fields["text"], r.fields.get("language") or "python")
                for r in records
                if not gives_rows(r)
            ]
            project = Project(key, files)
            names = library.api_names(project)
            self._library = (records, project, names, library.HelpfulNames(names))
        return self._library[1:]
