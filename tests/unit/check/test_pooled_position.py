"""What a classifier reads, against the rule by which transformers pools."""

import pytest
import torch
from tests.fixtures import tiny_trainer
from transformers import BertConfig, BertForSequenceClassification

from luthier.check.as_before import evaluating
from luthier.check.checks.pooled_position import _read
from luthier.check.trainer import TrainerContext


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gpt2"])
@pytest.mark.parametrize("pad_id", [2, 0])
@pytest.mark.parametrize("left", [True, False])
def test_last_position_read_is_the_one_that_transformers_pools(tmp_path, family, pad_id, left):
    made = tiny_trainer.classifier(family)
    context = TrainerContext(tiny_trainer.class_trainer(made), tmp_path)
    assert context.rows
    torch.manual_seed(0)
    lengths = torch.tensor([9, 7, 4])
    steps = torch.arange(9)[None]
    mask = steps >= 9 - lengths[:, None] if left else steps < lengths[:, None]
    ids = torch.randint(5, 300, (3, 9)).masked_fill(~mask, pad_id)
    pooled = ((ids != 2) * steps).argmax(
        -1
    )  # GenericForSequenceClassification.forward; config.pad_token_id is 2
    with evaluating(context.model):
        reading = _read(context, {"input_ids": ids, "attention_mask": mask.long()})
    # A padding position on the left sees nothing, and what stands behind a real one does not see it.
    assert [row.last_read for row in reading] == pooled.tolist()
    assert [row.padding_read for row in reading] == (~mask[torch.arange(3), pooled]).tolist()
    assert not any(row.ends_in_padding for row in reading)


def test_encoders_read_all_real_tokens(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = BertForSequenceClassification(BertConfig(vocab_size=376, num_labels=5, pad_token_id=2, **sizes))
    context = TrainerContext(tiny_trainer.class_trainer(made), tmp_path)
    assert context.rows
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 2, 2]])
    with evaluating(context.model):
        reading = _read(context, {"input_ids": ids, "attention_mask": mask})
    assert [(row.last_read, row.padding_read) for row in reading] == [(3, False), (1, False)]
