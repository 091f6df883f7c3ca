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
        "{{ text.__class__.__mro__ }}",
        "{{ text + 1 }}",
    ],
)
def test_a_template_neither_hangs_nor_fills_memory_nor_reaches_python(template):
    began = time.perf_counter()
    with pytest.raises(RowError, match="template-error"):
        render(template, {"text": "x"})
    assert time.perf_counter() - began < 5


def test_rows_do_not_share_their_loop_steps():
    for _ in range(3):
        assert render("{% for i in range(60000) %}{% endfor %}x", {}) == "x"
