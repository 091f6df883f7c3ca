"""Examples of how defects are planted; the families have files of their own."""

from pathlib import Path

from tests.faults.suite import Said, check_recipe, healthy, planted
from tests.fixtures import tiny_trainer

import luthier


@healthy
def plain_trainer(folder: Path) -> Said:
    """A Trainer with a tiny Llama and prompts with answers."""
    return luthier.audit(tiny_trainer.trainer())


@planted("stop-token", catalogue=(6,), where="data file")
def answers_without_an_end(folder: Path) -> Said:
    """The rows of a Trainer have no EOS behind their answers."""
    return luthier.audit(tiny_trainer.trainer(train=tiny_trainer.items(48, stop=False)))


@planted("schedule", catalogue=(76,), where="recipe")
def warm_up_longer_than_the_run(folder: Path) -> Said:
    """The recipe's warm-up has four times as many steps as the run."""
    return check_recipe(folder, train={"warmup_steps": 120})
