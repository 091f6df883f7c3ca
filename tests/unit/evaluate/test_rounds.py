"""Repair in rounds: whose feedback reaches whose prompt, what a budget ends, and what a kill costs."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures import scripted
from tests.fixtures.scripted import SECRETS, Script, served, write_bugs
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.encoding.encode import encode
from luthier.encoding.lexer import normalised
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.evaluate import rounds
from luthier.evaluate.repair import repair
from luthier.execution import feedback
from luthier.execution.adapters import Judgement, Verdict
from luthier.execution.judge import Judge
from luthier.models import inference_engines
from luthier.models.load import load_tokenizer
from luthier.recipe import Recipe
from luthier.records import Dropped, Example, Record, Row
from luthier.run_folder import RunFolder, hash_value, read_jsonl
from luthier.sources.repair_rounds import RepairRounds
from luthier.tasks.repair import Repair

CHAT = ["task.format=chat", "task.input=IR1", "task.output=OR1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("rounds")
    bugs = write_bugs(folder / "bugs.jsonl")
    path = write_recipe(
        folder,
        task={"type": "repair"},
        data={"max_length": 400},
        repair={
            **{
                "num_candidates": 2,
                "max_new_tokens": 20,
                "timeout_s": 20,
                "memory_mib": 512,
                "num_workers": 2,
            },
            "bugs": {"type": "bugs", "path": str(bugs), "id_column": "id", "group_column": "project"},
        },
    )
    return pipeline.read(path)


@pytest.fixture(scope="module")
def memory(base: Recipe, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Verdicts of all that the script writes, so that only the tests that are about judging run programs."""
    run = RunFolder(tmp_path_factory.mktemp("memory") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_engines, "continuations", Script())
        repair(pipeline.read(base, "repair.rounds.variations=1"), run, "base", lend=object, rounds=True)  # type: ignore[arg-type]
    return (run.repair / "judged.jsonl").read_bytes()


@pytest.fixture
def run(tmp_path: Path, memory: bytes) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.repair.mkdir(parents=True)
    (run.repair / "judged.jsonl").write_bytes(memory)
    return run


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(inference_engines, "continuations", script)
    return script


def ran(recipe: Recipe, run: RunFolder, *changes: str, which: str = "base") -> dict[str, Any]:
    return repair(pipeline.read(recipe, *changes), run, which, lend=object, rounds=True)  # type: ignore[arg-type]


def talks(run: RunFolder, which: str = "base-rounds") -> dict[str, list[dict[str, Any]]]:
    return {path.stem: read_jsonl(path) for path in (run.repair / which / "conversations").iterdir()}


def test_the_feedback_of_each_bug_reaches_its_own_prompt(
    base: Recipe, run: RunFolder, script: Script
) -> None:
    found = ran(base, run)
    values = {name: one["value"] for name, one in found["metrics"].items()}
    assert values == {"plausible by round 1": 0, "plausible by round 2": 1, "plausible by round 3": 1}
    assert found["table"] == dict.fromkeys(SECRETS, 2) and found["ends"] == {"passed": sorted(SECRETS)}
    assert len(script.prompts) == 2 * len(SECRETS) and len(found["rounds"]) == 2
    for name, lines in talks(run).items():
        first, second = (line for line in lines if "round" in line)
        assert str(SECRETS[name]) not in first["prompt"]
        assert second["prompt"].startswith(first["prompt"])
        assert second["prompt"].removeprefix(first["prompt"]) == (
            f"    return -1\n# AssertionError\n# assert {name}(1) == {SECRETS[name]}\n# expected: {SECRETS[name]}\n# fixed code:\n"
        )
        assert [c["function"] for c in second["candidates"]] == [
            f"def {name}(x):\n    y = x\n    return {SECRETS[name]}\n"
        ]
    assert found["rounds"][0]["verdicts"] == {"test-failed": 8} and found["rounds"][1]["verdicts"] == {
        "passed": 4
    }


def test_the_feedback_of_another_bug_repairs_nothing(
    base: Recipe, run: RunFolder, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(SECRETS)
    usual = feedback.words

    def swapped(found: Any) -> list[str]:
        text = "\n".join(usual(found))
        for name, other in zip(names, [*names[1:], names[0]], strict=True):
            text = text.replace(f"expected: {SECRETS[name]}", f"expected:{SECRETS[other]}")
        return text.replace("expected:", "expected: ").replace("  ", " ").splitlines()

    monkeypatch.setattr(feedback, "words", swapped)
    found = ran(base, run)
    assert found["metrics"]["plausible by round 3"]["value"] == 0 and len(script.prompts) > 4


def test_patches_are_never_offered_again(
    base: Recipe, run: RunFolder, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "answer", lambda shown: scripted.WRONG)
    found = ran(base, run)
    assert found["rounds"][1]["num_candidates"] == 0 and found["rounds"][1]["num_repeated"] == 8
    assert found["ends"] == {"nothing-new": sorted(SECRETS)}
    for lines in talks(run).values():
        offered = [
            normalised(c["function"], "python")
            for line in lines
            if "round" in line
            for c in line["candidates"]
        ]
        assert len(offered) == len(set(offered)) == 2


def test_a_patch_that_changes_nothing_is_told_what_the_buggy_function_does(
    base: Recipe, run: RunFolder, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Script.one
    monkeypatch.setattr(
        Script, "one", staticmethod(lambda text, rank: usual(text.replace("return -1", "return y"), rank))
    )
    found = ran(base, run, "repair.num_candidates=1")
    assert found["rounds"][0]["verdicts"] == {"no-change": 4} and found["table"] == dict.fromkeys(SECRETS, 2)
    second = [line for line in talks(run)["beta"] if "round" in line][1]["prompt"]
    assert "    return y\n# this changes nothing\n# AssertionError\n# assert beta(1) == 2802\n" in second


def test_samples_go_on_where_beams_would_say_the_same(
    base: Recipe, run: RunFolder, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "answer", lambda shown: scripted.WRONG)
    found = ran(base, run, "repair.method=sample")
    assert [one["num_candidates"] for one in found["rounds"]] == [8, 0, 0] and found["ends"] == {
        "rounds": sorted(SECRETS)
    }


def test_after_a_patch_that_passes_another_is_asked_for(base: Recipe, run: RunFolder, script: Script) -> None:
    found = ran(base, run, "repair.rounds.variations=1")
    assert [one["round"] for one in found["rounds"]] == [1, 2, 3] and found["ends"] == {
        "passed": sorted(SECRETS)
    }
    assert found["table"] == dict.fromkeys(SECRETS, 2)
    last = [line for line in talks(run)["beta"] if "round" in line][-1]
    assert last["prompt"].endswith(
        "    return 2802\n# this passes all tests; another way to write it:\n# fixed code:\n"
    )
    assert last["candidates"] == []  # the script knows no other way


@pytest.mark.parametrize(
    ("change", "end"),
    [("max_tokens=10", "tokens"), ("max_seconds=0.0001", "seconds"), ("max_rounds=1", "rounds")],
)
def test_a_budget_ends_it(base: Recipe, run: RunFolder, script: Script, change: str, end: str) -> None:
    found = ran(base, run, f"repair.rounds.{change}")
    assert found["ends"] == {end: sorted(SECRETS)} and len(found["rounds"]) == 1
    assert ran(base, run)["table"] == dict.fromkeys(
        SECRETS, 2
    )  # with more of it the same conversations go on
    assert len(script.prompts) == 8


def test_the_time_of_a_bug_is_its_own(
    base: Recipe, run: RunFolder, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Script.one

    def slow(text: str, rank: int) -> Any:  # as if gamma had taken ten minutes, with others in between
        return replace(usual(text, rank), seconds=300.0 * ("def gamma" in script.prompts[-1]))

    monkeypatch.setattr(Script, "one", staticmethod(slow))
    found = ran(base, run, "repair.rounds.max_seconds=500")
    assert found["ends"] == {"passed": ["alpha", "beta", "delta"], "seconds": ["gamma"]}
    assert {name: lines[1]["seconds"] for name, lines in talks(run).items()} == {
        "alpha": 0, "beta": 0, "gamma": 600, "delta": 0,
    }  # fmt: skip


def test_a_prompt_without_room_ends_it(base: Recipe, run: RunFolder, script: Script) -> None:
    ran(base, run)
    longest = max(lines[1]["num_prompt_tokens"] for lines in talks(run).values())
    found = ran(
        base, run, f"data.max_length={longest + 20}"
    )  # of the first round: the attempt is longer than what may go
    assert found["ends"] == {"prompt-too-long": sorted(SECRETS)} and found["rounds"][1]["num_candidates"] == 0
    assert [one["num_asked"] for one in found["rounds"]] == [4, 0]


def test_a_kill_at_any_moment_costs_nothing(
    base: Recipe, run: RunFolder, script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran(base, run)
    whole, num_prompts = talks(run), len(script.prompts)
    usual = rounds.Talk.put
    count = sum(map(len, whole.values()))
    for moment in range(0, count, 3):
        other = RunFolder(tmp_path / f"killed-{moment}")
        other.repair.mkdir(parents=True)
        (other.repair / "judged.jsonl").write_bytes((run.repair / "judged.jsonl").read_bytes())
        script.prompts.clear()
        left = [moment]

        def killed(self: Any, line: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            usual(self, line)

        monkeypatch.setattr(rounds.Talk, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            ran(base, other)
        monkeypatch.setattr(rounds.Talk, "put", usual)
        if moment % 2:  # in the middle of a line
            path = max(
                (other.repair / "base-rounds" / "conversations").iterdir(), key=lambda p: p.stat().st_mtime_ns
            )
            path.write_bytes(path.read_bytes() + b'{"round": 2, "prom')
        lost = 1  # what was written by the model, and killed on its way into the file
        monkeypatch.setattr(Judge, "_run", None)  # nothing is judged twice
        ran(base, other)
        assert len(script.prompts) <= num_prompts + lost
        timeless = [
            {name: [{**line, "seconds": 0} for line in lines] for name, lines in one.items()}
            for one in (talks(other), whole)
        ]
        assert timeless[0] == timeless[1]
        script.prompts.clear()
        ran(base, other)
        assert script.prompts == []


def test_other_settings_begin_anew(base: Recipe, run: RunFolder, script: Script) -> None:
    ran(base, run)
    script.prompts.clear()
    ran(base, run, "repair.num_candidates=1")
    assert len(script.prompts) == 8


def rows_of(
    run: RunFolder, recipe: Recipe, which: str, tokenizer: TextTokenizer, **options: Any
) -> dict[str, Row]:
    task = Repair(**{k: v for k, v in recipe.task.items() if k != "type"})
    found = {}
    for record in RepairRounds(path=str(run.repair / which), **options).records():
        assert isinstance(record, Record)
        (example,) = task.examples(record, "train", tokenizer, max_length=recipe.data.max_length, seed=0)
        assert isinstance(example, Example), example
        row = encode(example, tokenizer, recipe.data.max_length)
        assert isinstance(row, Row), row
        found[str(record.fields["provenance"]["bug"])] = row
    return found


@pytest.mark.parametrize(
    "changes", [[], ["task.input=IR1", "task.output=OR1"], CHAT], ids=["lines", "function", "chat"]
)
def test_rows_made_of_rounds_have_the_prompts_that_the_rounds_had(
    base: Recipe, run: RunFolder, script: Script, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = pipeline.read(base, *changes, "data.max_length=500")
    if changes:
        usual = Script.one

        def whole(text: str, rank: int) -> Any:
            name = next(n for n in SECRETS if f"def {n}(x)" in script.prompts[-1])
            function = f"def {name}(x):\n{text}"
            return usual(f"```python\n{function}```" if changes == CHAT else function, rank)

        monkeypatch.setattr(Script, "one", staticmethod(whole))
    ran(recipe, run)
    tokenizer = load_tokenizer(recipe.model)
    rows = rows_of(run, recipe, "base-rounds", tokenizer)
    assert sorted(rows) == sorted(SECRETS)
    for name, row in rows.items():
        last = [line for line in talks(run)[name] if "round" in line][-1]
        assert hash_value(row.input_ids[: row.num_prompt_tokens].tolist()) == last["prompt_hash"]
        trained = tokenizer.decode(row.input_ids[row.loss_weights > 0])
        assert str(SECRETS[name]) in trained and "return -1" not in trained  # the loss is on the repair alone
        shown = tokenizer.decode(row.input_ids[: row.num_prompt_tokens])
        assert "return -1" in shown and f"expected: {SECRETS[name]}" in shown


def test_which_patches_become_rows(base: Recipe, run: RunFolder, script: Script) -> None:
    ran(base, run, "repair.rounds.variations=1")
    folder = str(run.repair / "base-rounds")
    records = list(RepairRounds(path=[folder, folder], right="passing").records())
    kept = [r for r in records if isinstance(r, Record)]
    assert len(kept) == 4 and sum(isinstance(r, Dropped) and r.reason == "same-patch" for r in records) == 4
    (beta,) = (r for r in kept if r.group == "beta")
    assert beta.fields["provenance"] | {"written_by": ""} == {
        "folder": "run/repair/base-rounds", "bug": "beta", "round": 2, "rank": 1, "written_by": "",
    }  # fmt: skip
    assert [a["output"] for a in beta.fields["attempts"]] == ["    return -1\n"]
    assert not list(RepairRounds(path=folder, min_attempts=2).records())
    reference = [r for r in RepairRounds(path=folder, right="reference").records() if isinstance(r, Record)]
    assert {r.fields["after"] for r in reference} == {
        f"def {n}(x):\n    y = x\n    return {v}\n" for n, v in SECRETS.items()
    }
    with pytest.raises(UserError, match="holds no conversations"):
        list(RepairRounds(path=str(run.path)).records())


def server_settings(url: str, **others: Any) -> str:
    return "repair.rounds.server=" + json.dumps({"url": url, "model": "m", "num_at_once": 2, **others})


def test_a_server_is_asked_in_its_protocol(
    base: Recipe, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "k-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(scripted.reply) as (url, asked):
        changes = [*CHAT, server_settings(url, key_variable="THE_KEY"), "repair.num_candidates=1"]
        found = ran(base, run, *changes, which="server")
        assert found["table"] == dict.fromkeys(SECRETS, 2) and len(asked) == 8
        assert {(a["path"], a["key"], a["model"], a["n"], a["max_tokens"]) for a in asked} == {
            ("/v1/chat/completions", "Bearer k-1", "m", 1, 20)
        }
        second = [a["messages"] for a in asked if len(a["messages"]) == 3]
        assert len(second) == 4 and all(
            [m["role"] for m in one] == ["user", "assistant", "user"] for one in second
        )
        ran(base, run, *changes, which="server")
        assert len(asked) == 8  # what it wrote is not asked again
    assert found["rounds"][0]["extraction"] == {"fence": 4}
    for name, lines in talks(run, "server-rounds").items():
        assert "logprob" not in lines[1]["candidates"][0] and lines[1]["num_prompt_tokens"] == 50
        row = rows_of(run, pipeline.read(base, *CHAT), "server-rounds", load_tokenizer(base.model))[name]
        messages = next(one for one in second if f"def {name}(" in one[0]["content"])
        tokenizer = load_tokenizer(base.model)
        text = tokenizer.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(row.input_ids[: row.num_prompt_tokens], first=True).endswith(str(text))
    assert "k-1" not in "".join(p.read_text() for p in run.path.rglob("*") if p.is_file())


def test_a_server_with_one_answer_is_asked_again_and_a_busy_one_later(
    base: Recipe, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(scripted.reply, status=[429, 503], headers={"retry-after": "0"}) as (url, asked):
        ran(base, run, *CHAT, server_settings(url), "repair.rounds.max_rounds=1", which="server")
    assert len(asked) == 8 and [sorted(a["n"] for a in asked)] == [[1] * 4 + [2] * 4]
    assert {a["seed"] for a in asked} == {0, 1}


def test_a_slow_answer_is_charged_to_the_bug_that_it_is_for(
    base: Recipe, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def slow(messages: Any) -> str:
        time.sleep(0.6 * ("def gamma" in messages[0]["content"]))
        return scripted.reply(messages)

    with served(slow) as (url, _):
        changes = [*CHAT, server_settings(url, num_at_once=4), "repair.rounds.max_rounds=1"]
        ran(base, run, *changes, "repair.num_candidates=1", which="server")
    seconds = {name: lines[1]["seconds"] for name, lines in talks(run, "server-rounds").items()}
    assert seconds.pop("gamma") >= 0.6 > 0.5 > max(seconds.values()) > 0


def test_a_conversation_that_a_server_refuses_ends_and_the_others_go_on(
    base: Recipe, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    changes = [*CHAT, "repair.num_candidates=1"]
    with served(scripted.reply, status=[400]) as (url, _):
        found = ran(base, run, *changes, server_settings(url), which="server")
        assert len(found["ends"]["refused"]) == 1 and len(found["ends"]["passed"]) == len(SECRETS) - 1
    with served(scripted.reply, status=[400] * 9) as (url, _), pytest.raises(UserError, match="says 400"):
        ran(base, run, *changes, server_settings(url, model="no-such"), which="server")


def test_what_one_server_wrote_is_kept_while_another_is_asked(
    base: Recipe, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    changes = [*CHAT, "repair.num_candidates=1"]
    with served(scripted.reply) as (url, asked):
        for model, more in (("a", 8), ("b", 8), ("a", 0), ("b", 0)):
            before = len(asked)
            ran(base, run, *changes, server_settings(url, model=model), which="server")
            assert len(asked) - before == more, model
        ran(base, run, *changes, "repair.rows_at_once=1", server_settings(url, model="b"), which="server")
        assert len(asked) == 16  # it changes speed alone


def test_what_a_server_cannot_do_is_said(
    base: Recipe, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(scripted.reply, status=[401] * 9) as (url, _), pytest.raises(UserError, match="says 401"):
        ran(base, run, *CHAT, server_settings(url), which="server")
    with pytest.raises(UserError, match="cannot be asked"):
        ran(base, run, *CHAT, server_settings(url, num_retries=0), which="server")
    with pytest.raises(UserError, match="no NO_SUCH_KEY"):
        ran(base, run, *CHAT, server_settings(url, key_variable="NO_SUCH_KEY"), which="server")
    with pytest.raises(UserError, match=r"task\.format=chat"):
        ran(base, run, server_settings(url), which="server")


def test_no_server_is_contacted_unless_it_is_named(
    base: Recipe, run: RunFolder, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.evaluate import server

    monkeypatch.setattr(server, "answers", None)
    ran(base, run)
    # Without --rounds the section is not looked at.
    assert repair(
        pipeline.read(base, "repair.num_beams=2", server_settings("http://127.0.0.1:9/v1")), run, "given", given=_given(run)
    )["num_judged"] == 4  # fmt: skip


def _given(run: RunFolder) -> Path:
    path = run.path / "given.jsonl"
    path.write_text("".join(json.dumps({"bug": name, "function": None}) + "\n" for name in SECRETS))
    return path


def test_the_next_prompt_shows_what_tells_most() -> None:
    def rows(*verdicts: Verdict) -> list[Any]:
        return [({}, Judgement(verdict=verdict)) for verdict in verdicts]

    assert rounds._taken(rows("compile-error", "timeout", "test-failed", "test-failed")) == 2
    assert rounds._taken(rows("test-failed", "passed", "passed")) == 1
    assert rounds._taken([]) is None
