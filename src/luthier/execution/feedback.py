"""What a failed candidate can be told: where it stopped, compiler errors and frames as lines of the function, the failing test with what it wanted.

Reads what javac, JUnit, Python and pytest write. Output that none of them wrote is kept as its most telling lines. Nothing in a
record names this machine: absolute paths lose their folders, what looks like a secret goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from xml.etree.ElementTree import ParseError

from defusedxml import ElementTree

from luthier.recipe import Options

Stage = Literal["extract", "compile", "test", "timeout", "memory", "passed"]
# Changed whenever the same output gives other words, so that models trained on the former ones are known by it.
VERSION = 1

_MOST_ERRORS = 3
_MESSAGE, _VALUE, _LINE = 300, 200, 160  # characters
_SAID_LINES = 8
_READ = 32_000  # characters of a text that tests left; over more some patterns take minutes

_COMPILER = re.compile(
    r"^(?P<file>[^\s:][^:\n]*\.\w+):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<said>.*)$"
)
_DETAIL = re.compile(r"^\s+(symbol|required|found|reason|equality constraints|lower bounds):\s*(.*)$")
_PYTHON_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)(?:, in .*)?$')
_PYTEST_FRAME = re.compile(r"^(?P<file>[^\s:][^:]*):(?P<line>\d+):(?: in .*)?")
_NAMED_LINE = re.compile(r"\b((?:on|at) line )(\d+)\b")
_JAVA_FRAME = re.compile(r"^\s+at [^\s()]+\((?P<file>[^():]+\.java):(?P<line>\d+)\)$")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:: .*)?$")
_THROWN = re.compile(
    r'^(?:Exception in thread "[^"]*" )?(?P<said>[\w.$]+(?:Exception|Error|Failure|Throwable)\b.*)$'
)
_NUMBERED = re.compile(r"^(?:\d+\)|---) ")
_UNITTEST = re.compile(r"^(?:FAIL|ERROR): (?P<name>\S.*)$")
# JUnit 4, JUnit 5 and TestNG, Hamcrest.
_WANTED = (
    re.compile(r"expected: ?<(.*?)> but was: ?<(.*?)>(?:$|\s)", re.DOTALL),
    re.compile(r"expected \[(.*?)\] but found \[(.*?)\](?:$|\s)", re.DOTALL),
    re.compile(r"Expected: (.*?)\n\s+but: (.*?)(?:\n|$)", re.DOTALL),
)

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_HOME = re.compile(r"[/\\](?:home|Users)[/\\][\w.@+-]+")
_FOLDERS = re.compile(r"(?<![\w./\\-])(?:file://)?(?:[A-Za-z]:)?[/\\](?:[\w.@+~-]+[/\\])+")
_SECRETS = re.compile(
    r"""-----BEGIN[ A-Z]*PRIVATE[ ]KEY-----.*?(?:-----END[ A-Z]*PRIVATE[ ]KEY-----|\Z)
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b | \bgh[pousr]_\w{20,} | \bgithub_pat_\w{20,} | \bglpat-[\w-]{16,} | \bhf_\w{20,}
    | \bsk-[\w-]{16,} | \bxox[abprs]-[\w-]{10,} | \bAIza[\w-]{30,} | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*
    | (?<=://)[^\s/:@]+:[^\s/@]+(?=@)
    | (?i:(?<=bearer[ ])[\w.~+/-]{16,}=*)
    | (?i:(?:password|passwd|secret|token|api_?-?key)["']?\s*[=:]\s*["']?)(?=[^\s"']*\d)[^\s"',;]{8,}""",
    re.VERBOSE | re.DOTALL,
)


class CompilerError(Options):
    """An error of a compiler."""

    line: int | None = None
    """Line of the function, from 1; None: elsewhere."""
    code: str = ""
    """That line."""
    message: str
    """What the compiler said."""


class Frame(Options):
    """A place in the function."""

    line: int
    """Line of the function, from 1."""
    code: str
    """That line."""


class Feedback(Options):
    """What became of a candidate, as far as it helps to write a better one."""

    stage: Stage
    """Where it ended: ``extract`` is an output that holds no function."""
    errors: list[CompilerError] = []
    """The first errors of the compiler."""
    test: str = ""
    """The first test that failed."""
    assertion: str = ""
    """The line of the test that failed, where it was shown."""
    expected: str = ""
    """What the test wanted."""
    actual: str = ""
    """What it got."""
    error: str = ""
    """What was raised, or which limit was broken."""
    frame: Frame | None = None
    """The innermost place in the function that the error came through."""
    unchanged: bool = False
    """Whether the candidate is the buggy function; the rest is then about that."""
    said: str = ""
    """The lines of the output that say most, where nothing else was found in it."""


@dataclass(frozen=True, slots=True)
class Where:
    """The place of a candidate in its program.

    Attributes:
        paths: The files in which it stands at the same lines.
        first: The line there that it begins at, from 1.
        function: Its text.
    """

    paths: Sequence[str]
    first: int
    function: str

    def line(self, file: str, number: int) -> int | None:
        """The line of the function, from 1, that a line of a file is; None if it is none of it. Java names files without folders."""
        if file.startswith("/"):  # the program's own folder is "." by now
            return None
        parts = PurePosixPath(file).parts
        inside = 0 < number - self.first + 1 <= len(self.function.rstrip("\n").split("\n"))
        for path in self.paths:
            own = PurePosixPath(path).parts
            common = min(len(own), len(parts))
            if inside and common and own[-common:] == parts[-common:]:
                return number - self.first + 1
        return None

    def code(self, line: int) -> str:
        """A line of the function."""
        return _short(self.function.split("\n")[line - 1].strip(), _LINE)

    def frame(self, places: Sequence[tuple[str, int]]) -> Frame | None:
        """The first of some places that lies in the function."""
        lines = (self.line(file, number) for file, number in places)
        return next((Frame(line=line, code=self.code(line)) for line in lines if line is not None), None)


def feedback(
    stage: Stage, where: Where, output: str, *, files: Sequence[str] = (), test: str = "", limit: str = ""
) -> Feedback:
    """The record of a run.

    Args:
        stage: Where it ended.
        where: The candidate in its program.
        output: What compiler or tests wrote.
        files: Texts of the files that the tests left, such as reports in JUnit's XML.
        test: The first test that failed, if that is known.
        limit: What stopped it, if something did, in words.
    """
    if stage in ("passed", "timeout"):
        return Feedback(stage=stage, test=clean(test, _VALUE), error=limit)
    text = _plain(output)
    if stage == "compile":
        found = _compiled(text, where)
    else:
        failed = next((case for content in files if (case := failed_case(content)) is not None), None)
        more = [_plain(content) for content in files if not content.lstrip().startswith("<")]
        name, text = failed if failed is not None else (test, "\n".join([*more, text]))
        text = _short(_plain(text), _READ)
        found = _failed(text, where).model_copy(update={"stage": stage})
        found = found.model_copy(update={"test": clean(test or name or found.test, _VALUE)})
    if limit:
        return found.model_copy(update={"error": limit})
    return found if found.errors or found.error else found.model_copy(update={"said": _telling(text, stage)})


def words(found: Feedback) -> list[str]:
    """A record as a model is shown it: a few lines, none of them with a line break."""
    lines: list[str] = []
    if found.unchanged:
        lines.append("this changes nothing")
    if found.stage == "passed":
        return ["this passes all tests; another way to write it:"]
    if found.stage == "extract":
        return [*lines, "there is no function in it"]
    if found.stage == "compile":
        lines.append("does not compile")
    for error in found.errors:
        place = "" if error.line is None else f"line {error.line}" + (f", {error.code}" if error.code else "")
        lines.append(f"{place}: {error.message}" if place else error.message)
    if found.stage == "timeout":
        lines.append(f"timed out: {found.error}")
    elif found.stage == "memory":
        lines.append(f"out of memory: {found.error}" if found.error else "out of memory")
    elif found.error:
        lines.append(found.error)
    if found.test:
        lines.append(f"failing test: {found.test}")
    if found.assertion:
        lines.append(found.assertion)
    if found.expected:
        lines.append(f"expected: {found.expected}")
    if found.actual:
        lines.append(f"actual: {found.actual}")
    if found.frame is not None:
        lines.append(f"at line {found.frame.line}: {found.frame.code}")
    lines += found.said.splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()] or ["the tests fail"]


def failed_case(text: str) -> tuple[str, str] | None:
    """Name and text of the first test case that failed in a report in JUnit's XML; None if there is none."""
    try:
        root = ElementTree.fromstring(text)
    except (ParseError, ValueError):
        return None
    for case in root.iter("testcase"):
        for kind in ("failure", "error"):
            if (failed := case.find(kind)) is not None:
                name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
                inner, message = failed.text or "", failed.get("message") or ""
                return name, inner if inner.strip() else message
    return None


def clean(text: str, most: int = _MESSAGE) -> str:
    """A text in one line without secrets, folders of absolute paths and addresses, cut in its middle where it is too long."""
    text = _SECRETS.sub("[removed]", _short(text, _READ))
    text = _ADDRESS.sub("0x...", _FOLDERS.sub(".../", _HOME.sub("/~", text)))
    return _short(" ".join(text.split()), most)


def _plain(text: str) -> str:
    return _ESCAPES.sub("", text).replace("\r\n", "\n")


def _short(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 3]}...{text[-tail:]}"


def _telling(text: str, stage: Stage) -> str:
    """The lines that say most: a compiler's first ones, the last ones of tests."""
    lines = [line for line in _SECRETS.sub("[removed]", text).splitlines() if line.strip()]
    chosen = lines[:_SAID_LINES] if stage == "compile" else lines[-_SAID_LINES:]
    return "\n".join(clean(line, _LINE) for line in chosen)


def _compiled(text: str, where: Where) -> Feedback:
    """Errors of javac and compilers that write like it, or Python's one."""
    errors: list[CompilerError] = []
    lines = text.split("\n")
    starts = [(i, match) for i, line in enumerate(lines) if (match := _COMPILER.match(line))]
    for place, (start, match) in enumerate(starts[:_MOST_ERRORS]):
        end = starts[place + 1][0] if place + 1 < len(starts) else len(lines)
        details = [f"; {m[1]}: {m[2]}" for line in lines[start + 1 : end] if (m := _DETAIL.match(line))]
        errors.append(_error(where, match["file"], match["line"], match["said"] + "".join(details)))
    if not errors and (raised := _python(text)) is not None:
        frames = [(file, number) for file, number in raised[1] if where.line(file, number) is not None]
        file, number = (*frames, *raised[1], ("", 0))[0]
        errors.append(_error(where, file, str(number), raised[0]))
    return Feedback(stage="compile", errors=errors)


def _error(where: Where, file: str, number: str, said: str) -> CompilerError:
    line = where.line(file, _number(number))
    # Python names lines of the file in its words as well.
    said = _NAMED_LINE.sub(lambda m: f"{m[1]}{where.line(file, _number(m[2])) or m[2]}", said)
    if line is None and file and file != "<string>":
        said = f"{PurePosixPath(file).name}: {said}"
    return CompilerError(line=line, code="" if line is None else where.code(line), message=clean(said))


def _number(digits: str) -> int:
    return int(digits[:9])  # longer ones are no lines


def _failed(text: str, where: Where) -> Feedback:
    """What the text of a failed test says, whoever wrote it."""
    lines = text.split("\n")
    if any(line.startswith("E   ") for line in lines):
        return _from_pytest(lines, where)
    if any(_JAVA_FRAME.match(line) or line.startswith("\tat ") for line in lines):
        return _from_java(lines, where)
    name = ""
    begun = next((i for i, line in enumerate(lines) if _UNITTEST.match(line)), None)
    if begun is not None:
        name = lines[begun].partition(": ")[2]
        end = next((i for i in range(begun + 1, len(lines)) if lines[i].startswith("=====")), len(lines))
        text = "\n".join(lines[begun:end])
    raised = _python(text)
    if raised is None:
        thrown = next((m["said"] for line in lines if (m := _THROWN.match(line))), "")
        return Feedback(stage="test", test=name, error=clean(thrown))
    said, places, shown = raised
    assertion = (
        shown if shown.startswith(("assert ", "self.assert")) and said.startswith("AssertionError") else ""
    )
    actual, expected = "", ""
    if assertion.startswith("assert "):
        expected = _wanted(assertion)
    elif assertion:  # of unittest
        actual, expected = _sides(said.partition(": ")[2], (" != ", " is not ")) or ("", "")
    return Feedback(
        stage="test", test=name, error=clean(said), assertion=clean(assertion, _VALUE), expected=clean(expected, _VALUE),
        actual=clean(actual, _VALUE), frame=where.frame(places),
    )  # fmt: skip


def _python(text: str) -> tuple[str, list[tuple[str, int]], str] | None:
    """Of the last traceback: what was raised, its places from the innermost, and the innermost line of code."""
    lines = text.split("\n")
    frames = [(i, match) for i, line in enumerate(lines) if (match := _PYTHON_FRAME.match(line))]
    header = max((i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")), default=-1)
    frames = [frame for frame in frames if frame[0] > header]
    if not frames:
        return None
    last = frames[-1][0]
    said = next((line for line in lines[last + 1 :] if _RAISED.match(line)), "")
    if not said:
        return None
    shown = lines[last + 1].strip() if last + 1 < len(lines) and lines[last + 1].startswith("    ") else ""
    return said, [(m["file"], _number(m["line"])) for _, m in reversed(frames)], shown


def _from_pytest(lines: list[str], where: Where) -> Feedback:
    first = next(i for i, line in enumerate(lines) if line.startswith("E   "))
    said = lines[first][4:].strip()
    places = [(m["file"], _number(m["line"])) for line in lines if (m := _PYTEST_FRAME.match(line))]
    shown = next((line.lstrip(">").strip() for line in reversed(lines[:first]) if line.strip()), "")
    assertion = shown if shown.startswith("assert ") else ""
    marked = [line[4:].strip().removeprefix("AssertionError: ") for line in lines if line.startswith("E   ")]
    values = next((line.removeprefix("assert ") for line in marked if line.startswith("assert ")), "")
    actual, expected = _sides(values, (" == ", " is ")) or ("", _wanted(assertion))
    return Feedback(
        stage="test", error=clean(said), assertion=clean(assertion, _VALUE), expected=clean(expected, _VALUE),
        actual=clean(actual, _VALUE), frame=where.frame(places[::-1]),
    )  # fmt: skip


def _from_java(lines: list[str], where: Where) -> Feedback:
    first = next(i for i, line in enumerate(lines) if line.startswith("\tat ") or _JAVA_FRAME.match(line))
    numbered = max((i for i in range(first) if _NUMBERED.match(lines[i])), default=-1)
    named = max((i for i in range(numbered + 1, first) if _THROWN.match(lines[i])), default=numbered + 1)
    head = lines[named:first] or [""]
    said = match["said"] if (match := _THROWN.match(head[0])) else head[0]
    whole = "\n".join([said, *head[1:]])
    found = next((match for pattern in _WANTED if (match := pattern.search(whole))), None)
    places = [(m["file"], _number(m["line"])) for line in lines if (m := _JAVA_FRAME.match(line))]
    name = lines[numbered].partition(" ")[2] if numbered >= 0 else ""
    return Feedback(
        stage="test", test=name, error=clean(whole), expected=clean(found[1], _VALUE) if found else "",
        actual=clean(found[2], _VALUE) if found else "", frame=where.frame(places),
    )  # fmt: skip


def _wanted(assertion: str) -> str:
    """The right side of ``assert LEFT == RIGHT``; nothing of an assertion of another kind."""
    sides = _sides(assertion.removeprefix("assert "), (" == ", " is "))
    return sides[1] if sides is not None and assertion else ""


def _sides(comparison: str, signs: Sequence[str]) -> tuple[str, str] | None:
    """Both sides of a comparison at its first sign outside of brackets and quotes; a message behind a comma is left out."""
    depth, quote, cut, behind = 0, "", -1, 0
    for place, sign in _unescaped(comparison):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif depth:
            continue
        elif sign == "," and cut >= 0:
            comparison = comparison[:place]
            break
        elif comparison.startswith((" and ", " or "), place):
            return None
        elif cut < 0 and (found := next((s for s in signs if comparison.startswith(s, place)), "")):
            cut, behind = place, place + len(found)
    left, right = comparison[: max(cut, 0)].strip(), comparison[behind:].strip()
    return (left, right) if cut >= 0 and left and right else None


def _unescaped(text: str) -> Iterator[tuple[int, str]]:
    """Characters with their places, those behind a backslash left out."""
    skipped = False
    for place, sign in enumerate(text):
        if skipped:
            skipped = False
        elif sign == "\\":
            skipped = True
        else:
            yield place, sign
