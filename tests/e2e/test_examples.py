"""The examples of the docs run and say what the docs show. Regenerate with LUTHIER_REGENERATE=1, and read the diff."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def gist(text: str) -> list[str]:
    """Findings without their numbers, which depend on the machine in their last digits, and which checks passed."""
    findings, _, rest = text.partition("\n- skipped")
    passed = re.findall(r"^✓ [\w-]+", rest, flags=re.MULTILINE)
    return [re.sub(r"\d[\d.,]*", "N", " ".join(findings.split())), *passed]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier_280"])
def test_an_example_says_what_the_docs_show(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    stored = EXAMPLES / f"{name}.txt"
    if "LUTHIER_REGENERATE" in os.environ:
        stored.write_text(done.stdout, encoding="utf-8")
    assert gist(done.stdout) == gist(stored.read_text(encoding="utf-8"))
    for text in (done.stdout, stored.read_text(encoding="utf-8")):
        before, after = text.split("With model.accepts_loss_kwargs = False")
        factor = re.search(r"has ([\d.]+) times the\s+loss", before)
        assert factor and abs(float(factor[1]) - 12) <= 0.1
        assert "not ok: 1 error, 0 warnings" in before and "\nok: 0 errors, 0 warnings, 0 notes" in after
