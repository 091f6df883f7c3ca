"""What holds for every pair of texts."""

from difflib import SequenceMatcher

from hypothesis import given
from hypothesis import strategies as st

from luthier.metrics.text import edit_similarity, exact_match

TEXT = st.text(st.sampled_from("ab \n\té🙂\0"), max_size=12) | st.text(max_size=12)


@given(TEXT, TEXT)
def test_bounds_and_symmetry(a, b):
    for metric in (exact_match, edit_similarity):
        [score] = metric([a], [b])
        assert 0 <= score <= 1
        assert metric([b], [a]) == [score]
        assert metric([a], [a]) == [1.0]


@given(TEXT, TEXT)
def test_edit_similarity_is_one_only_for_equal_texts(a, b):
    assert (edit_similarity([a], [b]) == [1.0]) == (a == b)


@given(TEXT, TEXT)
def test_edit_similarity_is_at_least_that_of_any_common_subsequence(a, b):
    # difflib finds a common subsequence, not always the longest, by an algorithm of its own.
    assert edit_similarity([a], [b])[0] >= SequenceMatcher(None, a, b, autojunk=False).ratio() - 1e-12
