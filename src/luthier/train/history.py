"""``history.jsonl``: one object a step, the source of truth for every curve."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from luthier.run_folder import read_jsonl, write_text


class History:
    """Appends steps to a file; a resumed run first cuts it back to its checkpoint.

    Args:
        path: The file.
        upto_step: The checkpoint's step; None to begin anew.
        writes: Whether this process writes, of several.

    Attributes:
        kept: The objects that were there already and stay.
    """

    def __init__(self, path: Path, upto_step: int | None, *, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        self.kept = [] if upto_step is None else [r for r in read_jsonl(path) if r["step"] <= upto_step]
        if writes:
            write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.kept))

    def append(self, row: dict[str, Any]) -> None:
        """Adds a step, on disk when this returns."""
        if not self._writes:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
