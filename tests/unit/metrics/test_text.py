import pytest

from luthier.metrics.codexglue import codexglue_edit_similarity, codexglue_exact_match
from luthier.metrics.long_code_arena import long_code_arena_edit_similarity, long_code_arena_exact_match
from luthier.metrics.ontology import edge_f1, path_f1
from luthier.metrics.text import edit_similarity, exact_match


def test_exact_match_ignores_only_the_amount_of_white_space():
    outputs = ["x = 1", "x  =\t1\n", "x=1", "", "X = 1"]
    assert exact_match(outputs, ["x = 1", "x = 1", "x = 1", " ", "x = 1"]) == [1.0, 1.0, 0.0, 1.0, 0.0]


def test_edit_similarity_by_hand():
    # "kitten" and "sitting" share "ittn", 4 of 6 + 7 characters.
    assert edit_similarity(["kitten", "", "a", "same"], ["sitting", "", "", "same"]) == pytest.approx(
        [8 / 13, 1, 0, 1]
    )


@pytest.mark.parametrize(
    "metric",
    [
        exact_match, edit_similarity, codexglue_exact_match, codexglue_edit_similarity, long_code_arena_exact_match,
        long_code_arena_edit_similarity, path_f1, edge_f1,
    ],
)  # fmt: skip
def test_a_missing_output_is_not_passed_over(metric):
    with pytest.raises(ValueError, match=r"zip\(\)"):
        metric(["a"], ["a", "b"])
