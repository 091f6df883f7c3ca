"""Two stages on vulnerable code, without and with its class, and what the second forgets: parts of the study, which ``run.py`` calls.

    python studies/repair-rounds/stages.py --sven sven-train.jsonl.gz           # two trainings; goes on where it was stopped
    python studies/repair-rounds/stages.py --sven sven-train.jsonl.gz --try     # two steps of each

The recipe is the shipped ``repair-stages``; its run folder keeps predictions, curves and the page of both stages.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from luthier import pipeline, recipe_file
from luthier.run_folder import read_json

TRIED = ["train.max_steps=2", "stages.with-class.train.max_steps=2", "data.max_rows={eval: 4, test: 6}"]


def figures(
    sven: Path,
    work: Path,
    model: str = "embedded:smollm2-135m",
    overrides: tuple[str, ...] = (),
    *,
    tried: bool = False,
) -> dict[str, Any]:
    """Scores of each stage (``stages``) and of the second stage's model on the first one's test rows (``forgetting``).

    Args:
        sven: Rows with both sides and their CWE (JSONL).
        work: Where the run folder lies.
        model: Name of the model.
        overrides: Further keys of the recipe.
        tried: Two steps only.
    """
    keys = [
        f"data.source.path={sven.resolve()}",
        f"model.name={model}",
        *overrides,
        *(TRIED if tried else []),
    ]
    place = pipeline.run(recipe_file.load("repair-stages", keys), folder=work / "stages", progress=say)
    found: dict[str, Any] = {"stages": {}, "forgetting": {}}
    for name, run in place.trainings().items():
        scores = read_json(run.scores)["metrics"]
        found["stages"][name] = {
            metric: {
                "before": one["base"],
                "after": one["tuned"],
                "difference": [one["difference"], *one["interval"]] if one["interval"] else one["difference"],
            }
            for metric, one in scores.items()
        }
    for entry in read_json(place.forgetting):
        found["forgetting"][f"{entry['stage']}-after-{entry['after']}"] = {
            metric: [one["difference"], *one["interval"]] if one["interval"] else one["difference"]
            for metric, one in entry["metrics"].items()
        }
    return found


def say(label: str, done: int, total: int | None) -> None:
    if total and (done == total or done % max(1, total // 10) == 0):
        print(f"{label}: {done} of {total}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sven", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs") / "study-repair-rounds")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--try", dest="tried", action="store_true")
    options = parser.parse_args()
    print(json.dumps(figures(options.sven, options.work, options.model, tried=options.tried), indent=1))
