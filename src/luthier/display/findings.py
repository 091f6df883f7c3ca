"""How findings are shown: the same in a terminal, in a notebook, on a page of their own and on a run's page.

All take the content of ``findings.json`` (``Report.to_dict()``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from luthier.display.text import counted, duration, safe

Said = Mapping[str, Any]

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
SIGNS = {"error": "✗", "warning": "!", "note": "·"}
_NARROWEST = 20  # columns; below that lines are left whole


def lines(said: Said, width: int | None = None, *, verbose: bool = False) -> Iterator[Text]:
    """What the checks said, worst first: findings, what was skipped and why, and the verdict with its counts.

    Args:
        said: The content of ``findings.json``.
        width: Columns to break lines at; none for lines as long as they are, which can be searched.
        verbose: Also what every check looked at and what it cost.
    """
    if said.get("subject"):
        yield from broken(Text(), Text(safe(said["subject"]), "dim"), width)
    for entry in said["findings"]:
        yield from finding(entry, width, waived=_is_waived(entry, said))
    if verbose:
        yield from _looks(said, width)
    for why, names in skipped_by_reason(said["skipped"]):
        head = Text.assemble("skipped ", (names[0], "bold") if len(names) == 1 else f"{len(names)} checks")
        more = f" ({', '.join(names)})" if len(names) > 1 else ""
        yield from broken(Text("- "), head + Text(safe(f": {why}{more}")), width)
    yield from broken(Text(), verdict(said), width)


def finding(entry: Mapping[str, Any], width: int | None = None, *, waived: bool = False) -> Iterator[Text]:
    """One finding: its severity and check, what was measured, where, and what to do."""
    severity, style = entry["severity"], STYLES[entry["severity"]]
    remark = " (waived)" if waived else ""
    yield Text.assemble((f"{SIGNS[severity]} {severity}{remark} ", style), (safe(entry["check"]), "bold"))
    yield from broken(Text("  "), Text(safe(entry["what"])), width)
    yield from broken(Text.assemble(("  where: ", "bold")), Text(safe(entry["where"])), width)
    yield from broken(Text.assemble(("  fix:   ", "bold")), Text(safe(entry["fix"])), width)


def verdict(said: Said) -> Text:
    """Whether all is well, and how many of what there are."""
    count = {s: sum(f["severity"] == s for f in said["findings"]) for s in STYLES}
    found = ", ".join(counted(number, name) for name, number in count.items())
    text = f": {found}; {counted(len(said['passed']), 'check')} passed, {len(said['skipped'])} skipped"
    if said.get("seconds"):
        seconds = sum(said["seconds"].values())
        text += f" in {seconds:.1f} s" if seconds < 10 else f" in {duration(seconds)}"
    if said.get("quick"):
        text += "; quick: nothing that needs the model was checked"
    return Text.assemble(("ok", "bold green") if said["ok"] else ("not ok", "bold red"), text)


def skipped_by_reason(skipped: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Each reason with the checks that were skipped for it."""
    reasons: dict[str, list[str]] = {}
    for skip in skipped:
        reasons.setdefault(skip["why"], []).append(skip["check"])
    return list(reasons.items())


def show(said: Said, console: Console, *, verbose: bool = False) -> None:
    """Prints it: broken at the terminal's width with colours, or as whole plain lines into a pipe or file."""
    width = console.width if console.is_terminal else None
    for line in lines(said, width, verbose=verbose):
        console.print(line, soft_wrap=True)


def looks(said: Said) -> list[dict[str, Any]]:
    """What each check came to, looked at and cost, by name."""
    found: dict[str, list[str]] = {}
    for entry in said["findings"]:
        found.setdefault(entry["check"], []).append(entry["severity"])
    came_to = {name: "passed" for name in said["passed"]} | {s["check"]: "skipped" for s in said["skipped"]}
    came_to |= {name: min(grades, key=list(STYLES).index) for name, grades in found.items()}
    return [
        {
            "check": name,
            "result": result,
            "seen": said.get("seen", {}).get(name, ""),
            "seconds": said.get("seconds", {}).get(name),
        }
        for name, result in sorted(came_to.items())
    ]


def view(said: Said) -> dict[str, Any]:
    """What the template of findings shows: entries worst first, each with whether it was waived, and the rest."""
    entries = [{**entry, "waived": _is_waived(entry, said)} for entry in said["findings"]]
    entries.sort(
        key=lambda entry: list(STYLES).index(entry["severity"]) if entry["severity"] in STYLES else 3
    )
    return {
        "ok": said["ok"],
        "entries": entries,
        "passed": said.get("passed", []),
        "skipped": skipped_by_reason(said.get("skipped", [])),
        "num_skipped": len(said.get("skipped", [])),
        "waived": [entry for entry in entries if entry["waived"]],
        "looks": looks(said) if said.get("seconds") else [],
        "verdict": verdict(said).plain,
    }


def _is_waived(entry: Mapping[str, Any], said: Said) -> bool:
    return entry["severity"] == "error" and entry["check"] in said.get("waived", ())


def _looks(said: Said, width: int | None) -> Iterator[Text]:
    """What each check that ran looked at and cost."""
    ran = [look for look in looks(said) if look["result"] != "skipped"]
    longest = max((len(look["check"]) for look in ran), default=0)
    for look in ran:
        passed = look["result"] == "passed"
        sign, style = ("✓", "green") if passed else (SIGNS[look["result"]], STYLES[look["result"]])
        cost = f"{look['seconds']:7.2f} s  " if look["seconds"] is not None else ""
        head = Text.assemble((f"{sign} ", style), f"{safe(look['check']):{longest}}  ", (cost, "dim"))
        yield from broken(head, Text(safe(look["seen"]), "dim"), width)


def broken(head: Text, body: Text, width: int | None) -> Iterator[Text]:
    """Head and body, the body broken into lines that are as far in as it begins; no word is broken, so that paths can be copied."""
    room = (width or 0) - head.cell_len
    if width is None or room < _NARROWEST:
        yield head + body
        return
    for number, part in enumerate(body.divide(_breaks(body.plain, room))):
        part.rstrip()
        yield (head if number == 0 else Text(" " * head.cell_len)) + part


def _breaks(text: str, room: int) -> list[int]:
    """Where to break a text into lines of so many columns: in front of these places."""
    places, used = [], 0
    for word in re.finditer(r"\S+\s*", text):
        columns = cell_len(word[0].rstrip())
        if used and used + columns > room:
            places.append(word.start())
            used = 0
        used = 0 if word[0].endswith("\n") else used + cell_len(word[0])
    return places
