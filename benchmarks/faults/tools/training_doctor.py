"""training-doctor as a callback of the ``Trainer``, with every step logged; it warns and never stops."""

import cases
from training_doctor.diagnosis import Diagnosis
from training_doctor.integrations.huggingface import HuggingFaceCallback
from transformers import TrainerCallback

from tools.common import Finding, distinct, each, train


class Doctor(HuggingFaceCallback, TrainerCallback):
    """Its callback, made to work.

    In 0.1.0 the README's ``HuggingFaceCallback`` lacks events that a Trainer calls and so ends in an error, and in
    ``TrainCheckCallback`` the base classes stand in the other order, so that it hears nothing.
    """


def look(setup: cases.SetUp) -> list[Finding]:
    doctor = Doctor()
    ended = train(cases.trainer(setup, callbacks=[doctor]))
    return ended + distinct(
        [{"severity": severity(found), "text": text(found)} for found in doctor.diagnoses]
    )


def severity(found: Diagnosis) -> str:
    """A warning, unless its own README calls that little confidence "weak signal, might be noise"."""
    return "note" if found.severity.value == "info" or found.confidence < 0.3 else "warning"


def text(found: Diagnosis) -> str:
    """A diagnosis on one line."""
    return (
        f"{found.problem} ({found.confidence:.0%}): {'; '.join(str(evidence) for evidence in found.evidence)}"
    )


if __name__ == "__main__":
    each(look)
