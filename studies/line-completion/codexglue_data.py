"""Files in CodeXGLUE's token-level format from releases on PyPI: train.txt, dev.txt and test.txt, by project.

    python studies/line-completion/codexglue_data.py data/codexglue/py150 [--literals literals.json]

For machines without the published files (github.com/microsoft/CodeXGLUE, CodeCompletion-token): the recipes
``codexglue-*.yaml`` read either. Without ``--literals`` the literals that are kept are the commonest of the training
projects, as many as CodeXGLUE keeps.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from luthier.records import Record
from luthier.run_folder import write_json, write_text
from luthier.sources.code_tokens import Kept, normalise
from luthier.sources.sdists import Sdists

# No project is in two files; none of the later ones has code of an earlier one in it.
PROJECTS = {
    "train": {
        "django==5.2.19": "ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1",
        "sympy==1.14.0": "d3d3fe8df1e5a0b42f0e7bdf50541697dbe7d23746e894990c030e2b05e72517",
        "networkx==3.6.1": "26b7c357accc0c8cde558ad486283728b65b6a95d85ee1cd66bafab4c8168509",
    },
    "dev": {"textual==8.2.8": "3f106a9fbc73e39dd266c9712432087de78a6d644084c7c241d6a25c3169115b"},
    "test": {"scikit-learn==1.9.1": "629cada3e33e2b9bf376cdc7614a47a4140b8aedc1d836579e359736fbd82977"},
}


def codes(split: str) -> list[tuple[str, str]]:
    """Id and text of the files of a split's projects that hold code."""
    records = Sdists(packages=PROJECTS[split], min_bytes=200, keep_vendored=True).records()
    return [(r.id, str(r.fields["text"])) for r in records if isinstance(r, Record)]


def main(folder: Path, literals: Path | None) -> None:
    train = codes("train")
    kept = Kept.load(literals) if literals else Kept.commonest((code for _, code in train), "python")
    lists = {"str": sorted(kept.strings), "num": sorted(kept.numbers), "char": sorted(kept.characters)}
    write_json(folder / "literals.json", lists)
    seen: set[str] = set()
    for split in PROJECTS:
        lines, counts = [], Counter()
        for name, code in train if split == "train" else codes(split):
            line = normalise(code, "python", kept)
            if line is None or line in seen:
                counts["unreadable" if line is None else "copies"] += 1
                continue
            seen.add(line)
            lines.append((name, line))
        write_text(folder / f"{split}.txt", "".join(f"{line}\n" for _, line in lines))
        write_json(folder / f"{split}_files.json", [name for name, _ in lines])
        print(json.dumps({"split": split, "files": len(lines), "left out": counts}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--literals", type=Path)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.literals)
