"""kill -9 while patches are generated and judged: the reruns lose nothing, judge nothing twice and end with the same table."""

import functools
import json
import os
import signal
from pathlib import Path

import pytest
from tests.fixtures.fixes import write_bugs
from tests.fixtures.processes import Luthier, luthier
from tests.fixtures.tiny_run import write_recipe


def _trap(moment: str, count: int, folder: Path) -> None:
    """In the process that is to be killed: ends it at the n-th call of what a moment is named after."""
    from luthier.evaluate import candidates
    from luthier.execution.judge import Judge

    calls = iter(range(1, 1000))

    def deadly(usual, half: Path | None):
        def call(*arguments):
            if next(calls) == count:
                if half is not None:
                    with open(half, "a") as file:
                        file.write('{"bug": "cut off')
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(*arguments)

        return call

    if moment == "generating":
        candidates.chosen = deadly(candidates.chosen, folder / "base" / "candidates.jsonl")
    elif moment == "taking up":
        usual = os.replace
        os.replace = lambda a, b: (
            deadly(usual, None)(a, b) if str(b).endswith("candidates.jsonl") else usual(a, b)
        )
    else:
        Judge._run = deadly(Judge._run, folder / "judged.jsonl")


def _lines(path: Path) -> list[str]:
    text = path.read_text() if path.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _same_candidates(one: list[str], other: list[str]) -> None:
    """Bugs that were left are batched anew; products of another shape are rounded otherwise on some processors."""
    for a, b in zip(sorted(one), sorted(other), strict=True):
        left, right = json.loads(a), json.loads(b)
        for mine, its in zip(left.get("candidates", []), right.get("candidates", []), strict=True):
            for figure in ("logprob", "score"):
                assert mine.pop(figure) == pytest.approx(its.pop(figure), abs=2e-5)
        assert left == right


def test_patches_after_kills_are_those_of_one_go(tmp_path: Path) -> None:
    bugs = write_bugs(tmp_path / "bugs.jsonl")
    source = {"type": "bugs", "path": str(bugs), "id_column": "id", "group_column": "project"}
    settings = {"num_candidates": 2, "max_new_tokens": 6, "timeout_s": 30, "memory_mib": 512}
    recipe = write_recipe(
        tmp_path, task={"type": "repair"}, data={"max_length": 200}, repair={**settings, "bugs": source}
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    luthier(["repair", recipe, "--base", "--run", whole], tmp_path / "log")
    written, judged = killed / "repair" / "base" / "candidates.jsonl", killed / "repair" / "judged.jsonl"
    kept: list[list[str]] = []
    for moment, count in (("generating", 3), ("taking up", 1), ("judging", 7)):
        trap = functools.partial(_trap, moment, count, killed / "repair")
        run = Luthier(["repair", recipe, "--base", "--run", killed], tmp_path / "log", trap=trap)
        assert run.codes() == [-signal.SIGKILL], (moment, run.said()[-2000:])
        kept.append([*_lines(written), *_lines(judged)])
    assert [len(lines) for lines in kept[:2]] == [3, 3] and len(kept[2]) > 4  # a line of its own says by what
    luthier(["repair", recipe, "--base", "--run", killed], tmp_path / "log")
    after = {*_lines(written), *_lines(judged)}
    assert all(after.issuperset(lines) for lines in kept)
    keys = [json.loads(line)["key"] for line in _lines(judged)]
    assert len(set(keys)) == len(keys) == len(_lines(whole / "repair" / "judged.jsonl"))
    _same_candidates(_lines(written), _lines(whole / "repair" / "base" / "candidates.jsonl"))
    tables = [(run / "repair" / "base" / "repair.json").read_bytes() for run in (killed, whole)]
    assert tables[0] == tables[1]
