"""What a classifier's answers are worth: scores, their uncertainty, calibration. Pure functions of arrays.

S seeds, N reported rows, C classes. `gold` is (N,) class indices; `predicted` (S,N). Scores are fractions, not percent.
Averages over classes run over the classes that occur in `gold`: a class that nobody asked about has no recall, and what is
wrongly called by its name lowers the recall of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

LEVEL = 0.95
N_RESAMPLES = 2000
N_BINS = 15


@dataclass(frozen=True)
class IntentScore:
    """A score of one run: its title in reports, and a function of gold (N,) and predicted (N,)."""

    title: str
    of: Callable[[np.ndarray, np.ndarray], float]


def _accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    return np.mean(gold == predicted)


def _average(score: Callable, average: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """One of scikit-learn's scores, averaged over the classes that occur in gold."""
    return lambda gold, predicted: score(gold, predicted, labels=np.unique(gold), average=average, zero_division=0)


SCORES = {  # what reports and results.json have of every run; another score of intents is a line here
    "accuracy": IntentScore("accuracy", _accuracy),  # also the weighted recall
    "macro_f1": IntentScore("macro F1", _average(sklearn_metrics.f1_score, "macro")),
    "macro_precision": IntentScore("macro precision", _average(sklearn_metrics.precision_score, "macro")),
    "macro_recall": IntentScore("macro recall", _average(sklearn_metrics.recall_score, "macro")),
    "weighted_f1": IntentScore("weighted F1", _average(sklearn_metrics.f1_score, "weighted")),
    "weighted_precision": IntentScore("weighted precision", _average(sklearn_metrics.precision_score, "weighted")),
}


def scores(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Every score of SCORES for one run, `predicted` (N,)."""
    return {name: float(score.of(gold, predicted)) for name, score in SCORES.items()}


def macro_f1(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(S,): macro F1 of every row of `predicted` (S,N) at once; the same number as in `scores`, for many short looks."""
    n_classes = int(max(gold.max(), predicted.max())) + 1
    pairs = gold * n_classes + predicted + np.arange(len(predicted))[:, None] * n_classes**2
    counts = np.bincount(pairs.ravel(), minlength=len(predicted) * n_classes**2)
    counts = counts.reshape(len(predicted), n_classes, n_classes)  # (S, gold, predicted)
    gold_counts, guess_counts = counts.sum(2), counts.sum(1)  # (S,C)
    f1 = 2 * np.einsum("scc->sc", counts) / np.maximum(gold_counts + guess_counts, 1)
    return f1.sum(1, where=gold_counts > 0) / (gold_counts > 0).sum(1)


def per_class(gold: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """(C, 4): precision, recall, F1 and number of gold rows of every class, in one run."""
    values = sklearn_metrics.precision_recall_fscore_support(gold, predicted, labels=range(n_classes), zero_division=0)
    return np.stack(values, axis=1)


def confusion(gold: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """(C, C): rows gold, columns predicted, the mean count over the seeds of `predicted` (S,N)."""
    return np.mean([sklearn_metrics.confusion_matrix(gold, run, labels=range(n_classes)) for run in predicted], axis=0)


# --- uncertainty ------------------------------------------------------------------------------------------------------


def resampled(
    gold: np.ndarray, predicted: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Accuracy and macro F1, means over seeds, of bootstrap samples of the rows: two arrays (R,).

    The same `seed` draws the same rows, so that two runs on the same rows can be compared draw by draw.
    """
    n, n_classes = len(gold), int(max(gold.max(), predicted.max())) + 1
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float32)  # (R,N)
    sums = {"accuracy": np.zeros(n_resamples), "macro_f1": np.zeros(n_resamples)}
    for run in predicted:
        hits = (run == gold).astype(np.float32)
        true = drawn @ (_indicator(gold, n_classes) * hits[:, None])  # (R,C)
        gold_counts, guess_counts = drawn @ _indicator(gold, n_classes), drawn @ _indicator(run, n_classes)
        f1 = np.divide(2 * true, gold_counts + guess_counts, out=np.zeros_like(true), where=gold_counts > 0)
        sums["accuracy"] += drawn @ hits / n
        sums["macro_f1"] += f1.sum(axis=1) / (gold_counts > 0).sum(axis=1)
    return {name: total / len(predicted) for name, total in sums.items()}


def drawn_rows(n: int, n_resamples: int = N_RESAMPLES) -> np.ndarray:
    """(R,N): the numbers of the rows in each bootstrap sample of n, the same ones every time."""
    return np.random.default_rng(0).integers(n, size=(n_resamples, n))


def _indicator(classes: np.ndarray, n_classes: int) -> np.ndarray:
    return np.eye(n_classes, dtype=np.float32)[classes]  # (N,C)


def bootstrap_interval(draws: np.ndarray, observed: float) -> tuple[float, float]:
    """The bias-corrected 95 % interval (Efron 1981): the percentiles that lie evenly around what was observed.

    Macro F1 is lower in resampled rows than in the rows themselves, so plain percentiles would lie too low.
    """
    below = (np.mean(draws < observed) + np.mean(draws <= observed)) / 2
    shift = 2 * stats.norm.ppf(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    reach = stats.norm.ppf((1 + LEVEL) / 2)
    low, high = np.quantile(draws, stats.norm.cdf([shift - reach, shift + reach]))
    return float(low), float(high)


def share_interval(n_right: float, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share; good for few rows too. A mean over seeds may be no whole number."""
    if n == 0:
        return 0.0, 1.0
    tail = (1 - LEVEL) / 2
    low = 0.0 if n_right == 0 else stats.beta.ppf(tail, n_right, n - n_right + 1)
    high = 1.0 if n_right == n else stats.beta.ppf(1 - tail, n_right + 1, n - n_right)
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How much better one run is than another on the same rows: mean over seeds, 95 % interval, two-sided p."""

    value: float
    low: float
    high: float
    p: float


def paired_difference(gold: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Difference]:
    """Paired bootstrap over rows of accuracy and macro F1, `ours` (S,N) minus `theirs` (S',N).

    p: twice the smaller share of resampled differences on one side of zero, never below 1/(R+1).
    """
    draws_of_ours, draws_of_theirs = resampled(gold, ours), resampled(gold, theirs)
    differences = {}
    for name, draws in draws_of_ours.items():
        draws = draws - draws_of_theirs[name]
        value = float(np.mean([scores(gold, run)[name] for run in ours]) - np.mean([scores(gold, run)[name] for run in theirs]))
        beyond = min(np.sum(draws <= 0), np.sum(draws >= 0))
        differences[name] = Difference(value, *bootstrap_interval(draws, value), min(1.0, 2 * (beyond + 1) / (len(draws) + 1)))
    return differences


def mcnemar(gold: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int, float]:
    """Rows that only our run has right, rows that only theirs has, and McNemar's exact two-sided p. All three are (N,)."""
    only_ours = int(np.sum((ours == gold) & (theirs != gold)))
    only_theirs = int(np.sum((ours != gold) & (theirs == gold)))
    n = only_ours + only_theirs
    return only_ours, only_theirs, float(stats.binomtest(only_ours, n).pvalue) if n else 1.0


# --- calibration ------------------------------------------------------------------------------------------------------


def reliability(correct: np.ndarray, confidence: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """(bins with rows, 3): mean confidence, share right and number of rows, in equal bins of confidence."""
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    sums = (np.bincount(bins, weights, n_bins) for weights in (confidence, correct))
    confident, right = (total[counts > 0] / counts[counts > 0] for total in sums)
    return np.stack([confident, right, counts[counts > 0]], axis=1)


def calibration_error(correct: np.ndarray, confidence: np.ndarray, n_bins: int = N_BINS) -> float:
    """Expected calibration error: the distance of confidence from share right, over bins, weighted by rows."""
    confident, right, counts = reliability(correct, confidence, n_bins).T
    return float(np.sum(np.abs(confident - right) * counts) / counts.sum())


def selective_accuracy(correct: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """(N,): share right among the 1, 2, ... N most confident answers. Equal confidence counts as one: the mean of the tie."""
    order = np.argsort(-confidence, kind="stable")
    _, group, counts = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    right = (np.bincount(group, correct[order]) / counts)[group]
    return np.cumsum(right) / np.arange(1, len(right) + 1)
