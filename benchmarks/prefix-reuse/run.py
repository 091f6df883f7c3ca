"""What it saves to compute the shared beginning of prompts once, and whether the predictions stay the same.

    python benchmarks/prefix-reuse/run.py        # some ten minutes on two cores; writes results.json beside this file

Rows are lines of real files with their project before them: 30 lines of each file, at most 2,048 tokens, of one stretch
of the file, so that a file's prompts go on with one another. The same rows are scored and completed by the embedded
model with and without sharing; finished files are kept in the work folder, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

PACKAGE = {"networkx==3.6.1": "26b7c357accc0c8cde558ad486283728b65b6a95d85ee1cd66bafab4c8168509"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "luthier-benchmark-prefix-reuse"
    )
    parser.add_argument("--files", type=int, default=6, help="files that lines are taken of")
    parser.add_argument("--lines", type=int, default=30, help="lines of each file")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens of a row at most")
    parser.add_argument("--new-tokens", type=int, default=24, help="tokens generated at most")
    parser.add_argument("--model", default="embedded:smollm2-135m", help="any model's folder or name")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    from luthier.models.load import load_model, load_tokenizer
    from luthier.recipe import Model

    settings = Model(name=options.model, precision=options.precision, adapter=None)
    tokenizer = load_tokenizer(settings)
    model = load_model(settings, len(tokenizer), training=False, seed=0)
    measured = []
    for number, (name, rows) in enumerate(files(tokenizer, options)):
        done = options.work / f"{options.precision}-{options.max_length}-{options.lines}-{number}.json"
        if not done.is_file():
            done.write_text(json.dumps({"file": name, **measure(model, tokenizer, rows, options.new_tokens)}))
        measured.append(json.loads(done.read_text()))
        print(measured[-1], flush=True)
    results.write(
        HERE / "results.json",
        {
            "speed_vs_no_cache": round(sum(m["seconds_alone"] for m in measured) / sum(m["seconds_shared"] for m in measured), 2),
            "speed_vs_no_cache_worst_file": round(min(m["seconds_alone"] / m["seconds_shared"] for m in measured), 2),
            "equal_predictions_share": round(sum(m["equal"] for m in measured) / sum(m["rows"] for m in measured), 5),
            "largest_loss_difference_nats": max(m["largest_loss_difference_nats"] for m in measured),
            "files": len(measured),
            "rows": sum(m["rows"] for m in measured),
            "mean_prompt_tokens": round(statistics.fmean(m["mean_prompt_tokens"] for m in measured), 1),
        },
        command="python benchmarks/prefix-reuse/run.py",
        packages=("torch", "transformers"),
        notes=f"{options.model} in {options.precision}, prompts of at most {options.max_length:,} tokens, {options.lines} lines of one "
        f"stretch of each file, at most {options.new_tokens} new tokens, 16 rows at once. Alone: every prompt goes through the model "
        "whole, in batches. Seconds are of scoring and generating, without loading; compare them with each other, not with another "
        "machine's.",
        by_file=measured,
    )  # fmt: skip


def files(tokenizer: Any, options: argparse.Namespace) -> list[tuple[str, list[Any]]]:
    """The rows of the first files that have enough lines in one stretch."""
    from luthier.encoding.encode import encode
    from luthier.records import Example, Record, Row
    from luthier.sources.sdists import Sdists
    from luthier.tasks.project_completion import ProjectCompletion

    source = Sdists(packages=PACKAGE, tests="context", include=["networkx/**/*.py"])
    records = [record for record in source.records() if isinstance(record, Record)]
    task = ProjectCompletion(max_lines_per_file=options.lines, stretch_share=0.3)
    found = []
    for record in records:
        if record.fields["role"] != "complete" or len(record.fields["text"]) < 6_000:
            continue
        seen = replace(record, neighbours={"networkx": records})
        made = task.examples(seen, "test", tokenizer, max_length=options.max_length, seed=0)
        rows = [encode(item, tokenizer, options.max_length) for item in made if isinstance(item, Example)]
        rows = [row for row in rows if isinstance(row, Row)]
        if len(rows) == options.lines:
            found.append((record.fields["path"], rows))
        if len(found) == options.files:
            return found
    return found


def measure(model: Any, tokenizer: Any, rows: list[Any], new_tokens: int) -> dict[str, Any]:
    """Seconds and predictions of the same rows both ways."""
    from luthier.models.generate import score_and_generate

    results: dict[bool, tuple[float, dict[int, Any], dict[int, Any]]] = {}
    for shared in (False, True):
        texts: dict[int, Any] = {}
        losses: dict[int, Any] = {}
        began = time.perf_counter()
        for indices, scores, outputs in score_and_generate(
            model, tokenizer, rows, max_new_tokens=new_tokens, stop_pattern=r"\S[^\n]*\n", batch_size=16, share_prefixes=shared,
        ):  # fmt: skip
            texts |= {i: output.ids for i, output in zip(indices, outputs, strict=True)}
            losses |= {i: scores.nll_N[scores.rows_N == place] for place, i in enumerate(indices)}
        results[shared] = (time.perf_counter() - began, texts, losses)
    (alone, texts, losses), (shared_s, other_texts, other_losses) = results[False], results[True]
    return {
        "rows": len(rows),
        "mean_prompt_tokens": round(statistics.fmean(row.num_prompt_tokens for row in rows), 1),
        "seconds_alone": round(alone, 2),
        "seconds_shared": round(shared_s, 2),
        "equal": sum(texts[i] == other_texts[i] for i in texts),
        "largest_loss_difference_nats": max(float((losses[i] - other_losses[i]).abs().max()) for i in losses),
    }


if __name__ == "__main__":
    main()
