"""BiGS as a transformers model: gated layers around diagonal state-space models, without attention.

Of each layer, on normalised input h: ``out = x + W_o (gelu(W_l mixed) v)`` with ``v = gelu(W_v h)``, where ``mixed`` is

    bidirectional        W_f SSM_f(gelu(W_uf h)) * flip(W_b SSM_b(gelu(W_ub flip(h))))
    causal               the same with two forward SSMs: no flip
    causal-single        W_f SSM_f(gelu(W_uf h))
    causal-convolution   W_f SSM_f(gelu(short causal convolution of W_uf h))

Source: Wang et al. 2022, arXiv:2212.10544, section 4 (bidirectional); the short convolution as in Fu et al. 2023,
arXiv:2212.14052, and Gu and Dao 2023, arXiv:2312.00752.

Shapes: B rows, L tokens, D width, F inner width, K taps of the short convolution, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, MaskedLMOutput
from transformers.modeling_utils import slice_logits_to_keep

from luthier.models.bigs.ssm import STEP_RANGE, DiagonalSSM, hippo

Form = Literal["bidirectional", "causal", "causal-single", "causal-convolution"]
Start = Literal["hippo", "linear"]


@strict
class BigsConfig(PreTrainedConfig):
    """Sizes and form of a BiGS model.

    Attributes:
        vocab_size: Rows of the embedding.
        hidden_size: Width D.
        intermediate_size: Inner width F; None is three times the width, as published.
        num_hidden_layers: Layers.
        state_size: Complex states of each channel.
        form: How a layer mixes tokens (see this module).
        conv_kernel: Taps of the short convolution of ``causal-convolution``.
        ssm_init: First A: ``hippo`` (eigenvalues of HiPPO-LegS, as published) or ``linear`` (-1/2 + i pi n).
        max_position_embeddings: Of ``bidirectional``, the learned positions; None without, as all causal forms are.
        type_vocab_size: Of ``bidirectional``, the learned token types; 0 without.
        hidden_dropout_prob: Dropout of the embeddings.
        layer_norm_eps: Of all norms.
        initializer_range: Standard deviation of first matrices and embeddings.
        use_cache: Whether states are returned for generation.
    """

    model_type = "bigs"

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_hidden_layers: int = 12
    state_size: int = 64
    form: Form = "causal"
    conv_kernel: int = 4
    ssm_init: Start = "hippo"
    max_position_embeddings: int | None = None
    type_vocab_size: int = 0
    hidden_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **others: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 3 * self.hidden_size
        super().__post_init__(**others)  # type: ignore[no-untyped-call] # transformers'

    def validate_architecture(self) -> None:
        """Refuses names that are not known, and positions and token types in a causal form, which would not know of a cache.

        Raises:
            ValueError: Such a config.
        """
        for name, kind in (("form", Form), ("ssm_init", Start)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(get_args(kind))}")
        if self.is_causal and (self.max_position_embeddings or self.type_vocab_size):
            raise ValueError(
                f"form={self.form} has neither positions nor token types: leave max_position_embeddings and "
                "type_vocab_size out, or set form=bidirectional"
            )

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.form != "bidirectional"

    @property
    def layer_types(self) -> list[str]:
        """For transformers' cache: recurrent states only."""
        return ["linear_attention"] * self.num_hidden_layers

    @property
    def number_of_conv_states(self) -> int:
        """For transformers' cache: how many states a layer has."""
        return 2 if self.form == "causal" else 1


class _Branch(nn.Module):
    """``W_out SSM(gelu(W_in h))``: one of a layer's SSMs with what stands around it."""

    def __init__(self, config: BigsConfig, place: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.place = place  # of its state in the layer's cache
        self.inner = nn.Linear(width, width)
        self.ssm = DiagonalSSM(config.state_size)
        self.outer = nn.Linear(width, width)
        self.conv: nn.Conv1d | None = None
        if config.form == "causal-convolution":
            self.conv = nn.Conv1d(width, width, config.conv_kernel, groups=width)

    def forward(self, h_BLD: Tensor, mask_BL1: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        u_BLD = self.inner(h_BLD)
        if self.conv is not None:
            u_BLD = _short_convolution(self.conv, _masked(u_BLD, mask_BL1), cache, layer)
        u_BLD = _masked(functional.gelu(u_BLD), mask_BL1)
        state = None if cache is None else cache.get_recurrent_state(layer, self.place)
        y_BLD, last = self.ssm(u_BLD, state, keep=cache is not None)
        if cache is not None:
            cache.update_recurrent_state(last, layer, self.place)
            kept: Any = cache.layers[layer]
            # What transformers' cache notes with the state of a convolution only.
            kept.has_previous_state[self.place], kept.device = True, last.device
        found: Tensor = self.outer(y_BLD.to(h_BLD.dtype))
        return found


class BigsLayer(GradientCheckpointingLayer):
    """One layer (see this module)."""

    def __init__(self, config: BigsConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.bidirectional = not config.is_causal
        width, inner = config.hidden_size, config.intermediate_size or 3 * config.hidden_size
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.value = nn.Linear(width, inner)
        self.first = _Branch(config, 0)
        self.second = _Branch(config, 1) if config.form in ("bidirectional", "causal") else None
        self.gate = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(
        self, x_BLD: Tensor, mask_BL1: Tensor | None = None, past_key_values: Cache | None = None
    ) -> Tensor:
        """The layer's output, shape (B, L, D)."""
        h_BLD = self.norm(x_BLD)
        value_BLF = functional.gelu(self.value(h_BLD))
        mixed_BLD = self.first(h_BLD, mask_BL1, past_key_values, self.index)
        if self.second is not None and self.bidirectional:
            flipped = None if mask_BL1 is None else mask_BL1.flip(1)
            mixed_BLD = mixed_BLD * self.second(h_BLD.flip(1), flipped, None, self.index).flip(1)
        elif self.second is not None:
            mixed_BLD = mixed_BLD * self.second(h_BLD, mask_BL1, past_key_values, self.index)
        found: Tensor = x_BLD + self.out(functional.gelu(self.gate(mixed_BLD)) * value_BLF)
        return found


class BigsEmbeddings(nn.Module):
    """Tokens, and in the bidirectional form their positions and types, normalised."""

    def __init__(self, config: BigsConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.tokens = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        positions, kinds = config.max_position_embeddings, config.type_vocab_size
        self.positions = nn.Embedding(positions, width) if positions else None
        self.token_types = nn.Embedding(kinds, width) if kinds else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens_BLD: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """What the first layer gets, shape (B, L, D)."""
        length = tokens_BLD.shape[1]
        if self.token_types is not None:
            kinds = (
                tokens_BLD.new_zeros(1, length, dtype=torch.long)
                if token_type_ids is None
                else token_type_ids
            )
            tokens_BLD = tokens_BLD + self.token_types(kinds)
        if self.positions is not None:
            if length > self.positions.num_embeddings:
                raise ValueError(
                    f"{length} tokens, but the model has {self.positions.num_embeddings} positions "
                    "(max_position_embeddings)"
                )
            tokens_BLD = tokens_BLD + self.positions.weight[:length]
        found: Tensor = self.dropout(self.norm(tokens_BLD))
        return found


class BigsPreTrainedModel(PreTrainedModel):
    """What all BiGS models share: first weights, and what transformers is told of them."""

    config_class = BigsConfig
    base_model_prefix = "bigs"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BigsLayer"]
    _is_stateful = True
    # A rounded step size or angle is another model; the rest of a layer may be in 16 bits.
    _keep_in_fp32_modules_strict = ["ssm"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, DiagonalSSM):
            size = config.state_size
            init.constant_(module.a_real, -0.5)
            imag = hippo(size) if config.ssm_init == "hippo" else math.pi * torch.arange(size)
            init.copy_(module.a_imag, imag)
            init.normal_(module.c, 0.0, math.sqrt(0.5))
            init.ones_(module.d)
            init.uniform_(module.log_step, math.log(STEP_RANGE[0]), math.log(STEP_RANGE[1]))
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, 0.0, config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, config.initializer_range)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class BigsModel(BigsPreTrainedModel):
    """The layers without a head."""

    def __init__(self, config: BigsConfig) -> None:
        super().__init__(config)
        self.embeddings = BigsEmbeddings(config)
        self.layers = nn.ModuleList(BigsLayer(config, i) for i in range(config.num_hidden_layers))
        # The masked-language-model head has a norm of its own.
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.is_causal else None
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call] # transformers'

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Puts another embedding in its place."""
        self.embeddings.tokens = value  # type: ignore[assignment] # an embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Last hidden states.

        Args:
            input_ids: Shape (B, L), the tokens behind those in the cache.
            attention_mask: 0 for padding, which then puts nothing into any state; shape (B, L) or longer, of which the
                last L count. On the left it is as if the padding were not there.
            past_key_values: States after the tokens before; any number of tokens may follow.
            inputs_embeds: In the place of ``input_ids``, shape (B, L, D).
            token_type_ids: Of a model with token types, shape (B, L); all 0 if None.
            use_cache: Whether states are kept and returned.
            output_hidden_states: Whether the inputs of all layers are returned too.
            others: Ignored, as transformers hands on what some models want.

        Raises:
            ValueError: Not one of ids and embeddings; a cache in the bidirectional form.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        training = self.training and self.gradient_checkpointing
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if not self.config.is_causal and past_key_values is not None:
            raise ValueError("form=bidirectional has no cache: each token sees those after it")
        if not use_cache or training or not self.config.is_causal:
            past_key_values = None
        elif past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        x_BLD = self.embeddings.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x_BLD = self.embeddings(x_BLD, token_type_ids)
        mask_BL1 = None
        if attention_mask is not None and attention_mask.ndim == 2:
            mask_BL1 = attention_mask[:, -x_BLD.shape[1] :, None] != 0
            mask_BL1 = None if bool(mask_BL1.all()) else mask_BL1
        seen = [x_BLD]
        for layer in self.layers:
            x_BLD = layer(x_BLD, mask_BL1, past_key_values=past_key_values)
            seen.append(x_BLD)
        if self.norm is not None:
            x_BLD = self.norm(x_BLD)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=x_BLD,
            past_key_values=past_key_values,
            hidden_states=(*seen[:-1], x_BLD) if output_hidden_states else None,
        )


class BigsForCausalLM(BigsPreTrainedModel, GenerationMixin):
    """Next tokens, in one of the causal forms.

    Raises:
        ValueError: The config is of the bidirectional form.
    """

    _tied_weights_keys = {"lm_head.weight": "bigs.embeddings.tokens.weight"}

    def __init__(self, config: BigsConfig) -> None:
        super().__init__(config)
        if not config.is_causal:
            raise ValueError(
                "form=bidirectional sees the tokens that it would predict; use BigsForMaskedLM or a causal form"
            )
        self.bigs = BigsModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call] # transformers'

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: ``generate`` would ask a cache of its own for a length, which states have not; the model makes its own."""
        return False

    def prepare_inputs_for_generation(  # type: ignore[override] # which takes more, for other models
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """What ``generate`` gives the model next: without a cache all tokens, else those that are new."""
        if next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "logits_to_keep": others.get("logits_to_keep") or 0,
        }

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next tokens, shape (B, L, V), and their mean loss if there are labels.

        Args:
            input_ids: As of ``BigsModel``; so are the next three.
            attention_mask: 0 for padding.
            past_key_values: States after the tokens before.
            inputs_embeds: In the place of ``input_ids``.
            labels: The same tokens (they are shifted here), -100 where nothing is trained.
            use_cache: Whether states are kept and returned.
            logits_to_keep: How many last tokens get logits, or which; 0 is all.
            output_hidden_states: Whether the inputs of all layers are returned too.
            others: Such as ``num_items_in_batch``, for the loss.
        """
        output = self.bigs(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(slice_logits_to_keep(output.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **others)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )


class BigsForMaskedLM(BigsPreTrainedModel):
    """Masked tokens, in the bidirectional form, with the head of BERT.

    Raises:
        ValueError: The config is of a causal form.
    """

    _tied_weights_keys = {"decoder.weight": "bigs.embeddings.tokens.weight"}

    def __init__(self, config: BigsConfig) -> None:
        super().__init__(config)
        if config.is_causal:
            raise ValueError(f"form={config.form} predicts next tokens: use BigsForCausalLM")
        self.bigs = BigsModel(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call] # transformers'

    def get_output_embeddings(self) -> nn.Module:
        """The last matrix."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Puts another matrix in its place."""
        self.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> MaskedLMOutput:
        """Logits of each token, shape (B, L, V), and the mean loss if there are labels.

        Args:
            input_ids: As of ``BigsModel``; so are the next three.
            attention_mask: 0 for padding.
            inputs_embeds: In the place of ``input_ids``.
            token_type_ids: Of a model with token types.
            labels: The tokens behind the masks, -100 elsewhere.
            output_hidden_states: Whether the inputs of all layers are returned too.
            others: Such as ``num_items_in_batch``, for the loss.
        """
        output = self.bigs(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            output_hidden_states=output_hidden_states,
        )
        logits = self.decoder(self.norm(functional.gelu(self.dense(output.last_hidden_state))))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **others)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


def _masked(x_BLD: Tensor, mask_BL1: Tensor | None) -> Tensor:
    return x_BLD if mask_BL1 is None else x_BLD * mask_BL1


def _short_convolution(conv: nn.Conv1d, x_BLD: Tensor, cache: Cache | None, layer: int) -> Tensor:
    """Each channel's own sum over its last K tokens, those in the cache included."""
    taps = conv.kernel_size[0]
    x_BDL, length = x_BLD.mT, x_BLD.shape[1]
    if cache is not None:
        x_BDL = cache.update_conv_state(x_BDL, layer, conv_kernel_size=taps).to(x_BDL.dtype)
    found: Tensor = conv(functional.pad(x_BDL, (taps - 1, 0))[..., -(length + taps - 1) :])
    return found.mT
