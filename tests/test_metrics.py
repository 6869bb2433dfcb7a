"""Scores, intervals, tests and calibration against scikit-learn, scipy, enumeration and closed forms."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from imagebind_llm import metrics


def drawn(seed=0, n=80, n_classes=5, n_seeds=3, right=0.6):
    rng = np.random.default_rng(seed)
    gold = rng.integers(n_classes, size=n)
    guessed = rng.integers(n_classes, size=(n_seeds, n))
    return gold, np.where(rng.random((n_seeds, n)) < right, gold, guessed)


def test_scores_are_scikit_learns():
    gold, predicted = drawn()
    found = metrics.scores(gold, predicted[0])
    assert tuple(found) == tuple(metrics.SCORES)
    assert found["accuracy"] == sklearn_metrics.accuracy_score(gold, predicted[0])
    assert found["macro_f1"] == sklearn_metrics.f1_score(gold, predicted[0], average="macro")
    assert found["macro_precision"] == sklearn_metrics.precision_score(gold, predicted[0], average="macro")
    assert found["macro_recall"] == sklearn_metrics.recall_score(gold, predicted[0], average="macro")
    assert found["weighted_f1"] == sklearn_metrics.f1_score(gold, predicted[0], average="weighted")
    assert found["weighted_precision"] == sklearn_metrics.precision_score(gold, predicted[0], average="weighted")
    assert found["accuracy"] == pytest.approx(sklearn_metrics.recall_score(gold, predicted[0], average="weighted"))


def test_a_class_that_is_only_predicted_is_no_part_of_the_macro_average():
    gold, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    f1 = (2 / 3 + 1) / 2  # class 0: precision 1, recall 1/2
    assert metrics.scores(gold, predicted)["macro_f1"] == pytest.approx(f1)
    assert metrics.macro_f1(gold, predicted[None]) == pytest.approx([f1])


def test_macro_f1_of_many_runs_is_that_of_each():
    gold, predicted = drawn(n_classes=7)
    alone = [metrics.scores(gold, run)["macro_f1"] for run in predicted]
    assert metrics.macro_f1(gold, predicted) == pytest.approx(alone)


def test_per_class_and_confusion_count_every_row_once():
    gold, predicted = drawn()
    table = metrics.confusion(gold, predicted, 6)  # class 5 never occurs
    assert table.shape == (6, 6) and table.sum() == pytest.approx(len(gold))
    assert np.diag(table).sum() / len(gold) == pytest.approx(np.mean(predicted == gold))
    numbers = metrics.per_class(gold, predicted[0], 6)
    assert numbers[:, 3].tolist() == np.bincount(gold, minlength=6).tolist() and numbers[5].tolist() == [0, 0, 0, 0]


# --- uncertainty


def test_the_bootstrap_has_the_moments_that_it_must_have():
    gold, predicted = drawn(n=50)
    share = (predicted == gold).mean(0)  # of each row, over seeds
    found = metrics.resampled(gold, predicted, n_resamples=20000)["accuracy"]
    assert found.mean() == pytest.approx(share.mean(), abs=0.003)
    assert found.std() == pytest.approx(share.std() / np.sqrt(len(gold)), rel=0.03)


def test_the_bootstrap_of_macro_f1_is_that_of_a_loop():
    gold, predicted = drawn(n=30, n_classes=4)
    found = metrics.resampled(gold, predicted, n_resamples=20, seed=3)["macro_f1"]
    counts = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=20)
    for one, drawn_rows in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(30), drawn_rows)
        alone = [metrics.scores(gold[rows], run[rows])["macro_f1"] for run in predicted]
        assert one == pytest.approx(np.mean(alone), abs=1e-6)


def test_the_interval_agrees_with_scipys_bootstrap():
    gold, predicted = drawn(n=200, n_seeds=1)
    correct = (predicted[0] == gold).astype(float)
    ours = metrics.bootstrap_interval(metrics.resampled(gold, predicted, n_resamples=5000)["accuracy"], correct.mean())
    theirs = stats.bootstrap((correct,), np.mean, method="BCa", rng=1).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.011)  # two rows in 200


def test_the_interval_lies_evenly_around_what_was_observed():
    draws = np.random.default_rng(0).normal(0.5, 0.1, 100_000)
    assert metrics.bootstrap_interval(draws, 0.5) == pytest.approx((0.304, 0.696), abs=0.003)
    low, high = metrics.bootstrap_interval(draws, 0.6)  # draws lie one deviation too low
    assert (low, high) == pytest.approx((0.504, 0.896), abs=0.01)
    assert metrics.bootstrap_interval(draws, 2.0)[1] <= draws.max()


def test_the_interval_of_macro_f1_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n_classes, held = 8, []
    for _ in range(150):
        gold = rng.integers(n_classes, size=100)
        guesses = np.where(rng.random(100) < 0.5, gold, rng.integers(n_classes, size=100))[None]
        draws = metrics.resampled(gold, guesses, n_resamples=400)["macro_f1"]
        low, high = metrics.bootstrap_interval(draws, metrics.macro_f1(gold, guesses)[0])
        held.append(low <= 0.5 + 0.5 / n_classes <= high)
    assert 0.9 <= np.mean(held) <= 0.99


def test_the_interval_of_a_share_is_scipys_exact_one():
    for k, n in itertools.product((0, 3, 17), (17, 40)):
        exact = stats.binomtest(k, n).proportion_ci(method="exact")
        assert metrics.share_interval(k, n) == pytest.approx((exact.low, exact.high))
    low, high = metrics.share_interval(16.5, 17)
    assert metrics.share_interval(16, 17)[0] < low < high < 1


def test_runs_that_answer_alike_differ_by_nothing():
    gold, predicted = drawn()
    found = metrics.paired_difference(gold, predicted, predicted[::-1])
    assert all(one.value == pytest.approx(0) and one.p == 1 and one.low <= 0 <= one.high for one in found.values())


def test_a_clear_difference_is_found_and_has_its_sign():
    gold, predicted = drawn(n=300, right=0.9)
    worse = drawn(n=300, right=0.5)[1]
    found = metrics.paired_difference(gold, predicted, worse)["accuracy"]
    assert found.value == pytest.approx(np.mean(predicted == gold) - np.mean(worse == gold))
    assert 0 < found.low < found.value < found.high and found.p == pytest.approx(2 / 2001)
    assert metrics.paired_difference(gold, worse, predicted)["accuracy"].value == pytest.approx(-found.value)


def test_p_values_of_equal_runs_are_even():
    """Where two runs are equally good, p below 0.1 is found about one time in ten."""
    values = []
    for seed in range(60):
        gold, predicted = drawn(seed, n=60, n_seeds=2)
        values.append(metrics.paired_difference(gold, predicted[:1], predicted[1:])["accuracy"].p)
    assert 0.02 < np.mean(np.array(values) < 0.1) < 0.2


def test_mcnemar_counts_what_one_run_alone_has_right():
    gold = np.zeros(20, dtype=int)
    ours, theirs = gold.copy(), gold.copy()
    ours[:2], theirs[2:11] = 1, 1
    only_ours, only_theirs, p = metrics.mcnemar(gold, ours, theirs)
    assert (only_ours, only_theirs) == (9, 2)
    tail = sum(stats.binom.pmf(k, 11, 0.5) for k in (0, 1, 2))
    assert p == pytest.approx(2 * tail)
    assert metrics.mcnemar(gold, ours, ours) == (0, 0, 1.0)


# --- calibration


def test_reliability_is_scikit_learns_curve():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500), rng.random(500) < 0.7
    right, confident = calibration_curve(correct, confidence, n_bins=15)
    bins = metrics.reliability(correct, confidence)
    assert bins[:, 0] == pytest.approx(confident) and bins[:, 1] == pytest.approx(right) and bins[:, 2].sum() == 500


def test_calibration_error_in_closed_form():
    confidence = np.array([0.9] * 10 + [0.6] * 30)
    correct = np.array([1] * 9 + [0] + [1] * 9 + [0] * 21)  # bins: 0.9 against 0.9, and three times as many 0.6 against 0.3
    assert metrics.calibration_error(correct, confidence) == pytest.approx(0.3 * 30 / 40)
    assert metrics.calibration_error(np.ones(4), np.ones(4)) == 0


def test_selective_accuracy_answers_the_surest_first():
    correct, confidence = np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.8, 0.5])
    assert metrics.selective_accuracy(correct, confidence) == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert metrics.selective_accuracy(correct, np.full(4, 0.5)) == pytest.approx([0.5] * 4)
