"""torch-audit in its zero-touch mode: static and initial audits, then every step of the training."""

import cases
from torch_audit import autopatch
from torch_audit.reporters.console import ConsoleReporter

from tools.common import Finding, distinct, each, train

SEVERITIES = {"FATAL": "error", "ERROR": "error", "WARN": "warning", "INFO": "note"}


def look(setup: cases.SetUp) -> list[Finding]:
    trainer = cases.trainer(setup)
    # The schedule first: torch's schedulers cannot wrap a step that is already patched.
    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
    auditor = autopatch(
        trainer.model, optimizer=trainer.optimizer, every_n_steps=1, reporters=[ConsoleReporter()]
    )
    # Zero-touch mode sees gradients only after the Trainer has clipped them; its wrapper sees them as they are.
    trainer.accelerator.backward = lambda loss, **_: auditor.backward(loss)
    ended = train(trainer)
    findings = auditor.finish(report=True).findings
    return ended + distinct(
        [
            {"severity": SEVERITIES[found.severity.value], "text": f"{found.rule_id} {found.message}"}
            for found in findings
        ]
    )


if __name__ == "__main__":
    each(look)
