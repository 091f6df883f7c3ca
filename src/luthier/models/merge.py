"""An adapter put into its base model: a plain model folder, proven to say the same."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import Refused, UserError
from luthier.models import start
from luthier.models.adapter import with_adapter
from luthier.models.load import load_model, load_tokenizer, resolve
from luthier.recipe import Classifier, Model
from luthier.run_folder import RunFolder, cache_folder, logger, new_folder

# Texts that both are compared on.
PROMPTS = (
    "def mean(values):\n    return sum(values) /",
    "import os\nfrom pathlib import Path\n\n\nclass Folder:\n    def __init__(self, path):\n",
    "for (int i = 0; i < items.length; i++) {\n    total += items[i];\n",
    "The function returns 1234 when the list is empty, and",
)
# Largest difference of two logits, as a share of the largest logit; also the largest KL divergence, as a share of what the
# adapter changes (or 1e-6 nats, if that is more).
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Proof:
    """How much the merged folder, loaded anew, differs from base and adapter; in fp32, over all tokens of the prompts.

    A quantised base stays so on the adapter's side of the comparison.

    Attributes:
        max_difference: Largest absolute difference of two logits.
        max_logit: Largest absolute logit, to compare it with.
        kl_nats: Largest Kullback-Leibler divergence of a token's distribution, in nats.
        adapter_kl_nats: The same between base model and adapter: what the adapter changes at all.
        num_tokens: Tokens compared.
    """

    max_difference: float
    max_logit: float
    kl_nats: float
    adapter_kl_nats: float
    num_tokens: int


def merge(settings: Model, run: RunFolder, out: str | Path) -> Proof:
    """Writes base and adapter as one model folder with its tokenizer, which transformers loads alone.

    Merged and saved in fp32: in bf16 a small update is rounded away. A quantised base is dequantised first, so that the
    merged model is what was trained, not what the base was before.

    Args:
        settings: The model section of the run's recipe.
        run: A trained run with ``adapter/``.
        out: The folder to write; must not exist.

    Returns:
        The figures of the comparison.

    Raises:
        UserError: No adapter, or ``out`` exists.
        Refused: The merged model says something else; nothing is left at ``out``.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already", str(out), "name a folder that does not exist yet")
    if not run.adapter.is_dir():
        has_model = run.model.is_dir()
        raise UserError(
            f"{run.path} has no adapter to merge",
            str(run.adapter),
            f"use {run.model} as it is: it was trained whole"
            if has_model
            else "run `luthier train` with its recipe",
        )
    return _merge(settings, run.adapter, out)


def merged_start(settings: Model) -> Path:
    """The folder of a model with the adapter of ``model.start_from`` in it, in the cache; merged when first asked for.

    Raises:
        UserError: The adapter was trained on another model than the recipe names.
        Refused: As ``merge``.
    """
    adapter, earlier = start.find(settings)
    out = cache_folder() / "merged" / start.identity(settings)[:16]
    if out.is_dir():
        return out
    base, own = resolve(earlier), resolve(settings.model_copy(update={"start_from": None}))
    if not earlier.start_from and base != own:
        raise UserError(
            f"the adapter was trained on {base}, not on {own}",
            "recipe key model.start_from",
            f"set model.name={earlier.name}",
        )
    start.adapter_folder(
        earlier.model_copy(update={"start_from": settings.start_from}), base, load_tokenizer(earlier)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Of several processes that start at once, one merges; the others wait and then find the folder.
    with open(out.parent / f".{out.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.is_dir():
            _merge(earlier, adapter, out)
    return out


def _merge(settings: Model, adapter: Path, out: Path) -> Proof:
    tokenizer = load_tokenizer(settings)
    plain = settings.model_copy(update={"precision": "fp32"})
    base = load_model(plain, len(tokenizer), training=False, seed=0)
    batch = _ids(tokenizer, [*PROMPTS, "".join(settings.new_tokens)], control=bool(settings.new_tokens))
    model = with_adapter(base, adapter)
    adapted = [_logits(model, ids) for ids in batch]
    with model.disable_adapter():
        before = [_logits(model, ids) for ids in batch]
    if settings.quantisation:
        model = with_adapter(_dequantised(model.unload()), adapter)
    merged = model.merge_and_unload(safe_merge=True)
    with new_folder(out) as folder:
        merged.save_pretrained(folder)
        tokenizer.save(folder)
        del model, merged, base
        kind: Any = (
            AutoModelForSequenceClassification if isinstance(settings, Classifier) else AutoModelForCausalLM
        )
        logger.info("merge: written; loading it anew to compare it with base and adapter")
        again = kind.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=settings.trust_remote_code
        )
        proof = _compare(adapted, before, [_logits(again.eval(), ids) for ids in batch])
        allowed = max(_TOLERANCE * proof.adapter_kl_nats, 1e-6)
        if not (proof.max_difference <= _TOLERANCE * proof.max_logit and proof.kl_nats <= allowed):
            raise Refused(
                f"the merged model differs from the adapter: logits by {proof.max_difference:.3g} of {proof.max_logit:.3g}, "
                f"{proof.kl_nats:.3g} nats (the adapter itself changes {proof.adapter_kl_nats:.3g})",
                str(adapter),
                "use base and adapter together with peft; nothing was written",
            )
    logger.info(
        "merge: %s; logits differ by at most %.2g of %.3g, %.2g nats; the adapter itself changes %.3g nats",
        out,
        proof.max_difference,
        proof.max_logit,
        proof.kl_nats,
        proof.adapter_kl_nats,
    )
    return proof


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the values of its 4-bit weights in fp32, as it computes with them; no longer quantised."""
    whole: PreTrainedModel = model.dequantize(torch.float32)
    return whole


def _ids(tokenizer: TextTokenizer, texts: Sequence[str], *, control: bool) -> list[Tensor]:
    rows = [
        [*tokenizer.prefix_ids, *tokenizer.encode(text, first=True, control=control)]
        for text in texts
        if text
    ]
    return [torch.tensor([row]) for row in rows]


@torch.inference_mode()
def _logits(model: torch.nn.Module, ids_1T: Tensor) -> Tensor:
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=ids_1T.to(device), use_cache=False).logits
    return logits.flatten(0, -2).double().cpu()  # of a classifier one for the whole text


def _compare(adapted: list[Tensor], before: list[Tensor], merged: list[Tensor]) -> Proof:
    adapted_TV, before_TV, merged_TV = torch.cat(adapted), torch.cat(before), torch.cat(merged)
    return Proof(
        max_difference=float((adapted_TV - merged_TV).abs().max()),
        max_logit=float(adapted_TV.abs().max()),
        kl_nats=_kl(adapted_TV, merged_TV),
        adapter_kl_nats=_kl(adapted_TV, before_TV),
        num_tokens=len(adapted_TV),
    )


def _kl(p_TV: Tensor, q_TV: Tensor) -> float:
    """Largest divergence of a token's distribution."""
    p_TV, q_TV = functional.log_softmax(p_TV, -1), functional.log_softmax(q_TV, -1)
    return max(0.0, float((p_TV.exp() * (p_TV - q_TV)).sum(-1).max()))
