"""How many candidates a second: all bugs together by ``luthier.models.beams``, or one prompt at a time by ``generate``.

    python benchmarks/candidates/run.py                 # half an hour on two cores; writes results.json beside this file
    python benchmarks/candidates/run.py --bugs 4 --max-new-tokens 8 --model DIR    # a try; writes nothing

Bugs are planted into functions of the standard library and asked about as the task ``repair`` does (IR4 x OR2). The usual way
is the usual script: ``AutoModelForCausalLM`` in bf16, a prompt at a time, ``num_beams=num_return_sequences=10``, with as many
threads. It is measured on every fifth bug of the same order of lengths. Candidates are compared in fp32, where rounding decides
nothing but ties.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from luthier.encoding.encode import encode_prompt
from luthier.encoding.repair import place_of
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.models.beams import continuations, one_at_a_time
from luthier.models.load import load_model, load_tokenizer, resolve
from luthier.models.search import Search
from luthier.recipe import Model
from luthier.records import Example, Record
from luthier.sources.mutations import Mutations
from luthier.tasks.repair import Repair

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

RESULTS = HERE / "results.json"
LENGTHS = (60, 600)
EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--bugs", type=int, default=100)
    parser.add_argument("--same", type=int, default=20, help="bugs whose candidates are compared in fp32")
    parser.add_argument("--num-beams", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rows-at-once", type=int, default=80)
    options = parser.parse_args()
    settings = Model(name=options.model, precision="bf16")
    tokenizer = load_tokenizer(settings)
    asked = prompts(tokenizer, options.bugs)
    search = Search(
        num_beams=options.num_beams, max_new_tokens=options.max_new_tokens, rows_at_once=options.rows_at_once
    )

    model = load_model(settings, len(tokenizer), training=False, seed=0)
    began = time.perf_counter()
    found = dict(continuations(model, tokenizer, asked, search))
    together = time.perf_counter() - began
    num_candidates = sum(map(len, found.values()))
    del model

    usual: Any = AutoModelForCausalLM.from_pretrained(resolve(settings), dtype=torch.bfloat16).eval()
    some = sorted(range(len(asked)), key=lambda i: len(asked[i]))[EVERY // 2 :: EVERY] or [0]
    began = time.perf_counter()
    alone = [one_at_a_time(usual, tokenizer, asked[i], search) for i in some]
    apart = time.perf_counter() - began
    del usual

    whole = load_model(
        settings.model_copy(update={"precision": "fp32"}), len(tokenizer), training=False, seed=0
    )
    compared = asked[: options.same]
    ours = dict(continuations(whole, tokenizer, compared, search))
    same = [
        [c.ids for c in ours[i]] == [c.ids for c in one_at_a_time(whole, tokenizer, p, search)]
        for i, p in enumerate(compared)
    ]
    rates = {"together": num_candidates / together, "apart": sum(map(len, alone)) / apart}
    figures = {
        "speed_vs_one_at_a_time": round(rates["together"] / rates["apart"], 2),
        "candidates_per_s": round(rates["together"], 2),
        "candidates_per_s_one_at_a_time": round(rates["apart"], 2),
        "same_in_fp32": sum(same),
        "compared_in_fp32": len(same),
        "bugs": len(asked),
        "bugs_one_at_a_time": len(some),
        "candidates": num_candidates,
        "mean_prompt_tokens": round(sum(map(len, asked)) / len(asked), 1),
        "max_new_tokens": options.max_new_tokens,
        "threads": torch.get_num_threads(),
    }
    tried = options.bugs != parser.get_default("bugs")
    results.write(
        Path(tempfile.gettempdir()) / "candidates.json" if tried else RESULTS,
        figures,
        command="python benchmarks/candidates/run.py",
        packages=("torch", "transformers"),
        notes="Ten beams a bug, in bf16 both; the usual way on every fifth bug by length.",
    )


def prompts(tokenizer: TextTokenizer, count: int) -> list[list[int]]:
    """Prompts of planted bugs, spread over the standard library."""
    task = Repair()
    found: list[list[int]] = []
    for record in Mutations(max_lines=40, functions_per_file=2).pairs():
        sides = task.sides(record) if isinstance(record, Record) else None
        if not isinstance(sides, tuple) or hash_place(record.id) % 5:
            continue
        place, _ = place_of(sides[0], sides[1])
        spans = task.prompt_spans(place, sides[2], "", tokenizer, LENGTHS[1])
        ids = encode_prompt(Example(record.id, spans, record.id), tokenizer, 1 << 20)
        if LENGTHS[0] <= len(ids) <= LENGTHS[1]:
            found.append(ids)
        if len(found) == count:
            break
    return found


def hash_place(name: str) -> int:
    """A number that is the same everywhere."""
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(name))


if __name__ == "__main__":
    main()
