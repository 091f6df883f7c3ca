"""A model whose weights lie in shards on several processes: torch's ``fully_shard`` (FSDP2) around each layer and the whole.

torch is asked directly: accelerate 1.15 wraps in DDP without a word where there is no GPU. Outside of forward and backward
passes every parameter is a DTensor that holds this process's shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Cache, PreTrainedModel

from luthier.encoding.batches import Batch
from luthier.errors import UserError
from luthier.models import forward
from luthier.models.forward import TokenScores, base_model, decoder_layers


def shard(model: PreTrainedModel | PeftModel, device: torch.device, num_processes: int) -> None:
    """Puts every parameter of the model into shards, one on each process, layer by layer.

    Weights that are trained in full are gathered as the numbers that products are computed in: autocast would keep a
    low-precision copy of every layer from the forward to the backward pass on every process. Gradients are added up
    over processes, not averaged, in 32 bits: the loss is divided once, by the weight of the whole step.

    Args:
        model: In training form, the same on each process, on the processor; shards are moved to ``device``.
        device: That this process computes on.
        num_processes: At least 2.

    Raises:
        UserError: The model has no layers to shard, or a parameter that is in no shard afterwards.
    """
    base = base_model(model)
    layers = decoder_layers(base)
    if not layers:
        raise UserError(
            f"{type(base).__name__} has no list of layers to shard",
            "recipe key train.sharding",
            "train.sharding=none",
        )
    mesh = init_device_mesh(device.type, (num_processes,))
    low = None if isinstance(model, PeftModel) else vars(base).get("product_dtype")
    policy = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32 if low else None, cast_forward_inputs=False
    )
    marks = {name: p._optim for name, p in model.named_parameters() if hasattr(p, "_optim")}
    for module in [*layers, base]:
        # The whole, too, gives its weights back after a forward pass: between steps all parameters are shards.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    # Shards are new parameters, without what the optimizer is told of the old ones.
    for name, mark in marks.items():
        model.get_parameter(name)._optim = mark  # type: ignore[attr-defined] # where the optimizer looks
    for part in _shards(base):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
        if hasattr(part, "set_reduce_scatter_unused_params"):  # torch 2.13; of experts a process may use none
            part.set_reduce_scatter_unused_params(True)
    # Scores are computed past the model's own forward; this makes them a forward pass in the eyes of FSDP.
    for name, method in (("sharded_scores", _scores), ("sharded_row_logits", forward.own_row_logits)):
        setattr(base, name, MethodType(method, base))
        register_fsdp_forward_method(base, name)
    if outside := [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]:
        raise UserError(
            f"{len(outside)} parameters are in no shard, first {outside[0]}",
            "recipe key train.sharding",
            "train.sharding=none",
        )


def _shards(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def _scores(self: PreTrainedModel, batch: Batch, cache: Cache | None) -> tuple[Tensor, ...]:
    """Token scores as the tuple of tensors that FSDP can hook into."""
    scores = forward.own_scores(self, batch, plain=False, cache=cache)
    return tuple(getattr(scores, field.name) for field in fields(TokenScores))


def is_sharded(model: nn.Module) -> bool:
    """Whether forward and backward passes of this model wait for those of other processes."""
    return any(True for _ in _shards(model))


def same_everywhere(model: nn.Module, values: Tensor) -> Tensor:
    """The first process's values on all that share a sharded model, so that none takes another way than the others."""
    if is_sharded(model):
        torch.distributed.broadcast(values, 0)
    return values


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shards of all processes, each of which has to ask; itself if it is in none."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def whole_state(model: PreTrainedModel | PeftModel, *, keep: bool) -> dict[str, Tensor]:
    """What is saved of the model, whole and on the processor; all processes have to ask.

    Args:
        model: Sharded or not. Of one with an adapter only what is trained.
        keep: Whether this process wants it; the others get nothing.
    """
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    if isinstance(model, PeftModel):
        state = {name: value for name, value in state.items() if value.requires_grad}
    found: dict[int, Tensor] = {}  # tied weights stay one tensor
    for value in state.values():
        if id(value) not in found:
            gathered = whole(value.detach())
            found[id(value)] = gathered.cpu() if keep else value
    return {name: found[id(value)] for name, value in state.items()} if keep else {}


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copies a whole tensor, which every process has, into a parameter or its shard."""
    target.copy_(like(target, value))


def like(target: Tensor, value: Tensor) -> Tensor:
    """A whole tensor on the device, and in shards, as ``target`` is."""
    value = value.to(target.device)
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
