"""Jinja templates over the columns of a row, in a sandbox: they reach no Python, and their loops, sums, products and texts are bounded."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    UndefinedError,
    nodes,
    pass_context,
)
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.errors import UserError

# Far over what a row needs. Jinja's own sandbox limits only range(), and that for each loop alone.
_MAX_LOOP_STEPS = 100_000
_MAX_CHARACTERS = 10_000_000
_MAX_BITS = 4096  # of a product of whole numbers
_STEPS = "steps so far"  # with spaces, so that no column and no variable of a template has that name


class RowError(Exception):
    """A row that does not go through a template; ``reason`` and ``detail`` are for ``Dropped``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def check_template(text: str, where: str) -> None:
    """Nothing, for a template that can be used.

    Raises:
        UserError: Its syntax is wrong; names the line.
    """
    try:
        _compiled(text)
    except RecursionError as error:
        raise UserError("the template is nested too deeply", where, "write it flatter") from error
    except TemplateSyntaxError as error:
        raise UserError(
            f"the template does not parse: {error.message}",
            f"{where}, line {error.lineno} of the template",
            "mend it (https://jinja.palletsprojects.com/templates); "
            "text with braces goes between {% raw %} and {% endraw %}",
        ) from error


def render(text: str, fields: Mapping[str, Any]) -> str:
    """The template's text with the columns of a row.

    Columns are variables; ``row`` holds them all, for names such as ``row["input text"]``. White space stays as it
    is written, the newline at the end of the template included.

    Args:
        text: The template.
        fields: Columns by name.

    Raises:
        RowError: ``missing-field`` (a column that is used is not there, or null), or ``template-error`` (it fails on
            this row's values, loops too long or makes too long a text).
    """
    try:
        rendered = _compiled(text).render({"row": fields, **fields, _STEPS: count(1)})
    except UndefinedError as error:
        raise RowError(
            "missing-field", f"{error.message}; the row has: {', '.join(map(str, fields))}"
        ) from error
    except Exception as error:  # an expression over data may raise anything
        raise RowError("template-error", f"{type(error).__name__}: {error}") from error
    if len(rendered) > _MAX_CHARACTERS:
        raise RowError("template-error", f"the text has {len(rendered):,} characters")
    return rendered


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The sum, product or power, unless it would be enormous."""
        sides = [side for side in (left, right) if hasattr(side, "__len__")]
        if operator == "**":
            enormous = abs(left) > 10**6 or abs(right) > 64
        elif operator == "+":
            enormous = sum(map(len, sides)) > _MAX_CHARACTERS
        elif sides:
            enormous = len(sides[0]) * (right if sides[0] is left else left) > _MAX_CHARACTERS
        else:
            enormous = (
                all(isinstance(n, int) for n in (left, right))
                and left.bit_length() + right.bit_length() > _MAX_BITS
            )
        if enormous:
            raise TemplateError(f"the result of {operator} would be too large for a row")
        return super().call_binop(context, operator, left, right)


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> Template:
    environment = _Environment(
        autoescape=False,  # a row is text, not HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=_not_null,
    )
    environment.filters |= {"counted": _counted, "joined": _joined}
    tree = environment.parse(text)
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            raise TemplateSyntaxError("recursive loops are not taken", loop.lineno)
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
    for chain in list(tree.find_all(nodes.Concat)):  # a ~ b ~ c
        parts = nodes.List(chain.nodes, lineno=chain.lineno)
        chain.nodes = [nodes.Filter(parts, "joined", [], [], None, None, lineno=chain.lineno)]
    return environment.from_string(tree)


def _not_null(value: Any) -> Any:
    if value is None:
        raise UndefinedError("a value is null")
    return value


def _joined(parts: Iterable[Any]) -> str:
    texts = [str(_not_null(part)) for part in parts]
    if sum(map(len, texts)) > _MAX_CHARACTERS:
        raise TemplateError("the result of ~ would be too large for a row")
    return "".join(texts)


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if next(context[_STEPS]) > _MAX_LOOP_STEPS:
            raise TemplateError(f"more than {_MAX_LOOP_STEPS:,} loop steps in one row")
        yield item
