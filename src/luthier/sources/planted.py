"""Bugs planted into real programs whose tests notice them, from a list that was proven once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.encoding.mutation import Mutation
from luthier.encoding.syntax import functions, outside
from luthier.errors import UserError
from luthier.recipe import UserPath
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.run_folder import hash_file
from luthier.sources import Source
from luthier.sources.project_files import top_of
from luthier.sources.sdists import fetch


@source("planted-bugs")
class PlantedBugs(Source):
    """Bugs of a list as ``benchmarks/planted/make.py`` writes it: a change of a function of a released package each, and its tests.

    Packages are fetched once, checked by SHA-256 and unpacked in the cache folder; programs of our own lie beside the list.
    """

    path: UserPath
    """The list, such as ``benchmarks/planted/python.json``."""

    def records(self) -> Iterator[Record | Dropped]:
        """One for each planted bug."""
        content = self._content()
        for number, bug in enumerate(content["bugs"], 1):
            try:
                record = self._record(bug, content["programs"])
            except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
                raise UserError(
                    f"bug {number} cannot be planted: {why}",
                    self.path,
                    "make the list anew with benchmarks/planted/make.py, beside the programs that it names",
                ) from error
            yield record

    def _record(self, bug: dict[str, Any], programs: dict[str, Any]) -> Record | Dropped:
        name, program = bug["program"], programs[bug["program"]]
        tree = program_folder(name, program, Path(self.path).parent)
        text = (tree / bug["path"]).read_bytes()
        mutation = Mutation(bug["operator"], bug["start"], bug["end"], bug["text"].encode())
        return planted_record(bug["id"], name, program, tree, bug["path"], bug["function"], text, mutation)

    def fingerprint(self) -> str:
        """Hash of the list, which pins what it is about."""
        return hash_file(Path(self.path))

    def _content(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(Path(self.path).read_text(encoding="utf-8"))
            return {"programs": content["programs"], "bugs": content["bugs"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"this is no list of planted bugs: {error}",
                self.path,
                "make one with benchmarks/planted/make.py",
            ) from error


def program_folder(name: str, program: dict[str, Any], beside: Path) -> Path:
    """Where a program lies: fetched, or beside the list.

    Args:
        name: ``package==version``, or of a folder.
        program: With ``sha256`` of a package's source distribution.
        beside: The folder of the list.
    """
    if "sha256" not in program:
        return (beside / name).resolve()
    return top_of(fetch(name, program["sha256"]))


def planted_record(
    name: str,
    program_name: str,
    program: dict[str, Any],
    tree: Path,
    path: str,
    function_name: str,
    text: bytes,
    mutation: Mutation,
) -> Record | Dropped:
    """A bug, as the sources of bugs give it.

    Args:
        name: Its id.
        program_name: Its program; bugs of one function of it are one group, since their candidates are alike.
        program: ``language`` and ``tests``, which may name other tests by file (``tests_by_path``).
        tree: The program's folder.
        path: The file in it.
        function_name: The function, as ``functions`` calls it.
        text: The file.
        mutation: The change.
    """
    language = program["language"]
    function = next((f for f in functions(text, language) if f.name == function_name), None)
    if function is None:
        return Dropped(name, "no-function", f"{path} has no {function_name}")
    grown = len(mutation.text) - (mutation.end - mutation.start)
    wrong = mutation.applied(text)
    fields = {
        "before": wrong[function.start : function.end + grown].decode("utf-8"),
        "after": text[function.start : function.end].decode("utf-8"),
        "language": language,
        "context": outside(text, language, function),
        "path": path,
        "start": function.start,
        "files": {path: wrong.decode("utf-8")},
        "tree": str(tree),
        "tests": {**program["tests"], **program.get("tests_by_path", {}).get(path, {})},
        "operator": mutation.operator,
    }
    return Record(name, fields, f"{program_name}/{path}:{function_name}")
