"""The command line: parsing and printing only. What a verb does lies in ``luthier.pipeline`` and the stages.

Modules that load torch are imported inside the verbs, so that help and mistakes come at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.cli import screen
from luthier.cli.frame import app as app

# The panels of --help stand in the order in which their verbs are imported.
# isort: off
from luthier.cli.verbs import stages as stages
from luthier.cli.verbs import start as start
from luthier.cli.verbs import look as look

# isort: on


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 a finding or gate says no, 2 a mistake, 3 a defect of luthier."""
    screen.shield()
    app(args=None if arguments is None else list(arguments), prog_name="luthier")
