"""The sections ``evaluate`` and ``report``: base against tuned model, and the page."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.recipe.options import Auto, Options


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


class Report(Options):
    """The page."""

    num_predictions: int = Field(20, ge=0)
    """Predictions shown side by side."""
    smoothing_window: int = Field(21, ge=5)
    """Steps of the Savitzky-Golay window over the training loss."""
