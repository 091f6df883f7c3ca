"""The recipe: one strict tree that describes a run. The text under each field is its documentation."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from luthier import registry
from luthier.errors import UserError, UserErrors

Auto = Literal["auto"]
# Tokens that go through the model at once where nothing is tried: in checks and in evaluation.
TOKENS_AT_ONCE = 4096
Share = Annotated[float, Field(ge=0, le=1)]
Watcher = Literal[
    "watch-loss-spike",
    "watch-loss-rise",
    "watch-loss-stuck",
    "watch-gradient-exploding",
    "watch-gradient-vanishing",
    "watch-overfitting",
    "watch-throughput",
    "watch-memory",
]


# Begins what names the result of an earlier training stage, in ``model.name`` and ``model.start_from``.
STAGE = "stage:"
# First weights of an adapter that are taken out of the base weights.
FROM_WEIGHTS = ("olora", "pissa", "pissa-fast")


class Options(BaseModel):
    """Frozen settings that refuse unknown keys; the base of every section, task and source."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


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
    """The model section of a run that trains a head for classes (``pipeline.settled``)."""

    head: Head
    """The head."""


class Splits(Options):
    """Shares of groups for training, for evaluation while training, and for the final test."""

    train: Share = 0.8
    """Share trained on."""
    eval: Share = 0.1
    """Share evaluated during training; chooses the best checkpoint."""
    test: Share = 0.1
    """Share that base and tuned model are compared on; seen by nothing before."""

    @model_validator(mode="after")
    def _whole(self) -> Splits:
        total = self.train + self.eval + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares must add up to 1, not {total:g}")
        if not self.train:
            raise ValueError("train must be over 0")
        return self


class Data(Options):
    """Where the rows come from and how they are split, deduplicated, cut and counted."""

    source: dict[str, Any] = Field(default_factory=lambda: {"type": "stdlib"})
    """``type`` and the options of that source (``luthier list sources``)."""
    eval_source: dict[str, Any] | None = None
    """A source of its own for the eval split, instead of a share of ``source``."""
    test_source: dict[str, Any] | None = None
    """A source of its own for the test split, instead of a share of ``source``."""
    splits: Splits = Splits()
    """Shares of the splits; by group, by a stable hash."""
    max_length: int = Field(512, ge=8)
    """Longest row in tokens; context is trimmed to it, targets never."""
    seed: int | None = Field(None, ge=0)
    """Seed of what is drawn when rows are made: splits, ``max_rows``, what a task draws. Without it the recipe's; with it, runs of several seeds have the same rows."""
    max_rows: dict[Literal["train", "eval", "test"], Annotated[int, Field(ge=1)]] = {}
    """Keep at most this many rows of a split, chosen by a stable hash; the rest is counted as ``over-max-rows``."""
    near_duplicates: Literal["drop", "keep-together", "off"] = "drop"
    """Near copies: one of each cluster is kept; or all are, in one split; or they are not looked for."""
    near_duplicate_threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of word 5-grams from which two records are near copies."""
    drop_budget: Share = 0.05
    """Share of rows that may be dropped for other reasons than a rule of the recipe, before the run stops."""
    num_workers: int | Auto = "auto"
    """Processes that encode; ``auto`` is the number of cores for larger data, 1 for small."""


class Check(Options):
    """The gate before training."""

    waive: list[str] = []
    """Names of checks whose errors do not stop the run; recorded and shown in the report."""


class Train(Options):
    """The training loop."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the training rows; ``max_steps`` or ``max_tokens`` may end earlier."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps at most."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens trained on at most, context included, to the nearest whole step of rows of average length."""
    batch_size: int = Field(8, ge=1)
    """Rows of one optimizer step, over all micro-batches and ranks."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Tokens, padding included, that go through the model at once; a single longer row goes alone. ``auto`` is what memory holds, tried before the first step. Changes memory and speed, never the result."""
    gradient_checkpointing: bool | Auto = "auto"
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time. ``auto`` is where the longest row does not fit without."""
    packing: bool | Auto = "auto"
    """Rows one after another without padding, none of which sees another; ``auto`` is wherever the model allows it. Changes speed, never the result."""
    compile: bool | Auto = "auto"
    """Compile the decoder's layers; ``auto`` is where a run is long enough to earn it back and a measurement shows that it helps."""
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"] = "adamw"
    """``adamw`` is torch's; the others are bitsandbytes' (extra ``luthier[quantised]``), with a state of 8 bits, or one that moves out of a GPU's memory when that is full (``paged``: NVIDIA GPUs only)."""
    sharding: Literal["none", "fsdp"] = "none"
    """How several processes share the model: ``none`` has a whole copy in each; ``fsdp`` has weights, gradients and optimizer state in shards (torch's FSDP2). Changes memory and speed, never the result."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Experiment trackers that get each line of the history as well; one that fails is left out, and the run goes on."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after warm-up; linear and cosine end at ``final_learning_rate_share`` of the peak."""
    final_learning_rate_share: Share = 0.0
    """Where linear and cosine schedules end, as a share of the peak."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up; excludes ``warmup_share``."""
    warmup_share: Share = 0.05
    """Warm-up as a share of all steps, when ``warmup_steps`` is not given."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW decay of matrices; vectors (norms, biases) are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW averaging factors."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW epsilon."""
    max_gradient_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this norm; ``null`` clips nothing."""
    eval_every_steps: int | None = Field(None, ge=1)
    """Evaluate each N steps; excludes ``eval_every_tokens``. Without either: ten times a run."""
    eval_every_tokens: int | None = Field(None, ge=1)
    """Evaluate each N training tokens."""
    num_samples: int = Field(4, ge=0)
    """Rows of the eval split for which text is generated at each evaluation."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Write a checkpoint each N steps; without it, at each evaluation."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept on disk; the best one is kept besides."""
    balance_classes: Share = 0.0
    """How far rows are drawn by class, where a head gives rows one label: 0 takes each row once an epoch, 1 each class equally often; in between, classes count by their size to the power of the rest."""
    best_metric: Literal["loss", "bits_per_byte", "token_accuracy", "accuracy", "macro_f1"] = "loss"
    """Eval metric that chooses the best checkpoint; the last two are of tasks that label rows with a head, which have no ``bits_per_byte`` or ``token_accuracy``."""
    best_direction: Literal["min", "max"] = "min"
    """Whether a lower or a higher ``best_metric`` is better."""
    early_stop_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better ``best_metric``."""
    stop_on: list[Watcher] = []
    """Watchers that stop the run when they speak, with a checkpoint (exit code 1); all others warn. A loss that is not finite always stops it."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the result."""

    @property
    def tokens_at_once(self) -> int:
        """``micro_batch_tokens``, where nothing is tried."""
        return TOKENS_AT_ONCE if self.micro_batch_tokens == "auto" else self.micro_batch_tokens

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.eval_every_steps and self.eval_every_tokens:
            raise ValueError("eval_every_steps and eval_every_tokens exclude each other; keep one")
        if self.sharding != "none" and self.compile is True:
            raise ValueError("compile and sharding exclude each other; use compile=auto")
        better = "min" if self.best_metric in ("loss", "bits_per_byte") else "max"
        if self.best_direction != better:
            raise ValueError(
                f"best_direction {self.best_direction!r} would keep the worst {self.best_metric}; "
                f"use best_direction={better}"
            )
        return self


class GraphEvaluation(Options):
    """The ontology that the paths of all documents together give: how it is written, pruned and scored."""

    temperature: float = Field(0.1, ge=0)
    """Of generation; 0 takes the most likely token each time."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Tokens are drawn from the most likely ones that together have this probability."""
    constrain: Literal["none", "format", "nodes"] = "none"
    """What the model may write: anything; lines in the form of paths; or only paths over known nodes, in any order."""
    nodes: str | None = None
    """Text file with a known title a line, for ``constrain: nodes``; without it, the titles of the training paths."""
    baselines: list[Literal["memorisation", "hearst", "0-shot", "1-shot", "3-shot"]] = ["memorisation"]
    """What the tuned model is compared with: the graph of the training paths, Hearst patterns in the documents, or the base model with so many examples in its prompt."""
    relative_rule: Literal["paper", "nucleus"] = "paper"
    """Reading of the relative pruning rule: the lightest outgoing edges with a cumulative share of at most beta go; or, as in the published code, all up to the edge with which the heaviest pass 1 - beta."""
    embedding_model: str = "embedded:all-minilm-l6-v2"
    """Sentence encoder by which titles are compared: a registered model, or a folder."""


class Evaluate(Options):
    """Base and tuned model on the same test rows."""

    metrics: list[str] | Auto = "auto"
    """Registered metrics of generated text; ``auto`` takes the task's."""
    batch_size: int = Field(32, ge=1)
    """Rows generated at once; changes speed, not the output."""
    max_new_tokens: int = Field(64, ge=1)
    """Tokens generated at most for a row."""
    generate: bool = True
    """Whether text is generated at all, beside the losses."""
    num_bootstrap: int = Field(10_000, ge=100)
    """Resamples of the paired bootstrap, over groups."""
    ontology: GraphEvaluation = GraphEvaluation()
    """Of the task ``ontology`` alone: the graph of all test documents."""


class Server(Options):
    """A server with OpenAI's interface for chats (``/chat/completions``), which is asked instead of the run's model."""

    url: str = Field(pattern=r"^https?://\S+$")
    """Address up to the version: ``http://localhost:8000/v1``. What is asked goes there: functions, patches, what tests said."""
    model: str
    """The model's name there."""
    key_variable: str | None = None
    """Environment variable with the key; the key itself stands in no file."""
    timeout_s: float = Field(300, gt=0)
    """Seconds that an answer may take."""
    num_at_once: int = Field(4, ge=1)
    """Questions at once."""
    num_retries: int = Field(4, ge=0)
    """How often a question is asked again where the server is busy or cannot be reached, after longer and longer waits."""


class Rounds(Options):
    """Further attempts at a bug, each told what the tests said of the last one (`luthier repair --rounds`)."""

    max_rounds: int = Field(3, ge=1)
    """Prompts for each bug; ``num_candidates`` patches are judged for each."""
    max_tokens: int | None = Field(None, ge=1)
    """No further round for a bug once its prompts and outputs have so many tokens."""
    max_seconds: float | None = Field(None, gt=0)
    """No further round for a bug once writing and judging for it took so long: of what is done for several bugs at once its share, of a server the time until it answered."""
    variations: int = Field(0, ge=0)
    """Rounds after a patch that passes, in which another one is asked for."""
    server: Server | None = None
    """Where patches come from instead of the run's model; needs ``task.format: chat``. Without it nothing is contacted."""


class Repair(Options):
    """Candidate patches for bugs with tests, and how they are judged (`luthier repair`)."""

    bugs: dict[str, Any] | None = None
    """``type`` and options of the source of the bugs: a record is a fix with the file it belongs in and its tests."""
    num_candidates: int = Field(10, ge=1)
    """Patches judged for each bug."""
    method: Literal["beam", "diverse-beam", "sample"] = "beam"
    """Beam search; beams in groups that avoid each other's tokens; or samples."""
    num_beams: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Beams or samples of each bug; ``auto`` is as many as candidates. More of them are a reserve for ``refill``."""
    refill: bool = True
    """Put further beams in the place of those that repeat another or change nothing, white space and comments apart."""
    rank_by: Literal["score", "mean-logprob", "agreement", "tests"] = "score"
    """Order of the candidates: the search's own score, the mean log-probability of their tokens, how many beams wrote the same, or, once they are judged, what their tests said: what passes comes first, so that ``plausible@1`` is ``plausible@k``."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens of a candidate at most."""
    length_penalty: float = 1.0
    """A beam's score is its log-probability divided by its number of tokens to this power."""
    num_groups: int = Field(5, ge=1)
    """Groups of diverse beams; divides the number of beams."""
    diversity_penalty: float = Field(1.0, ge=0)
    """Taken off a token's log-probability for each beam of an earlier group that took it at this step."""
    temperature: float = Field(0.8, gt=0)
    """Of samples."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Samples are drawn from the likeliest tokens that add up to this."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What writes the candidates: the model in this process, or vLLM where that is installed; ``auto`` takes vLLM where there is a GPU as well. Which it was stands in ``candidates.jsonl``."""
    rows_at_once: int = Field(80, ge=1)
    """Beams of all bugs that are computed at once; changes speed and memory only."""
    other_format: Literal["refuse", "warn"] = "refuse"
    """What happens where rows were written in another way in training than the recipe says now: representation, comments, tokens."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds that compiling may take, and testing."""
    memory_mib: int = Field(2048, ge=16)
    """Memory of all processes of a test run."""
    disk_mib: int = Field(256, ge=1)
    """Room for files of a test run, the copied project included."""
    num_workers: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Test runs at once; ``auto`` is the number of cores."""
    rounds: Rounds = Rounds()
    """Several attempts at each bug, with feedback."""

    @property
    def beams(self) -> int:
        """``num_beams``, whatever was given."""
        return self.num_candidates if self.num_beams == "auto" else self.num_beams

    @property
    def written_order(self) -> str:
        """Order of the candidates before they are judged."""
        return "score" if self.rank_by == "tests" else self.rank_by

    @model_validator(mode="after")
    def _enough(self) -> Repair:
        if self.beams < self.num_candidates:
            raise ValueError(
                f"num_beams={self.beams} cannot give num_candidates={self.num_candidates}; take as many at least"
            )
        if self.method == "diverse-beam" and self.beams % self.num_groups:
            raise ValueError(f"num_groups={self.num_groups} does not divide the {self.beams} beams")
        return self


class Report(Options):
    """The page."""

    num_predictions: int = Field(20, ge=0)
    """Predictions shown side by side."""
    smoothing_window: int = Field(21, ge=3)
    """Steps of the Savitzky-Golay window over the training loss."""


class Recipe(Options):
    """A whole run: what is learned from what, by which model, how."""

    name: str = Field("run", pattern=r"^\w[\w.-]*$")
    """Short name; names the default run folder ``runs/NAME``."""
    description: str = ""
    """One line for lists and the report."""
    seed: int = Field(0, ge=0)
    """Seed of everything that is drawn."""
    task: dict[str, Any] = Field(default_factory=lambda: {"type": "line-completion"})
    """``type`` and the options of that task (``luthier list tasks``)."""
    model: Model = Model()
    """Which model, and what of it is trained."""
    data: Data = Data()
    """Where the rows come from."""
    check: Check = Check()
    """The gate before training."""
    train: Train = Train()
    """The training loop."""
    evaluate: Evaluate = Evaluate()
    """The comparison of base and tuned model."""
    repair: Repair = Repair()
    """Candidate patches and their judging."""
    report: Report = Report()
    """The page."""
    stages: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], dict[str, Any]] = {}
    """Trainings one after the other, by name, each with the recipe's keys that it has otherwise: ``{plain: {}, hard: {train: {epochs: 1}}}``. Each goes on from what the one before it has trained, unless its own ``model`` says ``name``, ``start_from`` or ``scratch``; ``stage:NAME`` there is the result of an earlier one."""

    @property
    def rows_seed(self) -> int:
        """Seed of what is drawn when rows are made."""
        return self.seed if self.data.seed is None else self.data.seed

    @model_validator(mode="after")
    def _shardable(self) -> Recipe:
        adapter = self.model.adapter
        whole = {
            f"model.quantisation={self.model.quantisation}": self.model.quantisation is not None,
            f"train.optimizer={self.train.optimizer}": self.train.optimizer != "adamw",
            "model.start_mode=stack": self.model.start_from is not None and self.model.start_mode == "stack",
            f"model.adapter.init={adapter and adapter.init}": adapter is not None
            and adapter.init in FROM_WEIGHTS,
        }
        if self.train.sharding != "none" and any(whole.values()):
            names = " and ".join(name for name, given in whole.items() if given)
            raise ValueError(f"train.sharding={self.train.sharding} cannot go with {names}; leave one out")
        return self


_SCALARS = ("str", "int", "float", "bool")  # pydantic's names of a union's plain branches
COMMAND_LINE = 0  # stands in for the line of a key that was given as key=value

# The places of a recipe that hold a registered thing: key path -> kind.
_TYPED = {
    ("task",): "task",
    ("data", "source"): "source",
    ("data", "eval_source"): "source",
    ("data", "test_source"): "source",
    ("repair", "bugs"): "source",
}


def build(kind: str, options: Mapping[str, Any], where: str = "") -> Any:
    """The task or source that a recipe's ``{"type": ..., **options}`` describes."""
    fields = {key: value for key, value in options.items() if key != "type"}
    return registry.lookup(kind, options["type"], where or kind)(**fields)


def place_of(path: Iterable[Any], file: str, line: int | None) -> str:
    """A recipe key with the file and line that it stands in."""
    keys = ".".join(map(str, path))
    if not keys:
        return file  # a rule over several keys
    place = {None: "", COMMAND_LINE: " (command line)"}.get(line, f" ({file}:{line})")
    return f"recipe key {keys}{place}"


def validate(
    given: Mapping[str, Any],
    lines: Mapping[tuple[str, ...], int] | None = None,
    file: str = "recipe",
    errors: Sequence[UserError] = (),
) -> Recipe:
    """The recipe of a tree, with every default filled in, the tasks' and sources' own included.

    Raises:
        UserErrors: All problems at once.
    """
    lines = lines or {}
    problems = list(errors)
    try:
        tree: dict[str, Any] = json.loads(json.dumps(given, default=str))  # an own copy, of plain values
    except (TypeError, ValueError, RecursionError) as error:  # a date as a key, a number of 5,000 digits
        raise UserErrors(
            [*problems, UserError(f"no plain keys and values: {error}", file, "use text as keys")]
        ) from error
    problems += _resolve(tree, lines, file)
    stages = tree.get("stages")
    for name in stages if isinstance(stages, dict) else ():
        problems += _stage_problems(tree, name, lines, file, problems)
    if problems:
        raise UserErrors(problems)
    return Recipe.model_validate(tree)


def _resolve(tree: dict[str, Any], lines: Mapping[tuple[str, ...], int], file: str) -> list[UserError]:
    """Fills in the defaults of tasks and sources; all problems of the tree."""
    problems: list[UserError] = []
    try:
        Recipe.model_validate(tree)
    except ValidationError as error:
        problems += _problems(error, Recipe, (), lines, file)
    for path, kind in _TYPED.items():
        options: Any = tree
        for name in path:
            options = options.get(name) if isinstance(options, dict) else None
        if options is None:
            options = Recipe().model_dump()
            for name in path:
                options = options[name]
        if options is None or not isinstance(options, dict):
            continue  # absent by choice, or reported above
        line = _line_of(path, lines)
        try:
            if not isinstance(options.get("type"), str):
                raise UserError(
                    f"a {kind} needs a type",
                    place_of(path, file, line),
                    f"one of: {', '.join(registry.registered(kind))}",
                )
            where = place_of((*path, "type"), file, _line_of((*path, "type"), lines))
            entry = _options_class(kind, registry.lookup(kind, options["type"], where), where)
            built = entry(**{key: value for key, value in options.items() if key != "type"})
            options.update(built.model_dump(mode="json"))
            section = tree if len(path) == 1 else tree.setdefault(path[0], {})
            if isinstance(section, dict):  # else it is reported above
                section[path[-1]] = options
        except ValidationError as error:
            problems += _problems(error, entry, path, lines, file)
        except UserError as error:
            problems.append(error)
    return problems


def stage(recipe: Recipe, name: str) -> Recipe:
    """The recipe of one of a recipe's stages: its keys, and where it goes on from."""
    return validate(_stage_tree(recipe.model_dump(mode="json"), name))


def _stage_tree(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    stages: Mapping[str, dict[str, Any]] = tree["stages"]
    names = list(stages)
    place = names.index(name)
    whole: dict[str, Any] = json.loads(json.dumps({key: tree[key] for key in tree if key != "stages"}))
    given = stages[name] if isinstance(stages[name], dict) else {}
    merged: dict[str, Any] = _merged(whole, given)
    merged["name"] = f"{tree.get('name', Recipe().name)}-{name}"
    model, own = merged.setdefault("model", {}), given.get("model") or {}
    if not place or not isinstance(model, dict) or {"name", "start_from", "scratch"} & set(own):
        return merged
    before = _stage_tree(tree, names[place - 1])["model"]
    if not isinstance(before, dict):
        return merged  # reported of that stage
    earlier = f"{STAGE}{names[place - 1]}"
    if before.get("adapter", {}) is None:
        model |= {"name": earlier, "revision": None, "scratch": None, "start_from": None}
    else:
        model |= {key: before[key] for key in ("name", "revision") if key in before} | {"start_from": earlier}
    # Tokens and positions of a whole or merged model are in it.
    inside = model["start_from"] is None or model.get("start_mode") == "merge"
    for key, none in (("new_tokens", []), ("rope", None)):
        model[key] = own.get(key, none if inside else before.get(key, none))
    return merged


def _merged(base: Any, own: Any) -> Any:
    """A section with what a stage has otherwise; a task or source of another type takes its place."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    if own.get("type", base.get("type")) != base.get("type"):
        return own
    return {**base, **{key: _merged(base.get(key), value) for key, value in own.items()}}


def _stage_problems(
    tree: Mapping[str, Any],
    name: str,
    lines: Mapping[tuple[str, ...], int],
    file: str,
    known: Sequence[UserError],
) -> list[UserError]:
    """What is wrong in a stage alone, with its name."""
    own = tree["stages"][name]
    if not isinstance(own, dict):
        return []  # reported with the recipe
    path = ("stages", name)
    found = [
        UserError(
            f"a stage has no {key!r}",
            place_of((*path, key), file, _line_of((*path, key), lines)),
            "leave it out",
        )
        for key in ("name", "stages")
        if key in own
    ]
    if not found:
        inner = {key[2:]: line for key, line in lines.items() if key[:2] == path and len(key) > 2}
        whole = _stage_tree(tree, name)
        found = _resolve(whole, {**lines, **inner}, file) + _unknown_stages(
            tree, name, whole, {**lines, **inner}, file
        )
    said = {(error.what, error.where) for error in known}
    return [
        UserError(f"stage {name!r}: {error.what}", error.where, error.fix)
        for error in found
        if (error.what, error.where) not in said
    ]


def _unknown_stages(
    tree: Mapping[str, Any],
    name: str,
    whole: Mapping[str, Any],
    lines: Mapping[tuple[str, ...], int],
    file: str,
) -> list[UserError]:
    """References to stages that do not come before this one."""
    names = list(tree["stages"])
    earlier = [f"{STAGE}{one}" for one in names[: names.index(name)]]
    model = whole["model"] if isinstance(whole["model"], dict) else {}
    return [
        UserError(
            f"{given!r} is no earlier stage",
            place_of(("model", key), file, _line_of(("model", key), lines)),
            f"one of: {', '.join(earlier)}" if earlier else "the first stage starts from a model: name one",
        )
        for key in ("name", "start_from")
        if isinstance(given := model.get(key), str) and given.startswith(STAGE) and given not in earlier
    ]


def _options_class(kind: str, entry: Any, where: str) -> type[Options]:
    """A registered task or source, which has to be a class whose fields are its options."""
    if not (isinstance(entry, type) and issubclass(entry, Options)):
        base = f"luthier.{kind}s.{kind.capitalize()}"
        raise UserError(
            f"the {kind} {entry.__qualname__} is no class of options", where, f"derive it from {base}"
        )
    return entry


def _line_of(path: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> int | None:
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


def _problems(
    error: ValidationError,
    owner: type[BaseModel],
    prefix: tuple[str, ...],
    lines: Mapping[tuple[str, ...], int],
    file: str,
) -> list[UserError]:
    """One UserError for each key that pydantic complains about."""
    found: dict[tuple[str, ...], UserError] = {}
    for problem in error.errors(include_url=False):
        path = (*prefix, *_key_path(problem["loc"], owner))
        if path in found:
            continue  # further branches of one union
        where = place_of(path, file, _line_of(path, lines))
        if problem["type"] == "extra_forbidden":
            names = _fields_at(owner, problem["loc"][:-1])
            near = difflib.get_close_matches(str(path[-1]), names, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(names))}"
            found[path] = UserError(f"unknown key {path[-1]!r}", where, fix)
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = repr(problem["input"])
            shown = given if len(given) <= 80 else given[:77] + "..."
            what, fix = f"{message}, not {shown}", _documentation(owner, problem["loc"])
            if problem["type"] == "value_error":
                what = message
            elif problem["type"] == "missing":
                what = f"the key {path[-1]!r} is missing"
            elif problem["type"] == "model_type":
                what = f"a section of keys is needed here, not {shown}"
                fix = f"known keys: {', '.join(_fields_at(owner, problem['loc']))}"
            found[path] = UserError(what, where, fix or "see `luthier schema` for what this key takes")
    return list(found.values())


def _documentation(owner: type[BaseModel], loc: Iterable[int | str]) -> str:
    """What the key that pydantic's location is in takes, in the recipe's own words; nothing for a whole section."""
    place: type[BaseModel] | None = owner
    text = ""
    for part in loc:
        field = place.model_fields.get(str(part)) if place is not None else None
        if place is None or field is None:
            break
        place = _model_of(place, part)
        text = "" if place else f"{part}: {' '.join((field.description or '').split())}"
    return text


def _key_path(loc: tuple[int | str, ...], owner: type[BaseModel]) -> tuple[str, ...]:
    """pydantic's location without the names of union branches, which are no keys of the recipe."""
    path: list[str] = []
    place: type[BaseModel] | None = owner
    for part in loc:
        if place is not None and part not in place.model_fields and path and part != loc[-1]:
            continue
        if place is None and isinstance(part, str) and (part in _SCALARS or "[" in part):
            continue
        path.append(str(part))
        place = _model_of(place, part) if place else None
    return tuple(path)


def _model_of(owner: type[BaseModel], name: int | str) -> type[BaseModel] | None:
    field = owner.model_fields.get(str(name))
    if field is None:
        return None
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _fields_at(owner: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    place: type[BaseModel] | None = owner
    for part in loc:
        place = (place and _model_of(place, part)) or place
    return list(place.model_fields) if place else []


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with every registered task and source, for editors."""
    result = Recipe.model_json_schema()
    stages = result["properties"]["stages"]  # each is a recipe that need not be whole
    stages["patternProperties"] = {name: {"$ref": "#"} for name in stages["patternProperties"]}
    for path, kind in _TYPED.items():
        variants = []
        for name, entry in registry.registered(kind).items():
            variant = _options_class(kind, entry, f"@{kind}({name!r})").model_json_schema()
            result["$defs"].update(variant.pop("$defs", {}))
            variant["properties"] = {
                "type": {"const": name, "description": registry.summary(entry)},
                **variant.get("properties", {}),
            }
            variant["required"] = ["type", *variant.get("required", [])]
            variant["title"] = name
            variants.append(variant)
        place = result if len(path) == 1 else result["$defs"][path[0].capitalize()]
        described = place["properties"][path[-1]].get("description", "")
        empty = [{"type": "null"}] if path[-1] in ("eval_source", "test_source", "bugs") else []
        place["properties"][path[-1]] = {"anyOf": variants + empty, "description": described}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **result}
