"""Candidates in their places: each bug is proven first, each distinct candidate is run once, and nothing that ran runs again.

Verdicts are kept by content in a file of lines: whatever stops the judge, what is in the file is not judged again.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.encoding.lexer import normalised
from luthier.errors import UserError
from luthier.execution.adapters import Judgement, adapter
from luthier.execution.bugs import Bug
from luthier.execution.feedback import Feedback
from luthier.execution.sandbox import Limits, refuse_outside, strongest
from luthier.records import Progress
from luthier.run_folder import hash_folder, hash_value, json_line, logger, read_jsonl

_PROOFS = 2


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether a bug can be judged on: its buggy function fails and its fixed one passes, twice.

    Attributes:
        reason: Empty, or why it is left out.
        detail: What was said.
        failing: A test case that the buggy function fails.
        tests: Test cases that the buggy function fails.
    """

    reason: str
    detail: str = ""
    failing: str = ""
    tests: tuple[str, ...] = ()


class Judge:
    """Runs functions in their programs, several at once, and remembers what became of them.

    Args:
        memory: File of verdicts by content; made if it is not there.
        limits: Of each step, unless the bug says otherwise.
        num_workers: Programs at once.
    """

    def __init__(self, memory: Path, limits: Limits | None = None, num_workers: int | None = None) -> None:
        self._memory, self._limits = memory, limits or Limits()
        self._num_workers = num_workers or os.cpu_count() or 1
        self._known = {row["key"]: Judgement(**row["judgement"]) for row in read_jsonl(memory)}
        _cut_half_line(memory)
        self.num_run = 0

    def prove(self, bugs: Sequence[Bug], progress: Progress | None = None) -> dict[str, Proof]:
        """Which bugs can be judged on, by id: through the same path and limits as candidates, and twice, against chance.

        Raises:
            UserError: None of them can be run.
        """
        problems = {bug.id: problem for bug in bugs if (problem := _problem(bug)) is not None}
        if problems and len(problems) == len(bugs):
            raise next(iter(problems.values()))
        wanted = [
            (bug, text, number)
            for bug in bugs
            if bug.id not in problems
            for text in (bug.buggy, bug.fixed)
            for number in range(_PROOFS)
        ]
        found = self._all(wanted, "proving bugs", progress)
        proofs = {}
        for bug in bugs:
            if bug.id in problems:
                proofs[bug.id] = Proof("not-runnable", f"{problems[bug.id].what}; {problems[bug.id].fix}")
                continue
            buggy, fixed = (
                [found[self._key(bug, text, n)] for n in range(_PROOFS)] for text in (bug.buggy, bug.fixed)
            )
            proofs[bug.id] = _proof(buggy, fixed)
        return proofs

    def judge(
        self, functions: Sequence[tuple[Bug, str | None]], progress: Progress | None = None
    ) -> list[Judgement]:
        """The verdict on each function in the place of a bug's; None, where an output gave no function, is not judged."""
        usable = [(bug, text if text is not None and _is_text(text) else None) for bug, text in functions]
        same = [text is not None and is_unchanged(bug, text) for bug, text in usable]
        runs = [
            (bug, text, 0) for (bug, text), s in zip(usable, same, strict=True) if text is not None and not s
        ]
        found = self._all(runs, "judging candidates", progress)
        nothing = Judgement(
            verdict="not-judged", message="the output gives no function", feedback=Feedback(stage="extract"),
            compiled=False,
        )  # fmt: skip
        results = []
        for (bug, text), is_same in zip(usable, same, strict=True):
            if text is None:
                results.append(nothing)
            elif is_same:
                results.append(Judgement(verdict="no-change", feedback=self._of_buggy(bug)))
            else:
                results.append(found[self._key(bug, text, 0)])
        return results

    def _of_buggy(self, bug: Bug) -> Feedback:
        """What the proof said of the buggy function."""
        proof = self._known.get(self._key(bug, bug.buggy, 0))
        known = proof.feedback if proof is not None and proof.feedback is not None else Feedback(stage="test")
        return known.model_copy(update={"unchanged": True})

    def _all(
        self, runs: Sequence[tuple[Bug, str, int]], label: str, progress: Progress | None
    ) -> Mapping[str, Judgement]:
        open_runs = {self._key(bug, text, number): (bug, text) for bug, text, number in runs}
        open_runs = {key: run for key, run in open_runs.items() if key not in self._known}
        total = len(open_runs)
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self._num_workers) as pool, open(self._memory, "a", encoding="utf-8") as file:
            waiting = iter(open_runs.items())
            running: dict[Future[Judgement], tuple[str, Bug]] = {}
            done = 0
            try:
                while True:
                    while len(running) < 2 * self._num_workers and (item := next(waiting, None)) is not None:
                        key, (bug, text) = item
                        running[pool.submit(self._run, bug, text)] = (key, bug)
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        key, bug = running.pop(future)
                        self._known[key] = judgement = future.result()
                        line = {"key": key, "bug": bug.id, "judgement": judgement.model_dump(mode="json")}
                        file.write(json_line(line))
                        file.flush()
                        done += 1
                        self.num_run += 1
                        if progress:
                            progress(label, done, total)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return self._known

    def _run(self, bug: Bug, function: str) -> Judgement:
        return adapter(bug).judge(bug, function, self._limits)

    def _key(self, bug: Bug, function: str, number: int) -> str:
        return hash_value([_program(bug, function), number, asdict(self._limits), _surroundings()])


def is_unchanged(bug: Bug, function: str) -> bool:
    """Whether a function is the buggy one but for white space and comments."""
    return normalised(function, bug.language) == normalised(bug.buggy, bug.language)


def _problem(bug: Bug) -> UserError | None:
    """Why a bug cannot be run at all."""
    try:
        kind = adapter(bug)
        kind.steps(bug)
        refuse_outside({**bug.files, **kind.files(bug, bug.buggy)})
    except UserError as error:
        return error
    except ValueError as error:
        return UserError(str(error), f"files of the bug {bug.id}", "name files inside of the program")
    return None


def _is_text(function: str) -> bool:
    """Whether it can be written into a file."""
    try:
        function.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _proof(buggy: Sequence[Judgement], fixed: Sequence[Judgement]) -> Proof:
    for side, runs in (("buggy", buggy), ("fixed", fixed)):
        if (
            len({run.verdict for run in runs}) > 1
            or len({str(sorted(run.tests.items())) for run in runs}) > 1
        ):
            return Proof("flaky", f"the {side} function: {' and '.join(run.verdict for run in runs)}")
    if fixed[0].verdict != "passed":
        return Proof(f"fixed-{fixed[0].verdict}", fixed[0].failing or fixed[0].message)
    if buggy[0].verdict in ("passed", "compile-error"):
        return Proof(f"buggy-{buggy[0].verdict}", buggy[0].message)
    failing = tuple(name for name, good in buggy[0].tests.items() if not good)
    return Proof("", f"{buggy[0].verdict}: {buggy[0].message}", buggy[0].failing, failing)


def _program(bug: Bug, function: str) -> list[Any]:
    """All that is run: bugs of one program have its fixed version in common."""
    files = {**bug.files, bug.path: bug.patched(function)}
    return [files, bug.path, _tree_hash(bug.tree) if bug.tree else "", dict(bug.tests)]


@functools.cache
def _tree_hash(tree: Path) -> str:
    return hash_folder(tree)


@functools.cache
def _surroundings() -> list[str]:
    """What else decides about a verdict: this code, Python, Java, and how things are held apart."""
    try:
        java = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    except OSError:
        java = ""
    return [hash_folder(Path(__file__).parent, ("*.py",)), platform.python_version(), java, strongest()]


def _cut_half_line(path: Path) -> None:
    """Takes away a last line that was not written to its end."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        logger.info("%s: a verdict that was cut off is judged again", path.name)
        with open(path, "r+b") as file:
            file.truncate(len(whole))
