"""A thousand bad inputs through the command line: each ends in words that help, none in a traceback or in half of something.

Inputs are made by families from seeds, so that a failure names the input that can be made again.
"""

import contextlib
import gzip
import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
import zstandard
from pydantic import BaseModel, TypeAdapter, ValidationError
from tests.fixtures.tiny_model import save_model

from luthier import cli, recipe, registry
from luthier.run_folder import hash_file

STAGES = ("run", "prepare", "check", "train", "evaluate", "report", "show")
AT_ONCE = 25


@dataclass
class Kit:
    """What is healthy, for the generators to spoil."""

    model: Path
    """A model folder."""
    home: Path
    """An empty folder of the test."""

    def rows(self, count: int = 40) -> list[dict[str, Any]]:
        """Rows of an instruction data set."""
        return [
            {"prompt": f"question {i * 7919 % 997}", "response": f"answer {i * 31}"} for i in range(count)
        ]

    def tree(self, **sections: Any) -> dict[str, Any]:
        """A recipe that works on ``rows.jsonl``."""
        tree = {
            "name": "bad",
            "task": {"type": "instruction", "format": "plain"},
            "model": {"name": str(self.model), "precision": "fp32"},
            "data": {
                "source": {"type": "files", "path": str(self.home / "rows.jsonl")},
                "num_workers": 1,
                "near_duplicates": "off",
            },
            "train": {"max_steps": 2, "num_samples": 0},
            "evaluate": {"generate": False, "num_bootstrap": 100},
        }
        for name, section in sections.items():
            tree[name] = {**tree[name], **section} if isinstance(section, dict) and name in tree else section
        return tree

    def write(self, tree: Any) -> Path:
        """The recipe's file, with data beside it unless there is some."""
        rows = self.home / "rows.jsonl"
        if not os.path.lexists(rows):
            rows.write_text("".join(json.dumps(row) + "\n" for row in self.rows()))
        path = self.home / "recipe.yaml"
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
        return path


@dataclass
class Case:
    """A command line that has to fail, with the exit codes that are right, and what its words have to name."""

    arguments: list[str]
    codes: tuple[int, ...] = (2,)
    says: str = ""


Make = Callable[[random.Random, Kit], Case]
FAMILIES: dict[str, tuple[Make, int]] = {}


def family(count: int) -> Callable[[Make], Make]:
    """Registers a generator with the number of inputs to take from it."""

    def add(make: Make) -> Make:
        FAMILIES[make.__name__] = (make, count)
        return make

    return add


def prepare(kit: Kit, tree: Any, *arguments: str, codes: tuple[int, ...] = (2,)) -> Case:
    """The case of preparing a recipe."""
    return Case(["prepare", str(kit.write(tree)), "--run", str(kit.home / "run"), *arguments], codes)


# Recipes

_POOL: list[Any] = [
    *("x", "", " ", "\x00", "null", "1e", "-", -1, 0, 1.5, -1e300, 10**40, True, None, date(2020, 1, 1)),
    *([], [[]], [[{}]], ["x", 1], {}, {"a": {}}, {"type": 1}),
]


def _fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, field in model.model_fields.items():
        yield (*path, name), field
        inner = next(
            (c for c in (field.annotation,) if isinstance(c, type) and issubclass(c, BaseModel)), None
        )
        if inner is not None:
            yield from _fields(inner, (*path, name))


def _all_fields() -> list[tuple[tuple[str, ...], Any]]:
    fields = list(_fields(recipe.Recipe))
    fields += _fields(recipe.Adapter, ("model", "adapter"))
    fields += _fields(registry.lookup("task", "instruction", ""), ("task",))
    fields += _fields(registry.lookup("source", "files", ""), ("data", "source"))
    return fields


def _refused(field: Any, value: Any) -> bool:
    try:
        plain = json.loads(json.dumps(value, default=str))
        TypeAdapter(Annotated[(field.annotation, "", *field.metadata)]).validate_python(plain)
    except ValidationError:
        return True
    return False


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


@family(250)
def wrong_values(draw: random.Random, kit: Kit) -> Case:
    """A key has a value of another type or out of range."""
    path, bad = draw.choice(
        [
            (path, bad)
            for path, field in _all_fields()
            if (bad := [value for value in _POOL if _refused(field, value)])
        ]
    )
    tree = kit.tree()
    _put(tree, path, draw.choice(bad))
    arguments = [draw.choice(STAGES), str(kit.write(tree)), "--run", str(kit.home / "run")]
    return Case(arguments, says=f"recipe key {'.'.join(path)}")


@family(120)
def unknown_keys(draw: random.Random, kit: Kit) -> Case:
    """A key is misspelt, or stands where it does not belong."""
    path, _ = draw.choice(_all_fields())
    name = path[-1]
    place = draw.randrange(len(name))
    other = draw.choice(
        [name[:place] + "_" + name[place:], name.upper(), name + "s_", "nonsense", "Ü" + name, name + " "]
    )
    tree = kit.tree()
    _put(tree, (*path[:-1], other), draw.choice(_POOL))
    return Case([draw.choice(STAGES), str(kit.write(tree)), "--run", str(kit.home / "run")])


@family(150)
def broken_yaml(draw: random.Random, kit: Kit) -> Case:
    """The file is no YAML, no mapping, or no text."""
    good = yaml.safe_dump(kit.tree(), sort_keys=False).encode()
    cut = draw.randrange(len(good))
    number = draw.randrange(1, 10**6)
    ending: bytes = draw.choice(
        [
            b"\tx: 1", b"x: [1, 2", b"x: {a: 1", b"x: a: b", b"x: 'unterminated", b'x: "un\\qterminated"', b"x: *alias",
            b"x: &a 1\ny: *a", b"? [a, b]\n: 1", b"x: !!python/object/apply:os.system ['true']", b"x: !!python/name:os.system",
            b"x: @at", b"x: `tick", b"%YAML 9.9\n---\nx: 1", b"x: %d\nx: %d" % (number, number), b"- a list item", b"---\nx: 1\n---\ny: 2",
            b"x: " + b"[" * draw.choice([50, 5000]), b"x: 0x" + b"f" * 9000, b"x: 2020-13-45", b"2020-01-01: x", b"x: !!binary '***'",
            b"x: \x07", b"x: \x00", b"x: \xff\xfe", b"x: \xc3(", b"x: !!int ten", b"<<: 3", b"x: !!timestamp never", b"~: x", b"1: x",
            b"x: !unknown {}", b"seed: 1e999", b"seed: 9" + b"9" * 5000, b"name: !!set {a, b}", b"x: |\n y\nz",
        ]
    )  # fmt: skip
    whole: list[bytes] = [
        good + ending + b"\n",
        ending + b"\n" + good,
        draw.randbytes(number % 500 + 20),
        good.decode().encode("utf-16"),
        b"\x1f\x8b" + good,
        b"", b"\n\n# only a comment\n", b"just text", b"[]", b"3", b"null", b"true",
        good[: cut - cut % 7] + b"\x00" + good[cut:],
        good.replace(b":", b"=", 3),
        b"[" * 3000 + b"]" * 3000,
        b"{" * 2000,
    ]  # fmt: skip
    path = kit.write(kit.tree())
    path.write_bytes(draw.choice([whole[0], whole[1], *whole]))
    return Case([draw.choice(STAGES), str(path), "--run", str(kit.home / "run")])


@family(110)
def overrides(draw: random.Random, kit: Kit) -> Case:
    """Key=value arguments that say nothing, or nothing that goes."""
    bad = [
        "train", "train.epochs", "=3", ".=1", "train..epochs=1", "train.=1", "train.epochs=", "train.epochs=[", "train.epochs={a",
        "train.epochs=x", "train.epochs=0", "train=3", "train.epochs.more=1", "data=", "data.source=", "data.source.type=", "task=x",
        "task.type=no-such", "data.source.type=fils", "train.learning_rate=.nan", "train.learning_rate=.inf", "seed=-1", "seed=1.5",
        "name=../up", "name=a/b", "name=", "model.adapter.rank=0", "model.adapter=3", "check.waive=x", "data.splits.train=2",
        "data.splits={train: 0.5}", "nonsense=1", "a b=c", "data.max_rows={dev: 3}", "data.max_rows={train: 0}", "é=1", "train.betas=[1]",
        "train.schedule=cosin", "train.eval_every_steps=3 ", "data.source.columns=[a]", "evaluate.metrics=3", "train.epochs=*a",
        "train.epochs=!!python/object:x.y {}", "x" * 5000 + "=1", "train.epochs=" + "[" * 3000, "seed=0x" + "f" * 9000, "\x07=1",
        "train.epochs=1e999", "model.freeze=[", "data.num_workers=many", "data.drop_budget=5%", "train.early_stop_patience=0",
    ]  # fmt: skip
    chosen = [value for value in draw.sample(bad, draw.randint(1, 4)) if value != "train.eval_every_steps=3 "]
    if draw.random() < 0.3:
        chosen.append("train.eval_every_steps=3")
        chosen.append("train.eval_every_tokens=3")
    return Case(
        [draw.choice(STAGES), str(kit.write(kit.tree())), *(chosen or ["x"]), "--run", str(kit.home / "run")]
    )


@family(80)
def names(draw: random.Random, kit: Kit) -> Case:
    """What a recipe names is not there, or a file that does not import."""
    file = kit.home / f"mine_{draw.randrange(10**6)}.py"
    file.write_text(
        draw.choice(
            [
                "syntax error here", "import no_such_module_at_all", "raise RuntimeError('no')", "1 / 0", "", "x = 1",
                "from luthier import task\n\n@task('mine')\nclass Other:\n    pass\n", "from luthier import task\n\ntask('mine')(print)\n", "\x00", "import sys\nsys.exit(7)",
                "from luthier.registry import task\n\n@task('line-completion')\nclass Twice:\n    pass\n",
            ]
        )
    )  # fmt: skip
    binary = kit.home / "binary.py"
    binary.write_bytes(draw.randbytes(200))
    folder = kit.home / "folder.py"
    folder.mkdir()
    name = draw.choice(
        [
            "", "no-such", "Instruction", "line-completions", f"{file}@mine", f"{binary}@mine", f"{folder}@mine", "missing.py@x",
            f"{file}@", "@x", "/etc/passwd@x", "x.py@y@z", "\x00", "a" * 3000,
        ]
    )  # fmt: skip
    tree = kit.tree()
    says = Path(name.partition("@")[0]).name if ".py@" in name else ""
    place = draw.choice(["task", "source", "eval_source", "model", "metric", "waive"])
    if place == "task":
        tree["task"] = {"type": name}
    elif place == "model":
        tree["model"]["name"] = name or "no-such/model/at-all"
    elif place == "metric":
        tree["evaluate"]["metrics"] = [name]
        return Case(["evaluate", str(kit.write(tree)), "--run", str(kit.home / "run")], says=says or "metric")
    elif place == "waive":
        tree["check"] = {"waive": [name]}
        return Case(["check", str(kit.write(tree)), "--run", str(kit.home / "run")], says=says or "check")
    else:
        tree["data"][place] = {"type": name}
    return prepare(kit, tree)


@family(50)
def templates(draw: random.Random, kit: Kit) -> Case:
    """Templates that do not parse, reach for Python, never end, or use columns that are not there."""
    template = draw.choice(
        [
            "{{", "{% if x %}", "{% for %}", "{{ prompt | nofilter }}", "{{ no_such_column }}", "{{ prompt.__class__.__mro__ }}",
            "{{ ''.__class__.__base__.__subclasses__() }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**10 }}",
            "{{ prompt.no.such }}", "{% include 'x' %}", "{% import 'os' as os %}", "{{ 1 / 0 }}", "{{ prompt() }}", "{{ 9 ** 9 ** 9 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ lipsum.__globals__ }}", "{{ cycler.__init__.__globals__.os }}",
            "{{ prompt[99:99:0] }}", "{{ namespace }}" + "{{ (" * 300, "{% set x = [1] %}{% for i in range(99999) %}{% endfor %}{{ y }}",
            "{{ '%s' % prompt }}", "{{ prompt.format(prompt) }}{{ undefined_one }}",
        ]
    )  # fmt: skip
    key = draw.choice(["prompt_template", "response_template"])
    return prepare(kit, kit.tree(task={"type": "instruction", "format": "plain", key: template}))


# Data


def _bad_line(draw: random.Random) -> bytes:
    return draw.choice(
        [
            b"{", b"{]", b"not json", b'{"prompt": }', b"[1, 2]", b"3", b"null", b'"text"', b"\x00\x01\x02", b"\xff\xfe{}", b'{"prompt": "\xe9"}',
            b'{"prompt": NaN}', b'{"prompt": Infinity}', b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", b"{'single': 1}",
            b'{"prompt": "x"', b'{"prompt": "a\nb"}', b'{"prompt": "\\ud800", "response": "\\ud800"}', b'{"prompt": "x", "response": ""}',
            b'{"prompt": 1e400, "response": null}', b"{}", b'{"prompt": "no answer"}', b'{"response": "no prompt"}', b'{"n": ' + b"9" * 5000 + b"}",
            b'{"prompt": {"a": 1}, "response": []}', draw.randbytes(30).replace(b"\n", b""), b"\xef\xbb\xbf", b"{" * 200,
        ]
    )  # fmt: skip


@family(110)
def jsonl(draw: random.Random, kit: Kit) -> Case:
    """A JSONL file without any row that can be used."""
    lines = [_bad_line(draw) for _ in range(draw.randint(1, 30))]
    data = draw.choice([b"\n", b"\r\n"]).join(lines)
    good = "".join(json.dumps(row) + "\n" for row in kit.rows()).encode()
    suffix = draw.choice([".jsonl", ".jsonl", ".jsonl.gz", ".jsonl.zst"])
    if suffix == ".jsonl":
        data = draw.choice(
            [
                *[data] * 6, b"", b"\n\n\n", b"   ", draw.randbytes(5000), good.decode().encode("utf-16"), good.decode().encode("utf-32"),
                b'{"prompt": "' + b"x" * (3 << 20) + b'"}', b"x" * (3 << 20), b"\x00" * 100_000, gzip.compress(good), good.replace(b"response", b"answer"),
                good.replace(b'"', b"'"), b"\x80" * 1000, b"PK\x03\x04" + draw.randbytes(300),
            ]
        )  # fmt: skip
    else:
        pack = gzip.compress if suffix.endswith("gz") else zstandard.ZstdCompressor().compress
        packed = pack(good)
        cut = draw.randrange(len(packed))
        spoilt = bytearray(packed)
        spoilt[cut] ^= 255
        data = draw.choice(
            [
                b"",
                good,
                draw.randbytes(300),
                packed[: min(cut, 20)],
                pack(data),
                bytes(spoilt[:30]),
                pack(b""),
            ]
        )
    path = kit.home / f"bad{suffix}"
    path.write_bytes(data)
    source = {"type": "files", "path": str(path), "max_row_bytes": 1 << 20}
    return prepare(kit, kit.tree(data={"source": source}))


@family(80)
def tables(draw: random.Random, kit: Kit) -> Case:
    """CSV, JSON and Parquet files that are damaged or lack what is asked for."""
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(kit.rows()), buffer)
    packed = buffer.getvalue()
    good = json.dumps(kit.rows()).encode()
    comma = b"prompt,response\n" + b"".join(f"{r['prompt']},{r['response']}\n".encode() for r in kit.rows())
    place = draw.randrange(1, len(packed) - 1)
    suffix, data = draw.choice(
        [
            (".csv", b""), (".csv", b"prompt,response\n"), (".csv", b"only\n" + b"x\n" * 50), (".csv", draw.randbytes(900)), (".csv", b"\x00" * 500),
            (".csv", comma.decode().encode("utf-16")), (".csv", b'prompt,response\n"never closed,' + b"x\n" * 100), (".csv", b"a,a\n1,2\n"),
            (".csv", comma.replace(b"response", b"answer")), (".csv", b"\n\n\n"), (".csv", b"prompt,response\n" + b"a\n" * 40),
            (".csv", b"prompt,response\n" + b"x" * (3 << 20)), (".csv", b"prompt,response\n" + b"\xff,\xfe\n" * 30), (".tsv", comma),
            (".json", b""), (".json", good[: len(good) // 2]), (".json", b"3"), (".json", b"{}"), (".json", b"[]"), (".json", b"[1, 2, 3]"),
            (".json", b"[" * 9000), (".json", good.replace(b"response", b"r")), (".json", draw.randbytes(600)), (".json", good.decode().encode("utf-16")),
            (".json", b'[{"prompt": "x"}, '), (".json", b'{"prompt": "x", "response": }'), (".json", b"null"),
            (".parquet", b""), (".parquet", packed[:place]), (".parquet", draw.randbytes(700)), (".parquet", b"PAR1" + draw.randbytes(90) + b"PAR1"),
            (".parquet", packed[:place] + draw.randbytes(40) + packed[-8:]), (".parquet", good), (".xlsx", good), ("", good), (".txt", b"text\n"),
            (".pickle", b"\x80\x04K\x01."), (".jsonl.bz2", good), (".JSONL", b"[]"),
        ]
    )  # fmt: skip
    path = kit.home / f"bad{suffix}"
    path.write_bytes(data)
    return prepare(
        kit, kit.tree(data={"source": {"type": "files", "path": str(path), "max_row_bytes": 1 << 20}})
    )


@family(40)
def columns(draw: random.Random, kit: Kit) -> Case:
    """Columns, ids and groups that the rows do not have."""
    options: dict[str, Any] = draw.choice(
        [
            {"columns": {"prompt": "question", "response": "answer"}}, {"columns": {"prompt": "prompt"}}, {"id_column": "no-id"},
            {"group_column": "no-group"}, {"columns": {"prompt": ""}}, {"columns": {"": "prompt"}}, {"format": "csv"}, {"format": "parquet"},
            {"format": "json"}, {"split": "train"}, {"columns": {"response": "Response", "prompt": "Prompt"}}, {"max_row_bytes": 3},
        ]
    )  # fmt: skip
    return prepare(
        kit, kit.tree(data={"source": {"type": "files", "path": str(kit.home / "rows.jsonl"), **options}})
    )


@family(60)
def code(draw: random.Random, kit: Kit) -> Case:
    """Folders of code in which there is none."""
    folder = kit.home / "code"
    folder.mkdir()
    contents: list[bytes] = [
        b"", b"\n\n", draw.randbytes(400), b"\x7fELF" + b"\x00" * 300, b"\xff\xfe" + "x = 1\n".encode("utf-16-le") * 20, b"x = '\xe9'\n" * 20,
        b"x" * 200_000, b"# Generated by a tool. DO NOT EDIT\nx = 1\n" * 3, b"# only\n# comments\n" * 9, b"x\n" * 50, b"\x00" * 900,
        b"x = [" + b"1," * 50_000 + b"]\n", b"   \n\t\n" * 40, b"\r" * 100, b"y = 1",
    ]  # fmt: skip
    for number in range(draw.randint(0, 6)):
        (folder / f"file_{number}.py").write_bytes(draw.choice(contents))
    if draw.random() < 0.3:
        (folder / "loop").symlink_to(folder)
        (folder / "gone.py").symlink_to(kit.home / "nowhere.py")
        (folder / "dir.py").mkdir()
    options = draw.choice(
        [{}, {"include": ["**/*.java"]}, {"min_bytes": 10**9}, {"max_bytes": 1}, {"exclude": ["**"]}]
    )
    path: Any = draw.choice([folder, folder, folder, kit.home / "nowhere", folder / "file_0.py", ""])
    tree = kit.tree(
        task={"type": "line-completion"}, data={"source": {"type": "code", "path": str(path), **options}}
    )
    return prepare(kit, {**tree, "task": {"type": "line-completion"}})


@family(70)
def paths(draw: random.Random, kit: Kit) -> Case:
    """Folders for files, files for folders, links to nowhere, devices, names that no file can have."""
    home = kit.home
    (home / "folder.jsonl").mkdir()
    (home / "gone.jsonl").symlink_to(home / "nowhere")
    (home / "loop.jsonl").symlink_to(home / "loop.jsonl")
    (home / "file").write_text("x")
    os.mkfifo(home / "pipe.jsonl")
    bad = draw.choice(
        [
            home / "folder.jsonl", home / "gone.jsonl", home / "loop.jsonl", home / "file/rows.jsonl", home / "nowhere/rows.jsonl", "/proc/self/mem",
            "/proc/1/root/nowhere", "/dev/null", "/", "", home, "*.nothing", home / ("x" * 300), "\x00", "~nobody/x", home / "pipe.jsonl",
            "/proc/self/fd", "//", ".", home / "**/*.nothing", "https://example.org/rows.jsonl",
        ]
    )  # fmt: skip
    run = str(kit.home / "run")
    match draw.randrange(4):
        case 0 | 1:
            tree = kit.tree(data={"source": {"type": "files", "path": str(bad)}})
        case 2:
            tree = kit.tree(
                model={
                    "name": str(
                        home
                        / draw.choice(
                            ["folder.jsonl", "gone.jsonl", "file", "loop.jsonl", "pipe.jsonl", "nowhere"]
                        )
                    )
                }
            )
        case _:
            tree = kit.tree()
            run = str(
                home
                / draw.choice(["file", "file/run", "loop.jsonl", "gone.jsonl/x", "x" * 300, "pipe.jsonl"])
            )
            if draw.random() < 0.3:
                run = draw.choice(["/proc/run", "/dev/null", "/dev/null/run", "/sys/run"])
    return Case(["prepare", str(kit.write(tree)), "--run", run])


@family(40)
def recipes_and_runs(draw: random.Random, kit: Kit) -> Case:
    """Recipes and runs named on the command line that are none."""
    home = kit.home
    (home / "empty").mkdir()
    (home / "gone.yaml").symlink_to(home / "nowhere")
    (home / "damaged").mkdir()
    (home / "damaged/recipe.yaml").write_bytes(draw.choice([b"\xff", b"{", b"[]", b"", b"x: 1"]))
    (home / "damaged/history.jsonl").write_bytes(
        draw.choice([b"{", b"{}\n", b"\xff\n", b"[]\n", b"{]\n", b'{"step": "x"}\n'])
    )
    (home / "damaged/findings.json").write_bytes(draw.choice([b"{", b"{}", b"\xff", b"[]", b"3"]))
    bad = draw.choice(
        [
            home / "empty",
            home / "gone.yaml",
            home / "nowhere.yaml",
            "/dev/null",
            "",
            "\x00",
            "x" * 300,
            "demoo",
            "/proc/self/mem",
        ]
    )
    return Case(
        draw.choice(
            [
                [draw.choice(STAGES), str(bad)],
                ["generate", str(bad), "--prompt", "x"],
                ["generate", str(home / "damaged"), "--prompt-file", str(bad)],
                ["merge", str(bad), str(home / "out")],
                ["compare", str(bad), str(home / "empty")],
                ["compare", str(home / "damaged"), str(home / "damaged")],
                ["status", str(bad)],
                ["show", str(home / "damaged")],
                ["init", str(bad) or "x"],
                ["init", "instruction", str(home / "gone.yaml")],
                ["init", "instruction", str(home / "empty")],
                ["init", "instruction", str(home / "gone.yaml/x")],
                ["explain", str(bad)],
                ["launch", str(bad)],
                ["launch", "demo", "--slurm", str(bad)],
                ["launch", str(bad), "--sweep", "seed=0,1"],
                ["run", "demo", "--sweep", str(bad)],
                ["list", "nonsense"],
                ["nonsense"],
                ["run"],
                ["check", "demo", "--nonsense"],
                ["show", "demo", "--rows", "0"],
            ]
        )
    )


# Models


@family(60)
def models(draw: random.Random, kit: Kit) -> Case:
    """Model folders with a file that is missing, damaged or another's."""
    model = kit.home / "model"
    shutil.copytree(kit.model, model)
    name = draw.choice(
        ["tokenizer.json", "tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"]
    )
    path = model / name
    good = path.read_bytes()
    spoilt: list[bytes] = [
        b"",
        b"{",
        b"[]",
        b"null",
        draw.randbytes(300),
        good[: len(good) // 2],
        b"3",
        good.decode("latin-1").encode("utf-16"),
    ]
    if name == "tokenizer.json":
        spoilt += [b"{}", b'{"model": {}}', good.replace(b"BPE", b"XYZ")]
    how = draw.randrange(6)
    path.unlink()
    if how == 0:
        path.mkdir()
    elif how == 1:
        path.symlink_to(kit.home / "nowhere")
    elif how > 2:
        path.write_bytes(draw.choice(spoilt))
    tree = kit.tree(model={"name": str(model)})
    # Rows need the tokenizer alone; a healthy one beside a damaged model may well prepare.
    return prepare(kit, tree, codes=(2,) if name == "tokenizer.json" else (0, 2))


# The judge


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(arguments)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def verdict(case: Case, code: int, out: str, err: str, folder: Path) -> str | None:
    """What is wrong with how it ended; None if nothing is."""
    if code not in case.codes:
        return f"exit {code}, not {case.codes}"
    if "Traceback" in out + err:
        return "a traceback"
    usage = "Usage: luthier" in err
    if (
        code == 2
        and not usage
        and not re.search(r"^\S.*\n(.*\n)*?  where: \S.*\n(.*\n)*?  fix:   \S", err, re.MULTILINE)
    ):
        return "no what, where and fix"
    if code == 2 and err.count("  where: ") != err.count("  fix:   "):
        return "a where without a fix"
    if case.says not in err:
        return f"nothing is said of {case.says}"
    return half_made(folder)


def half_made(folder: Path) -> str | None:
    """What in a run folder is there in part; None if all that is there is whole."""
    for path in folder.rglob(".data-*"):
        return f"{path} was left behind"
    for data in folder.glob("**/run/data"):
        if not (data / "manifest.json").is_file():
            return f"{data} has no manifest"
        files = json.loads((data / "manifest.json").read_text())["files"]
        if {path.name for path in data.iterdir()} != {*files, "manifest.json"}:
            return (
                f"{data} holds {sorted(path.name for path in data.iterdir())}, the manifest {sorted(files)}"
            )
        for name, content in files.items():
            if hash_file(data / name) != content:
                return f"{data / name} is not what the manifest says"
    return None


CHUNKS = [
    (name, start, min(start + AT_ONCE, count))
    for name, (_, count) in FAMILIES.items()
    for start in range(0, count, AT_ONCE)
]


def test_there_are_a_thousand():
    assert sum(end - start for _, start, end in CHUNKS) >= 1000


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The tiny model's folder."""
    return save_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize(("name", "start", "end"), CHUNKS, ids=lambda value: str(value))
def test_bad_input_ends_in_words(name, start, end, model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    known = {kind: registry.registered(kind) for kind in registry.KINDS}
    monkeypatch.setattr(registry, "_registered", known)  # what bad files register is gone again afterwards
    make, _ = FAMILIES[name]
    problems = []
    for number in range(start, end):
        home = tmp_path / str(number)
        home.mkdir()
        monkeypatch.chdir(home)
        case = make(random.Random(f"{name} {number}"), Kit(model, home))
        code, out, err = run(case.arguments)
        if (problem := verdict(case, code, out, err, home)) is not None:
            problems.append(
                f"{name} {number}: {problem}\n  {[a[:200] for a in case.arguments]}\n  {out[-300:]}{err[-1500:]}"
            )
        shutil.rmtree(home, ignore_errors=True)
    assert not problems, f"{len(problems)} of {end - start}:\n\n" + "\n\n".join(problems)


def test_the_judge_sees_what_it_is_there_for(tmp_path):
    words = "a\n  where: b\n  fix:   c\n"
    case = Case([], (2,))
    assert verdict(case, 2, "", words, tmp_path) is None
    assert verdict(case, 3, "", words, tmp_path)
    assert verdict(case, 2, "", words + "Traceback (most recent call last)", tmp_path)
    assert verdict(case, 2, "", "it did not work", tmp_path)
    assert verdict(case, 2, "", words + "  where: d\n", tmp_path)
    assert verdict(Case([], (2,), says="nothing of it"), 2, "", words, tmp_path)
    (tmp_path / "run/.data-x").mkdir(parents=True)
    assert verdict(case, 2, "", words, tmp_path), "data that was begun"
    (tmp_path / "run/.data-x").rmdir()
    data = tmp_path / "run/data"
    data.mkdir()
    assert verdict(case, 2, "", words, tmp_path), "data without a manifest"
    (data / "train.arrow").write_text("rows")
    manifest = {"files": {"train.arrow": hash_file(data / "train.arrow")}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert verdict(case, 2, "", words, tmp_path) is None
    (data / "extra").touch()
    assert verdict(case, 2, "", words, tmp_path), "a file that the manifest does not name"
    (data / "extra").unlink()
    (data / "train.arrow").write_text("half")
    assert verdict(case, 2, "", words, tmp_path), "data that is not what the manifest says"


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("config.json", lambda good: b"[]"),
        ("config.json", lambda good: b"{}"),
        ("config.json", lambda good: good.replace(b"llama", b"nosuch")),
        ("config.json", lambda good: good.replace(b'"hidden_size": 32', b'"hidden_size": 48')),
        ("config.json", lambda good: good.replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 3')),
        ("model.safetensors", lambda good: b""),
        ("model.safetensors", lambda good: good[: len(good) // 2]),
        ("model.safetensors", lambda good: b"\xff" * 200),
    ],
    ids=["list", "empty", "architecture", "size", "layers", "no-weights", "half", "noise"],
)
def test_damaged_models_are_refused_before_training(name, spoil, model, tmp_path):
    kit = Kit(model, tmp_path)
    shutil.copytree(model, tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_bytes(spoil(file.read_bytes()))
    tree = kit.tree(model={"name": str(tmp_path / "model")}, check={"waive": ["initial-loss"]})
    code, out, err = run(["train", str(kit.write(tree)), "--run", str(tmp_path / "run")])
    assert verdict(Case([], (1, 2)), code, out, err, tmp_path) is None, out + err
    assert not (tmp_path / "run/adapter").exists() and not (tmp_path / "run/checkpoints").exists()


# Lines broken in part


@pytest.mark.parametrize("number", range(4))
def test_broken_lines_are_counted_one_by_one_and_stop_the_run(number, model, tmp_path):
    draw = random.Random(number)
    kit = Kit(model, tmp_path)
    good = [json.dumps(row).encode() for row in kit.rows(60)]
    # Without what is no line, or what a template can render.
    bad = [line for line in (_bad_line(draw) for _ in range(30)) if line.strip(b"\xef\xbb\xbf")]
    bad = [line for line in bad if b"\n" not in line and b'{"a": 1}' not in line]
    lines = [*good, *bad]
    draw.shuffle(lines)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    recipe_file = kit.write(kit.tree())
    place = tmp_path / "run"
    assert run(["prepare", str(recipe_file), "--run", str(place)])[0] == 0
    ledger = json.loads((place / "data/ledger.json").read_text())
    dropped = [json.loads(line) for line in (place / "data/dropped.jsonl").read_text().splitlines()]
    assert ledger["records"]["in"] == len(lines)
    assert len(dropped) == len(bad), "each broken line is dropped by its id"
    code, out, _ = run(["check", str(recipe_file), "--run", str(place)])
    assert code == 1 and "drop-budget" in out


# The disk


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of two megabytes."""
    folder = tmp_path_factory.mktemp("disk")
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root; the file-size limit below stands in for it")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("free_kib", [0, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96])
def test_a_full_disk_leaves_whole_data_or_none(free_kib, small_disk, model, tmp_path):
    kit = Kit(model, tmp_path)
    recipe_file = kit.write(kit.tree())
    place = small_disk / "run"
    with open(small_disk / "filler", "wb") as filler:
        filler.write(b"x" * ((2048 - free_kib) << 10))
    code, out, err = run(["prepare", str(recipe_file), "--run", str(place)])
    (small_disk / "filler").unlink()
    try:
        assert verdict(Case([], (0, 2)), code, out, err, small_disk) is None, err
        assert code == 2 or free_kib > 24, "so little room cannot be enough"
        if code == 2:
            assert "No space left" in err
        code, _, err = run(["prepare", str(recipe_file), "--run", str(place)])
        assert code == 0, err
        assert half_made(small_disk) is None
    finally:
        shutil.rmtree(place)


@pytest.fixture
def largest_file():
    """Sets the size that no file may pass."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1, 100, 1000, 3000, 6000, 12_000, 24_000, 30_000])
def test_a_file_size_limit_leaves_whole_data_or_none(size, largest_file, model, tmp_path):
    kit = Kit(model, tmp_path)
    recipe_file = kit.write(kit.tree())
    largest_file(size)
    code, out, err = run(["prepare", str(recipe_file), "--run", str(tmp_path / "run")])
    largest_file(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert verdict(Case([], (0, 2)), code, out, err, tmp_path) is None, err
    assert code == 2 or size > 6000
    assert code == 0 or "File too large" in err


def test_a_disk_that_fills_up_in_training_keeps_what_was_saved(model, tmp_path, largest_file):
    kit = Kit(model, tmp_path)
    recipe_file = kit.write(
        kit.tree(train={"max_steps": 4, "checkpoint_every_steps": 2}, check={"waive": ["initial-loss"]})
    )
    place = tmp_path / "run"
    run(["check", str(recipe_file), "--run", str(place)])
    before = hash_file(place / "data/train.arrow")
    largest_file(60_000)  # less than a checkpoint
    code, _, err = run(["train", str(recipe_file), "--run", str(place)])
    largest_file(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert code == 2 and "  where: " in err and "Traceback" not in err, err
    assert "saved in" in err and "rows (data/manifest.json)" in err
    assert not (place / "adapter").exists() and not list(place.glob("checkpoints/*"))
    code, _, err = run(["train", str(recipe_file), "--run", str(place)])
    assert code == 0 and (place / "adapter").is_dir(), err
    assert hash_file(place / "data/train.arrow") == before
