"""Repair in rounds: candidates, their tests, and the next prompt with what failed, until one passes or the budget ends.

Each bug has a conversation, a file of lines that grows round by round. Nothing in it is written twice: what lies there is
taken up wherever the prompt is the same, and verdicts come from the judge, which remembers them by content.

Source: Xia and Zhang 2024, ChatRepair, ISSTA, arXiv:2304.00385: earlier wrong patches with their feedback, and variations of
a plausible one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from luthier.encoding.lexer import normalised
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.errors import UserError
from luthier.evaluate import server as servers
from luthier.evaluate.candidates import Asked, chosen, prompt_of, search_of
from luthier.evaluate.patches import Proven, judged_and_not, prove, shown
from luthier.evaluate.significance import Ratio, with_intervals
from luthier.execution.adapters import Judgement, Verdict
from luthier.execution.feedback import Feedback
from luthier.execution.judge import Judge
from luthier.models.inference_engines import InferenceEngine, Opener
from luthier.models.search import Continuation
from luthier.recipe import Recipe
from luthier.records import Dropped, Progress
from luthier.run_folder import hash_value, json_line, logger, read_jsonl, write_json, write_jsonl
from luthier.tasks.repair import Attempt, Repair

Line = dict[str, Any]

# What tells most comes first: of several failed candidates the next prompt has one of the first kind there is.
_TELLING: tuple[Verdict, ...] = (
    "test-failed", "timeout", "out-of-memory", "compile-error", "no-change", "not-judged",
)  # fmt: skip
_LONGEST_NAME = 150


@dataclass(slots=True)
class Talk:
    """The conversation about one bug.

    Attributes:
        asked: The bug, with the prompt of its first round.
        path: Its file.
        old: Lines of the file that were not met again yet.
        lines: Lines that were.
        attempts: What the next prompt shows.
        earlier: Patches that were offered, normalised.
        num_tokens: Of all prompts and outputs.
        seconds: Of writing and judging.
        passed_in: The first round with a patch that passes.
        end: Why there is no further round.
    """

    asked: Asked
    path: Path
    old: list[Line]
    lines: list[Line] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    earlier: set[str] = field(default_factory=set)
    num_tokens: int = 0
    seconds: float = 0.0
    passed_in: int | None = None
    end: str = ""

    def put(self, line: Line) -> None:
        """Adds a line to the file, unless it is the one that lies there next."""
        self.lines.append(line)
        if self.old and self.old[0] == line:
            del self.old[0]
            return
        if self.old or not self.path.is_file():
            # Another verdict may still lead to the same next prompt, other candidates do not.
            self.old = self.old[1:] if "judged" in line else []
            write_jsonl(self.path, [*self.lines, *self.old])
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json_line(line))

    def kept(self, number: int, prompt: str) -> Line | None:
        """What was written in a round, if it lies in the file and was written to this prompt."""
        line = self.old[0] if self.old else None
        return line if line and line.get("round") == number and line.get("prompt_hash") == prompt else None


def repair_in_rounds(
    asked: Sequence[Asked],
    left_out: Sequence[Dropped],
    task: Repair,
    tokenizer: TextTokenizer | None,
    opener: Opener | None,
    identity: Any,
    recipe: Recipe,
    folder: Path,
    memory: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes ``conversations/BUG.jsonl`` and ``rounds.json`` into a folder; returns the latter's content.

    Args:
        asked: The bugs.
        left_out: Bugs that nothing was asked about.
        task: Makes prompts of attempts, and functions of outputs.
        tokenizer: The model's; None where a server is asked.
        opener: Loads the engine; not called where nothing is left to write, and not needed for a server.
        identity: What outputs depend on beside the recipe: weights, or server and model.
        recipe: The run's.
        folder: Where to write.
        memory: Verdicts by content.
        progress: Called with a label, what is done and all.
    """
    settings = recipe.repair.rounds
    proven = prove(asked, left_out, recipe, memory, progress)
    # Budgets are no part of it: with a larger one the same conversations go on.
    key = hash_value([identity, search_of(recipe).key, recipe.repair.num_candidates, recipe.repair.refill,
                      recipe.repair.written_order, task.model_dump(mode="json"), recipe.data.max_length])  # fmt: skip
    talks = [_begun(each, folder / "conversations", key) for each in proven.asked]
    writer = _Writer(task, tokenizer, opener, recipe, progress)
    rounds: list[dict[str, Any]] = []
    for number in range(1, settings.max_rounds + settings.variations + 1):
        going = [talk for talk in talks if not talk.end and _goes_on(talk, number, recipe)]
        if not going:
            break
        logger.info("repair: round %d, %d bugs", number, len(going))
        written = writer.write(going, number)
        rounds.append(_judged(written, number, proven.judge, recipe, progress))
    for talk in talks:
        talk.end = "passed" if talk.passed_in else talk.end or "rounds"
    results = _summary(talks, rounds, proven, recipe)
    write_json(folder / "rounds.json", results)
    return results


def _begun(asked: Asked, folder: Path, key: str) -> Talk:
    """A conversation with what lies in its file, if that was written by the same model and settings."""
    name = quote(asked.bug.id, safe=" ")
    if len(name) > _LONGEST_NAME or name.startswith("."):
        name = f"{name[:_LONGEST_NAME].lstrip('.')}-{hash_value(asked.bug.id)[:8]}"
    path = folder / f"{name}.jsonl"
    place = asked.place
    head = {
        "bug": asked.bug.id, "group": asked.bug.group, "language": asked.bug.language, "context": asked.bug.context,
        "before": place.text, "span": [place.start, place.end], "reference": asked.fixed, "key": key,
    }  # fmt: skip
    _put_aside(path, key)
    old = read_jsonl(path)
    if path.is_file() and "".join(map(json_line, old)).encode() != path.read_bytes():
        write_jsonl(path, old)  # a line was cut off
    talk = Talk(asked, path, old if old[:1] == [head] else [])
    if old and not talk.old:
        path.unlink()
    talk.put(head)
    return talk


def _put_aside(path: Path, key: str) -> None:
    """Moves away what another model wrote, or other settings made, into a folder by its key; takes out what lies there by this one."""
    head = next(iter(read_jsonl(path)), None)
    if head is not None and head["key"] != key:
        other = path.parent / head["key"][:12]
        other.mkdir(exist_ok=True)
        path.replace(other / path.name)
    own = path.parent / key[:12] / path.name
    if own.is_file() and not path.is_file():
        own.replace(path)


def _goes_on(talk: Talk, number: int, recipe: Recipe) -> bool:
    """Whether a bug has another round; says why where it has not."""
    settings = recipe.repair.rounds
    if talk.passed_in is not None and number > talk.passed_in + settings.variations:
        talk.end = "passed"
    elif talk.passed_in is None and number > settings.max_rounds:
        talk.end = "rounds"
    elif settings.max_tokens is not None and talk.num_tokens >= settings.max_tokens:
        talk.end = "tokens"
    elif settings.max_seconds is not None and talk.seconds >= settings.max_seconds:
        talk.end = "seconds"
    return not talk.end


@dataclass(slots=True)
class _Writer:
    """Writes the candidates of a round, by the local model or by a server."""

    task: Repair
    tokenizer: TextTokenizer | None
    opener: Opener | None
    recipe: Recipe
    progress: Progress | None
    engine: InferenceEngine | None = None

    def write(self, talks: Sequence[Talk], number: int) -> list[tuple[Talk, Line]]:
        """The lines of a round; a bug whose prompt has no room ends here."""
        found: dict[int, Line] = {}
        todo: list[tuple[int, str, Any]] = []
        for index, talk in enumerate(talks):
            shown, prompt = self._prompt(talk)
            if prompt is None:
                talk.end = shown
                continue
            line = talk.kept(number, hash_value(prompt))
            if line is not None:
                found[index] = line
                talk.put(line)
            else:
                todo.append((index, shown, prompt))
        names = [talks[index].asked.bug.id for index, _, _ in todo]
        outputs = self._outputs([prompt for _, _, prompt in todo], names, number)
        refused: UserError | None = None
        for done, (place, written, num_prompt_tokens) in enumerate(outputs, 1):
            index, text, prompt = todo[place]
            if isinstance(written, UserError):
                refused, talks[index].end = written, "refused"
                logger.warning("repair: %s: %s", talks[index].asked.bug.id, written.what)
                continue
            found[index] = self._line(talks[index], number, text, prompt, written, num_prompt_tokens)
            talks[index].put(found[index])
            if self.progress:
                self.progress(f"round {number}", done, len(todo))
        if refused is not None and number == 1 and not found:
            raise refused  # all of them: it is not their length
        for index, line in found.items():
            talk = talks[index]
            talk.num_tokens += line["num_prompt_tokens"] + line["num_output_tokens"]
            talk.seconds += line["seconds"]
        return [(talks[index], found[index]) for index in sorted(found)]

    def _prompt(self, talk: Talk) -> tuple[str, Any]:
        """What is shown and what is fed (token ids, or messages for a server); or why there is none, and None."""
        asked, bug = talk.asked, talk.asked.bug
        if self.tokenizer is None:
            messages = self.task.messages(asked.place, bug.language, bug.context, talk.attempts)
            return messages[-1]["content"], messages
        found = prompt_of(asked, self.task, self.tokenizer, self.recipe, talk.attempts)
        if isinstance(found, Dropped):
            return found.reason, None
        return self.tokenizer.decode(found.prompt, first=True), found.prompt

    def _outputs(
        self, prompts: Sequence[Any], names: Sequence[str], number: int
    ) -> Iterator[tuple[int, list[Continuation] | servers.RefusedConversation, int]]:
        """By index of the prompt what was written, or why a server refuses it; and tokens of the prompt."""
        if not prompts:
            return
        search = search_of(self.recipe)
        search = replace(search, seed=search.seed + 1000 * (number - 1))
        server = self.recipe.repair.rounds.server
        if server is not None:
            for index, answers in servers.answers(server, prompts, search):
                if isinstance(answers, servers.RefusedConversation):
                    yield index, answers, 0
                else:
                    yield index, answers.outputs, answers.num_prompt_tokens
            return
        assert self.opener is not None
        self.engine = self.engine or self.opener()
        for index, outputs in self.engine.continuations(prompts, search, names):
            yield index, outputs, len(prompts[index])

    def _line(
        self, talk: Talk, number: int, text: str, prompt: Any, outputs: Sequence[Continuation],
        num_prompt_tokens: int,
    ) -> Line:  # fmt: skip
        """What was written in a round; of candidates only those that were not offered before."""
        found = chosen(talk.asked, outputs, self.task, self.recipe, talk.earlier)
        candidates = [c for c in found if c["duplicate_of"] is None and _content(talk, c) not in talk.earlier]
        if self.tokenizer is None:  # a server says nothing of probabilities
            candidates = [{k: v for k, v in c.items() if k not in ("logprob", "score")} for c in candidates]
        return {
            "round": number, "prompt": text, "prompt_hash": hash_value(prompt), "num_prompt_tokens": num_prompt_tokens,
            "num_output_tokens": sum(output.num_tokens for output in outputs), "num_outputs": len(outputs),
            "seconds": round(sum(output.seconds for output in outputs), 3), "candidates": candidates,
        }  # fmt: skip


def _judged(
    written: Sequence[tuple[Talk, Line]],
    number: int,
    judge: Judge,
    recipe: Recipe,
    progress: Progress | None,
) -> dict[str, Any]:
    """The verdicts of a round, in the conversations and counted; each failed one adds an attempt to its bug."""
    wanted = [(talk, row) for talk, line in written for row in line["candidates"]]
    found = judge.judge([(talk.asked.bug, row["function"]) for talk, row in wanted], progress)
    of: dict[int, list[tuple[Line, Judgement]]] = {}
    for (talk, row), judgement in zip(wanted, found, strict=True):
        of.setdefault(id(talk), []).append((row, judgement))
    verdicts: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for talk, _ in written:
        rows = of.get(id(talk), [])
        verdicts.update(judgement.verdict for _, judgement in rows)
        steps.update(row["step"] for row, _ in rows)
        taken = _taken(rows)
        talk.put(
            {
                "judged": number,
                "verdicts": [judgement.model_dump(mode="json") for _, judgement in rows],
                "shown_next": taken,
            }
        )
        talk.seconds += sum(judgement.seconds for _, judgement in rows)
        talk.earlier.update(_content(talk, row) for row, _ in rows)
        if taken is not None:
            row, judgement = rows[taken]
            said = judgement.feedback or Feedback(stage="test")
            talk.attempts.append(Attempt(output=row["output"], function=row["function"], feedback=said))
        elif recipe.repair.method != "sample" and recipe.repair.rounds.server is None:
            talk.end = "nothing-new"  # the same prompt gives the same beams
        if talk.passed_in is None and any(judgement.verdict == "passed" for _, judgement in rows):
            talk.passed_in = number
    return {
        "round": number,
        "num_asked": len(written),
        "num_candidates": len(wanted),
        "num_repeated": sum(
            min(line["num_outputs"], recipe.repair.num_candidates) - len(line["candidates"])
            for _, line in written
        ),
        "num_tokens": sum(line["num_prompt_tokens"] + line["num_output_tokens"] for _, line in written),
        "verdicts": dict(sorted(verdicts.items())),
        "extraction": dict(sorted(steps.items())),
    }


def _content(talk: Talk, row: Line) -> str:
    """What a candidate says, however it is laid out: its function, or the output that gives none."""
    if row["function"] is None:
        return f"\0{row['output']}"
    return normalised(row["function"], talk.asked.bug.language)


def _taken(rows: Sequence[tuple[Line, Judgement]]) -> int | None:
    """Which candidate the next prompt shows: the first that passes, else the first of the most telling failures."""
    if not rows:
        return None
    order = {"passed": -1, **{verdict: place for place, verdict in enumerate(_TELLING)}}
    return min(range(len(rows)), key=lambda i: (order[rows[i][1].verdict], i))


def _summary(
    talks: Sequence[Talk],
    rounds: Sequence[dict[str, Any]],
    proven: Proven,
    recipe: Recipe,
) -> dict[str, Any]:
    """What the rounds come to: the share of bugs with a patch that passes by each round, over all that were judged."""
    most = recipe.repair.rounds.max_rounds
    ratios = {
        f"plausible by round {number}": Ratio.mean(
            [float((talk.passed_in or most + 1) <= number) for talk in talks]
        )
        for number in range(1, most + 1)
    }
    ends: dict[str, list[str]] = {}
    for talk in talks:
        ends.setdefault(talk.end, []).append(talk.asked.bug.id)
    return {
        **judged_and_not(len(talks), proven.left_out),
        "num_candidates": recipe.repair.num_candidates,
        "max_rounds": most,
        "metrics": with_intervals(
            ratios,
            [talk.asked.bug.group for talk in talks],
            num_resamples=recipe.evaluate.num_bootstrap,
            seed=recipe.seed,
        ),
        "rounds": list(rounds),
        "ends": {reason: sorted(names) for reason, names in sorted(ends.items())},
        "table": {talk.asked.bug.id: talk.passed_in for talk in talks},
        "bugs": {
            talk.asked.bug.id: {
                **shown(talk.asked, proven.proofs[talk.asked.bug.id], ["passed"] if talk.passed_in else []),
                "file": talk.path.name,
                "num_rounds": sum(1 for line in talk.lines if "round" in line),
                "num_tokens": talk.num_tokens,
                "end": talk.end,
            }
            for talk in talks
        },
    }
