"""Candidate patches of bugs: generated in one go over all bugs, kept bug by bug as they are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.encoding.encode import encode_prompt
from luthier.encoding.lexer import normalised
from luthier.encoding.repair import Place, place_of
from luthier.encoding.templates import RowError
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.execution.bugs import Bug, bug_of
from luthier.models.inference_engines import Opener
from luthier.models.search import Continuation, Search
from luthier.recipe import Recipe
from luthier.records import Dropped, Example, Progress, Record
from luthier.run_folder import hash_value, json_line, logger, read_jsonl, write_jsonl
from luthier.tasks.repair import Attempt, Repair


@dataclass(frozen=True, slots=True)
class Asked:
    """A bug with what the model is asked.

    Attributes:
        bug: The bug.
        place: Its function as rows are made of it, with the lines that are to change.
        fixed: The fixed function, likewise.
        prompt: Token ids; none where a server is asked.
        trimmed: Tokens of the input that were cut.
    """

    bug: Bug
    place: Place
    fixed: str
    prompt: list[int]
    trimmed: int


def ask(
    records: Sequence[Record | Dropped], task: Repair, tokenizer: TextTokenizer | None, recipe: Recipe
) -> tuple[list[Asked], list[Dropped]]:
    """The prompts of bugs, on the path of training rows; and the bugs that cannot be asked about, with the reason.

    The buggy lines are those that the fix changes: fault localisation is given.
    """
    asked: list[Asked] = []
    left_out: list[Dropped] = []
    known: set[str] = set()
    for record in records:
        found = record if isinstance(record, Dropped) else _asked(record, task, tokenizer, recipe)
        if record.id in known:
            found = Dropped(record.id, "duplicate-id", "an earlier bug has the same id")
        known.add(record.id)
        if isinstance(found, Dropped):
            left_out.append(found)
        else:
            asked.append(found)
    return asked, left_out


def _asked(record: Record, task: Repair, tokenizer: TextTokenizer | None, recipe: Recipe) -> Asked | Dropped:
    bug = bug_of(record)
    sides = task.sides(record)
    if isinstance(bug, Dropped):
        return bug
    if isinstance(sides, Dropped):
        return sides
    buggy, fixed, _ = sides
    one = Asked(bug, place_of(buggy, fixed)[0], fixed, [], 0)
    return prompt_of(one, task, tokenizer, recipe) if tokenizer is not None else one


def prompt_of(
    asked: Asked, task: Repair, tokenizer: TextTokenizer, recipe: Recipe, attempts: Sequence[Attempt] = ()
) -> Asked | Dropped:
    """A bug with the prompt that it has after some attempts, or why there is none."""
    bug, room = asked.bug, recipe.data.max_length - recipe.repair.max_new_tokens
    try:
        spans = task.prompt_spans(asked.place, bug.language, bug.context, tokenizer, max(8, room), attempts)
        example = Example(bug.id, spans, bug.group)
        prompt = encode_prompt(example, tokenizer, room)
        whole = encode_prompt(example, tokenizer, 1 << 30)
    except RowError as error:
        return Dropped(bug.id, error.reason, error.detail)
    except ValueError as error:
        fix = "raise data.max_length, or lower repair.max_new_tokens"
        return Dropped(bug.id, "prompt-too-long", f"{error}; {fix}")
    return replace(asked, prompt=prompt, trimmed=len(whole) - len(prompt))


def generate_candidates(
    asked: Sequence[Asked],
    task: Repair,
    opener: Opener,
    engine: str,
    recipe: Recipe,
    path: Path,
    identity: Any,
    progress: Progress | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """The candidates of each bug by id, in the order in which they are judged; those that lie in the file are taken from there.

    Args:
        asked: The bugs.
        task: Turns outputs into functions.
        opener: Loads the engine; not called where nothing is left to do.
        engine: Its name.
        recipe: The run's.
        path: File of lines, one a bug, behind a first one that says what they were made by.
        identity: What the candidates depend on beside the recipe: the weights.
        progress: Called with a label, bugs done and all.
    """
    settings = recipe.repair
    search = search_of(recipe)
    key = hash_value([identity, search.key, settings.num_candidates, settings.refill, settings.written_order,
                      task.model_dump(mode="json"), recipe.data.max_length])  # fmt: skip
    head = {"key": key, "engine": engine}
    lines = read_jsonl(path)
    known = {line["bug"]: line for line in lines[1:]} if lines and lines[0] == head else {}
    prompts = {each.bug.id: hash_value(each.prompt) for each in asked}
    known = {
        name: line for name, line in known.items() if prompts.get(name, line["prompt"]) == line["prompt"]
    }
    write_jsonl(path, (head, *known.values()))  # without a half line
    todo = [each for each in asked if each.bug.id not in known]
    if todo:
        logger.info("repair: candidates of %d bugs", len(todo))
        names = [each.bug.id for each in todo]
        found = opener().continuations([each.prompt for each in todo], search, names)
        with open(path, "a", encoding="utf-8") as file:
            for number, (index, outputs) in enumerate(found, 1):
                each = todo[index]
                line = {
                    "bug": each.bug.id,
                    "prompt": prompts[each.bug.id],
                    "num_prompt_tokens": len(each.prompt),
                    "trimmed": each.trimmed,
                    "candidates": chosen(each, outputs, task, recipe),
                }
                known[each.bug.id] = line
                file.write(json_line(line))
                file.flush()
                if progress:
                    progress("generating", number, len(todo))
    return {each.bug.id: known[each.bug.id]["candidates"] for each in asked}


def search_of(recipe: Recipe) -> Search:
    """The search that a recipe asks for."""
    settings = recipe.repair
    return Search(
        method=settings.method,
        num_beams=settings.beams,
        max_new_tokens=settings.max_new_tokens,
        length_penalty=settings.length_penalty,
        num_groups=settings.num_groups,
        diversity_penalty=settings.diversity_penalty,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=recipe.seed,
        rows_at_once=settings.rows_at_once,
    )


def chosen(
    asked: Asked,
    outputs: Sequence[Continuation],
    task: Repair,
    recipe: Recipe,
    earlier: Set[str] = frozenset(),
) -> list[dict[str, Any]]:
    """The candidates out of a search's outputs: ranked, and with ``refill`` those first that say something new.

    ``duplicate_of`` is the rank (from 1) of the candidate that says the same, ``unchanged`` whether it is the buggy
    function, both white space and comments apart; ``step`` is what found the function in the output. What ``earlier`` holds, normalised, is left out.
    """
    language = asked.bug.language
    rows: list[dict[str, Any]] = []
    for output in outputs:
        function, step = task.repaired(asked.place, output.text, language)
        rows.append(
            {
                "output": output.text,
                "function": function,
                "step": step,
                "logprob": round(output.logprob, 5),
                "num_tokens": output.num_tokens,
                "score": round(output.score, 5),
                "ended": output.ended,
                "same": None if function is None else normalised(function, language),
            }
        )
    rows = [row for row in rows if row["same"] is None or row["same"] not in earlier]
    # An output without a function agrees with none.
    counts = Counter(row["same"] for row in rows if row["same"] is not None)
    settings = recipe.repair
    if settings.written_order == "mean-logprob":
        rows.sort(key=lambda row: -row["logprob"] / max(1, row["num_tokens"]))
    elif settings.written_order == "agreement":
        rows.sort(key=lambda row: -counts[row["same"]])
    buggy = normalised(asked.place.text, language)
    seen: set[Any] = set()
    new: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for row in rows:
        row["agreement"] = counts[row["same"]]
        row["unchanged"] = row["same"] == buggy
        repeated = row["same"] is not None and row["same"] in seen
        seen.add(row["same"])
        (rest if repeated or row["unchanged"] or row["same"] is None else new).append(row)
    kept = ([*new, *rest] if settings.refill else rows)[: settings.num_candidates]
    ranks: dict[Any, int] = {}
    for rank, row in enumerate(kept, 1):
        same = row.pop("same")
        row["duplicate_of"] = ranks.get(same) if same is not None else None
        ranks.setdefault(same, rank)
    return kept
