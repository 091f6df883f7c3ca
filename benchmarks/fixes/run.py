"""Real fixes there and back: does every representation give the fixed function back, and does the lexer read as javac does?

    python benchmarks/fixes/run.py --codrep codrep-java.jsonl.gz --sven sven-train.jsonl.gz sven-val.jsonl.gz
    python benchmarks/fixes/run.py --codrep FILE --rows 50        # a try; writes no results

Each row goes through the task ``repair`` as in training, in all sixteen representations: its input has to show the buggy
function, and its output, decoded from the ids, has to give the fixed function back, byte for byte; or the task drops the row
with a reason. Tokens of Java are compared with those of javac's own scanner; of Python, whose tokenizer we use, those of a
function without its comments with those of the function. Half an hour on one core; needs a JDK. What is done lies in ``--work``
and is not done again while the code is the same. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from luthier.encoding.encode import encode
from luthier.encoding.lexer import LINE_COMMENT, Language, NotCode, split_lines, tokens, without_comments
from luthier.encoding.repair import MARKER, Place, place_of
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models.load import load_tokenizer
from luthier.recipe import Model
from luthier.records import Dropped, Example, Record, Row
from luthier.run_folder import hash_folder, hash_value, read_json, write_json
from luthier.sources.pairs import RepairPairs
from luthier.tasks.repair import Repair

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

JAVAC = HERE.parents[1] / "tests" / "parity" / "java" / "JavacTokens.java"
OPENED = [f"--add-exports=jdk.compiler/com.sun.tools.javac.{part}=ALL-UNNAMED" for part in ("parser", "util", "file")]  # fmt: skip
TASKS = [
    Repair(input=asked, output=answer)
    for asked, answer in product(("IR1", "IR2", "IR3", "IR4"), ("OR1", "OR2", "OR3", "OR4"))
]
ROOM = 1 << 20
CHUNK = 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codrep", type=Path, nargs="*", default=[])
    parser.add_argument("--sven", type=Path, nargs="*", default=[])
    parser.add_argument("--rows", type=int, help="so many of each file; then no results are written")
    parser.add_argument(
        "--model", default="embedded:smollm2-135m", help="whose tokenizer the rows go through"
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-benchmark-fixes")
    options = parser.parse_args()
    if shutil.which("java") is None:
        raise SystemExit("there is no java: install a JDK, such as Debian's openjdk-17-jdk-headless")
    sources = {
        "codrep": [RepairPairs(path=str(p), before="buggy_function", after="fixed_function", id_column="id") for p in options.codrep],
        "sven": [
            RepairPairs(path=str(p), before="func_src_before", after="func_src_after", language="path", path_column="file_name")
            for p in options.sven
        ],
    }  # fmt: skip
    code = [hash_folder(Path(sys.modules[Repair.__module__].__file__ or "").parents[1] / part, ("*.py",)) for part in ("encoding", "tasks")]  # fmt: skip
    tokenizer = load_tokenizer(Model(name=options.model))
    figures: dict[str, Any] = {"representations": len(TASKS)}
    details: dict[str, Any] = {}
    for name, ones in sources.items():
        if not ones:
            continue
        found: Counter[str] = Counter()
        listed: dict[str, dict[str, str]] = {"left_out": {}, "wrong": {}, "tokens_differ": {}}
        for source in ones:
            items = list(source.pairs())[: options.rows]
            key = hash_value(
                [source.fingerprint(), code, options.model, Path(__file__).read_text(), len(items)]
            )
            for first in range(0, len(items), CHUNK):
                path = options.work / key[:16] / f"{first}.json"
                if not path.is_file():
                    write_json(path, chunk(items[first : first + CHUNK], tokenizer))
                one = read_json(path)
                found.update(one["counts"])
                for kind, entries in one["listed"].items():
                    listed[kind] |= entries
                print(f"{name}: {found['rows']} rows, {dict(found)}", flush=True)
        reasons = Counter(why.partition(":")[0] for why in listed["left_out"].values())
        figures[name] = {**found, "left_out_by_reason": dict(sorted(reasons.items()))}
        details[name] = listed
    results.write(
        HERE / "results.json" if options.rows is None else options.work / "results.json",
        figures,
        command="python benchmarks/fixes/run.py --codrep FILE --sven FILES",
        packages=("luthier", "tokenizers", "tree-sitter"),
        notes="exact: rows whose fixed function all sixteen representations give back, byte for byte, and whose buggy function their inputs show; "
        "left_out: dropped by the task with a reason; wrong: neither. java_texts and python_texts: functions, both sides of each row; "
        "java_same: the lexer has the places of javac's tokens; python_same: without comments a function has the tokens that it had.",
        listed=details,
    )


def chunk(items: list[Record | Dropped], tokenizer: TextTokenizer) -> dict[str, Any]:
    """What some rows come to: counts, and ids of all that are not exact with the reason."""
    counts: Counter[str] = Counter()
    listed: dict[str, dict[str, str]] = {"left_out": {}, "wrong": {}, "tokens_differ": {}}
    texts: list[tuple[str, Language, str]] = []
    for item in items:
        said = {item.reason: ""} if isinstance(item, Dropped) else there_and_back(item, tokenizer)
        kind = "exact" if not said else "wrong" if "wrong" in said else "left_out"
        counts.update(("rows", kind))
        if said:
            listed[kind][item.id] = "; ".join(f"{reason}: {where}" for reason, where in sorted(said.items()))
        if isinstance(item, Record):
            texts += [(f"{item.id} {side}", item.fields["language"], item.fields[side]) for side in ("before", "after")]  # fmt: skip
    for name, language, same in read_alike(texts):
        counts.update((f"{language}_texts", f"{language}_same" if same else f"{language}_differ"))
        if not same:
            listed["tokens_differ"][name] = language
    return {"counts": counts, "listed": listed}


def there_and_back(record: Record, tokenizer: TextTokenizer) -> dict[str, str]:
    """Reasons why a row is not exact in all representations, and in which; empty where it is."""
    said: dict[str, list[str]] = {}
    for task in TASKS:
        for item in task.examples(record, "train", tokenizer, max_length=ROOM, seed=0):
            reason = item.reason if isinstance(item, Dropped) else wrong(record, item, task, tokenizer)
            if reason:
                said.setdefault(reason, []).append(f"{task.input}x{task.output}")
    return {reason: "all" if len(where) == len(TASKS) else " ".join(where) for reason, where in said.items()}


def wrong(record: Record, example: Example, task: Repair, tokenizer: TextTokenizer) -> str:
    """``wrong`` where a row's ids do not give the fixed function, or its input does not show the buggy one."""
    sides = task.sides(record)
    row = encode(example, tokenizer, ROOM)
    if isinstance(sides, Dropped) or isinstance(row, Dropped):
        return "wrong"
    buggy, fixed, language = sides
    place, _ = place_of(buggy, fixed)
    written = tokenizer.decode(row.input_ids[row.num_prompt_tokens : -1])
    good = written == row.target and task.repaired(place, written, language)[0] == fixed
    return "" if good and not row.lossy and shows(example, row, place, task, language, tokenizer) else "wrong"


def shows(
    example: Example, row: Row, place: Place, task: Repair, language: Language, tokenizer: TextTokenizer
) -> bool:
    """Whether the input, decoded, is its spans, and these hold the buggy function, white space at the ends of lines apart."""
    text = {span.name: span.text for span in example.spans if not span.weight}
    prompt = row.input_ids[len(tokenizer.prefix_ids) : row.num_prompt_tokens]
    if tokenizer.decode(prompt, first=True) != "".join(text.values()):
        return False
    core, sign = text.get("buggy", ""), LINE_COMMENT[language]
    if task.input == "IR2":
        head, tail = f"{sign} buggy lines start:\n", f"{sign} buggy lines end:\n"
        if not core.startswith(head) or not core.endswith(tail):
            return False
        core = core[len(head) : len(core) - len(tail)]
    elif task.input in ("IR3", "IR4"):
        hole = f"{place.indent}{MARKER}\n"
        if not core.endswith(hole):
            return False
        lines = split_lines(core.removesuffix(hole))
        if task.input == "IR4" and (
            lines[:1] != [f"{sign} buggy code\n"] or any(not x.startswith(f"{sign} ") for x in lines)
        ):
            return False
        shown = "".join(line[len(sign) + 1 :] for line in lines[1:])
        core = place.buggy if task.input == "IR3" or (shown == "\n" and not place.buggy) else shown
    return _plain(text.get("before", "") + core + text.get("behind", "")) == _plain(place.text)


def _plain(text: str) -> list[str]:
    return [line.rstrip("\r\n") for line in split_lines(text)]


def read_alike(texts: list[tuple[str, Language, str]]) -> Iterator[tuple[str, Language, bool]]:
    """Whether each text of Java or Python is read as its language's own scanner does."""
    java = [(name, text) for name, language, text in texts if language == "java"]
    if java:
        lines = by_javac([text for _, text in java])
        for (name, text), line in zip(java, lines, strict=True):
            yield name, "java", places(text) == line
    for name, language, text in texts:
        if language == "python":
            try:
                yield name, "python", python_tokens(text) == python_tokens(without_comments(text, "python"))
            except (NotCode, tokenize.TokenError, SyntaxError):
                yield name, "python", is_broken(text)


def places(text: str) -> str:
    """Start and end of each token of Java, as the scanner's line has them."""
    try:
        return " ".join(f"{t.start}:{t.end}" for t in tokens(text, "java") if t.kind != "comment")
    except NotCode:
        return "error"


def by_javac(texts: list[str]) -> list[str]:
    """A line of places for each text; ``error`` where the scanner found one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts"
        path.write_text("\0".join(texts), encoding="utf-8", newline="")
        done = subprocess.run(
            ["java", "-XX:TieredStopAtLevel=1", *OPENED, str(JAVAC), str(path)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return ["error" if "error" in line else line.strip() for line in done.stdout.split("\n")[:-1]]


def python_tokens(text: str) -> list[tuple[int, str]]:
    """Kinds and texts of Python's own tokens, comments and blank lines apart."""
    left_out = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
    found = tokenize.generate_tokens(io.StringIO(text, newline="").readline)
    return [(t.type, t.string) for t in found if t.type not in left_out]


def is_broken(text: str) -> bool:
    """Whether Python's own tokenizer refuses a text."""
    try:
        return any(kind == tokenize.ERRORTOKEN for kind, _ in python_tokens(text))
    except (tokenize.TokenError, SyntaxError):
        return True


if __name__ == "__main__":
    main()
