import json
from html import unescape

from hypothesis import given
from hypothesis import strategies as st

from luthier.display import text
from luthier.report import safe


def test_text_is_escaped_and_the_unseen_is_named() -> None:
    html = safe.code("<b>\x00\x1b\u202e\u2028\ud800\u200b&")
    assert "<b>" not in html and "&lt;b&gt;" in html and html.endswith("&amp;")
    for name in ("␀", "␛", "⟨U+202E⟩", "⟨U+2028⟩", "⟨U+D800⟩", "⟨U+200B⟩"):
        assert f'<span class="ctl">{name}</span>' in html
    assert text.plain("a\nb\tc") == "a\nb\tc"


def test_marks_of_space_stand_where_it_ends_a_line() -> None:
    assert safe.code("a b \n\tc ", marks=True) == (
        'a b<span class="ws">·⏎</span>\n<span class="ws">⇥</span>\tc<span class="ws">·</span>'
    )
    assert safe.code("a b ", marks=True, end=False) == "a b "


def test_a_long_text_is_cut_and_says_so() -> None:
    assert "… 1,000 more characters" in safe.code("x" * 5000)


def test_differences_show_what_is_extra_and_what_is_missing() -> None:
    html = safe.differences("return <b>", "return None")
    assert html.startswith("return <del") and "None</del>" in html and html.endswith("&lt;b&gt;</ins>")
    assert safe.differences("same\n", "same\n") == safe.code("same\n", marks=True)


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_slices_of_a_difference_are_the_whole_of_both_texts(target: str, output: str) -> None:
    changes = safe._changes(target, output)
    assert "".join(target[start:stop] for start, stop, _, _ in changes) == target
    assert "".join(output[start:stop] for _, _, start, stop in changes) == output


@given(
    st.text(alphabet=st.characters())
    | st.sampled_from(["</script>", "<!--", "\u2028", "\ud800", "]]>", "&lt;"])
)
def test_json_in_a_script_is_the_value_and_cannot_leave_it(text: str) -> None:
    html = str(safe.json_for_script({text: text}))
    assert html.isascii() and not set("<>&") & set(html)
    assert json.loads(html) == {text: text}
    assert unescape(html) == html  # so it means the same to an HTML parser
