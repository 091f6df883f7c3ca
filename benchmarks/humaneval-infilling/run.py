"""pass@1 of a model on HumanEval-Infilling: gaps are filled greedily and the benchmark's own tests are run.

    python benchmarks/humaneval-infilling/run.py MODEL HumanEval-SingleLineInfilling.jsonl.gz
    python benchmarks/humaneval-infilling/run.py runs/infill HumanEval-SingleLineInfilling.jsonl.gz [--base]

MODEL is a registered model, a folder or a Hub name whose vocabulary has sentinel tokens, or a run folder. A model without
them is asked from the left alone with ``--left``: it sees the prefix only, and its first line counts. Adds the figures to
results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from luthier import pipeline, recipe_file
from luthier.encoding.encode import encode, encode_prompt
from luthier.encoding.infill import Infill, without_overlap
from luthier.evaluate.runner import without_adapter
from luthier.evaluate.significance import Pair, Ratio, paired_bootstrap
from luthier.metrics.pass_at_k import pass_at_1
from luthier.models.generate import generate
from luthier.models.load import load_model, load_tokenizer, load_trained
from luthier.recipe import Model
from luthier.records import Example, Row, Span
from luthier.run_folder import RunFolder
from luthier.sources.humaneval_infilling import HumanEvalInfilling
from luthier.tasks.language_modelling import LanguageModelling

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402 # what all benchmarks and studies write

RESULTS = HERE / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--name", help="of the figures; by default made of the model's and the file's")
    parser.add_argument("--base", action="store_true", help="the run's model as it was before training")
    parser.add_argument("--left", action="store_true", help="prefix only, up to the end of the first line")
    parser.add_argument("--order", choices=["psm", "spm"], default="psm")
    parser.add_argument("--rows", type=int, help="so many, spread over the file; then nothing is written")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()

    place = RunFolder(options.model)
    if place.recipe.is_file():
        settings = pipeline.settled(recipe_file.load(place.recipe), place).model
        tokenizer = load_tokenizer(settings)
        model = load_trained(settings, place, len(tokenizer))
        if options.base and settings.adapter is None:
            model = load_model(settings, len(tokenizer), training=False, seed=0)
    else:
        settings = Model(name=options.model)
        tokenizer = load_tokenizer(settings)
        model = load_model(settings, len(tokenizer), training=False, seed=0)

    records = list(HumanEvalInfilling(path=str(options.file)).records())
    if options.rows:
        records = records[:: max(1, len(records) // options.rows)][: options.rows]
    task = LanguageModelling(infill=Infill(order=options.order))
    prompts, metas, groups = [], [], []
    for record in records:
        fields = record.fields
        if options.left:
            check = f"\n{fields['test']}\ncheck({fields['entry_point']})\n"
            spans = [Span(fields["prefix"].rstrip(), "context", trim="left")]
            # What ends the prefix is left to the model, which has seen newline and indent as one token.
            metas.append(
                {
                    "before": fields["prefix"].rstrip(),
                    "behind": fields["suffix"] + check,
                    "suffix": fields["suffix"],
                }
            )
            prompts.append(
                encode_prompt(Example(record.id, spans, record.group), tokenizer, options.max_length)
            )
        else:
            [example] = task.examples(record, "test", tokenizer, max_length=options.max_length, seed=0)
            row = encode(example, tokenizer, options.max_length)
            if not isinstance(row, Row):
                raise SystemExit(f"{record.id}: {row.reason}: {row.detail}")
            metas.append(dict(row.meta))
            prompts.append(row.input_ids[: row.num_prompt_tokens].tolist())
        groups.append(record.group)
    with without_adapter(model) if options.base and settings.adapter is not None else torch.no_grad():
        outputs = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=options.max_new_tokens,
            stop_pattern=r"\S[^\n]*\n" if options.left else None,
            batch_size=options.batch_size,
        )
    texts = [
        without_overlap(output.text, meta["suffix"]) for output, meta in zip(outputs, metas, strict=True)
    ]
    if options.left:
        texts = [match.group() if (match := re.match(r"\s*[^\n]*\n?", text)) else text for text in texts]
    passed = pass_at_1(texts, [""] * len(texts), metas=metas)
    pair = Pair(Ratio.mean([0.0] * len(passed)), Ratio.mean(passed))
    [interval] = paired_bootstrap([pair], groups)
    name = options.name or re.sub(
        r"\W+",
        "_",
        f"{Path(options.model).name}{' base' if options.base else ''}{' left' if options.left else ''} {options.file.name.split('.')[0]}",
    )
    figures = {
        f"{name}/pass_at_1": results.with_interval(float(np.mean(passed)), interval.interval),
        f"{name}/ended": round(float(np.mean([output.ended for output in outputs])), 4),
        f"{name}/gaps": len(passed),
    }
    known = json.loads(RESULTS.read_text())["figures"] if RESULTS.is_file() and not options.rows else {}
    results.write(
        RESULTS if not options.rows else Path(tempfile.gettempdir()) / "humaneval-infilling.json",
        known | figures,
        command="python benchmarks/humaneval-infilling/run.py MODEL FILE",
        packages=("luthier", "transformers", "torch"),
        notes="One greedy sample a gap; 95% intervals by bootstrap over problems; ended: share that wrote the end of a middle before the "
        "limit of tokens.",
    )


if __name__ == "__main__":
    main()
