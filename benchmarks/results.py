"""``results.json`` of a benchmark or study, in the form that all of them have."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Figure = float | list[float]


def write(
    path: Path,
    figures: Mapping[str, Any],
    *,
    command: str,
    packages: Sequence[str],
    notes: str,
    **details: Any,
) -> None:
    """Writes the file whole or not at all.

    Args:
        path: Where it lies: beside the script.
        figures: Each a number, or [number, lowest, highest]; others below others have their names joined by slashes, and what
            could not be measured (None) is left out.
        command: What makes it anew.
        packages: Distributions whose versions matter.
        notes: What the figures are of, and what the intervals mean.
        details: What pages need besides.
    """
    content = {
        "figures": flat(figures),
        "command": command,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "notes": f"{os.cpu_count()} cores, {platform.machine()}. {notes}",
        **details,
    }
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    temporary.replace(path)
    print(json.dumps(content["figures"], indent=1))
    print(f"written: {path}")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Figure]:
    """Figures by their whole names.

    Raises:
        TypeError: One is neither a number nor three.
    """
    found: dict[str, Figure] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif value is not None:
            found[prefix + name] = value
            if not is_figure(value):
                raise TypeError(f"{prefix}{name}: {value!r} is neither a number nor [number, low, high]")
    return found


def is_figure(value: Any) -> bool:
    """Whether it is a finite number, or three of them."""
    numbers = value if isinstance(value, list) and len(value) == 3 else [value]
    return all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)


def with_interval(value: float | None, interval: Sequence[float] | None, digits: int = 4) -> Figure | None:
    """A score with its interval, or alone if it has none; None if there is no score."""
    if value is None:
        return None
    return [round(v, digits) for v in (value, *interval)] if interval else round(value, digits)
