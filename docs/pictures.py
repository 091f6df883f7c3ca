"""The pictures of a real report that README and tutorial show, taken of a finished run of the demo.

make demo && python docs/pictures.py runs/demo        # needs Chromium (the Debian package chromium)
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.e2e import chromium  # noqa: E402 # the browser that the tests of the page use


def take(run: Path, folder: Path) -> None:
    """Writes ``report.png``, the upper part of the page, and ``learning_curve.png`` into a folder."""
    program = chromium.find()
    if program is None:
        raise SystemExit("no Chromium here: apt install chromium")
    with chromium.Browser(program) as browser:
        browser.open(run / "report.html", width=1280, height=1250)
        browser.screenshot(folder / "report.png")
    shutil.copyfile(run / "figures" / "learning_curve.png", folder / "learning_curve.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "images", help="the folder of the pictures"
    )
    options = parser.parse_args()
    take(options.run, options.out)
