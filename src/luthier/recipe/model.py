"""The section ``model``: which model, and what of it is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.options import Options

# First weights of an adapter that are taken out of the base weights.
FROM_WEIGHTS = ("olora", "pissa", "pissa-fast")


class Adapter(Options):
    """A LoRA adapter, made by peft."""

    variant: Literal["lora", "rslora", "dora"] = "lora"
    """``lora``; ``rslora``, which multiplies the update by alpha / sqrt(rank); ``dora``, which trains the size of each output apart from its direction."""
    init: Literal["default", "gaussian", "orthogonal", "olora", "pissa", "pissa-fast"] = "default"
    """First weights: peft's (random, and zeros), ``gaussian`` or ``orthogonal`` ones; or a part of the base weights themselves: their leading singular vectors (``pissa``; ``pissa-fast`` estimates them) or QR factors (``olora``). These last are saved with twice the rank, for the base model as it is."""
    rank: int = Field(16, ge=1)
    """Rank of the two matrices."""
    alpha: float = Field(32, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Other ranks, by regular expressions of the end of layers' names (``.*mlp.down_proj: 32``); the first that matches counts, and each must match something."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Other alphas, likewise."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the first matrix."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Linear layers to adapt: ``all-linear`` (all but the output head), or names; a name that matches nothing is an error."""

    @model_validator(mode="after")
    def _possible(self) -> Adapter:
        if self.variant == "dora" and self.init in FROM_WEIGHTS:
            raise ValueError(
                f"init={self.init} moves a part of the base weights, whose size variant=dora holds; take init=default or variant=lora"
            )
        odd = [rank for rank in (self.rank, *self.rank_pattern.values()) if rank % 2]
        if self.init == "orthogonal" and odd:
            raise ValueError(f"init=orthogonal needs even ranks, not {odd[0]}; take rank={odd[0] + 1}")
        return self


class Scratch(Options):
    """A model with random weights and a tokenizer trained on ``data.source``, instead of a pretrained one."""

    config: dict[str, Any] = Field(
        {
            "model_type": "llama",
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        }
    )
    """``model_type`` of transformers (``llama``, ``mamba2`` ...) and the sizes of its configuration; the rest is its default."""
    vocab_size: int = Field(8192, ge=257)
    """Tokens of the byte-level BPE that is trained, its end-of-text token included."""
    corpus_bytes: int = Field(50_000_000, ge=1)
    """Text of the source that the tokenizer is trained on at most, from the beginning."""


class Rope(Options):
    """Rotary positions scaled so that rows may be longer than those that a model was made for."""

    type: Literal["linear", "yarn"] = "yarn"
    """``linear`` puts the positions closer together; ``yarn`` only those of slow frequencies, and needs less training to get used to."""
    factor: float = Field(gt=1)
    """How many times as many positions."""


class Model(Options):
    """Which model, and what of it is trained."""

    name: str = "embedded:smollm2-135m"
    """A registered model, a local folder, a Hub name, or ``path/to/file.py@name``."""
    revision: str | None = None
    """Commit or tag of a Hub model; none means the newest."""
    scratch: Scratch | None = None
    """Start from random weights: ``name`` is then where the run folder keeps the model that it made. Needs ``adapter: null``."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of matrix products: bf16 where the processor has it, unless told. What was taken is in environment.json."""
    quantisation: Literal["nf4"] | None = None
    """``nf4`` keeps the weights of linear layers in 4 bits, with double quantisation, under an adapter (QLoRA; needs the extra ``luthier[quantised]``)."""
    adapter: Adapter | None = Adapter()
    """LoRA settings; ``null`` trains the model's own weights."""
    start_from: str | None = None
    """Go on from an adapter: the folder of an earlier run, or of an adapter as peft saves it."""
    start_mode: Literal["continue", "stack", "merge"] = "continue"
    """Train that adapter on (``continue``), keep it and train a new one beside it (``stack``), or write it into the base model first (``merge``)."""
    freeze: list[str] = []
    """Regular expressions of names of parameters that would be trained, an adapter's own included, and are not; each must match something."""
    new_tokens: list[str] = []
    """Tokens to add: embeddings are resized, trained and saved."""
    rope: Rope | None = None
    """Scale rotary positions by a factor, for rows longer than the model's own positions; ``null`` leaves them, and longer rows are refused. An adapter needs its base loaded with the same ``rope_parameters`` elsewhere; ``luthier merge`` writes a model with them."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation; ``auto`` is what transformers takes."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for models that you have read."""

    @model_validator(mode="after")
    def _possible(self) -> Model:
        if self.adapter is None and self.quantisation:
            raise ValueError(
                "weights of 4 bits cannot be trained themselves; give model.adapter some settings"
            )
        if self.adapter is None and self.start_from and self.start_mode != "merge":
            raise ValueError(
                f"start_mode={self.start_mode} needs model.adapter; take start_mode=merge to train the whole model"
            )
        if self.start_from and self.start_mode == "stack" and self.adapter and self.adapter.variant == "dora":
            raise ValueError("variant=dora cannot be stacked on another adapter; take start_mode=merge")
        if self.start_from and self.start_mode == "stack" and self.new_tokens:
            raise ValueError(
                "new_tokens cannot be trained by an adapter stacked on another; take start_mode=merge"
            )
        if (
            self.start_from
            and self.start_mode == "continue"
            and self.adapter
            and self.adapter.init != "default"
        ):
            raise ValueError(
                f"an adapter that is trained on has its weights, so that init={self.adapter.init} would do nothing; take start_mode=stack"
            )
        if self.scratch is not None and self.adapter is not None:
            raise ValueError("an adapter on random weights leaves them random; set model.adapter: null")
        return self


class Head(Options):
    """A head that gives rows one of C classes, or several; what the task and the data's labels come to."""

    names: tuple[str, ...]
    """Names of the classes, in the order of the head's outputs."""
    several: bool = False
    """Whether a row may have several labels, or none."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    focal_gamma: float = 0.0
    """Power of (1 - probability of the target) that scales a row's loss."""
    hierarchy: str | None = None
    """What stands between a name's levels."""
    hierarchy_weight: float = 0.0
    """Share of the loss that the levels above the class have."""

    def levels(self) -> list[list[int]]:
        """For each level above the classes, from the top, the group of each class; a class that ends above is its own."""
        if not self.hierarchy:
            return []
        paths = [name.split(self.hierarchy) for name in self.names]
        found = []
        for depth in range(1, max(map(len, paths))):
            groups = {path: i for i, path in enumerate(dict.fromkeys(tuple(p[:depth]) for p in paths))}
            found.append([groups[tuple(path[:depth])] for path in paths])
        return found


class Classifier(Model):
    """The model section of a run that trains a head for classes (``stages.settled``)."""

    head: Head
    """The head."""
