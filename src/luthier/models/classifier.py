"""A head that gives whole rows a class, or several: what it reads, how it begins, and its losses.

The head reads the last token of a row, which is the one with a loss weight: found by position and not by id, so that
padding on either side and packs come to the same. Shapes: N rows, C classes, D width, G groups of classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, Mamba2Config, MambaConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.models.mamba.modeling_mamba import MambaModel, MambaPreTrainedModel
from transformers.models.mamba2.modeling_mamba2 import Mamba2Model, Mamba2PreTrainedModel

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.recipe import Head
from luthier.records import Row

# What transformers calls the head of every decoder that has one; peft knows it by this name as well.
HEAD = "score"
# Spread of a fresh head's logits. A loss of ln C + s^2/2 is then ln C to 1%, whatever the size of hidden states.
SPREAD = 0.1
_PROBED_TOKENS = 32
# Classes whose loss is computed at once.
_CLASSES_AT_ONCE = 256


def head_of(model: nn.Module) -> Head | None:
    """The settings of a model's head for classes; None for a language model."""
    found: Head | None = vars(model).get("class_head")
    return found


def class_logits(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """Logits of the classes from last hidden states, fp32, shape (N, C)."""
    logits_NC: Tensor = getattr(model, HEAD)(hidden_ND.float()).float()
    return logits_NC


def class_targets(head: Head, labels: Any, device: torch.device) -> Tensor:
    """Labels of a batch: int64, shape (B,); or with several labels fp32 of 0 and 1, shape (B, C)."""
    return torch.tensor(labels, device=device, dtype=torch.float32 if head.several else torch.int64)


def class_nll(logits_NC: Tensor, targets: Tensor, head: Head) -> Tensor:
    """The loss of each row in nats, fp32, shape (N,): cross entropy, or the mean of C binary ones with several labels.

    Label smoothing spreads its share of the target evenly over classes (of a binary target, over yes and no). The focal
    factor multiplies it. Levels of a hierarchy above the class have the mean of their own cross entropies.

    Args:
        logits_NC: Of the head.
        targets: Shape (N,), or (N, C) with several labels.
        head: What scales and adds to the loss.

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7; Lin et al. 2017, arXiv:1708.02002, eq. 4.
    """
    smoothing, gamma = head.label_smoothing, head.focal_gamma
    if head.several:
        soft = targets * (1 - smoothing) + smoothing / 2
        nll_NC = functional.binary_cross_entropy_with_logits(logits_NC, soft, reduction="none")
        if gamma:
            right_NC = torch.sigmoid(torch.where(targets > 0.5, logits_NC, -logits_NC))
            nll_NC = nll_NC * (1 - right_NC) ** gamma
        return nll_NC.mean(-1)
    log_NC = functional.log_softmax(logits_NC, dim=-1)
    target_N = log_NC.gather(1, targets[:, None])[:, 0]
    nll_N = -(1 - smoothing) * target_N - smoothing * log_NC.mean(-1)
    if gamma:
        nll_N = nll_N * (1 - target_N.exp()) ** gamma
    levels = _levels(head)
    if levels:
        above = torch.stack([_group_nll(log_NC, targets, level.to(targets.device)) for level in levels])
        nll_N = (1 - head.hierarchy_weight) * nll_N + head.hierarchy_weight * above.mean(0)
    return nll_N


@torch.no_grad()
def uniform_loss(head: Head, rows: Iterable[Row] = ()) -> float:
    """What a head that finds all classes equally likely costs, by the loss that is trained, in nats.

    It is ln C, or ln 2 with several labels, times what the focal factor leaves of it; label smoothing changes nothing. With
    a hierarchy it is less and depends on the rows, since a group of many classes is guessed easily.

    Args:
        head: Whose loss.
        rows: With a hierarchy: the rows over which the weighted mean is; without any, each class counts alike.
    """
    num_classes = len(head.names)
    if head.several:
        return float(class_nll(torch.zeros(1, num_classes), torch.zeros(1, num_classes), head))
    parts = torch.arange(num_classes if head.levels() else 1).split(_CLASSES_AT_ONCE)
    nll_C = torch.cat([class_nll(torch.zeros(len(part), num_classes), part, head) for part in parts])
    if len(nll_C) == 1:
        return float(nll_C)
    weights_C = torch.zeros(num_classes)
    for row in rows:
        weights_C[row.meta["label"]] += float(row.loss_weights.sum())
    if not weights_C.any():
        weights_C += 1
    return float((nll_C * weights_C).sum() / weights_C.sum())


@functools.lru_cache(maxsize=8)
def _levels(head: Head) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(level) for level in head.levels())


def _group_nll(log_NC: Tensor, targets_N: Tensor, groups_C: Tensor) -> Tensor:
    """Negative log-probability of the group that each row's class is in."""
    same_NC = groups_C[None, :] == groups_C[targets_N][:, None]
    return -log_NC.masked_fill(~same_NC, -math.inf).logsumexp(-1)


def predicted(logits_NC: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """The likeliest class and the label of each row; of several labels 1 where all are right, and 1. Shape (N,), both."""
    if not head.several:
        return logits_NC.argmax(-1), targets
    right_N = ((logits_NC > 0) == (targets > 0.5)).all(-1).long()
    return right_N, torch.ones_like(right_N)


def pad_id(tokenizer: TextTokenizer) -> int:
    """The id by which transformers' own forward finds the last token: the tokenizer's padding, if it has that.

    Without, it is a control token that is not EOS, or EOS itself: text never ends in one, since control tokens that data
    spell are read as text. Luthier itself goes by position and needs none.
    """
    if tokenizer.hf.pad_token_id is not None:
        return int(tokenizer.hf.pad_token_id)
    others = sorted(tokenizer.special_ids - {tokenizer.eos_id})
    return int(others[0] if others else tokenizer.eos_id or 0)


def settle_head(model: PreTrainedModel, head: Head, tokenizer: TextTokenizer, *, fresh: bool) -> None:
    """Tells a model with a head what it needs to know, and draws a head that its files do not have.

    A fresh head is drawn so that its logits have the spread ``SPREAD``: from the length of the hidden states that the
    model really gives, since the gains of a last norm may make them ten times as long as another model's.

    Raises:
        UserError: The model's head is not one layer on the decoder's last hidden states.
    """
    layer = getattr(model, HEAD, None)
    if not isinstance(layer, nn.Linear) or getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{type(model).__name__} has no layer {HEAD!r} on a decoder's last token",
            "recipe key model.name",
            "take a decoder (Llama, Qwen, Mistral, Gemma, GPT-2, Mamba ...), or task.way=words",
        )
    layer.float()
    model.class_head = head  # type: ignore[assignment] # typed as a tensor or layer
    model.config.get_text_config().pad_token_id = pad_id(tokenizer)
    if not fresh:
        return
    ids_1T = (
        torch.arange(_PROBED_TOKENS, device=layer.weight.device)[None]
        % model.config.get_text_config().vocab_size
    )
    with torch.no_grad():
        hidden_TD = model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0].float()
        length = float(hidden_TD.square().sum(-1).mean().sqrt())
        nn.init.normal_(layer.weight, std=SPREAD / length)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class _StateSpaceClassifier:
    """A Mamba model with a head on each row's last token, which transformers lacks."""

    _decoder: type[PreTrainedModel]

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg] # of the model class beside it
        self.num_labels = config.num_labels
        self.backbone = self._decoder(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()  # type: ignore[attr-defined] # of the model class beside it

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits of each row's last token that the mask does not hide: shape (B, C)."""
        hidden_BTD = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, **others
        ).last_hidden_state
        places_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        real_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last_B = (places_T * (real_BT != 0)).argmax(-1)
        logits_BC = self.score(
            hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B].to(self.score.weight.dtype)
        )
        loss = None if labels is None else functional.cross_entropy(logits_BC.float(), labels)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits_BC)


class MambaForSequenceClassification(_StateSpaceClassifier, MambaPreTrainedModel):
    """Mamba with a head for classes."""

    _decoder = MambaModel


class Mamba2ForSequenceClassification(_StateSpaceClassifier, Mamba2PreTrainedModel):
    """Mamba-2 with a head for classes."""

    _decoder = Mamba2Model


for _config, _kind in (
    (MambaConfig, MambaForSequenceClassification),
    (Mamba2Config, Mamba2ForSequenceClassification),
):
    AutoModelForSequenceClassification.register(_config, _kind, exist_ok=True)
