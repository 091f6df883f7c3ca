import time

import pytest

from luthier.encoding.templates import RowError, check_template, render
from luthier.errors import UserError


def test_text_stands_as_it_is_written():
    fields = {"instruction": "Add <a> & b\n", "input text": 3}
    template = "\n### {{ instruction }}{{ row['input text'] }}\n"
    assert render(template, fields) == "\n### Add <a> & b\n3\n"


def test_conditions_and_loops_work():
    template = "{% for step in steps if step %}{{ loop.index }}/{{ loop.length }} {{ step }};{% endfor %}{{ 2 ** 3 * 2 }}"
    assert render(template, {"steps": ["a", "", "b"]}) == "1/2 a;2/2 b;16"


@pytest.mark.parametrize(
    "template",
    ["{{ answer }}", "{{ row.answer }}", "{{ prompt.text }}", "{{ nothing }}", "{% if answer %}{% endif %}"],
)
def test_a_missing_or_null_column_is_named(template):
    with pytest.raises(RowError) as raised:
        render(template, {"prompt": "x", "nothing": None})
    assert raised.value.reason == "missing-field"
    assert "prompt, nothing" in raised.value.detail


def test_a_null_may_be_replaced():
    assert render("{{ nothing or 'none' }}", {"nothing": None}) == "none"


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("a\n{% for x in y", 2),
        ("{{ x | nofilter }}", 1),
        ("\n\n{% for x in y recursive %}{% endfor %}", 3),
        ("{{ {", 1),
    ],
)
def test_a_syntax_error_names_its_line(template, line):
    with pytest.raises(UserError) as raised:
        check_template(template, "recipe key task.prompt_template")
    assert raised.value.where == f"recipe key task.prompt_template, line {line} of the template"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(300) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}{{ f(9) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% set ns = namespace(t='ab' * 5000000) %}{% for i in range(2) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{% set ns = namespace(t='ab' * 5000000) %}{% for i in range(2) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(n=9) %}{% for i in range(20) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ text.__class__.__mro__ }}",
        "{{ text + 1 }}",
    ],
)
def test_a_template_neither_hangs_nor_fills_memory_nor_reaches_python(template):
    began = time.perf_counter()
    with pytest.raises(RowError) as raised:
        render(template, {"text": "x"})
    assert raised.value.reason == "template-error"
    assert time.perf_counter() - began < 5


def test_rows_do_not_share_their_loop_steps():
    for _ in range(3):
        assert render("{% for i in range(60000) %}{% endfor %}x", {}) == "x"


def test_bounds_are_as_they_are_said() -> None:
    assert render("{% for i in range(99999) %}{% endfor %}{% for i in 'a' %}x{% endfor %}", {}) == "x"
    with pytest.raises(RowError, match="more than 100,000 loop steps in one row"):
        render("{% for i in range(99999) %}{% endfor %}{% for i in 'ab' %}x{% endfor %}", {})
    assert render("{{ 'a' ~ 1 ~ (2 ~ x) }}{{ 1 + 2 }}{{ [1] + [2] }}", {"x": "y"}) == "a12y3[1, 2]"
    assert render("{{ 2 ** 64 }}{{ (2 * 1000000) * 3 }}", {}) == f"{2**64}6000000"
    assert render("{{ 1000000 ** 2 }}{{ (-1000000) ** 2 }}", {}) == str(10**12) * 2
    for power in ("2 ** 65", "2 ** -65", "1000001 ** 2", "(-1000001) ** 2"):
        with pytest.raises(RowError, match=r"the result of \*\* would be too large"):
            render("{{ " + power + " }}", {})
    assert len(render("{{ 'ab' * 5000000 }}", {})) == len(render("{{ 5000000 * 'ab' }}", {})) == 10_000_000
    for product in ("'ab' * 5000001", "5000001 * 'ab'"):
        with pytest.raises(RowError, match=r"the result of \* would be too large"):
            render("{{ (" + product + ") | length }}", {})
    for sign in "+~":
        half = "'ab' * 2500000"
        assert render("{{ (" + half + sign + half + ") | length }}", {}) == "10000000"
        with pytest.raises(RowError, match=rf"the result of \{sign} would be too large"):
            render("{{ (" + half + sign + half + sign + "'c') | length }}", {})
    assert render("{{ n * n }}", {"n": 2**2047}) == str(2**4094)
    with pytest.raises(RowError, match=r"the result of \* would be too large"):
        render("{{ n * n * 2 }}", {"n": 2**2047})
    with pytest.raises(RowError) as raised:
        render("{{ 'ab' * 5000000 }}c", {})
    assert (raised.value.reason, raised.value.detail) == (
        "template-error",
        "the text has 10,000,001 characters",
    )


def test_a_column_may_be_called_as_it_likes() -> None:
    fields = {"row": 1, "steps so far": 2, "for": 3, "range": 4}
    assert render("{{ row }}{{ range }}{% for x in 'ab' %}{{ x }}{% endfor %}", fields) == "14ab"
    with pytest.raises(UserError, match="nested too deeply"):
        check_template("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "here")
