"""What lies where in a run folder; atomic writes; content hashes; the log."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from luthier.errors import UserError

logger = logging.getLogger("luthier")

SWEEP = "sweep.json"  # what makes a folder of run folders a sweep


class RunFolder:
    """The paths of one run. Files are written whole or not at all; a name that exists can be trusted."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.environment = self.path / "environment.json"
        self.start = self.path / "start"
        self.data = self.path / "data"
        self.ledger = self.data / "ledger.json"
        self.manifest = self.data / "manifest.json"
        self.labels = self.data / "labels.json"
        self.dropped = self.data / "dropped.jsonl"
        self.findings = self.path / "findings.json"
        self.history = self.path / "history.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.predictions = self.path / "predictions.jsonl"
        self.scores = self.path / "scores.json"
        self.ontology = self.path / "ontology"
        self.repair = self.path / "repair"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self.log = self.path / "run.log"
        self.stages = self.path / "stages.json"
        self.stopped = self.path / "stopped.json"
        self.launch = self.path / "launch"
        self.changes = self.path / "changes.json"
        self.forgetting = self.path / "forgetting.json"

    def rows(self, split: str) -> Path:
        """The Arrow file (IPC file format) of a split's encoded rows."""
        return self.data / f"{split}.arrow"

    def training(self, name: str) -> RunFolder:
        """The folder of a training stage of this run's recipe."""
        return RunFolder(self.path / "stages" / name)

    def trainings(self) -> dict[str, RunFolder]:
        """The folders of all training stages by name, in order; none where the recipe is one training."""
        told = read_json(self.changes, list) if self.changes.is_file() else []
        return {entry["stage"]: self.training(entry["stage"]) for entry in told}

    def beside(self, name: str) -> RunFolder:
        """Another training stage of the recipe that this folder is a stage of."""
        return RunFolder(self.path.absolute().parent / name)

    def on(self, earlier: RunFolder) -> RunFolder:
        """Where this stage's model is judged on the rows of an earlier one."""
        place = RunFolder(self.path / "on" / earlier.path.name)
        for name in ("data", "ledger", "manifest", "labels", "dropped"):
            setattr(place, name, getattr(earlier, name))
        return place

    def result(self) -> Path | None:
        """The trained adapter or model, if there is one."""
        return next((p for p in (self.adapter, self.model) if p.is_dir()), None)

    def form(self) -> Path:
        """What of the rows' form has to be the same in inference; lies beside the trained weights where a task says so."""
        return (self.result() or self.adapter) / "luthier_form.json"

    def note_stopped(self, kind: str, exit_code: int, what: str, where: str, fix: str) -> None:
        """Writes ``stopped.json``, unless another process of the run has said before why it ended.

        Args:
            kind: ``interrupted``, ``refused``, ``mistake``, ``defect`` or ``killed``.
            exit_code: Of ``luthier``.
            what: As in an error.
            where: The same.
            fix: The same.
        """
        words = {"what": what, "where": where, "fix": fix}  # of data, maybe, which need not be Unicode
        words = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in words.items()}
        said = {"kind": kind, "exit_code": exit_code, **words}
        with contextlib.suppress(FileExistsError), open(self.stopped, "x", encoding="utf-8") as file:
            file.write(json.dumps(said, indent=1, ensure_ascii=False) + "\n")

    def siblings(self) -> list[RunFolder]:
        """The other runs of the sweep that this run belongs to; none outside of a sweep."""
        sweep = self.path.resolve().parent
        if not (sweep / SWEEP).is_file():
            return []
        return [
            RunFolder(path)
            for path in sorted(sweep.iterdir())
            if path.name != self.path.resolve().name and (path / "recipe.yaml").is_file()
        ]

    @contextlib.contextmanager
    def alone_in_sweep(self) -> Iterator[None]:
        """The runs of a sweep go through the block one after the other, on whatever machine they are."""
        lock = self.path.resolve().parent / ".lock"
        if not (lock.parent / SWEEP).is_file():
            yield
            return
        with open(lock, "a") as file:
            # Some network file systems have no locks: each run then does for itself what one could do for all.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def create(self) -> None:
        """Makes the folder.

        Raises:
            UserError: It cannot be made or written.
        """
        with user_disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor, probe = tempfile.mkstemp(dir=self.path, prefix=".probe-")
            os.close(descriptor)
            os.unlink(probe)


def cache_folder() -> Path:
    """Where fetched models and releases are kept: ``LUTHIER_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("LUTHIER_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("luthier")


@contextlib.contextmanager
def user_disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a folder without permission into an error that says so."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # safetensors and tokenizers are written in Rust: their errors are no OSErrors, but name the system's.
        if not isinstance(error, OSError) and not re.search(r"\(os error \d+\)", str(error)):
            raise
        raise UserError(
            f"cannot write: {getattr(error, 'strerror', None) or error}",
            str(getattr(error, "filename", None) or path),
            "free some space, or name another folder with --run; finished stages are kept and not done again",
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all. NaN and infinity are refused: they are no JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """A line of a JSONL file."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Writes a JSONL file whole or not at all."""
    write_text(path, "".join(map(json_line, values)))


class _Lacking(UserError, KeyError):
    """A key is not in a file; also a ``KeyError``, for those who can do without it (templates, say)."""


class _Object(dict[str, Any]):
    """A JSON object of a run folder's file, which says so itself where it lacks a key."""

    file = Path()

    def __missing__(self, key: str) -> Any:
        what = f"{self.file.name} holds no {key!r} where there has to be one"
        raise _Lacking(what, str(self.file), _AGAIN)


_AGAIN = "delete that file and run the stage again"
# Of what kind is what readers go through, where it is there.
_KINDS: dict[str, dict[str, type]] = {
    "scores.json": {"num_rows": int, "num_groups": int, "metrics": dict, "mcnemar": dict, "seconds": dict},
    "predictions.jsonl": {"id": str, "group": str, "prompt": str, "meta": dict, "base": dict, "tuned": dict},
    "history.jsonl": {"eval": dict},
    "environment.json": {"started": str, "packages": dict},
    "ledger.json": {"splits": dict, "records": dict, "rows": dict, "duplicates": dict},
    "findings.json": {"findings": list, "passed": list, "skipped": list, "waived": list},
}  # fmt: skip


def _parsed(text: str | bytes, path: Path, kind: type = dict) -> Any:
    """JSON, every object of which knows its file.

    Raises:
        ValueError: It is none, or of another kind.
    """

    def know(pairs: dict[str, Any]) -> _Object:
        each = _Object(pairs)
        each.file = path
        return each

    value = json.loads(text, object_hook=know)
    for one in value if kind is list and isinstance(value, list) else (value,):
        if not isinstance(one, dict):
            raise ValueError(f"no object, but {type(one).__name__}")
        for key, needed in _KINDS.get(path.name.partition(":")[0], {}).items():
            if one.get(key) is not None and not isinstance(one[key], needed):
                raise ValueError(
                    f"{key!r} is of the kind {type(one[key]).__name__.strip('_')}, not {needed.__name__}"
                )
    return value


def read_json(path: Path, kind: type = dict) -> Any:
    """The content of a JSON file of the run folder.

    Args:
        path: The file.
        kind: ``dict`` for an object, ``list`` for a list of objects.

    Raises:
        UserError: Missing, damaged, or without a key that is asked for, also later.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"), path, kind)
    except FileNotFoundError as error:
        raise UserError(f"{path.name} is not there yet", str(path), "run the stage that writes it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is damaged: {error}", str(path), _AGAIN) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well, and goes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                os.chmod(file, 0o644)  # safetensors writes files that only their owner may read
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        os.chmod(temporary, 0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none where there is no file. A half-written last line, as a crash leaves it, is left out.

    Raises:
        UserError: Another line is no JSON object, or one lacks a key that is asked for, also later.
    """
    rows = []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_parsed(line, Path(f"{path}:{number}")))
        except (ValueError, RecursionError) as error:
            if not line.endswith(b"\n"):
                break
            raise UserError(
                f"{path.name} is damaged in line {number}: {error}",
                f"{path}:{number}",
                "mend or delete that line",
            ) from error
    return rows


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_folder(path: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """SHA-256 over names and contents of a folder's files that match."""
    files = sorted({f for pattern in patterns for f in path.rglob(pattern) if f.is_file()})
    return hash_value([(str(f.relative_to(path)), hash_file(f)) for f in files])
