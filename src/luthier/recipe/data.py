"""The sections ``data`` and ``check``: where rows come from, and the gate before training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.options import Auto, Options, Share


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
    seed: int | None = Field(None, ge=0, lt=1 << 32)
    """Seed of what is drawn when rows are made: splits, ``max_rows``, what a task draws. Without it the recipe's; with it, runs of several seeds have the same rows."""
    max_rows: dict[Literal["train", "eval", "test"], Annotated[int, Field(ge=1)]] = {}
    """Keep at most this many rows of a split, chosen by a stable hash; the rest is counted as ``over-max-rows``."""
    near_duplicates: Literal["drop", "keep-together", "off"] = "drop"
    """Near copies: one of each cluster is kept; or all are, in one split; or they are not looked for."""
    near_duplicate_threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of word 5-grams from which two records are near copies."""
    drop_budget: Share = 0.05
    """Share of rows that may be dropped for other reasons than a rule of the recipe, before the run stops."""
    num_workers: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Processes that encode; ``auto`` is the number of cores for larger data, 1 for small."""


class Check(Options):
    """The gate before training."""

    waive: list[str] = []
    """Names of checks whose errors do not stop the run; recorded and shown in the report."""
