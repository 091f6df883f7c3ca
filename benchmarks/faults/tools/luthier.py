"""``luthier.audit`` of the ``Trainer``, before it trains."""

import cases

import luthier
from tools.common import Finding, each


def look(setup: cases.SetUp) -> list[Finding]:
    report = luthier.audit(cases.trainer(setup))
    print(report)
    return [
        {"severity": found.severity, "text": f"{found.check}: {found.what} ({found.where}; fix: {found.fix})"}
        for found in report.findings
    ]


if __name__ == "__main__":
    each(look)
