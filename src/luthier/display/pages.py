"""Pages of HTML: the templates' environment, and findings as a page of their own or as a piece of a notebook."""

from __future__ import annotations

import base64
import datetime
import importlib.metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from luthier.display import findings
from luthier.display.text import plain

_HERE = Path(__file__).parent


def environment(*folders: Path) -> jinja2.Environment:
    """Templates of some folders and of this one: text is escaped, and what the eye cannot see is named."""

    def finalize(value: Any) -> Any:
        return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _HERE]),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def picture(path: Path) -> Markup | None:
    """A PNG as an address that needs no file beside the page; none where there is no picture."""
    if not path.is_file():
        return None
    return Markup("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())


def look() -> Markup:
    """The style sheet that all pages begin with."""
    return Markup((_HERE / "look.css").read_text(encoding="utf-8"))


def findings_page(said: findings.Said) -> str:
    """What the checks said as a page that needs nothing else."""
    return (
        environment()
        .get_template("findings_page.html.j2")
        .render(
            style=look(),
            findings=findings.view(said),
            subject=said.get("subject") or "",
            version=importlib.metadata.version("luthier"),
            date=datetime.date.today().isoformat(),
        )
    )


def findings_piece(said: findings.Said) -> str:
    """What the checks said as a piece of a notebook, in its colours, light or dark."""
    style = Markup((_HERE / "notebook.css").read_text(encoding="utf-8"))
    template = environment().get_template("findings_notebook.html.j2")
    return template.render(style=style, findings=findings.view(said), subject=said.get("subject") or "")
