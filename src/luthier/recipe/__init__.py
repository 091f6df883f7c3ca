"""The recipe: one strict tree that describes a run. The text under each field is its documentation."""

from luthier.recipe.data import Check, Data, Splits
from luthier.recipe.evaluate import Evaluate, GraphEvaluation, Report
from luthier.recipe.json_schema import schema
from luthier.recipe.model import FROM_WEIGHTS, Adapter, Classifier, Head, Model, Rope, Scratch
from luthier.recipe.options import Auto, Options, Share, UserPath
from luthier.recipe.problems import COMMAND_LINE, place_of
from luthier.recipe.repair import Repair, Rounds, Server
from luthier.recipe.train import TOKENS_AT_ONCE, Train, Watcher
from luthier.recipe.validation import STAGE, stage, validate
from luthier.recipe.whole import Recipe, build

__all__ = [
    "COMMAND_LINE", "FROM_WEIGHTS", "STAGE", "TOKENS_AT_ONCE", "Adapter", "Auto", "Check", "Classifier", "Data", "Evaluate",
    "GraphEvaluation", "Head", "Model", "Options", "Recipe", "Repair", "Report", "Rope", "Rounds", "Scratch", "Server", "Share",
    "Splits", "Train", "UserPath", "Watcher", "build", "place_of", "schema", "stage", "validate",
]  # fmt: skip
