"""What a baseline of the graph is asked."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.fixtures.tiny_model import make_tokenizer

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.evaluate import ontology
from luthier.recipe import Evaluate, Recipe
from luthier.records import Row
from luthier.tasks.ontology import Ontology


def test_a_context_without_room_for_a_prompt_is_said() -> None:
    tokenizer = TextTokenizer(make_tokenizer())
    ids = np.array(tokenizer.encode("a violin"), np.int32)
    zeros = np.zeros(len(ids))
    row = Row("r", "r", ids, zeros.astype(np.float32), zeros.astype(np.int16), ["prompt"], len(ids), "", 0)
    stage: Any = SimpleNamespace(
        task=Ontology(root="Top", format="plain"), rows={"train": []}, tokenizer=tokenizer,
        recipe=Recipe(evaluate=Evaluate(max_new_tokens=64)),
    )  # fmt: skip
    for context, fits in ((512, True), (64, False)):
        model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=context))
        if fits:
            asked = tokenizer.decode(np.array(ontology._prompt(stage, "0-shot", row, model)), first=True)
            assert "Document:\na violin\nPaths:" in asked
        else:
            with pytest.raises(UserError, match=r"0-shot: .* 64 new tokens of a context of 64"):
                ontology._prompt(stage, "0-shot", row, model)
