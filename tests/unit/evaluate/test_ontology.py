"""What a baseline of the graph is asked."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.fixtures.tiny_model import make_tokenizer

from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.evaluate import ontology
from luthier.ontology.graph import Document, build
from luthier.ontology.masking import EdgeCounts
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


def test_examples_in_a_prompt_come_with_their_paths() -> None:
    tokenizer = TextTokenizer(make_tokenizer())

    def row(text: str, target: str) -> Row:
        ids = np.array(tokenizer.encode(text), np.int32)
        zeros = np.zeros(len(ids))
        return Row(
            text, text, ids, zeros.astype(np.float32), zeros.astype(np.int16), ["prompt"], len(ids), target, 0
        )

    class Given(list[Row]):
        row = list.__getitem__

    stage: Any = SimpleNamespace(
        task=Ontology(root="Top", format="plain"), tokenizer=tokenizer,
        rows={"train": Given([row("a viola", "Top -> bowed\n"), row("a lute", "Top -> plucked\n")])},
        recipe=Recipe(evaluate=Evaluate(max_new_tokens=64)),
    )  # fmt: skip
    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=2048))
    asked = ontology._prompt(stage, "2-shot", row("a violin", "Top -> hidden\n"), model)
    text = tokenizer.decode(np.array(asked), first=True)
    for shown in (
        "Document:\na viola\nPaths:\nTop -> bowed\n",
        "Document:\na lute\nPaths:\nTop -> plucked\n",
    ):
        assert shown in text
    assert text.rstrip().endswith("Document:\na violin\nPaths:") and "hidden" not in text


def test_recall_and_overlap_by_what_training_has_seen() -> None:
    paths = [["r", "a"]] * 3 + [["r", "b"]]  # M = 2
    train = build([Document("t", paths)], "r")
    truth = build([Document("d", [["r", "a"], ["r", "b"], ["r", "c"]])], "r")
    stage: Any = SimpleNamespace(counts=EdgeCounts.of(paths), truths={"train": train, "test": truth})
    found = ontology._recall_by_count(stage, build([Document("p", [["r", "a"]])], "r"))
    assert found == {
        "head": {"num_edges": 1, "recall": 1.0},
        "tail": {"num_edges": 1, "recall": 0.0},
        "unseen": {"num_edges": 1, "recall": 0.0},
    }
    assert ontology._overlap(train, truth) == {"nodes": 3 / 4, "edges": 2 / 3}
