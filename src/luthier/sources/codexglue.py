"""Files of CodeXGLUE's code completion: token-level lines and line-level JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.sources import Source
from luthier.sources.files import Files


@source("codexglue")
class CodeXGlue(Source):
    """Token-level files (``train.txt``: ``<s> tok <EOL> tok </s>``, a file a line) or line-level rows (JSONL).

    Fields of a record: ``tokens`` of a token-level line; ``input`` and ``gt`` of a line-level row. A row whose ``gt`` is
    empty is an error: in both published test sets all of them are.
    """

    path: str | list[str]
    """File or glob, or a list of these; ``.json`` and ``.jsonl`` are line-level, all else is token-level."""
    max_row_bytes: int = Field(16 << 20, ge=1)
    """Longest line; a longer one is dropped."""

    def records(self) -> Iterator[Record | Dropped]:
        """One for each line of the files."""
        for item in self._files(self.path).inputs():
            path = Path(item.path)
            read = self._rows if path.suffix in (".json", ".jsonl") else self._tokens
            yield from read(item.name, path)

    def fingerprint(self) -> str:
        """Hash of the names and bytes of the files."""
        return self._files(self.path).fingerprint()

    def _files(self, path: str | list[str]) -> Files:
        columns = {"id": "id", "input": "input", "gt": "gt"}
        return Files(path=path, format="jsonl", columns=columns, max_row_bytes=self.max_row_bytes)

    def _tokens(self, name: str, path: Path) -> Iterator[Record | Dropped]:
        good = 0
        try:
            with open(path, encoding="utf-8", newline="\n") as file:
                for number, line in enumerate(file, 1):
                    place = f"{name}:{number}"
                    words = line.split()
                    if len(line) > self.max_row_bytes:
                        yield Dropped(place, "row-too-large", f"{len(line):,} characters")
                    elif not words or words[0] != "<s>" or words[-1] != "</s>":
                        yield Dropped(place, "not-token-level", f"{line[:60]!r} is not <s> ... </s>")
                    elif len(words) == 2:  # what the published files hold where a file could not be read
                        yield Dropped(place, "empty", "no tokens between <s> and </s>", budgeted=False)
                    else:
                        good += 1
                        yield Record(place, {"tokens": " ".join(words)}, place)
        except (UnicodeDecodeError, OSError) as error:
            raise UserError(
                f"the file cannot be read: {error}", str(path), "name a text file in UTF-8"
            ) from error
        if not good:
            raise UserError(
                "no line of it is <s> ... </s>",
                str(path),
                "name a token-level file as CodeXGLUE's preprocess.py writes it, or a .json file of line-level rows",
            )

    def _rows(self, name: str, path: Path) -> Iterator[Record | Dropped]:
        for record in self._files(str(path)).records():
            if isinstance(record, Record) and not str(record.fields["gt"] or "").strip():
                raise UserError(
                    f"the gt of row {record.fields['id']} is empty: there is nothing to learn or to compare with (in both "
                    "published line-level test sets all rows are like that, by design)",
                    f"{path} ({record.id})",
                    "build lines from the token-level files of CodeXGLUE (CodeCompletion-token) instead: train.txt as "
                    "path of data.source, dev.txt of data.eval_source, test.txt of data.test_source",
                )
            place = (
                f"{name}:{record.id.rpartition(':')[2]}"  # files of one name are told apart by their folders
            )
            if isinstance(record, Record):
                yield Record(place, record.fields, place)
            else:
                yield replace(record, id=place)
