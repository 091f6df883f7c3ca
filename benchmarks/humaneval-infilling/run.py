"""pass@1 of a model on HumanEval-Infilling: gaps are filled greedily and the benchmark's own tests are run.

    python benchmarks/humaneval-infilling/run.py MODEL HumanEval-SingleLineInfilling.jsonl.gz
    python benchmarks/humaneval-infilling/run.py runs/infill HumanEval-SingleLineInfilling.jsonl.gz [--base]

MODEL is a registered model, a folder or a Hub name whose vocabulary has sentinel tokens, or a run folder. A model without
them, or one that knows them only since training, is asked from the left alone with ``--left``: it sees the prefix only, and its
first line counts. Completions are kept in ``--work``: a run that was stopped goes on. Adds the figures to results.json beside
this file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel

from luthier import recipe_file
from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.infill import Infill, sentinels, without_overlap
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.evaluate.significance import Ratio, with_intervals
from luthier.metrics.pass_at_k import pass_at_1
from luthier.models.generate import prompt_row, score_and_generate
from luthier.models.load import load_tokenizer, load_trained, load_untrained, resolve
from luthier.recipe import Model
from luthier.records import Dropped, Example, Record, Row, Span
from luthier.run_folder import RunFolder, hash_folder, hash_value, json_line, read_jsonl, write_jsonl
from luthier.sources.humaneval_infilling import HumanEvalInfilling
from luthier.stages import settled
from luthier.tasks.language_modelling import LanguageModelling

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

RESULTS = HERE / "results.json"


@dataclass(frozen=True)
class Question:
    """A gap: its prompt, and the program round it as pass@1 takes it (``before``, ``behind``, ``suffix``)."""

    id: str
    group: str
    prompt: list[int]
    meta: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--name", help="of the figures; by default made of the model's and the file's")
    parser.add_argument("--base", action="store_true", help="the run's model as it was before training")
    parser.add_argument("--left", action="store_true", help="prefix only, up to the end of the first line")
    parser.add_argument("--order", choices=["psm", "spm"], help="by default a run's own, and psm otherwise")
    parser.add_argument("--rows", type=int, help="so many, spread over the file; then nothing is written")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("runs") / "humaneval-infilling")
    options = parser.parse_args()

    place = RunFolder(options.model)
    is_run = place.recipe.is_file()
    recipe = settled(recipe_file.load(place.recipe), place) if is_run else None
    settings = recipe.model if recipe else Model(name=options.model)
    order = options.order or ((recipe.task.get("infill") or {}).get("order") if recipe else None) or "psm"
    tokenizer = load_tokenizer(settings)
    if not options.left:
        refuse_new_sentinels(settings, tokenizer, trained=is_run and not options.base)
    records = list(HumanEvalInfilling(path=str(options.file)).records())
    if options.rows:
        records = records[:: max(1, len(records) // options.rows)][: options.rows]
    asked = [question(record, tokenizer, order, options.max_length, options.left) for record in records]

    is_tuned = is_run and not options.base

    def lend() -> PreTrainedModel | PeftModel:
        return (
            load_trained(settings, place, len(tokenizer))
            if is_tuned
            else load_untrained(settings, len(tokenizer))
        )

    weights = place.result() if is_tuned else Path(resolve(settings))
    known_by = hash_folder(weights) if weights is not None and weights.is_dir() else str(weights)
    name = options.name or re.sub(
        r"\W+",
        "_",
        f"{Path(options.model).name}{' base' if options.base else ''}{' left' if options.left else ''} {options.file.name.split('.')[0]}",
    )
    key = hash_value([known_by, options.left, options.max_new_tokens, settings.model_dump(mode="json")])
    written = completions(
        asked,
        lend,
        tokenizer,
        options.work / f"{name}-{key[:12]}.jsonl",
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        left=options.left,
    )
    figures: dict[str, Any] = {
        f"{name}/ended": round(float(np.mean([written[q.id]["ended"] for q in asked])), 4),
        f"{name}/gaps": len(asked),
    }
    # One that is asked with both sides may fill the gap and write on: what its first line alone comes to is told apart.
    for first_line in (True,) if options.left else (False, True):
        texts = [middle(written[q.id]["text"], q.meta["suffix"], first_line) for q in asked]
        passed = pass_at_1(texts, [""] * len(texts), metas=[q.meta for q in asked])
        found = with_intervals({"passed": Ratio.mean(passed)}, [q.group for q in asked])["passed"]
        counted = "first_line_pass_at_1" if first_line and not options.left else "pass_at_1"
        figures[f"{name}/{counted}"] = results.with_interval(found["value"], found["interval"])
    known = json.loads(RESULTS.read_text())["figures"] if RESULTS.is_file() and not options.rows else {}
    results.write(
        RESULTS if not options.rows else Path(tempfile.gettempdir()) / "humaneval-infilling.json",
        known | figures,
        command="python benchmarks/humaneval-infilling/run.py MODEL FILE",
        packages=("luthier", "transformers", "torch"),
        notes="One greedy sample a gap; 95% intervals by bootstrap over problems; ended: share that wrote the end of a middle before the "
        "limit of tokens.",
    )


def refuse_new_sentinels(settings: Model, tokenizer: TextTokenizer, *, trained: bool) -> None:
    """Stops where the model that is asked has no trained embeddings of the sentinel tokens."""
    new = set(sentinels(tokenizer, "auto").tokens) & set(settings.new_tokens)
    if new and not trained:
        raise SystemExit(
            f"{', '.join(sorted(new))} are new tokens of this run (model.new_tokens): before training the model has no embeddings "
            "for them, and cannot be asked for a gap. Ask it from the left with --base --left"
        )


def question(
    record: Record | Dropped, tokenizer: TextTokenizer, order: str, max_length: int, left: bool
) -> Question:
    """A record's gap as a prompt: the very ids of training, or with ``left`` the prefix alone."""
    if isinstance(record, Dropped):
        raise SystemExit(
            f"{record.id}: {record.reason}: {record.detail}. All gaps are scored or none: mend the file"
        )
    fields = record.fields
    if left:
        # What ends the prefix is left to the model, which has seen newline and indent as one token.
        before = str(fields["prefix"]).rstrip()
        example = Example(record.id, [Span(before, "context", trim="left")], record.group)
        check = f"\n{fields['test']}\ncheck({fields['entry_point']})\n"
        meta = {"before": before, "behind": fields["suffix"] + check, "suffix": fields["suffix"]}
        return Question(record.id, record.group, list(encode_prompt(example, tokenizer, max_length)), meta)
    task = LanguageModelling(infill=Infill(order=order))
    [example] = task.examples(record, "test", tokenizer, max_length=max_length, seed=0)
    row = encode(example, tokenizer, max_length)
    if not isinstance(row, Row):
        raise SystemExit(f"{record.id}: {row.reason}: {row.detail}. Set a larger --max-length")
    return Question(record.id, record.group, row.input_ids[: row.num_prompt_tokens].tolist(), dict(row.meta))


def completions(
    asked: Sequence[Question],
    lend: Callable[[], PreTrainedModel | PeftModel],
    tokenizer: TextTokenizer,
    path: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    left: bool,
) -> dict[str, dict[str, Any]]:
    """What the model writes for each gap (``text``, ``ended``), by id; kept in a file of lines, batch by batch.

    Args:
        asked: The gaps.
        lend: Loads the model; not called where nothing is left to write.
        tokenizer: The model's.
        path: The file. What lies in it for the same prompt is not written again.
        max_new_tokens: Of a completion.
        batch_size: Gaps at once.
        left: Whether the first line ends a completion.
    """
    prompts = {q.id: hash_value(q.prompt) for q in asked}
    kept = {row["id"]: row for row in read_jsonl(path) if prompts.get(row["id"]) == row["prompt"]}
    todo = [q for q in asked if q.id not in kept]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, read_jsonl(path))  # without a line that was cut off
    if not todo:
        return kept
    print(f"{len(kept)} of {len(asked)} gaps are filled already: {path}", flush=True)
    model = lend()
    with open(path, "a", encoding="utf-8") as file:
        for indices, _, found in score_and_generate(
            model,
            tokenizer,
            [prompt_row([*q.prompt, 0]) for q in todo],  # any token in the target's place
            max_new_tokens=max_new_tokens,
            stop_pattern=r"\S[^\n]*\n" if left else None,
            batch_size=batch_size,
        ):
            for index, output in zip(indices, found, strict=True):
                q = todo[index]
                kept[q.id] = {"id": q.id, "prompt": prompts[q.id], "text": output.text, "ended": output.ended}
                file.write(json_line(kept[q.id]))
            file.flush()
            print(f"{len(kept)} of {len(asked)}", flush=True)
    return kept


def middle(text: str, suffix: str, first_line: bool) -> str:
    """What of a completion fills the gap: its first line, or what does not begin the suffix again."""
    if not first_line:
        return without_overlap(text, suffix)
    match = re.match(r"\s*[^\n]*\n?", text)
    return match.group() if match else text


if __name__ == "__main__":
    main()
