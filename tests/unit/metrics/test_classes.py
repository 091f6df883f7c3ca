import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from luthier.metrics import classes

EXACT = {"rel": 1e-9, "abs": 1e-9}


def drawn(seed: int, num_rows: int = 400, num_classes: int = 12):
    """Labels, logits and answers; one class has no row, one no answer, and two logits are equal."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, num_classes - 1, num_rows)
    logits = draw.normal(size=(num_rows, num_classes)) + 2 * np.eye(num_classes)[labels]
    logits[:, 3] = -30
    logits[:5, 1] = logits[:5, 2]
    return labels, logits, logits.argmax(1)


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_scikit_learn(seed: int) -> None:
    labels, logits, said = drawn(seed)
    num_classes = logits.shape[1]
    hits, rows, answers = classes.class_counts(labels, said, num_classes)
    all_classes = list(range(num_classes))
    precision, recall, f1 = classes.precision_recall_f1(hits, rows, answers)
    theirs = sk.precision_recall_fscore_support(labels, said, labels=all_classes, zero_division=0)
    for ours, expected in zip((precision, recall, f1, rows), theirs, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
    present = np.unique(labels)
    assert classes.macro_f1(hits, rows, answers) == pytest.approx(
        sk.f1_score(labels, said, average="macro", labels=present, zero_division=0), **EXACT
    )
    for average in ("micro", "weighted"):
        ours = getattr(classes, f"{average}_f1")(hits, rows, answers)
        assert ours == pytest.approx(sk.f1_score(labels, said, average=average, zero_division=0), **EXACT)
    confusion = classes.confusion_matrix(labels, said, num_classes)
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(labels, said, labels=all_classes))
    assert classes.matthews(confusion) == pytest.approx(sk.matthews_corrcoef(labels, said), **EXACT)
    for k in (1, 2, 5):
        theirs = sk.top_k_accuracy_score(labels, logits, k=k, labels=all_classes)
        assert classes.top_k_accuracy(logits, labels, k) == pytest.approx(theirs, **EXACT)
    log_probs = classes.log_probabilities(logits)
    theirs = sk.log_loss(labels, softmax(logits, axis=1), labels=all_classes)
    assert classes.log_loss(log_probs, labels) == pytest.approx(theirs, **EXACT)


def test_figures_of_several_labels_equal_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    labels = draw.random((200, 6)) < 0.3
    given = labels ^ (draw.random((200, 6)) < 0.2)
    given[:, 4] = False
    counts = (labels & given).sum(0).astype(float), labels.sum(0).astype(float), given.sum(0).astype(float)
    for average in ("micro", "macro", "weighted"):
        theirs = sk.f1_score(labels, given, average=average, zero_division=0)
        assert getattr(classes, f"{average}_f1")(*counts) == pytest.approx(theirs, **EXACT)


def test_calibration_bins_are_scikit_learns() -> None:
    draw = np.random.default_rng(1)
    confidence = draw.random(500)
    right = draw.random(500) < confidence**2
    bins = classes.calibration(confidence, right, 10)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    np.testing.assert_allclose([b.accuracy for b in bins], accuracy, rtol=1e-12)
    np.testing.assert_allclose([b.confidence for b in bins], mean, rtol=1e-12)
    error = classes.expected_calibration_error(bins)
    assert error == pytest.approx(sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / 500)
    assert error > 0.1
    edges = classes.calibration(np.array([0.0, 0.1, 1.0]), np.array([False, True, True]), 10)
    assert [(b.low, b.high, b.count) for b in edges] == [(0.0, 0.1, 2), (0.9, 1.0, 1)]
    assert np.isnan(classes.expected_calibration_error([]))


def test_classes_of_one_row_count_and_those_of_none_do_not() -> None:
    counts = classes.class_counts(np.array([0, 0, 1]), np.array([0, 0, 2]), 4)
    assert classes.macro_f1(*counts) == 0.5  # of two classes with rows, one is never right
    nothing = np.zeros((3, 2))
    for mean in (classes.macro_f1, classes.micro_f1, classes.weighted_f1):
        assert np.isnan(mean(*nothing))
    assert [v.tolist() for v in classes.precision_recall_f1(*nothing)] == [[0, 0]] * 3


def test_matthews_of_one_answer_is_nought() -> None:
    assert (
        classes.matthews(np.array([[5, 0], [3, 0]])) == sk.matthews_corrcoef([0] * 5 + [1] * 3, [0] * 8) == 0
    )


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_undoes_a_scale(scale: float) -> None:
    draw = np.random.default_rng(2)
    logits = draw.normal(size=(20_000, 5)) * 2
    probabilities = softmax(logits, axis=1)
    labels = (probabilities.cumsum(1) < draw.random((20_000, 1))).sum(1)
    assert classes.fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.05)


def test_temperature_has_bounds() -> None:
    logits, labels = 0.1 * np.eye(2), np.array([0, 1])  # the colder the better for right answers
    assert classes.fit_temperature(logits, labels) == pytest.approx(1 / 20, rel=1e-3)
    assert classes.fit_temperature(logits, labels[::-1]) == pytest.approx(20, rel=1e-3)


def test_equal_probabilities_are_given_together() -> None:
    logits = np.array([[2.0], [0], [0], [0], [0]])  # the second row alone would make a better F1
    (threshold,) = classes.fit_thresholds(logits, np.array([[1], [1], [0], [0], [0]]))
    assert threshold == pytest.approx((1 / (1 + np.exp(-2)) + 0.5) / 2)
    (threshold,) = classes.fit_thresholds(np.array([[2.0], [0]]), np.array([[1], [0]]))
    assert threshold == pytest.approx((1 / (1 + np.exp(-2)) + 0.5) / 2), "the last one below counts too"


def test_thresholds_have_the_best_f1_of_all() -> None:
    draw = np.random.default_rng(3)
    labels = (draw.random((80, 4)) < [0.5, 0.1, 0.9, 0.0]).astype(np.int64)
    logits = np.round(draw.normal(size=(80, 4)) + labels, 1)
    found = classes.fit_thresholds(logits, labels)
    probabilities = 1 / (1 + np.exp(-logits))
    for c in range(3):
        best = max(
            sk.f1_score(labels[:, c], probabilities[:, c] >= t) for t in np.unique(probabilities[:, c])
        )
        assert sk.f1_score(labels[:, c], probabilities[:, c] >= found[c]) == pytest.approx(best)
    assert found[3] == 0.5
    eighths = np.round(logits * 8) / 8
    assert np.array_equal(
        classes.fit_thresholds(eighths.astype(np.float32), labels), classes.fit_thresholds(eighths, labels)
    )


def test_thresholds_lie_half_way_whatever_class_comes_first() -> None:
    for seed in range(60):
        draw = np.random.default_rng(seed)
        labels = (draw.random((9, 3)) < [0.0, 0.4, 0.7]).astype(np.int64)
        logits = draw.normal(size=(9, 3)) + labels / 2
        found = classes.fit_thresholds(logits, labels)
        probabilities = 1 / (1 + np.exp(-logits))
        assert found[0] == 0.5
        for c in (1, 2):
            p = probabilities[:, c]
            if not labels[:, c].any():
                continue
            given = p >= found[c]
            best = max(sk.f1_score(labels[:, c], p >= t) for t in p)
            assert sk.f1_score(labels[:, c], given) == pytest.approx(best)
            assert found[c] == pytest.approx((p[given].min() + p[~given].max(initial=0.0)) / 2)


def test_macro_f1_of_many_draws_is_that_of_each() -> None:
    draw = np.random.default_rng(0)
    labels, said = (
        draw.integers(0, 6, (50, 7)),
        draw.integers(0, 6, (50, 7)),
    )  # some classes have one row, some none
    counts = np.array([classes.class_counts(one, other, 6) for one, other in zip(labels, said, strict=True)])
    found = classes.macro_f1_of(*counts.transpose(1, 0, 2))
    expected = [
        sk.f1_score(one, other, average="macro", labels=np.unique(one), zero_division=0)
        for one, other in zip(labels, said, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.shape == (50,) and (counts[:, 1] == 1).any() and (counts[:, 1] == 0).any()


def test_of_equal_scores_the_higher_class_is_the_better() -> None:
    scores = np.tile([0.0, 1.0], (3, 100))
    assert classes.top_k_accuracy(scores, np.array([199, 101, 99]), 50) == pytest.approx(2 / 3)
