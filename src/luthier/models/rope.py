"""Rotary positions beyond those that a model was made for."""

from __future__ import annotations

from transformers import PreTrainedConfig

from luthier.errors import UserError
from luthier.recipe import Rope

_WHERE = "recipe key model.rope"


def scale(config: PreTrainedConfig, rope: Rope) -> None:
    """Writes a recipe's scaling into a model's config, from which transformers computes the angles.

    ``max_position_embeddings`` stays what it is: with a factor beside it, it is the number before scaling.

    Raises:
        UserError: A model without rotary positions, or with another scaling of its own.

    Source: linear, Chen et al. 2023, arXiv:2306.15595; yarn, Peng et al. 2023, arXiv:2309.00071; as in transformers'
        ``modeling_rope_utils``.
    """
    text = config.get_text_config()
    known = getattr(text, "rope_parameters", None)
    if not known or "rope_theta" not in known:
        raise UserError(
            f"{config.model_type} has no rotary positions of one kind that could be scaled",
            _WHERE,
            "leave model.rope out, and keep data.max_length within the model's positions",
        )
    wanted = {"rope_type": rope.type, "factor": rope.factor}
    own = {key: known.get(key) for key in wanted}
    if own == wanted:
        return  # a model that was saved with it
    if known.get("rope_type", "default") != "default":
        raise UserError(
            f"the model's positions are scaled already: {known['rope_type']}, factor {known.get('factor')}",
            _WHERE,
            "leave model.rope out",
        )
    if rope.type == "yarn":
        wanted["original_max_position_embeddings"] = text.max_position_embeddings
    text.rope_parameters = {**known, **wanted}
