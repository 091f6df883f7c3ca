"""The prepare stage: raw records -> copies out -> splits -> encoded rows on disk, with ledger and manifest.

Memory stays flat however many records there are: text streams through in chunks, and what is held for each record
is a few numbers (about 100 bytes).
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import shutil
import sys
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from luthier.encoding.raw_records import own_name, plain_fields
from luthier.errors import UserError
from luthier.prepare.chunks import encode_chunks, num_workers
from luthier.prepare.deduplicate import Copies, Deduplicator
from luthier.prepare.ledger import Ledger, describe, hash_names
from luthier.prepare.raw import RawWriter, column, read_records, reading
from luthier.prepare.split import assign, stable_hash
from luthier.recipe import Options, Recipe, build
from luthier.records import SPLITS, Dropped, Progress, Record, Split
from luthier.registry import code_hash
from luthier.rows import RowWriter, read_batches, token_hashes
from luthier.run_folder import (
    RunFolder,
    hash_file,
    hash_folder,
    hash_value,
    logger,
    new_folder,
    read_json,
    user_disk_errors,
    write_json,
)

if TYPE_CHECKING:
    from luthier.encoding.text_tokenizer import TextTokenizer


# Files of luthier that rows are made by, beside the task's own.
_CODE = (
    "prepare/*.py", "encoding/*.py", "projects/*.py", "sources/*.py", "ontology/*.py", "execution/feedback.py", "rows.py",
    "records.py",
)  # fmt: skip
_MOST_LABELS = 20_000
_OWN_SOURCES = {"eval": "eval_source", "test": "test_source"}  # by split; later ones outrank earlier ones


def prepare(
    recipe: Recipe,
    run: RunFolder,
    tokenizer: TextTokenizer,
    *,
    trained: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Writes ``run.data``, whole or not at all; False if it, or another run of the sweep, had those rows already.

    Args:
        recipe: The run's.
        run: Its folder.
        tokenizer: The model's, new tokens included.
        trained: Training has begun on the rows that lie there: others are refused.
        progress: Called with the phase, how much of it is done, and of how much (None: unknown).

    Raises:
        UserError: Other rows than were trained on, two records of one id, nothing to keep, an empty split, a disk that cannot be written.
    """
    # What multiprocessing itself asks when a process is started; by then this one would wait for its parent, or it for us.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "a process that was started to encode rows runs the whole script that started it again",
            sys.argv[0],
            'put what calls luthier under `if __name__ == "__main__":`, or set data.num_workers: 1',
        )
    report = progress or (lambda phase, done, total: None)
    facts = inputs(recipe, tokenizer)
    key = hash_value(facts)
    with run.alone_in_sweep():
        if _unchanged(run, key) or _taken_over(run, key):
            return False
        if trained and run.manifest.is_file():
            _refuse_others(run, facts)
        _write(recipe, run, tokenizer, report, {"key": key, "inputs": facts})
    return True


def _refuse_others(run: RunFolder, facts: Mapping[str, Any]) -> None:
    """Keeps the rows of a training from being replaced, by which it could not go on nor be looked at."""
    before = read_json(run.manifest).get("inputs", {})
    if changed := [name for name in facts if before.get(name) != facts[name]]:
        raise UserError(
            f"the rows that this run was trained on would be replaced: {', '.join(changed)} changed since they were made",
            str(run.data),
            f"name another folder with --run; or, to train anew here, delete {run.path} first",
        )


def _write(
    recipe: Recipe, run: RunFolder, tokenizer: TextTokenizer, report: Progress, manifest: dict[str, Any]
) -> None:
    with user_disk_errors(run.data):
        for left in run.path.glob(f".{run.data.name}-*"):  # of a process that was killed
            shutil.rmtree(left)
        with new_folder(run.data) as folder:
            _Preparation(recipe, tokenizer, folder, report).run()
            files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
            write_json(folder / run.manifest.name, manifest | {"files": files})


def _taken_over(run: RunFolder, key: str) -> bool:
    """Whether another run of the same sweep had made these very rows, which now are this run's as well."""
    for other in run.siblings():
        if _unchanged(other, key):
            with user_disk_errors(run.data), new_folder(run.data) as folder:
                for file in other.data.iterdir():
                    try:
                        os.link(file, folder / file.name)  # costs no space, and outlives the other run
                    except OSError:
                        shutil.copy2(file, folder / file.name)
            logger.info("prepare: the same rows as %s, taken from there", other.path.name)
            return True
    return False


def inputs(recipe: Recipe, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Everything that the rows depend on, as JSON: prepared data whose inputs are the same is not made again."""
    data = recipe.data.model_dump(
        mode="json", exclude={"num_workers", "seed", "source", *_OWN_SOURCES.values()}
    )
    sources = {}
    for name in ("source", *_OWN_SOURCES.values()):
        options = getattr(recipe.data, name)
        if options is not None:
            source = build("source", options, f"recipe key data.{name}")
            with reading(f"recipe key data.{name}"):
                sources[name] = {**_described(options["type"], source), "fingerprint": source.fingerprint()}
    task = build("task", recipe.task, "recipe key task")
    return {
        "sources": sources,
        "task": _described(recipe.task["type"], task) | {"fingerprint": task.fingerprint()},
        "data": data,
        "tokenizer": tokenizer.hash(),
        "seed": recipe.rows_seed,
        "code": hash_folder(Path(__file__).parents[1], _CODE),
        "rensa": importlib.metadata.version("rensa"),
    }


def _described(name: str, entry: Options) -> dict[str, Any]:
    own = [cls for cls in type(entry).__mro__ if issubclass(cls, Options) and cls is not Options]
    return {"type": name, "options": entry.model_dump(mode="json"), "code": [code_hash(cls) for cls in own]}


def _unchanged(run: RunFolder, key: str) -> bool:
    try:
        manifest = read_json(run.manifest)
        return bool(manifest["key"] == key) and all(
            hash_file(run.data / name) == content for name, content in manifest["files"].items()
        )
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False  # absent or damaged: made anew


class _Preparation:
    """One run of the stage: the steps in order, and the few numbers a record that pass between them."""

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, folder: Path, report: Progress) -> None:
        self.recipe, self.tokenizer, self.folder, self.report = recipe, tokenizer, folder, report
        self.task = build("task", recipe.task, "recipe key task")
        self.work = folder / "work"
        self.raw = self.work / "raw.arrow"
        self.ids = array("Q")  # stable_hash of each record's id
        self.groups = array("Q")  # ... and of its group
        self.ranks = array("B")  # 0: split by shares; else the index of its split
        self.label_names: dict[str, int] = {}  # number of each label of data.source, by first appearance
        self.num_labelled: Counter[str] = Counter()  # its records
        self.labels = array("i")  # first label of each record, by that number; -1 for none

    def run(self) -> None:
        """Writes the Arrow files, ``dropped.jsonl`` and ``ledger.json`` into the folder."""
        self.work.mkdir()
        with Ledger(self.folder / "dropped.jsonl") as ledger:
            self.ledger = ledger
            copies = self._read()
            keep, splits = self._choose(copies)
            self._resolve(keep, splits)
            self._encode(keep, splits)
            described = {split: describe(self.folder / f"{split}.arrow") for split in SPLITS}
            ledger.num_kept["rows"] = sum(facts["rows"] for facts in described.values())
            ledger.check()
            self._refuse_empty({split: facts["rows"] for split, facts in described.items()}, keep, splits)
            shutil.rmtree(self.work)
            summary = {
                "records": ledger.summary("records"),
                "rows": ledger.summary("rows"),
                "duplicates": {
                    "exact": int((copies.exact_of >= 0).sum()),
                    "near": copies.num_near,
                    "clusters": copies.num_clusters,
                },
                "drop_share": ledger.drop_share(),
                "drop_budget": self.recipe.data.drop_budget,
                "splits": described,
            }
            write_json(self.folder / "ledger.json", summary)

    def _read(self) -> Copies:
        """Streams all sources into the raw file, and finds the copies among the records."""
        data = self.recipe.data
        near, threshold = data.near_duplicates, data.near_duplicate_threshold
        with Deduplicator(self.work, near, threshold) as deduplicator, RawWriter(self.raw) as raw:
            for rank, name in enumerate(("source", *_OWN_SOURCES.values())):
                options = getattr(data, name)
                for item in read_records(options, f"recipe key data.{name}") if options is not None else ():
                    self.ledger.num_in["records"] += 1
                    if isinstance(item, Dropped):
                        self.ledger.drop("records", item)
                        continue
                    record = own_name(item, SPLITS[rank] if rank else None)
                    fields = plain_fields(record)
                    if isinstance(fields, Dropped):
                        self.ledger.drop("records", fields)
                        continue
                    self.ids.append(stable_hash(record.id))
                    self.groups.append(stable_hash(record.group))
                    self.ranks.append(rank)
                    self._note_labels(record, rank)
                    if raw.add(
                        record,
                        fields,
                        self._duplicate_text(record),
                        SPLITS[rank] if rank else None,
                        self.task.neighbourhood(record),
                    ):
                        deduplicator.add(raw.flush())
                        self.report("reading", self.ledger.num_in["records"], None)
            deduplicator.add(raw.flush())
            raw.close()
            self._refuse_twice(np.array(self.ids), [self.raw], "record", "recipe key data.source")
            self.report("reading", len(self.ids), len(self.ids))
            return deduplicator.find(
                np.array(self.ranks), lambda done, total: self.report("duplicates", done, total)
            )

    def _duplicate_text(self, record: Record) -> str:
        """The task's; a record without text is no copy of another, and dropped for what it is."""
        text = self.task.duplicate_text(record)
        return text if text.strip() else f"{stable_hash(record.id):x}"

    def _note_labels(self, record: Record, rank: int) -> None:
        """Labels of a split's own source add none: what training never sees has no class."""
        names = self.task.labels_of(record)
        for name in names if rank == 0 else ():
            self.label_names.setdefault(name, len(self.label_names))
            self.num_labelled[name] += 1
        if len(self.label_names) > _MOST_LABELS:
            raise UserError(
                f"there are more than {_MOST_LABELS:,} labels, {names[0]!r} among them: these are no classes",
                "recipe key task.label",
                "name the column that holds the class of a row",
            )
        self.labels.append(self.label_names.get(names[0], -1) if names else -1)

    def _resolve(self, keep: np.ndarray, splits: np.ndarray) -> None:
        """Tells the task which labels there are, and writes them down."""
        if not self.label_names:
            if self.task.model_dump().get("labels") == "auto":
                raise UserError(
                    "no record has a label",
                    "recipe key task.label",
                    "name the column that holds the class of a row",
                )
            return
        labels = np.array(self.labels)[keep & (splits == 0)]
        counts = np.bincount(labels[labels >= 0], minlength=len(self.label_names))
        of = Counter(dict(zip(self.label_names, counts.tolist(), strict=True)))
        self.task = self.task.resolved(of)
        names = self.task.model_dump()["labels"]
        records = [self.num_labelled[name] for name in names]
        options = {"type": self.recipe.task["type"], **self.task.model_dump(mode="json")}
        write_json(self.folder / "labels.json", {"names": names, "num_records": records, "task": options})

    def _choose(self, copies: Copies) -> tuple[np.ndarray, np.ndarray]:
        """Which records are kept, bool, and the split of each, uint8; shape (num_records,) both."""
        groups, ranks = np.array(self.groups, np.uint64), np.array(self.ranks, np.int64)
        keep = (copies.exact_of < 0) & (copies.near_of < 0)
        dropped: dict[int, tuple[str, int | None, bool]] = {}
        for index in np.flatnonzero(copies.exact_of >= 0).tolist():
            dropped[index] = ("exact-duplicate", int(copies.exact_of[index]), False)
        for index in np.flatnonzero(copies.near_of >= 0).tolist():
            dropped[index] = ("near-duplicate", int(copies.near_of[index]), False)
        for rank, split in ((2, "test"), (1, "eval")):  # a group of a split's own source is nowhere else
            straddling = keep & (ranks < rank) & np.isin(groups, groups[keep & (ranks == rank)])
            dropped |= dict.fromkeys(np.flatnonzero(straddling).tolist(), (f"group-in-{split}", None, True))
            keep &= ~straddling
        self._drop_records(dropped)

        shares = [0.0 if name in self._own() else getattr(self.recipe.data.splits, name) for name in SPLITS]
        splits = ranks.astype(np.uint8)
        free = keep & (ranks == 0)
        splits[free] = assign(groups[free], copies.clusters[free], shares, self.recipe.rows_seed)
        return keep, splits

    def _own(self) -> list[str]:
        """The splits that have a source of their own."""
        return [split for split, name in _OWN_SOURCES.items() if getattr(self.recipe.data, name) is not None]

    def _drop_records(self, dropped: dict[int, tuple[str, int | None, bool]]) -> None:
        """Enters records by index into the ledger, with the name of the record that each is a copy of."""
        wanted = {*dropped, *(of for _, of, _ in dropped.values() if of is not None)}
        names = {i: name for i, name in enumerate(column([self.raw], "id")) if i in wanted}
        groups = {i: name for i, name in enumerate(column([self.raw], "group")) if i in wanted}
        for index, (reason, of, budgeted) in sorted(dropped.items()):
            detail = f"group {groups[index]!r}" if of is None else f"copy of {names[of]}"
            self.ledger.drop("records", Dropped(names[index], reason, detail, budgeted))

    def _encode(self, keep: np.ndarray, splits: np.ndarray) -> None:
        """Writes the Arrow file of each split."""
        paths = {split: self.work / f"{split}.arrow" for split in SPLITS}
        writers: dict[str, RowWriter] = {split: RowWriter(path) for split, path in paths.items()}
        names: dict[str, list[np.ndarray]] = {split: [np.empty(0, np.uint64)] for split in SPLITS}
        tokens: dict[str, list[np.ndarray]] = {split: [np.empty(0, np.int64)] for split in SPLITS}
        chunks = encode_chunks(
            num_workers(self.recipe.data.num_workers, self.raw), keep, splits, self.raw,
            {"type": self.recipe.task["type"], **self.task.model_dump(mode="json")}, self.tokenizer, self.recipe.data.max_length, self.recipe.rows_seed,
        )  # fmt: skip
        num_records = num_no_example = 0
        for chunk in chunks:
            self.ledger.num_in["rows"] += chunk.num_made
            for dropped in chunk.dropped:
                self.ledger.drop("rows", dropped)
            for dropped in chunk.no_example:
                self.ledger.drop("records", dropped)
            num_no_example += len(chunk.no_example)
            for split, batches in chunk.batches.items():
                for batch in batches:
                    writers[split].write(batch)
                    names[split].append(hash_names(batch.column("id")))
                    tokens[split].append(token_hashes(batch))
            num_records += chunk.num_records
            self.report("encoding", num_records, int(keep.sum()))
        self.ledger.num_kept["records"] = num_records - num_no_example
        for writer in writers.values():
            writer.close()
        whole = {split: np.concatenate(parts) for split, parts in names.items()}
        self._refuse_twice(
            np.concatenate([whole[split] for split in SPLITS]),
            [paths[split] for split in SPLITS],
            "row",
            f"task {self.recipe.task['type']}",
        )
        elsewhere: dict[Split, np.ndarray] = {}
        order: tuple[Split, ...] = ("test", "eval", "train")
        for split in order:
            own = np.concatenate(tokens[split])
            kept = self._select(split, whole[split], own, elsewhere)
            elsewhere[split] = own[kept]

    def _select(
        self, split: Split, names: np.ndarray, tokens: np.ndarray, elsewhere: dict[Split, np.ndarray]
    ) -> np.ndarray:
        """Puts a split's rows in their place, without those that have become equal to rows of another split by being cut.

        Of the others at most ``data.max_rows`` are taken: those whose ids have the smallest hashes.

        Args:
            split: Its name.
            names: ``stable_hash`` of the ids of its rows, shape (num_rows,).
            tokens: ``token_hashes`` of them, shape (num_rows,).
            elsewhere: The same of the rows of splits that were selected before.

        Returns:
            Which rows are kept, bool, shape (num_rows,).
        """
        reasons: list[tuple[str, str]] = []
        why = np.zeros(len(names), np.uint8)  # number of the reason; 0: kept
        for other, taken in elsewhere.items():
            reasons.append((f"row-in-{other}", f"a row of {other} has the same tokens"))
            why[(why == 0) & np.isin(tokens, taken)] = len(reasons)
        limit = self.recipe.data.max_rows.get(split)
        if limit is not None:
            seeded = names ^ np.uint64(stable_hash(str(self.recipe.rows_seed)))  # another seed, other rows
            order = np.argsort(seeded, kind="stable")
            reasons.append(("over-max-rows", f"data.max_rows.{split} is {limit}"))
            why[order[why[order] == 0][limit:]] = len(reasons)
        written, place = self.work / f"{split}.arrow", self.folder / f"{split}.arrow"
        keep: np.ndarray = why == 0
        if keep.all():
            written.replace(place)
            return keep
        start = 0
        with RowWriter(place) as writer:
            for batch in read_batches(written):
                part = why[start : start + batch.num_rows]
                start += batch.num_rows
                writer.write(batch.filter(pa.array(part == 0)))
                ids = batch.column("id").filter(pa.array(part != 0)).to_pylist()
                for name, number in zip(ids, part[part != 0].tolist(), strict=True):
                    reason, detail = reasons[number - 1]
                    self.ledger.drop("rows", Dropped(name, reason, detail, budgeted=False))
        return keep

    def _refuse_twice(self, hashes: np.ndarray, files: list[Path], what: str, where: str) -> None:
        """Raises a UserError that names both places of an id that stands twice."""
        ordered = np.sort(hashes)
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        seen: dict[str, int] = {}
        for place, name in enumerate(column(files, "id") if suspects else ()):
            if stable_hash(name) in suspects:
                if name in seen:
                    raise UserError(
                        f"{what} {seen[name] + 1} and {what} {place + 1} have the same id {name!r}",
                        where,
                        f"give each {what} an id of its own, so that what is dropped or predicted can be named",
                    )
                seen[name] = place

    def _refuse_empty(self, num_rows: dict[str, int], keep: np.ndarray, splits: np.ndarray) -> None:
        data = self.recipe.data
        if not self.ledger.num_in["records"]:
            raise UserError(
                "the source gave no records",
                "recipe key data.source",
                "name files or a folder that hold some",
            )
        own = self._own()
        groups = np.array(self.groups, np.uint64)
        for number, split in enumerate(SPLITS):
            share = getattr(data.splits, split)
            if num_rows[split] or (split not in own and not share):
                continue
            mine = keep & (splits == number)
            if mine.any() or split in own or not keep.any():
                raise UserError(
                    f"the {split} split is empty: of {int(mine.sum())} kept records none gave a row. "
                    f"Dropped: {self.ledger.why()}",
                    "recipe key task" if mine.any() else "recipe key data",
                    f"mend the most frequent reason above; data.max_length is {data.max_length}",
                )
            num_groups = len(np.unique(groups[keep & np.isin(splits, [0, *self._shared()])]))
            raise UserError(
                f"the {split} split is empty: {num_groups} groups are too few for a share of {share:g}",
                f"recipe key data.splits.{split}",
                f"take more data or finer groups, a larger share, or another seed (now {self.recipe.rows_seed})"
                + ("" if split == "train" else f"; or none, with data.splits.{split}: 0"),
            )

    def _shared(self) -> list[int]:
        return [number for number, split in enumerate(SPLITS) if split not in self._own()]
