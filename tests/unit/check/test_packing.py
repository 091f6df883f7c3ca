"""Where packed rows begin, against transformers' own reading; and that what leaks is seen."""

import numpy as np
import pytest
import torch
from transformers.masking_utils import find_packed_sequence_indices

from luthier.check.checks.packing import _crop, row_limits


@pytest.mark.parametrize("seed", range(20))
def test_limits_in_positions_are_those_that_transformers_finds(seed):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 9, draw.integers(1, 6))
    positions = torch.cat([torch.arange(int(n)) for n in lengths])[None]
    inputs = {"input_ids": positions, "position_ids": positions}
    limits = row_limits(inputs, 0)
    assert limits == [0, *np.cumsum(lengths).tolist()]
    theirs = find_packed_sequence_indices(positions)
    assert len(limits) - 1 == (1 if theirs is None else int(theirs.max()) + 1)


def test_limits_by_other_signs():
    ids = torch.arange(12).reshape(2, 6)
    numbers = torch.tensor([[1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1]])
    assert row_limits({"input_ids": ids, "attention_mask": numbers}, 0) == [0, 2, 4, 5]
    assert row_limits({"input_ids": ids, "attention_mask": numbers}, 1) == [0, 6]
    assert row_limits({"input_ids": ids, "seq_idx": numbers[:1].expand(2, 6)}, 0) == [0, 2, 4, 5, 6]
    limits = torch.tensor([0, 4, 6, 9, 12], dtype=torch.int32)
    assert row_limits({"input_ids": ids.reshape(1, 12), "cu_seq_lens_q": limits}, 0) == [0, 4, 6, 9, 12]
    assert row_limits({"input_ids": ids, "cu_seq_lens_q": limits}, 1) == [0, 3, 6]
    assert row_limits({"input_ids": ids}, 0) == [0, 6]
    plain = {"input_ids": ids, "position_ids": torch.arange(6).expand(2, 6)}
    assert row_limits(plain, 1) == [0, 6]


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_no_row(left):
    mask = torch.tensor([[0, 0, 1, 1, 1]] if left else [[1, 1, 1, 0, 0]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0) * mask
    inputs = {"input_ids": mask, "attention_mask": mask, "position_ids": positions}
    limits = row_limits(inputs, 0)
    assert limits == ([2, 5] if left else [0, 3])


def test_crop_keeps_what_belongs_together():
    ids = torch.arange(24).reshape(2, 12)
    inputs = {
        "input_ids": ids,
        "position_ids": ids[:1],
        "attention_mask": torch.arange(2 * 144).reshape(2, 1, 12, 12),
    }
    cropped = _crop(inputs, 1, 3, 5, 9)
    assert cropped["input_ids"].tolist() == [[15, 16, 17, 18, 19, 20], [3, 4, 5, 6, 7, 8]]
    assert cropped["position_ids"].tolist() == [[3, 4, 5, 6, 7, 8]]
    assert torch.equal(cropped["attention_mask"], inputs["attention_mask"].flip(0)[:, :, 3:9, 3:9])
    flat = {"cu_seq_lens_q": torch.tensor([0, 5, 12]), "max_length_q": 12, "input_ids": ids[:1]}
    cropped = _crop(flat, 0, 3, 5, 9)
    assert cropped["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8]]
    assert cropped["cu_seq_lens_q"].tolist() == [0, 2, 6] and cropped["max_length_q"] == 4
