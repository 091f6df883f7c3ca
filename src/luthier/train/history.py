"""``history.jsonl``: one object a step, the source of truth for every curve."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from luthier.run_folder import read_jsonl, write_text


class History:
    """Appends steps to a file; a resumed run first cuts it back to its checkpoint.

    Attributes:
        kept: The objects that were there already and stay.
    """

    def __init__(self, path: Path, upto_step: int | None) -> None:
        self.path = path
        self.kept = [row for row in read_jsonl(path) if upto_step is not None and row["step"] <= upto_step]
        write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.kept))

    def append(self, row: dict[str, Any]) -> None:
        """Adds a step, on disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
