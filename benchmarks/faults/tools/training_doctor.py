"""training-doctor as a callback of the ``Trainer``, with every step logged; it warns and never stops."""

import cases
from training_doctor.integrations.huggingface import TrainCheckCallback

from tools.common import distinct, each, train

SEVERITIES = {"critical": "warning", "warning": "warning", "info": "note"}


def look(setup: cases.SetUp) -> list[dict[str, str]]:
    # The README's HuggingFaceCallback is no TrainerCallback, and a Trainer wants one; this is the same as one.
    doctor = TrainCheckCallback()
    trainer = cases.trainer(setup, callbacks=[doctor])
    train(trainer)
    return distinct(
        [
            {
                "severity": SEVERITIES[found.severity.value],
                "text": f"{found.problem}: {'; '.join(str(evidence) for evidence in found.evidence)}",
            }
            for found in doctor.diagnoses
        ]
    )


if __name__ == "__main__":
    each(look)
