"""No option of a recipe is accepted and then used by nothing."""

from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.encoding.infill import SENTINELS, Infill
from luthier.recipe import Adapter, Check, Data, Evaluate, Model, Options, Recipe, Report, Rope, Splits, Train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def test_every_option_of_a_recipe_is_read_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(
        tmp_path,
        train={"max_steps": 2, "eval_every_steps": 1},
        description="words",
        task={"type": "line-completion", "min_context_tokens": 8, "infill": {"sentinels": "new"}},
        model={"new_tokens": list(SENTINELS["new"].tokens), "rope": {"factor": 2.0}},
    )
    recipe = pipeline.read(path)
    read: set[tuple[type, str]] = set()
    usual = Options.__getattribute__

    def recording(self: Options, name: str) -> Any:
        if name in type(self).model_fields:
            read.add((type(self), name))
        return usual(self, name)

    monkeypatch.setattr(Options, "__getattribute__", recording)
    pipeline.run(recipe, folder=tmp_path / "run")
    unread = [
        f"{section.__name__}.{name}"
        for section in (Recipe, Model, Adapter, Data, Splits, Train, Evaluate, Report, Check, Infill, Rope)
        for name in section.model_fields
        if (section, name) not in read and (section, name) != (Evaluate, "ontology")  # test_ontology.py
    ]
    assert unread == ["Recipe.repair"]  # `luthier repair` reads it: tests/e2e/test_repair.py
