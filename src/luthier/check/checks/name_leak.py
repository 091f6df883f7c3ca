from __future__ import annotations

from collections.abc import Iterator

from luthier import recipe as recipes
from luthier.check.context import CheckContext, Skip
from luthier.check.leak_probe import CHANCE, probe
from luthier.records import Finding
from luthier.registry import check
from luthier.sources.vulnerable import Vulnerable


@check("name-leak")
def name_leak(context: CheckContext) -> Iterator[Finding]:
    """Names alone do not tell vulnerable code from fixed code.

    What it does: fits a logistic regression to nothing but the identifiers of each function of ``data.source``, judges it by
    cross-validation over groups, and compares its accuracy, the mean of both sides', with chance; once as the recipe
    cleans the code, once as it came. Says both with 95% intervals.

    Why is this bad: a model that reads ``goodG2B`` learns to read names, and finds nothing in code that nobody has named for it.

    Example: the functions ``bad`` and ``good`` of a Juliet test suite, or helpers such as ``CWE89_badSink``.

    Fix: set ``data.source.clean: true``. What is left after that are names of libraries, which a fix may well need:
    ``data.source.names: all`` takes them out too.

    Catalogue: 23
    """
    source = recipes.build("source", context.recipe.data.source, "recipe key data.source")
    if not isinstance(source, Vulnerable):
        raise Skip("the source does not say which code is vulnerable")
    after = probe(source, context.recipe.seed)
    if after is None:
        raise Skip("there are too few groups to learn from some and judge on others")
    context.looked_at(f"the names of {after.num_functions:,} functions in {after.num_groups:,} groups")
    text = f"names alone tell vulnerable from fixed code in {after} of cases"
    if source.clean:
        before = probe(source.model_copy(update={"clean": False}), context.recipe.seed)
        text += f" after cleaning, and in {before} before"
    leaks = after.interval[0] > CHANCE
    fix = (
        "set data.source.names=all, unless names of libraries may tell"
        if source.clean
        else "set data.source.clean=true"
    )
    yield Finding(
        "name-leak",
        ("warning" if source.clean else "error") if leaks else "note",
        f"{text}; chance is {CHANCE:.0%}",
        "recipe key data.source",
        fix,
        measured=round(after.accuracy, 4),
        expected=CHANCE,
    )
