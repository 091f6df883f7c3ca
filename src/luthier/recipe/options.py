"""What every section of a recipe, every task and every source is made of."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)]
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]  # ``~`` is the user's home


class Options(BaseModel):
    """Frozen settings that refuse unknown keys; the base of every section, task and source."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
