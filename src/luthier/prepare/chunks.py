"""Encoding the kept records chunk by chunk, in this process or in several, with the same result in the same order."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.encoding.encode import encode
from luthier.encoding.raw_records import Neighbours
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.recipe import Auto, build
from luthier.records import SPLITS, Dropped, Example, Record, Row
from luthier.rows import BATCH_ROWS, to_batch

# A process takes some seconds to start and to import the tokenizer; less text than this is encoded sooner in one.
_LARGE_BYTES = 16_000_000


@dataclass
class Chunk:
    """What became of the records of one chunk.

    Attributes:
        batches: Encoded rows by split, of ``rows.SCHEMA``.
        num_records: Records that were taken.
        num_made: Examples that the task made, and those that it dropped.
        dropped: Rows that were dropped.
        no_example: Records that the task said nothing about.
    """

    batches: dict[str, list[pa.RecordBatch]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    num_records: int = 0
    num_made: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    no_example: list[Dropped] = field(default_factory=list)


class ChunkEncoder:
    """Turns a chunk of the raw file into rows. It holds nothing that could differ between processes.

    Args:
        raw: Arrow file of records, one batch a chunk.
        task: The recipe's ``task``.
        tokenizer: The model's.
        max_length: Tokens of a row at most.
        seed: The recipe's.
    """

    def __init__(
        self, raw: Path, task: Mapping[str, Any], tokenizer: TextTokenizer, max_length: int, seed: int
    ) -> None:
        self._reader = pa.ipc.open_file(pa.OSFile(str(raw)))
        self._task_name = task["type"]
        self._task = build("task", task, "recipe key task")
        self._tokenizer, self._max_length, self._seed = tokenizer, max_length, seed
        places: dict[str | None, dict[str, list[tuple[int, int]]]] = {}
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            keys = zip(batch["split"].to_pylist(), batch["neighbourhood"].to_pylist(), strict=True)
            for place, (split, key) in enumerate(keys):
                if key is not None:
                    places.setdefault(split, {}).setdefault(key, []).append((number, place))
        self._neighbours = {split: Neighbours(found, self._read) for split, found in places.items()}

    def encode(self, index: int, keep: np.ndarray, splits: np.ndarray) -> Chunk:
        """The rows of one chunk.

        Args:
            index: Which chunk.
            keep: Which of its records are kept, bool, shape (num_records,).
            splits: Index into ``records.SPLITS`` of each record, shape (num_records,).
        """
        chunk = Chunk()
        rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
        raw = self._reader.get_batch(index)
        for place in np.flatnonzero(keep).tolist():
            split = SPLITS[splits[place]]
            record = _record(raw, place, self._neighbours.get(raw["split"][place].as_py(), {}))
            chunk.num_records += 1
            num_before = chunk.num_made
            for item in self._task.examples(
                record, split, self._tokenizer, max_length=self._max_length, seed=self._seed
            ):
                chunk.num_made += 1
                result = item
                if isinstance(item, Example):
                    self._check_group(item, record)
                    result = encode(item, self._tokenizer, self._max_length)
                if isinstance(result, Dropped):
                    chunk.dropped.append(result)
                    continue
                rows[split].append(result)
                if len(rows[split]) == BATCH_ROWS:
                    chunk.batches[split].append(to_batch(rows[split]))
                    rows[split] = []
            if chunk.num_made == num_before:
                detail = f"the task {self._task_name} made no example of it and gave no reason"
                chunk.no_example.append(Dropped(record.id, "no-example", detail))
        for split, rest in rows.items():
            if rest:
                chunk.batches[split].append(to_batch(rest))
        return chunk

    def _read(self, places: Sequence[tuple[int, int]]) -> list[Record]:
        """The records at some places of the raw file, which are given in its order."""
        records = []
        for number, group in groupby(places, key=lambda place: place[0]):
            batch = self._reader.get_batch(number)
            records += [_record(batch, place, {}) for _, place in group]
        return records

    def _check_group(self, example: Example, record: Record) -> None:
        if example.group != record.group:
            raise UserError(
                f"example {example.id!r} has the group {example.group!r}, but its record's is {record.group!r}: "
                "splits are by the record's group, so it could straddle two",
                f"task {self._task_name}",
                "pass record.group on to the Example",
            )


def _record(batch: pa.RecordBatch, place: int, neighbours: Mapping[str, Sequence[Record]]) -> Record:
    return Record(
        batch["id"][place].as_py(),
        json.loads(batch["fields"][place].as_py()),
        batch["group"][place].as_py(),
        neighbours,
    )


_encoder: ChunkEncoder | None = None  # of a worker process


def _start(*arguments: Any) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = ChunkEncoder(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])  # a parent that was killed tells nobody
        os._exit(1)


def _encode(index: int, keep: np.ndarray, splits: np.ndarray) -> Chunk:
    assert _encoder is not None
    return _encoder.encode(index, keep, splits)


def num_workers(wanted: int | Auto, raw: Path) -> int:
    """How many processes encode: as told, or the cores at hand for larger data and one for small."""
    if wanted != "auto":
        return wanted
    if raw.stat().st_size < _LARGE_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_chunks(
    workers: int, keep: np.ndarray, splits: np.ndarray, raw: Path, *encoder: Any
) -> Iterator[Chunk]:
    """The encoded chunks of the raw file in its order, whatever the number of workers.

    Args:
        workers: Processes; 1 encodes in this one.
        keep: Which records are kept, bool, shape (num_records,).
        splits: Index into ``records.SPLITS`` of each record, shape (num_records,).
        raw: Arrow file of records.
        *encoder: The further arguments of ``ChunkEncoder``.

    Raises:
        UserError: A task's fault, or a worker process died.
    """
    jobs = _jobs(raw, keep, splits)
    if workers == 1:
        here = ChunkEncoder(raw, *encoder)
        for job in jobs:
            yield here.encode(*job)
        return
    others = set(multiprocessing.active_children())
    # Forking a process that has loaded torch is unsafe: its threads' locks would stay locked.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(raw, *encoder)
    )
    try:
        waiting: deque[Future[Chunk]] = deque()
        for job in jobs:
            # Workers inherit what is blocked: one that is still starting would answer Ctrl-C with a traceback.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            waiting.append(pool.submit(_encode, *job))
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if len(waiting) > 2 * workers:  # results that wait for their turn take memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that encodes rows died; its own message, if any, is above, and without one memory ran out",
            "recipe key data.num_workers",
            'set data.num_workers: 1; a script of yours that calls luthier needs `if __name__ == "__main__":` as well',
        ) from error
    except BaseException:  # Ctrl-C, a full disk, a task's fault: nobody waits for what the workers are at
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _jobs(raw: Path, keep: np.ndarray, splits: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    start = 0
    with pa.OSFile(str(raw)) as file, pa.ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            end = start + reader.get_batch(index).num_rows
            if keep[start:end].any():
                yield index, keep[start:end], splits[start:end]
            start = end
