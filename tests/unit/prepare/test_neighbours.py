"""A task that asks for them is given the records of the same source that belong together."""

import json
from pathlib import Path

from tests.fixtures.small_project import records
from tests.fixtures.tiny_prepare import tiny_tokenizer

from luthier.prepare.build import prepare
from luthier.recipe import Recipe
from luthier.rows import Rows
from luthier.run_folder import RunFolder, read_json


def write(path: Path, *projects: str) -> dict[str, object]:
    rows = [record for name in projects for record in records(name)]
    path.write_text("".join(json.dumps({"id": r.id, "group": r.group, **r.fields}) + "\n" for r in rows))
    columns = {name: name for name in ("text", "path", "language", "project", "role")}
    return {
        "type": "files",
        "path": str(path),
        "columns": columns,
        "id_column": "id",
        "group_column": "group",
    }


def test_files_of_the_same_project_and_source_stand_before_a_line(tmp_path: Path) -> None:
    own, test = write(tmp_path / "own.jsonl", "one", "two"), write(tmp_path / "test.jsonl", "three")
    # The targets of the first and the third project are the same text, so that only the second's stays for training.
    changed = (tmp_path / "own.jsonl").read_text().splitlines()
    changed[-1] = changed[-1].replace("place_order", "send_order")
    (tmp_path / "own.jsonl").write_text("\n".join(changed) + "\n")
    recipe = Recipe.model_validate(
        {
            "task": {"type": "project-completion", "stretch_share": 0.4, "prefix_share": 0.2, "max_lines_per_file": 3},
            "data": {"source": own, "test_source": test, "splits": {"train": 1, "eval": 0, "test": 0},
                     "max_length": 900, "num_workers": 1, "near_duplicates": "off"},
        }
    )  # fmt: skip
    run = RunFolder(tmp_path / "run")
    run.create()
    assert prepare(recipe, run, tiny_tokenizer())
    ledger = read_json(run.ledger)
    assert ledger["records"]["dropped"]["exact-duplicate"]["count"] == 1
    assert ledger["rows"]["dropped"]["context-only"]["count"] == 3 * 7
    [row] = {row.group: row for row in Rows(run.rows("train"))}.values()
    text = tiny_tokenizer().decode(row.input_ids)
    assert row.group == "two" and "# shop/money.py\n" in text
    for row in Rows(run.rows("test")):
        assert row.meta["strata"]["project"] == "three" and ["file", "shop/money.py"] in row.meta["context"]
