"""Library-based generation: what a library's own example asks for, which of the library's names it calls, and which may help."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Collection, Sequence

from luthier.projects import syntax
from luthier.projects.bm25 import BM25
from luthier.projects.categories import COMMON
from luthier.projects.project import Project, split_identifier, words

MASK = "[API]"
_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
_WORD = re.compile(r"[^\W\d]\w*")


def split_example(text: str) -> tuple[str, str] | None:
    """What a module says of itself and the program behind that without comments; None where there is either of them lacking.

    That is its docstring; in a script made of a notebook, which has none, the text under the first heading (``# # Title``).

    Args:
        text: A Python file.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    docstring = ast.get_docstring(tree)
    said = docstring or _first_heading(text)
    if not said or len(tree.body) < (2 if docstring else 1):
        return None
    return said, without_comments(text)


def _first_heading(text: str) -> str:
    """The comment lines from the first heading of Markdown before any code on, as text; empty if there is none."""
    block = itertools.takewhile(lambda line: not line or line.startswith("#"), text.split("\n"))
    lines = [re.sub(r"^#\s?", "", line) for line in block]
    first = next((i for i, line in enumerate(lines) if line.startswith("# ")), len(lines))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.lstrip("# ") for line in lines[first:])).strip()


def without_comments(program: str) -> str:
    """A program without comments and docstrings; of blank lines one in a row stays."""
    source, root = syntax.parse(program, "python")
    cuts = [(node.start_byte, node.end_byte) for node in syntax.nodes(root, "python", {"comment"})]
    for node in syntax.nodes(root, "python", {"expression_statement"}):
        beside = [child for child in node.parent.named_children if child.type != "comment"]
        alone = len(beside) == 1 and node.parent.type == "block"
        if [child.type for child in node.named_children] == ["string"] and not alone:
            cuts.append((node.start_byte, node.end_byte))
    for start, end in sorted(cuts, reverse=True):
        source = source[:start] + source[end:]
    text = "\n".join(line.rstrip() for line in source.decode("utf-8", "replace").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def masked(docstring: str, answers: Collection[str]) -> str:
    """The docstring as plain text, with names that give answers away replaced by ``[API]``.

    A word that equals an answer is a name where it is written as one: with a capital (``Ridge``) or an underscore, in backticks, behind
    a dot, or before a bracket. Ordinary words (``fit``, ``plot``, ``ridge``) in a sentence stay, and so do paths of modules.

    Args:
        docstring: reStructuredText.
        answers: From ``answers``.
    """
    plain = _ROLE.sub(lambda match: f"`{match[1]}`", docstring)

    def replaced(match: re.Match[str]) -> str:
        word = match[0]
        before, behind = plain[: match.start()][-1:], plain[match.end() :][:1]
        is_name = (
            "_" in word
            or any(letter.isupper() for letter in word)
            or before in ("`", ".")
            or behind in ("`", "(")
        )
        return MASK if word in answers and is_name else word

    return _WORD.sub(replaced, plain).strip()


def packages(project: Project) -> set[str]:
    """Names by which the project's own packages are imported."""
    folders = {file.folder for file in project.files if file.path.endswith("__init__.py")}
    tops = {folder for folder in folders if folder and folder.rpartition("/")[0] not in folders}
    return {top.rpartition("/")[2] for top in tops} - {
        "tests",
        "test",
        "examples",
        "docs",
        "doc",
        "benchmarks",
    }


def api_names(project: Project) -> list[str]:
    """The public names of the functions and classes in the project's packages, sorted; none that says nothing of the project."""
    own = packages(project)
    found: set[str] = set()
    for file in project.files:
        parts = file.path.split("/")
        if own & set(parts[:2]) and not {"tests", "test", "testing"} & set(parts):
            found |= file.declared
    return sorted(name for name in found if not name.startswith("_") and name not in COMMON)


def called_apis(program: str, names: Collection[str]) -> list[str]:
    """The library's names that a program calls, by the last name of each call, sorted.

    Source: Long Code Arena, Bogomolov et al. 2024, arXiv:2406.11612, library-based code generation: unique APIs.
    """
    known = set(names)
    return sorted({last for _, last in syntax.called_names(program)} & known)


def resolved_calls(program: str, own: Collection[str]) -> list[str]:
    """Whole dotted targets of a program's calls whose chain begins with something imported from a library, sorted.

    ``from sklearn.svm import SVC as S; S()`` calls ``sklearn.svm.SVC``. Methods of objects are left out: what they belong to is not written there.

    Args:
        program: A Python program.
        own: Names of the library's packages.
    """
    bound: dict[str, str] = {}
    for entry in syntax.imports(program, "python"):
        if entry.module.partition(".")[0] not in own or entry.name == "*":
            continue
        if entry.name is not None:
            bound[entry.bound] = f"{entry.module}.{entry.name}"
        else:
            bound[entry.bound] = (
                entry.module if entry.bound != entry.module.partition(".")[0] else entry.bound
            )
    found = set()
    for chain, _ in syntax.called_names(program):
        root, dot, rest = chain.partition(".")
        if root in bound:
            found.add(bound[root] + dot + rest)
    return sorted(found)


def answers(program: str, names: Collection[str], own: Collection[str]) -> set[str]:
    """The library's names that a program shows whoever reads it: what it calls or imports, under whatever name.

    Args:
        program: A Python program.
        names: From ``api_names``.
        own: Names of the library's packages.
    """
    imported = {
        entry.name
        for entry in syntax.imports(program, "python")
        if entry.name and entry.module.partition(".")[0] in own
    }
    called = {chain.rpartition(".")[2] for chain in resolved_calls(program, own)}
    return {*called_apis(program, names), *called, *(imported & set(names))}


class HelpfulNames:
    """A library's names, to be found by what an instruction says.

    Args:
        names: From ``api_names``.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._index = BM25([split_identifier(name) for name in self._names])

    def best(self, instruction: str, count: int) -> list[str]:
        """The names whose words fit the instruction best by BM25, best first."""
        return [self._names[i] for i in self._index.best(words(instruction), count)]
