"""What base or tuned model makes of a prompt that a person typed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from luthier import recipe as recipes
from luthier.encoding.encode import encode_prompt
from luthier.encoding.infill import Gaps, filled, infill_prompt
from luthier.errors import UserError
from luthier.evaluate import classify
from luthier.evaluate.runner import without_adapter
from luthier.models.generate import Output, generate
from luthier.models.load import load_tokenizer, load_trained, load_untrained, starts_adapted
from luthier.recipe import Classifier, Recipe
from luthier.records import Example
from luthier.run_folder import RunFolder, logger
from luthier.tasks import Task
from luthier.tasks.classification import Classification


def complete(
    recipe: Recipe,
    run: RunFolder,
    text: str,
    *,
    suffix: str | None = None,
    base: bool = False,
    max_new_tokens: int | None = None,
) -> Output:
    """The continuation of a prompt, or the likeliest classes of a text with their probabilities; it goes through the task and the encoder just as a row's context does.

    With a suffix it is what stands between the two; where the model wrote on with the suffix itself, ``text`` ends
    before that.

    Args:
        recipe: The run's.
        run: Its folder, with a trained adapter or model unless ``base``.
        text: The prompt.
        suffix: What stands behind the gap, for a task with ``infill``.
        base: Whether the model as it was before training answers.
        max_new_tokens: Where it is cut off; ``evaluate.max_new_tokens`` if not given.

    Raises:
        UserError: Nothing was trained yet, the prompt gives no token, or the task fills no gaps.
    """
    if not base and run.result() is None:
        raise UserError(
            "there are no trained weights yet",
            str(run.path),
            "run `luthier train`, or add --base to ask the model as it was",
        )
    tokenizer = load_tokenizer(recipe.model)
    task: Task = recipes.build("task", recipe.task, "recipe key task")
    if base and isinstance(recipe.model, Classifier):
        raise UserError(
            "the model as it was before training has no head for these classes", "--base", "leave --base out"
        )
    spans = (
        task.prompt(text, tokenizer)
        if suffix is None
        else infill_prompt(text, suffix, _infill(task), tokenizer, recipe.data.max_length)
    )
    if not any(span.text for span in spans):
        raise UserError(
            "the prompt is empty", "--prompt, --prompt-file or standard input", "give it some text"
        )
    if not any(text in span.text for span in spans):
        logger.info(
            "the white space at the end of the prompt is left to the model, which has learned to write it"
        )
    example = Example("prompt", spans, "prompt")
    try:
        ids = encode_prompt(example, tokenizer, recipe.data.max_length)
    except ValueError as error:
        raise UserError(
            str(error), "the prompt", "give another; data.max_length is its limit in tokens"
        ) from error
    if base and (recipe.model.adapter is None or run.result() is None or starts_adapted(recipe.model)):
        lent: AbstractContextManager[Any] = nullcontext(load_untrained(recipe.model, len(tokenizer)))
    else:
        tuned = load_trained(recipe.model, run, len(tokenizer))
        lent = without_adapter(tuned) if base else nullcontext(tuned)
    if isinstance(task, Classification):
        with lent as model:
            said = classify.label_text(recipe, run, task, tokenizer, model, ids, base=base)
            return Output([], said, True)
    with lent as model:
        (output,) = generate(
            model,
            tokenizer,
            [ids],
            max_new_tokens=max_new_tokens or recipe.evaluate.max_new_tokens,
            stop_pattern=task.stop_pattern if suffix is None else None,
        )
    if suffix is None:
        return output
    return replace(output, text=filled(output.text, text, suffix, _infill(task), tokenizer))


def _infill(task: Task) -> Gaps:
    options = getattr(task, "infill", None)
    if not isinstance(options, Gaps):
        raise UserError(
            "a suffix was given, but this run did not learn to fill gaps",
            "recipe key task.infill",
            "leave the suffix out, or train with task.infill={rate: 0.5}",
        )
    return options
