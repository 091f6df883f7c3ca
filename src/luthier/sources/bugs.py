"""Bugs with tests, to judge candidate patches on: the project's own format, HumanEvalPack and Defects4J."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from luthier.encoding.syntax import Parsed
from luthier.errors import UserError
from luthier.records import Dropped, Record
from luthier.registry import source
from luthier.run_folder import cache_folder, new_folder
from luthier.sources import Source
from luthier.sources.files import Files
from luthier.sources.pairs import changed_functions


@source("bugs")
class Bugs(Source):
    """Bugs of your own projects: JSONL rows with ``before``, ``after``, ``language``, ``path``, ``tests`` and ``files`` or ``tree``.

    ``path`` is the file of the function inside of the program, ``tree`` the folder of the program (relative to the rows'
    file), ``files`` names and texts of its files; ``tests`` names a way to test by ``type``, with its options.
    """

    path: str
    """The file of rows."""
    id_column: str | None = None
    """Column with a unique id; without it a row's id is ``file:line``."""
    group_column: str | None = None
    """Column with the project, for intervals; without it each bug is its own group."""

    def records(self) -> Iterator[Record | Dropped]:
        """One for each row."""
        for item in self._files().records():
            if isinstance(item, Record) and isinstance(item.fields.get("tree"), str):
                tree = str((Path(self.path).expanduser().parent / item.fields["tree"]).resolve())
                item = Record(item.id, {**item.fields, "tree": tree}, item.group)
            yield item

    def fingerprint(self) -> str:
        """Hash of the rows."""
        return self._files().fingerprint()

    def _files(self) -> Files:
        return Files(path=self.path, id_column=self.id_column, group_column=self.group_column)


@source("humaneval-pack")
class HumanEvalPack(Source):
    """HumanEvalPack's rows for Python or Java: HumanEval's solutions with a bug planted by hand, and their tests.

    Test rows: train on none of them. Source: Muennighoff et al. 2023, arXiv:2308.07124; bigcode/humanevalpack, MIT.
    """

    path: str
    """The JSONL file of one language."""
    language: Literal["python", "java"]
    """Its language."""

    def records(self) -> Iterator[Record | Dropped]:
        """One for each problem. In Java the function is the method, in the class that the row has round it."""
        for item in self._files().records():
            if isinstance(item, Dropped):
                yield item
                continue
            row: Any = item.fields
            try:
                sides = [row["declaration"] + row[name] for name in ("buggy_solution", "canonical_solution")]
                test, name = str(row["test"]), str(row["task_id"])
            except (KeyError, TypeError) as error:
                yield Dropped(item.id, "no-row-of-humaneval-pack", f"it lacks {error}")
                continue
            yield (
                self._python(name, sides, test)
                if self.language == "python"
                else self._java(name, sides, test)
            )

    def fingerprint(self) -> str:
        """Hash of the file."""
        return self._files().fingerprint()

    def _files(self) -> Files:
        return Files(path=self.path)

    def _python(self, name: str, sides: list[str], test: str) -> Record | Dropped:
        """The function; what stands before it in the declaration (imports, helpers) stays where it is."""
        return self._inside(name, sides, "solution.py", {}, {"type": "asserts", "code": test})

    def _java(self, name: str, sides: list[str], test: str) -> Record | Dropped:
        imports = "".join(f"{line}\n" for line in sides[0].splitlines() if line.startswith("import "))
        tests = {"type": "java", "main": "Main"}
        return self._inside(name, sides, "Solution.java", {"Main.java": imports + test}, tests)

    def _inside(
        self, name: str, sides: list[str], path: str, files: dict[str, str], tests: dict[str, Any]
    ) -> Record | Dropped:
        """The one function that differs, in its file."""
        language: Parsed = self.language
        found = list(changed_functions(name, sides[0].encode(), sides[1].encode(), language))
        if len(found) != 1 or not isinstance(found[0], Record):
            return Dropped(name, "no-single-function", "; ".join(getattr(f, "reason", f.id) for f in found))
        fields = {**found[0].fields, "path": path, "files": {path: sides[0], **files}, "tests": tests}
        return Record(name, fields, name.rpartition("/")[2])


@source("defects4j")
class Defects4JBugs(Source):
    """Bugs of Defects4J whose fix changes one function, checked out by its own command line into the cache folder.

    Source: Just, Jalali and Ernst 2014, ISSTA; github.com/rjust/defects4j, MIT. The command ``defects4j`` has to be on the PATH.
    """

    bugs: list[str] = Field(min_length=1)
    """Projects and numbers, such as ``Lang-1``."""

    def records(self) -> Iterator[Record | Dropped]:
        """One for each bug; those that change more than one function are counted as ``several-functions``."""
        for name in self.bugs:
            project, _, number = name.rpartition("-")
            if not project or not number.isdigit():
                raise UserError(
                    f"{name!r} is no bug of Defects4J",
                    "recipe key repair.bugs.bugs",
                    "write Project-Number: Lang-1",
                )
            buggy, fixed = (self._checkout(project, f"{number}{side}") for side in "bf")
            folder = self._ask(fixed, "export", "-p", "dir.src.classes")
            found: list[Record | Dropped] = []
            for cls in self._ask(fixed, "export", "-p", "classes.modified").split():
                path = f"{folder}/{cls.replace('.', '/')}.java"
                if not (buggy / path).is_file() or not (fixed / path).is_file():
                    found.append(Dropped(name, "new-or-deleted", path))
                    continue
                for item in changed_functions(
                    name, (buggy / path).read_bytes(), (fixed / path).read_bytes(), "java"
                ):
                    if isinstance(item, Record):
                        fields = {
                            **item.fields,
                            "path": path,
                            "tree": str(buggy),
                            "tests": {"type": "defects4j", "timeout_s": 600},
                        }
                        item = Record(name, fields, project)
                    found.append(item)
            if len(found) == 1:
                yield found[0]
            else:
                yield Dropped(name, "several-functions", f"{len(found)} functions change", budgeted=False)

    def fingerprint(self) -> str:
        """The bugs: what they are does not change."""
        return hashlib.sha256(" ".join(self.bugs).encode()).hexdigest()

    def _checkout(self, project: str, version: str) -> Path:
        folder = cache_folder() / "defects4j" / f"{project}-{version}"
        if not folder.is_dir():
            with new_folder(folder) as work:
                self._run("checkout", "-p", project, "-v", version, "-w", str(work))
        return folder

    def _ask(self, folder: Path, *arguments: str) -> str:
        return self._run(*arguments, "-w", str(folder)).strip()

    def _run(self, *arguments: str) -> str:
        tool = shutil.which("defects4j")
        if tool is None:
            raise UserError(
                "there is no command defects4j",
                "PATH",
                "install Defects4J and put its framework/bin on the PATH",
            )
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [""]
            raise UserError(
                f"defects4j {arguments[0]} failed: {said[0]}", " ".join(arguments), "run that command by hand"
            )
        return done.stdout
