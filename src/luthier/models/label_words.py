"""All labels' probabilities under a language model, from one pass over the text: the labels' words as a tree of tokens.

Behind the text stand the tokens that labels share, each of which sees the text and what leads to it in the tree. A
label's last tokens need no place there, since a token's probability comes from the one before it; nor does what follows
once a label is told apart from all others. Shapes: B rows, T tokens (text and tree), P tokens of the longest text, M tokens
in the tree, C labels, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from luthier.encoding.batches import collate
from luthier.errors import UserError
from luthier.models import packed
from luthier.models.forward import base_model, forward_inputs
from luthier.models.generate import prompt_row
from luthier.records import Row


@dataclass(frozen=True)
class LabelTree:
    """Labels as paths of tokens.

    Attributes:
        paths: Tokens that tell each label apart from all others, from the first on; at least one.
        nodes: Beginnings that labels share, shorter ones first: the tokens that go through the model.
    """

    paths: tuple[tuple[int, ...], ...]
    nodes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, words: Sequence[Sequence[int]]) -> LabelTree:
        """The tree of the labels' tokens, each with what ends it.

        Raises:
            UserError: Two labels are the same tokens, or one begins with another that nothing ends.
        """
        counts = Counter(tuple(ids[:end]) for ids in words for end in range(1, len(ids) + 1))
        paths = []
        for number, ids in enumerate(words):
            end = next((end for end in range(1, len(ids) + 1) if counts[tuple(ids[:end])] == 1), None)
            if end is None:
                raise UserError(
                    f"the words of label {number} cannot be told from those of another label",
                    "recipe key task.labels",
                    "give labels that differ in more than white space, or take task.way=head",
                )
            paths.append(tuple(ids[:end]))
        nodes = {path[:end] for path in paths for end in range(1, len(path))}
        return cls(tuple(paths), tuple(sorted(nodes, key=lambda node: (len(node), node))))

    def steps(self) -> list[list[tuple[int, int]]]:
        """For each label the places (0 is the end of the text, then nodes from 1 on) and tokens whose probabilities it is made of."""
        places = {(): 0} | {node: number for number, node in enumerate(self.nodes, 1)}
        return [[(places[path[:i]], token) for i, token in enumerate(path)] for path in self.paths]


@torch.no_grad()
def label_scores(
    model: PreTrainedModel | PeftModel, tree: LabelTree, rows: Sequence[Row], *, exhaustive: bool = False
) -> Tensor:
    """Log-probability of each label behind each row's prompt, in nats, fp32 on the CPU, shape (B, C).

    It is the probability that the model writes the tokens that tell the label apart from all others; over all labels they
    add up to at most 1. The rest of the label is not counted, so that a label that is told apart early has the probability of
    everything that begins so, labels or not. That of the whole label is at most as great, and its best label may be another
    one where the model is not sure of the rest: before training, and with names that it has not learned.

    Args:
        model: A causal language model, in evaluation mode.
        tree: The labels.
        rows: Their prompts are scored, whatever stands behind.
        exhaustive: Read each beginning of a label behind each text by itself: what the tree must equal, and the way of
            models that keep a state.
    """
    base = base_model(model)
    window = getattr(base.config.get_text_config(), "sliding_window", None)
    longest = max(row.num_prompt_tokens for row in rows) + max(map(len, tree.paths))
    if (
        exhaustive
        or base._is_stateful
        or not base._supports_attention_backend
        or (window and longest > window)
    ):
        logits_BMV = torch.stack([_after(model, rows, node) for node in ((), *tree.nodes)], dim=1)
    else:
        logits_BMV = _through_tree(model, tree, rows)
    totals_BM = logits_BMV.logsumexp(-1)
    scores = []
    for steps in tree.steps():
        places, tokens = (torch.tensor(part, device=logits_BMV.device) for part in zip(*steps, strict=True))
        scores.append((logits_BMV[:, places, tokens] - totals_BM[:, places]).sum(-1))
    return torch.stack(scores, dim=-1).cpu()


def _through_tree(model: PreTrainedModel | PeftModel, tree: LabelTree, rows: Sequence[Row]) -> Tensor:
    """Logits behind each text and each node of the tree, fp32, shape (B, 1 + M, V): one pass."""
    base = base_model(model)
    prompts = [row.input_ids[: row.num_prompt_tokens] for row in rows]
    longest, num_nodes = max(map(len, prompts)), len(tree.nodes)
    ids = np.zeros((len(rows), longest + num_nodes), np.int64)
    positions = np.zeros_like(ids)
    sees = np.zeros((len(rows), ids.shape[1], ids.shape[1]), bool)
    places = {node: longest + number for number, node in enumerate(tree.nodes)}
    above = np.zeros((num_nodes, num_nodes), bool)
    for node, place in places.items():
        for end in range(1, len(node) + 1):
            above[place - longest, places[node[:end]] - longest] = True
    for i, prompt in enumerate(prompts):
        # Texts end together, so that logits are needed in the same places of all rows.
        start = longest - len(prompt)
        ids[i, start:longest] = prompt
        positions[i, start:longest] = np.arange(len(prompt))
        sees[i, start:longest, start:longest] = np.tri(len(prompt), dtype=bool)
        sees[i, longest:, start:longest] = True
        sees[i, longest:, longest:] = above
    for node, place in places.items():
        ids[:, place] = node[-1]
        positions[:, place] = [len(prompt) + len(node) - 1 for prompt in prompts]
    diagonal = np.arange(ids.shape[1])
    sees[:, diagonal, diagonal] = True  # what sees nothing would have no weights at all
    mask: Tensor = torch.from_numpy(sees)[:, None].to(base.device)
    if base.config._attn_implementation not in ("sdpa", packed.NAME):
        mask = torch.zeros(mask.shape, dtype=base.dtype, device=base.device).masked_fill(
            ~mask, torch.finfo(base.dtype).min
        )
    logits_BMV: Tensor = model(
        input_ids=torch.from_numpy(ids).to(base.device),
        attention_mask=mask,
        position_ids=torch.from_numpy(positions).to(base.device),
        use_cache=False,
        logits_to_keep=num_nodes + 1,
    ).logits
    return logits_BMV.float()


def _after(model: PreTrainedModel | PeftModel, rows: Sequence[Row], node: Sequence[int]) -> Tensor:
    """Logits behind each text and the tokens of a node, fp32, shape (B, V); row by row."""
    base = base_model(model)
    found = []
    for row in rows:
        ids = [*row.input_ids[: row.num_prompt_tokens].tolist(), *node]
        batch = collate([prompt_row(ids)], 0).to(base.device)
        found.append(model(**forward_inputs(base, batch, None)).logits[0, -1].float())
    return torch.stack(found)
