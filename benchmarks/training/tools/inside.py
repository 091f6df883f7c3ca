"""What only a look inside a training can tell: gradients in bf16 beside those in fp32, and where a step's time goes."""

import json
import sys
from pathlib import Path

import torch

from luthier import pipeline
from luthier.encoding.batches import shuffled
from luthier.models.load import load_model, load_tokenizer
from luthier.recipe import Recipe
from luthier.records import Row
from luthier.rows import Rows
from luthier.run_folder import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import trainable
from luthier.train.loop import Loop, accumulate_gradients
from luthier.train.optimizer import adamw

# Parts of a step by the names that the profiler gives to operations; the first that fits.
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm", "mkldnn"),
    "attention kernel": ("attention",),
    "compiled functions": ("Torch-Compiled", "CompiledF", "CompiledFx", "cpp_fused", "graph_"),
    "optimizer and clipping": ("adamw", "Optimizer", "_foreach"),
    "copies and conversions": ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::clone", "aten::index"),
    "softmax and loss": ("softmax", "nll_loss", "logsumexp", "cross_entropy"),
}
REST = "all other operations"


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    result = {
        "gradients": gradients,
        "profile": profiled,
    }[settings["look"]](settings)
    Path(sys.argv[2]).write_text(json.dumps(result))


def opened(tree: dict, folder: str) -> Loop:
    """The training of a prepared folder, set up as the ``train`` stage does it."""
    recipe: Recipe = pipeline.read(tree)
    run = RunFolder(folder)
    tokenizer = load_tokenizer(recipe.model)
    model = load_model(recipe.model, len(tokenizer), training=True, seed=recipe.seed)
    rows = Rows(run.rows("train"))
    chosen = pipeline._engine(recipe, model, rows, None, 1, sharded=False)
    return Loop(recipe, run, model, tokenizer, rows, Rows(run.rows("eval")), None, engine=chosen)


def rows_of(loop: Loop, step: int) -> list[Row]:
    """The rows of a step, counted from 0."""
    size = loop.recipe.train.batch_size
    indices = shuffled(step * size, size, len(loop.train_rows), loop.recipe.seed)
    return [loop.train_rows.row(i) for i in indices]


def gradients(settings: dict) -> dict[str, float]:
    """Cosine of all gradients of one step in bf16 to those in fp32, at the weights that a finished run ended with."""
    found = {}
    for precision in ("bf16", "fp32"):
        tree = settings["recipe"]
        tree = tree | {"model": tree["model"] | {"precision": precision}}
        loop = opened(tree, settings["folder"])
        tuned = RunFolder(settings["tuned"])
        checkpoint.load_weights(tuned.checkpoints / f"step-{checkpoint.steps(tuned)[-1]}", loop.model)
        accumulate_gradients(loop, rows_of(loop, loop.recipe.train.max_steps or 0))
        found[precision] = torch.cat(
            [
                p.grad.double().flatten()
                for _, p in sorted(trainable(loop.model).items())
                if p.grad is not None
            ]
        )
        del loop
    cosine = torch.nn.functional.cosine_similarity(found["bf16"], found["fp32"], dim=0)
    return {"gradient_cosine": float(cosine)}


def profiled(settings: dict) -> dict[str, float]:
    """Shares of the time of three steps, after two to warm up, by part."""
    loop = opened(settings["recipe"], settings["folder"])
    optimizer = adamw(loop.model.named_parameters(), loop.recipe.train)
    parameters = list(trainable(loop.model).values())

    def step(number: int) -> None:
        accumulate_gradients(loop, rows_of(loop, number))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for number in range(2):
        step(number)
    # Packs of other lengths than those before are compiled for; only then are steps what most steps are.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for number in range(2, 5):
            step(number)
    times = dict.fromkeys((*PARTS, REST), 0.0)
    for event in profile.key_averages():
        part = next((name for name, signs in PARTS.items() if any(sign in event.key for sign in signs)), REST)
        times[part] += event.self_cpu_time_total
    total = sum(times.values())
    return {name: round(time / total, 4) for name, time in times.items()}


if __name__ == "__main__":
    main()
