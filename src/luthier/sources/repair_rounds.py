"""Fixes out of conversations about bugs: earlier wrong patches with their feedback, and the patch that passed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from luthier.encoding.lexer import normalised
from luthier.errors import UserError
from luthier.recipe import UserPath
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.run_folder import hash_file, read_jsonl
from luthier.sources import Source

_WHERE = "recipe key data.source.path"


@source("repair-rounds")
class RepairRounds(Source):
    """Conversations of ``luthier repair --rounds``, as fixes with the patches that failed before.

    A record is a patch that passes, behind the attempts that its round was shown; ``provenance`` says where it is from. The
    same patch of the same function behind the same attempts is taken once, whatever run wrote it. A model that learns from
    bugs knows them: judge it on others.
    """

    path: UserPath | list[UserPath]
    """Folder of results (``runs/a/repair/tuned-rounds``), or several."""
    right: Literal["passing", "reference"] = "passing"
    """What is learned: patches that passed; or the bug's own fix, also where none did."""
    min_attempts: int = Field(0, ge=0)
    """Only patches behind so many failed ones."""

    def records(self) -> Iterator[Record | Dropped]:
        """One for each patch, in the order of folders, bugs and rounds."""
        seen: set[tuple[str, ...]] = set()
        for path in self._files():
            for record in self._of(path):
                fields = record.fields
                language = fields["language"]
                texts = (fields["before"], *(a["output"] for a in fields["attempts"]), fields["after"])
                same = tuple(normalised(str(text), language) for text in texts)
                if same in seen:
                    yield Dropped(record.id, "same-patch", "another conversation has it too", budgeted=False)
                else:
                    seen.add(same)
                    yield record

    def fingerprint(self) -> str:
        """Hash of the conversations."""
        found = [f"{path.name} {hash_file(path)}" for path in self._files()]
        return hashlib.sha256("\n".join(found).encode()).hexdigest()

    def _of(self, path: Path) -> Iterator[Record]:
        head, *lines = read_jsonl(path) or [{}]
        if "bug" not in head:
            raise UserError(
                "this is no conversation about a bug", str(path), "name a folder that --rounds wrote"
            )
        attempts: list[dict[str, Any]] = []
        written: dict[str, Any] = {}
        for line in lines:
            if "round" in line:
                written = line
                continue
            rows, verdicts = written["candidates"], line["verdicts"]
            right = [
                (rank, row["function"])
                for rank, (row, said) in enumerate(zip(rows, verdicts, strict=True), 1)
                if said["verdict"] == "passed"
            ]
            if self.right == "passing" and len(attempts) >= self.min_attempts:
                for rank, function in right:
                    yield self._record(path, head, written["round"], rank, function, attempts)
            if (taken := line["shown_next"]) is None:
                continue
            if right:  # what follows are variations of it
                break
            row = rows[taken]
            said = verdicts[taken]["feedback"] or {"stage": "test"}
            attempts = [
                *attempts,
                {"output": row["output"], "function": row["function"], "feedback": said},
            ]
        if self.right == "reference" and len(attempts) >= max(1, self.min_attempts):
            yield self._record(path, head, written["round"], 0, head["reference"], attempts)

    def _record(
        self,
        path: Path,
        head: dict[str, Any],
        number: int,
        rank: int,
        function: str,
        attempts: list[dict[str, Any]],
    ) -> Record:
        folder = path.parent.parent
        provenance = {
            "folder": "/".join(folder.parts[-3:]),
            "bug": head["bug"],
            "round": number,
            "rank": rank,
            "written_by": head["key"],
        }
        fields = {
            **{name: head[name] for name in ("before", "language", "context", "span")},
            "after": function,
            "attempts": attempts,
            "provenance": provenance,
        }
        return Record(f"{provenance['folder']}/{head['bug']}@{number}.{rank}", fields, head["group"])

    def _files(self) -> list[Path]:
        found = []
        for folder in [self.path] if isinstance(self.path, str) else self.path:
            files = sorted((Path(folder) / "conversations").glob("*.jsonl"))
            if not files:
                raise UserError(
                    f"{folder} holds no conversations", _WHERE, "run luthier repair RUN --rounds 3 first"
                )
            found += files
        return found
