"""Rows with nothing to learn: naive right truncation of line-completion rows against Luthier's, on real code.

    python studies/line-completion/truncation.py data/codexglue/py150/train.txt

The same rows both ways: context and line as one text, cut off at ``--max-length`` tokens with the context's labels
masked (tokenizer(text, truncation=True)), and encoded as spans, of which only the context may be cut. The file is one of
CodeXGLUE's or of ``codexglue_data.py``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from itertools import islice
from pathlib import Path

import transformers

import luthier
from luthier.encoding.encode import encode
from luthier.models.load import load_tokenizer
from luthier.recipe import Model
from luthier.records import Example, Record, Row
from luthier.run_folder import hash_file, write_json
from luthier.sources.codexglue import CodeXGlue
from luthier.tasks.codexglue import CodeXGlueLine

RESULTS = Path(__file__).with_name("results.json")


def examples(path: Path, num_lines: int, tokenizer, max_length: int):
    """The lines of the files, as the recipe ``codexglue-python`` takes them."""
    task = CodeXGlueLine(max_lines_per_file=num_lines)
    for record in CodeXGlue(path=str(path)).records():
        if isinstance(record, Record):
            made = task.examples(record, "train", tokenizer, max_length=max_length, seed=0)
            yield from (item for item in made if isinstance(item, Example))


def write(figures: dict[str, float], file: Path, num_lines: int) -> None:
    """Adds the figures to those of the study's other parts."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    command = f"python studies/line-completion/truncation.py data/codexglue/py150/{file.name}"
    note = (
        f"truncation: share of rows without a trained token; {file.name} (SHA-256 {hash_file(file)[:12]}), up to {num_lines} "
        "lines a file; a row that cannot be kept with its whole target would be dropped and counted."
    )
    commands, notes = (
        [part for part in known.get(key, "").split(end) if part]
        for key, end in (("command", "; "), ("notes", "\n"))
    )
    write_json(
        RESULTS,
        {
            "figures": known.get("figures", {}) | figures,
            "command": "; ".join(dict.fromkeys([*commands, command])),
            "versions": known.get("versions", {})
            | {"luthier": luthier.__version__, "transformers": transformers.__version__},
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "notes": "\n".join([*(part for part in notes if not part.startswith("truncation:")), note]),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--lines-per-file", type=int, default=4)
    options = parser.parse_args()
    tokenizer = load_tokenizer(Model())
    counts = {"naive": 0, "ours": 0, "dropped": 0, "rows": 0}
    for example in islice(
        examples(options.file, options.lines_per_file, tokenizer, options.max_length), options.rows
    ):
        counts["rows"] += 1
        context, target = (span.text for span in example.spans)
        cut = tokenizer.hf(
            context + target, truncation=True, max_length=options.max_length, return_offsets_mapping=True
        )
        counts["naive"] += not any(start >= len(context) for start, _ in cut["offset_mapping"])
        row = encode(example, tokenizer, options.max_length)
        counts["dropped"] += not isinstance(row, Row)
        counts["ours"] += isinstance(row, Row) and not row.loss_weights.any()
    kept = counts["rows"] - counts["dropped"]
    figures = {
        "untrained_rows_naive": round(counts["naive"] / counts["rows"], 4),
        "untrained_rows_ours": round(counts["ours"] / kept, 4),
        "dropped_rows_ours": round(counts["dropped"] / counts["rows"], 4),
        "truncation_rows": counts["rows"],
        "truncation_max_length": options.max_length,
    }
    write(figures, options.file, options.lines_per_file)
    json.dump(figures, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
