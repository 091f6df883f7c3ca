from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper

from luthier.check.as_before import attributes_as_before, evaluating, quiet, unchanged
from luthier.check.context import CheckContext, RunContext, Skip
from luthier.check.model_rows import distance, most_distance, real_logits, too_far
from luthier.check.origin import is_added
from luthier.check.steps import only_small, only_trainable, said, step_rows
from luthier.check.trainer import TrainerContext
from luthier.errors import one_line
from luthier.models.adapter import with_adapter
from luthier.models.forward import base_model
from luthier.models.load import save_trained
from luthier.records import Finding
from luthier.registry import check
from luthier.run_folder import RunFolder

NUM_ROWS = 2
MAX_TOKENS = 64
# By which trained weights are moved first, as a share of their spread: what is not saved then differs after a reload.
NOISE = 0.1


@check("save-reload")
def save_reload(context: CheckContext) -> Iterator[Finding]:
    """What is saved says the same after it is loaded as it said before.

    What it does: moves all trained weights a little, saves the model as the training will, loads the folder as anybody
    would (an adapter around a base model as it was before; a whole model up to 1 GiB from its folder alone), and compares
    the logits of 2 training rows: to 0.1% of their spread in fp32, to 10% in bf16. All is put back bit by bit.

    Why is this bad: what was trained and not saved is gone when the process ends; the log has shown a good model all along.

    Example: a head that is trained but not among ``modules_to_save``; tensors whose names begin with ``module.``, so that
    loading makes random ones in their place.

    Fix: ``modules_to_save``; the model's own ``save_pretrained``; see what loading says about missing keys.

    Catalogue: 60, 63, 64, 65, 70
    """
    model = context.model
    only_trainable(model)
    if not isinstance(context, RunContext | TrainerContext):
        raise Skip("rows and a model alone say nothing of how it will be saved")
    only_small(model)
    if isinstance(model, PeftModel):
        _only_plain(model)
    rows = step_rows(context, NUM_ROWS, MAX_TOKENS)
    given = [row.row for row in rows]
    # Saving writes names and formats into these.
    configs = [base_model(model).config, *getattr(model, "peft_config", {}).values()]
    context.looked_at(f"{said(rows)}, saved and loaded")
    with attributes_as_before(configs), TemporaryDirectory() as name, unchanged(model), evaluating(model):
        bare = _without_adapter(model) if isinstance(model, PeftModel) else None
        _move(model)
        before = real_logits(context, given)
        if not torch.isfinite(before).all():
            raise Skip("what the model gives is not finite (see weights and initial-loss)")
        with quiet():  # what is lacking shows in the logits
            try:
                folder = _save(context, Path(name))
                loaded = _load(context, folder, bare)
            except Exception as error:  # whatever foreign models raise when they are written and read
                yield _broken(error)
                return
        after = real_logits(context, given, loaded.eval())
        far = distance(before, after)
        if not far <= most_distance(context):
            yield _differs(context, far)


def _only_plain(model: PeftModel) -> None:
    for config in model.peft_config.values():
        begins = getattr(config, "init_lora_weights", True)
        if not isinstance(begins, bool) and begins not in ("gaussian", "orthogonal"):
            raise Skip(
                f"init_lora_weights={begins!r} changes the base model, which would have to be loaded anew"
            )


def _save(context: CheckContext, folder: Path) -> Path:
    """The folder that the training's own way of saving wrote."""
    if isinstance(context, RunContext):
        return save_trained(context.model, context.tokenizer, RunFolder(folder), context.recipe.model)
    assert isinstance(context, TrainerContext)
    context.trainer.save_model(str(folder), _internal_call=True)
    return folder


def _load(context: CheckContext, folder: Path, bare: Any) -> torch.nn.Module:
    """The model in a folder, as anybody would load it."""
    model: Any = context.model
    if bare is not None:
        if isinstance(context, RunContext):
            return with_adapter(bare, folder)
        return PeftModel.from_pretrained(bare, str(folder))
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    dtype = kinds.pop() if len(kinds) == 1 else "auto"
    config = model.config
    loaded: torch.nn.Module = type(model).from_pretrained(
        folder, dtype=dtype, attn_implementation=config._attn_implementation
    )
    return loaded.to(model.device)


def _without_adapter(model: PeftModel) -> torch.nn.Module:
    """The base model as it was before the adapter, sharing all weights that are not trained."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers()) if not t.requires_grad}
    twin = copy.deepcopy(model, dict(shared))
    for module in twin.modules():
        if isinstance(module, ModulesToSaveWrapper):  # unloading would leave the trained copy in its place
            for adapter in list(module.modules_to_save):
                module.modules_to_save[adapter] = module.original_module
    if any(config.is_prompt_learning for config in twin.peft_config.values()):
        return twin.get_base_model()
    bare: torch.nn.Module = twin.unload()
    return bare.requires_grad_(False) if not any(p.requires_grad for p in bare.parameters()) else bare


@torch.no_grad()
def _move(model: torch.nn.Module) -> None:
    """Adds a little noise to all trained weights."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            spread = float(parameter.float().std()) if parameter.numel() > 1 else 0.0
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * (NOISE * spread or NOISE / 10))


def _differs(context: CheckContext, far: float) -> Finding:
    model = context.model
    where, fix = "what save_model writes", "see what loading says of keys that are missing"
    cause = ""
    lost = [
        name for name, p in model.named_parameters()
        if p.requires_grad and isinstance(model, PeftModel) and not is_added(name) and ".modules_to_save." not in name
    ]  # fmt: skip
    if lost:
        names = sorted({name.removeprefix("base_model.model.") for name in lost})
        cause = f": {len(lost)} trained parameters are none of the adapter's, and are not saved with it ({', '.join(names[:3])})"
        where, fix = f"parameters {', '.join(names[:3])}", f"modules_to_save=[{names[0].split('.')[-2]!r}]"
    return too_far(
        context,
        "save-reload",
        far,
        f"after it is saved and loaded, the model's logits are {far:.4f} of their spread away from what they were{cause}",
        fix,
        where,
    )


def _broken(error: Exception) -> Finding:
    return Finding(
        "save-reload",
        "error",
        f"what is saved cannot be loaded: {one_line(error)}",
        "what save_model writes",
        "save the model (or its adapter) with its own save_pretrained",
        measured=type(error).__name__,
        expected="a folder that loads",
    )
