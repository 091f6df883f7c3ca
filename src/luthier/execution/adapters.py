"""How programs of each kind are compiled and tested, and what their output says.

``tests`` of a bug names one of these by ``type``: ``asserts`` and ``pytest`` (Python), ``java`` (javac, then a main class or
JUnit 4), ``command`` (whatever compiles and tests a project, such as Maven or Gradle without a network), ``defects4j``.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal
from xml.etree.ElementTree import ParseError

from defusedxml import ElementTree
from pydantic import Field, ValidationError, model_validator

from luthier.errors import UserError
from luthier.execution.bugs import Bug
from luthier.execution.feedback import Feedback, Stage, Where, feedback
from luthier.execution.sandbox import Limits, Outcome, Step, run_steps
from luthier.recipe import Options

Verdict = Literal[
    "passed", "test-failed", "compile-error", "timeout", "out-of-memory", "no-change", "not-judged"
]
VERDICTS: tuple[Verdict, ...] = (
    "passed", "test-failed", "compile-error", "timeout", "out-of-memory", "no-change", "not-judged",
)  # fmt: skip

_STAGES: dict[Verdict, Stage] = {
    "passed": "passed", "test-failed": "test", "compile-error": "compile", "timeout": "timeout", "out-of-memory": "memory",
}  # fmt: skip
# Where Debian's packages junit4 and libhamcrest-java put them.
JUNIT = ("/usr/share/java/junit4.jar", "/usr/share/java/hamcrest-2.2.jar")
_SYNTAX = "import sys; p = sys.argv[1]; compile(open(p, 'rb').read(), p, 'exec')"
# Said by what ran out of memory, and not by a message that names the error: the end of a traceback, the head of a stack trace.
_MEMORY = re.compile(
    r"""^[ \t].*\n(?:E[ ]+)?(?:MemoryError\b|OSError:\ \[Errno\ 12\])
    | ^Exception\ in\ thread\ "[^"\n]*"\ java\.lang\.OutOfMemoryError\b
    | ^(?:Caused\ by:\ )?java\.lang\.OutOfMemoryError\b.*\n\s+at[ ]
    | ^Terminating\ due\ to\ java\.lang\.OutOfMemoryError
    | ^Error\ occurred\ during\ initialization\ of\ VM\n.*(?:heap|memory)
    | ^\#\ There\ is\ insufficient\ memory\ for\ the\ Java\ Runtime
    | ^\S*sh:\ .*\ Cannot\ allocate\ memory$""",
    re.MULTILINE | re.VERBOSE,
)
_MESSAGE_LINES = 12
_RESULTS = "luthier-results.xml"
_PROGRAM = "luthier_program.py"
_END = "luthier-end"
_CASES = "luthier-cases"
_JAVA_THREADS = 256


class Judgement(Options):
    """What a function is worth in its program."""

    verdict: Verdict
    """What became of it."""
    tests: dict[str, bool] = {}
    """Test cases by name, where the adapter knows them; those that ran."""
    failing: str = ""
    """The first test case that failed."""
    message: str = ""
    """What compiler or test said, its first or last lines."""
    seconds: float = 0.0
    """Time of all steps."""
    fence: str = ""
    """What held it apart."""
    compiled: bool = True
    """Whether it came as far as its tests."""
    feedback: Feedback | None = None
    """What a model can be told of it; None where nothing was run."""


class Adapter(Options):
    """Base of the adapters: options in ``tests``, steps, and how their output is read.

    Attributes:
        address_space: Whether the address space of its processes may be limited.
        copies: Files beside the bug's own in which the function stands at the same lines.
    """

    address_space: ClassVar[bool] = True
    copies: ClassVar[tuple[str, ...]] = ()

    timeout_s: float | None = Field(None, gt=0)
    """Seconds of each step, instead of the recipe's."""
    disk_mib: int | None = Field(None, ge=1)
    """Room for its files, the copied project included, instead of the recipe's."""
    guard: list[str] = []
    """Files and folders that hold the tests, which no candidate may change while it runs."""

    def judge(self, bug: Bug, function: str, limits: Limits) -> Judgement:
        """The verdict on a function in its place: compiled and tested in a sandbox of its own."""
        limits = replace(
            limits,
            address_space=self.address_space,
            timeout_s=self.timeout_s or limits.timeout_s,
            disk_mib=self.disk_mib or limits.disk_mib,
        )
        if not self.address_space:  # a Java VM has dozens of threads of its own
            limits = replace(limits, processes=max(limits.processes, _JAVA_THREADS))
        return self.judged(bug, function, self.run(bug, function, limits), limits)

    def run(self, bug: Bug, function: str, limits: Limits) -> list[Outcome]:
        """What becomes of the steps with a function in its place, up to the first that does not end well."""
        files = {**bug.files, **self.files(bug, function)}
        trees = [bug.tree] if bug.tree else []
        return run_steps(self.steps(bug), files, limits, trees=trees, guard=self.guarded(bug))

    def judged(self, bug: Bug, function: str, outcomes: Sequence[Outcome], limits: Limits) -> Judgement:
        """Verdict and feedback by what became of the steps."""
        found = self.read(bug, outcomes)
        return found.model_copy(
            update={"feedback": self.feedback(bug, function, outcomes[-1], found, limits)}
        )

    def feedback(self, bug: Bug, function: str, last: Outcome, found: Judgement, limits: Limits) -> Feedback:
        """What the last step says of a candidate."""
        stage = _STAGES[found.verdict]
        where = Where((bug.path, *self.copies), bug.source.count(b"\n", 0, bug.start) + 1, function)
        limit = ""
        if last.tampered or last.too_large:
            limit = found.message
        elif stage == "timeout":
            limit = f"no end after {limits.timeout_s:g} s"
        elif last.status == "out-of-memory":
            limit = f"more than {limits.memory_mib} MiB"
        elif last.status != "exited":
            limit = last.status
        files = [last.files[name] for name in sorted(last.files)]
        return feedback(stage, where, last.output, files=files, test=found.failing, limit=limit)

    def files(self, bug: Bug, function: str) -> dict[str, str]:
        """The patched file, and what else the adapter needs."""
        return {bug.path: bug.patched(function)}

    def guarded(self, bug: Bug) -> list[str]:
        """What no candidate may change."""
        return [path for path in self.guard if path != bug.path]

    @abstractmethod
    def steps(self, bug: Bug) -> list[Step]:
        """``compile``, if there is such a step, and ``test``."""

    def test_cases(self, outcome: Outcome) -> dict[str, bool]:
        """Test cases that the step ``test`` names."""
        return {
            name: good for content in outcome.files.values() for name, good in junit_cases(content).items()
        }

    def passed(self, outcome: Outcome, cases: Mapping[str, bool]) -> bool:
        """Whether all is well after the step ``test`` ended without an error."""
        return all(cases.values())

    def read(self, bug: Bug, outcomes: Sequence[Outcome]) -> Judgement:
        """The verdict on what the steps came to."""
        last = outcomes[-1]
        cases = self.test_cases(last) if last.name == "test" else {}
        failing = next((name for name, good in cases.items() if not good), "")
        message = _lines(last.output, first=last.name == "compile")
        verdict: Verdict
        if last.tampered:
            verdict, message = "test-failed", f"it changed {', '.join(last.tampered)}"
        elif last.too_large:
            verdict, message = "test-failed", f"report-too-large: {', '.join(last.too_large)}"
        elif last.ok and last.name == "test" and self.passed(last, cases):
            verdict, message = "passed", ""
        elif last.status == "timeout":
            verdict = "timeout"
        elif last.status == "out-of-memory" or _MEMORY.search(last.output):
            verdict = "out-of-memory"
        elif last.name == "compile":
            verdict = "compile-error"
        else:
            verdict = "test-failed"
            message = message if last.status == "exited" else f"{last.status}; {message}"
        seconds = round(sum(outcome.seconds for outcome in outcomes), 3)
        return Judgement(
            verdict=verdict, tests=cases, failing=failing, message=message, seconds=seconds, fence=last.fence,
            compiled=last.name == "test",
        )  # fmt: skip


class Asserts(Adapter):
    """A Python file that tests itself: its tests are appended to it, and the last line has to be reached."""

    copies: ClassVar[tuple[str, ...]] = (_PROGRAM,)

    code: str
    """The tests."""

    def files(self, bug: Bug, function: str) -> dict[str, str]:
        """The whole program beside the file."""
        end = f"\nwith open({_END!r}, 'w') as _end: pass\n"
        return {bug.path: bug.patched(function), _PROGRAM: f"{bug.patched(function)}\n{self.code}\n{end}"}

    def steps(self, bug: Bug) -> list[Step]:
        """Syntax first; then the whole program."""
        compiled = Step("compile", [sys.executable, "-I", "-S", "-c", _SYNTAX, bug.path])
        return [compiled, Step("test", [sys.executable, "-I", _PROGRAM], collect=[_END])]

    def test_cases(self, outcome: Outcome) -> dict[str, bool]:
        """None: they have no names."""
        return {}

    def passed(self, outcome: Outcome, cases: Mapping[str, bool]) -> bool:
        """It came to its end: a program that leaves early with exit code 0 did not."""
        return _END in outcome.files


class Pytest(Adapter):
    """A Python project with tests for pytest."""

    paths: list[str] = Field(min_length=1)
    """Test files, folders or node ids."""
    python: str | None = None
    """The interpreter that has the project's dependencies and pytest; ours if not given."""
    import_from: list[str] = ["."]
    """Folders of the project that modules are imported from, such as ``src``."""
    options: list[str] = []
    """Further options of pytest."""
    config: bool = False
    """Whether the project's own settings of pytest count; they may ask for plug-ins."""

    def guarded(self, bug: Bug) -> list[str]:
        """The test files, and what the bug names."""
        named = [path.partition("::")[0] for path in self.paths]
        return [path for path in {*named, *self.guard} if path != bug.path]

    def steps(self, bug: Bug) -> list[Step]:
        """Syntax of the changed file; then the tests."""
        python = self.python or sys.executable
        own = [] if self.config else ["-c", "/dev/null", "--rootdir", "."]
        command = [
            python,
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            f"--junitxml={_RESULTS}",
            *own,
        ]
        environment = {
            "PYTHONPATH": os.pathsep.join(self.import_from),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        return [
            Step("compile", [python, "-I", "-S", "-c", _SYNTAX, bug.path]),
            Step("test", [*command, *self.options, *self.paths], collect=[_RESULTS], environment=environment),
        ]

    def passed(self, outcome: Outcome, cases: Mapping[str, bool]) -> bool:
        """Some test ran, and none failed: a run that was cut short wrote no results."""
        return bool(cases) and all(cases.values())


# Prints as JUnit's own main class does.
_JUNIT_RUN = f"""\
import java.nio.file.*;
import java.util.*;
import org.junit.runner.*;
import org.junit.runner.notification.*;

public class LuthierRun {{
    static void note(String sign, Description test) throws Exception {{
        Files.writeString(Path.of("{_CASES}"), sign + " " + test.getDisplayName().replaceAll("\\\\R", " ") + "\\n",
            StandardOpenOption.CREATE, StandardOpenOption.APPEND);
    }}

    public static void main(String[] names) throws Throwable {{
        List<Class<?>> tests = new ArrayList<>();
        for (String name : names) {{
            tests.add(Class.forName(name, false, LuthierRun.class.getClassLoader()));
        }}
        JUnitCore core = new JUnitCore();
        Set<Description> noted = new HashSet<>();
        core.addListener(new org.junit.internal.TextListener(new org.junit.internal.RealSystem()));
        core.addListener(new RunListener() {{
            public void testFailure(Failure failure) throws Exception {{
                noted.add(failure.getDescription());
                note("-", failure.getDescription());
            }}
            public void testAssumptionFailure(Failure failure) {{
                noted.add(failure.getDescription());
            }}
            public void testFinished(Description test) throws Exception {{
                if (!noted.contains(test)) {{
                    note("+", test);
                }}
            }}
        }});
        boolean good = core.run(tests.toArray(new Class<?>[0])).wasSuccessful();
        Files.writeString(Path.of("{_END}"), "end");
        System.exit(good ? 0 : 1);
    }}
}}
"""


class Java(Adapter):
    """Java files: compiled by javac, tested by a main class or by JUnit 4."""

    address_space: ClassVar[bool] = False

    main: str | None = None
    """Class whose ``main`` runs the tests and throws where one fails."""
    junit: list[str] = []
    """Test classes for JUnit 4, instead of ``main``."""
    class_path: list[str] = []
    """Further jars and folders."""
    sources: list[str] = []
    """Files to compile; all ``.java`` files of the bug's own if not given."""
    heap_mib: int = Field(512, ge=16)
    """Java heap of compiler and tests each."""

    @model_validator(mode="after")
    def _one_kind(self) -> Java:
        if bool(self.main) == bool(self.junit):
            raise ValueError("give one of main and junit")
        return self

    def guarded(self, bug: Bug) -> list[str]:
        """The other source files."""
        return [name for name in {*self._sources(bug), *self.guard} if name != bug.path]

    def files(self, bug: Bug, function: str) -> dict[str, str]:
        """Beside the patched file a main class of our own, which says so when the tests came to their end."""
        run = _JUNIT_RUN
        if self.main is not None:
            run = (
                "public class LuthierRun { public static void main(String[] args) throws Throwable { "
                f'{self.main}.main(args); java.nio.file.Files.writeString(java.nio.file.Path.of("{_END}"), "end"); }} }}\n'
            )
        return {bug.path: bug.patched(function), "LuthierRun.java": run}

    def steps(self, bug: Bug) -> list[Step]:
        """One call of javac for all files; then the tests."""
        java, javac = (_java_tool(name) for name in ("java", "javac"))
        flags = [f"-Xmx{self.heap_mib}m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
        path = os.pathsep.join(["out", *self.class_path, *(_junit() if self.junit else [])])
        sources = [*self._sources(bug), "LuthierRun.java"]
        compiled = [
            javac,
            *(f"-J{flag}" for flag in flags),
            "-proc:none",
            "-nowarn",
            "-Xmaxerrs",
            "20",
            "-encoding",
            "UTF-8",
            "-d",
            "out",
            "-cp",
            path,
        ]
        return [
            Step("compile", [*compiled, *sources]),
            Step(
                "test",
                [
                    java,
                    *flags,
                    "-XX:MaxJavaStackTraceDepth=64",
                    "-ea",
                    "-cp",
                    path,
                    "LuthierRun",
                    *self.junit,
                ],
                collect=[_END, _CASES],
            ),
        ]

    def test_cases(self, outcome: Outcome) -> dict[str, bool]:
        """Those of JUnit that ended, as our main class has noted them; skipped ones are left out."""
        cases: dict[str, bool] = {}
        for line in outcome.files.get(_CASES, "").splitlines():
            cases[line[2:]] = cases.get(line[2:], True) and line.startswith("+")
        return cases

    def passed(self, outcome: Outcome, cases: Mapping[str, bool]) -> bool:
        """Our main class came to its end, and of JUnit some test ran and none failed."""
        return _END in outcome.files and (bool(cases) or not self.junit) and all(cases.values())

    def _sources(self, bug: Bug) -> list[str]:
        return self.sources or sorted(name for name in {*bug.files, bug.path} if name.endswith(".java"))


class Command(Adapter):
    """Any project: a command that compiles, and one that tests."""

    address_space: ClassVar[bool] = False

    test: str
    """Shell command; its exit code is 0 if all tests pass. There is no network: ``mvn -o -q test``, ``gradle --offline test``."""
    compile: str | None = None
    """Shell command; its exit code is not 0 if the code does not compile."""
    results: list[str] = []
    """Files in JUnit's XML that the tests leave, for the names of test cases."""
    environment: dict[str, str] = {}
    """Variables beside PATH and LANG, and instead of HOME and TMPDIR, which are the program's own folder."""

    def steps(self, bug: Bug) -> list[Step]:
        """Both commands, through the shell."""
        pairs = [("compile", self.compile), ("test", self.test)]
        return [
            Step(name, ["/bin/sh", "-c", line], collect=self.results if name == "test" else (), environment=self.environment)
            for name, line in pairs if line is not None
        ]  # fmt: skip


class Defects4J(Adapter):
    """A bug of Defects4J, in a checkout of it, by its command line."""

    address_space: ClassVar[bool] = False

    relevant: bool = True
    """Only the tests that touch the changed classes."""

    def steps(self, bug: Bug) -> list[Step]:
        """Its own commands in the copied checkout."""
        return [
            Step("compile", ["defects4j", "compile"]),
            Step(
                "test",
                ["defects4j", "test", *(["-r"] if self.relevant else [])],
                collect=["failing_tests", "all_tests"],
            ),
        ]

    def test_cases(self, outcome: Outcome) -> dict[str, bool]:
        """Those in the file ``all_tests`` (``method(Class)``), and the failing ones, as ``  - Class::method``."""
        ran = re.findall(r"^(\S+)\((\S+)\)$", outcome.files.get("all_tests", ""), re.MULTILINE)
        failed = re.findall(r"^\s+- (\S+)$", outcome.output, re.MULTILINE)
        return {f"{owner}::{method}": True for method, owner in ran} | dict.fromkeys(failed, False)

    def passed(self, outcome: Outcome, cases: Mapping[str, bool]) -> bool:
        """It says that none failed."""
        return re.search(r"^Failing tests: 0$", outcome.output, re.MULTILINE) is not None


ADAPTERS: dict[str, type[Adapter]] = {
    "asserts": Asserts,
    "pytest": Pytest,
    "java": Java,
    "command": Command,
    "defects4j": Defects4J,
}


def adapter(bug: Bug) -> Adapter:
    """The adapter that a bug names, with its options.

    Raises:
        UserError: There is none of that name, or it has no such option.
    """
    options = dict(bug.tests)
    kind = ADAPTERS.get(str(options.pop("type", "")))
    if kind is None:
        raise UserError(
            f"there is no way to test called {bug.tests.get('type')!r}",
            f"tests of the bug {bug.id}",
            f"one of: {', '.join(ADAPTERS)}",
        )
    try:
        return kind(**options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UserError(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}", f"tests of the bug {bug.id}",
            f"options of {bug.tests['type']}: {', '.join(kind.model_fields)}",
        ) from error  # fmt: skip


def junit_cases(text: str) -> dict[str, bool]:
    """Test cases of a report in JUnit's XML by name, and whether each passed; skipped ones are left out."""
    try:
        root = ElementTree.fromstring(text)
    except (ParseError, ValueError):  # no XML, or with entities that grow: candidates may write it
        return {}
    cases: dict[str, bool] = {}
    for case in root.iter("testcase"):
        if case.find("skipped") is None:
            name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
            cases[name] = (
                cases.get(name, True) and case.find("failure") is None and case.find("error") is None
            )
    return cases


def _lines(text: str, *, first: bool) -> str:
    """The lines that say most: a compiler's first ones, the last ones of tests."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:_MESSAGE_LINES] if first else lines[-_MESSAGE_LINES:])


@functools.cache
def _java_tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UserError(
            f"there is no {name}", "PATH", "install a JDK, such as Debian's openjdk-17-jdk-headless"
        )
    return found


def _junit() -> tuple[str, ...]:
    missing = [jar for jar in JUNIT if not Path(jar).is_file()]
    if missing:
        raise UserError(
            f"there is no {missing[0]}",
            "tests of type java with junit",
            "install Debian's junit4 and libhamcrest-java",
        )
    return JUNIT
