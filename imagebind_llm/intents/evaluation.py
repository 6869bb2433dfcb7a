"""Evaluation of a method on the reported rows: by subset of modalities, by slice, and compared with another run.

A Method (methods.py has them) fits itself to what it may see of a Protocol; the predictor that it becomes turns Rows into
probabilities (S,N,C), answers for each seed.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imagebind_llm import metrics
from imagebind_llm.config import CEILINGS, MODALITIES, modality_subsets
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.intents.protocol import EmbeddedClips, Protocol
from imagebind_llm.intents.registry import METHODS
from imagebind_llm.intents.settings import ClassifierSettings

Predictor = Callable[[EmbeddedClips], np.ndarray]
WORDS = ((1, 4), (5, 8), (9, 12), (13, 10**6))


@dataclass(frozen=True)
class Predictions:
    """Probabilities (S,N,C) of one method on the reported rows for S seeds, and the gold classes (N,)."""

    probabilities: np.ndarray
    gold: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(-1)  # (S,N)

    @property
    def confidence(self) -> np.ndarray:
        return self.probabilities.max(-1)  # (S,N)

    @property
    def correct(self) -> np.ndarray:
        return self.predicted == self.gold  # (S,N)


@dataclass(frozen=True)
class Subset:
    """One row of the ablation: trained on these modalities alone; trained on all and the others masked; the baseline."""

    modalities: tuple[str, ...]
    answers: Predictions
    masked: Predictions | None
    baseline: Predictions | None
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]


@dataclass(frozen=True)
class Fitted:
    """A method after fitting: the predictor, the seed of each of its answers, its plain baseline (if it has one), the
    epochs that were chosen."""

    predict: Predictor
    seeds: tuple[int, ...]
    baseline: Predictor | None = None
    epochs: tuple[int, ...] = ()


Method = Callable[[Protocol, tuple[str, ...], ClassifierSettings, Callable[[], object]], Fitted]


# --- subsets of modalities --------------------------------------------------------------------------------------------


def evaluate_subsets(protocol: Protocol, settings: ClassifierSettings, fit: Method) -> list[Subset]:
    """A method on `settings.modalities`; with --ablate on every subset of them too, small ones first.

    A method that is fitted to each subset (the probe) is trained anew for it. The others are what they are: their rows of the
    table are answers to masked clips.
    """
    names = tuple(name for name in MODALITIES if name in settings.modalities)
    subsets = modality_subsets(names) if settings.ablate else [names]
    trains = METHODS[settings.method].each_subset
    n_ticks = len(subsets) * settings.epochs if trains else 1
    with tqdm(total=n_ticks, desc=settings.method, unit="epoch" if trains else "step") as bar:
        whole = fit(protocol, names, settings, bar.update)
        fitted = {subset: fit(protocol, subset, settings, bar.update) for subset in subsets if trains and subset != names}
    return [_subset(subset, fitted.get(subset), whole, protocol.report, settings.ablate) for subset in subsets]


def _subset(modalities: tuple[str, ...], alone: Fitted | None, whole: Fitted, report: EmbeddedClips, ablate: bool) -> Subset:
    """Answers on the reported rows by what was trained on these modalities alone, or by the whole with the others masked."""
    gold, masked_rows = report.classes.numpy(), report.only(modalities)
    fitted = alone or whole
    answers = Predictions(fitted.predict(masked_rows), gold)
    masked = Predictions(whole.predict(masked_rows), gold) if ablate and whole.baseline else None
    baseline = Predictions(fitted.baseline(masked_rows), gold) if fitted.baseline else None
    return Subset(modalities, answers, masked, baseline, fitted.seeds, fitted.epochs)


def ceilings(root: Path) -> dict[tuple[str, ...], float]:
    """The highest possible accuracy by subset of modalities, from ceilings.json of the data folder; empty without the file.

    Raises DataError if the file is not valid.
    """
    path = root / CEILINGS
    if not path.is_file():
        return {}
    try:
        return {tuple(names.split("+")): float(accuracy) for names, accuracy in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{path}: expected {{"text+audio": accuracy, ...}}, got {error!r}') from error


# --- slices -----------------------------------------------------------------------------------------------------------


def slices(protocol: Protocol, needed_modality: str) -> dict[str, np.ndarray]:
    """Slices of the reported rows, (N,) bool by name: by the modality that people need, by words, by repeated text."""
    examples = protocol.report.examples
    row_masks = {}
    if needed_modality:
        needed = read_needed(Path(needed_modality))
        of_rows = [needed.get(example.key, "") for example in examples]
        if not any(of_rows):
            raise DataError(f"--needed_modality {needed_modality}: none of its {len(needed)} clips is among the reported rows")
        row_masks["people need the text alone"] = np.array([modality == "text" for modality in of_rows])
        row_masks["people need more, or something else"] = np.array([modality not in ("", "text") for modality in of_rows])
    n_words = np.array([len(example.text.split()) for example in examples])
    for low, high in WORDS:
        row_masks[f"{low} to {high} words" if high < 100 else f"{low} words or more"] = (n_words >= low) & (n_words <= high)
    if protocol.train:
        row_masks["text occurs in training"] = protocol.repeated
        row_masks["text does not occur in training"] = ~protocol.repeated
    return {name: rows for name, rows in row_masks.items() if rows.any()}


def read_needed(table: Path) -> dict[str, str]:
    """Key -> what people need to name the intent, lower case, of a TSV with the columns season episode clip Modality."""
    if not table.is_file():
        raise DataError(f"--needed_modality {table}: no such file")
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    columns = ("season", "episode", "clip", "Modality")
    if gone := [name for name in columns if not rows or name not in rows[0]]:
        raise DataError(f"{table}: expected the tab separated columns {' '.join(columns)}, got none called {' '.join(gone)}")
    return {f"{row['season']}_{row['episode']}_{row['clip']}": (row["Modality"] or "").strip().lower() for row in rows}


# --- numbers of one run -----------------------------------------------------------------------------------------------


def score_summary(answers: Predictions, protocol: Protocol) -> dict:
    """All scores of a method: mean and standard deviation over seeds, 95 % intervals, calibration."""
    runs = [metrics.scores(answers.gold, run) for run in answers.predicted]
    if protocol.coarse is not None:
        for scores, run in zip(runs, answers.predicted, strict=True):
            coarse = metrics.scores(protocol.coarse[answers.gold], protocol.coarse[run])
            scores |= {f"coarse_{name}": coarse[name] for name in ("accuracy", "macro_f1")}
    for scores, correct, confidence in zip(runs, answers.correct, answers.confidence, strict=True):
        scores["calibration_error"] = metrics.calibration_error(correct, confidence)
        scores["accuracy_of_surest_half"] = float(metrics.selective_accuracy(correct, confidence)[(len(correct) - 1) // 2])
    summary = {name: mean_and_sd([scores[name] for scores in runs]) for name in runs[0]}
    for name, values in metrics.resampled(answers.gold, answers.predicted).items():
        summary[name]["interval"] = list(metrics.bootstrap_interval(values, summary[name]["mean"]))
    return summary


def mean_and_sd(values: list[float]) -> dict:
    """Mean, standard deviation (n-1; None for one seed) and the values themselves."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None, "values": values}


def slice_scores(answers: Predictions, rows: np.ndarray) -> dict:
    """Accuracy and macro F1 on the rows of one slice (N,) bool, means over seeds with 95 % intervals over rows.

    The interval of the accuracy is exact, not a bootstrap's: a slice may be a dozen rows, all of them right.
    """
    gold, predicted = answers.gold[rows], answers.predicted[:, rows]
    n, right = len(gold), float((predicted == gold).mean(0).sum())
    f1 = mean_and_sd(metrics.macro_f1(gold, predicted).tolist())
    f1["interval"] = list(metrics.bootstrap_interval(metrics.resampled(gold, predicted)["macro_f1"], f1["mean"]))
    accuracy = mean_and_sd((predicted == gold).mean(1).tolist()) | {"interval": list(metrics.share_interval(right, n))}
    return {"n": n, "accuracy": accuracy, "macro_f1": f1}


def collect_results(protocol: Protocol, subsets: list[Subset], settings: ClassifierSettings) -> dict:
    """All numbers of a run, as results.json has them; shares from 0 to 1. Per class and confusion are of the last subset."""
    ceiling, parts = ceilings(protocol.dataset.root), slices(protocol, settings.needed_modality)
    whole = subsets[-1].answers
    each_class = np.mean([metrics.per_class(whole.gold, run, len(protocol.classes)) for run in whole.predicted], axis=0)
    results = {
        "notes": protocol.notes,
        "classes": list(protocol.classes),
        "subsets": [
            {
                "modalities": list(subset.modalities),
                "best_reachable": ceiling.get(subset.modalities),
                "scores": score_summary(subset.answers, protocol),
                "masked_in_test": score_summary(subset.masked, protocol) if subset.masked else None,
                "logistic_regression": score_summary(subset.baseline, protocol) if subset.baseline else None,
                "epochs": list(subset.epochs),
                "slices": {name: slice_scores(subset.answers, rows) for name, rows in parts.items()},
            }
            for subset in subsets
        ],
        "per_class": {
            name: dict(zip(("precision", "recall", "f1", "rows"), numbers.tolist(), strict=True))
            for name, numbers in zip(protocol.classes, each_class, strict=True)
        },
        "confusion": metrics.confusion(whole.gold, whole.predicted, len(protocol.classes)).tolist(),
        "without_embedding": protocol.missing,
        "settings": asdict(settings),
    }
    if settings.compare:
        results["comparison"] = comparison(whole, protocol, Path(settings.compare), subsets[-1].seeds)
    return results


# --- per-sample answers, written and compared --------------------------------------------------------------------------

PREDICTIONS = "predictions.tsv"
COLUMNS = ("seed", "key", "text", "gold", "predicted", "confidence")


def predictions_table(subset: Subset, protocol: Protocol) -> str:
    """Write a line per seed and reported row: key, text, gold, predicted, confidence and the probability of every class."""

    def rows() -> Iterator[list[str]]:
        yield [*COLUMNS, *(f"p({name})" for name in protocol.classes)]
        answers = subset.answers
        for seed, predicted, probabilities in zip(subset.seeds, answers.predicted, answers.probabilities, strict=True):
            for example, gold, guess, p in zip(protocol.report.examples, answers.gold, predicted, probabilities, strict=True):
                named = [" ".join(example.text.split()), protocol.classes[gold], protocol.classes[guess], f"{p[guess]:.4f}"]
                yield [str(seed), example.key, *named, *(f"{share:.4f}" for share in p)]

    return "".join("\t".join(row) + "\n" for row in rows())


def read_predictions(folder: Path, protocol: Protocol) -> tuple[tuple[str, ...], np.ndarray]:
    """Seeds and predicted class indices (S,N) of another run, in the order of our rows.

    Raises DataError if it answered other rows, or has other gold labels.
    """
    table = folder / PREDICTIONS
    if not table.is_file():
        raise DataError(f"--compare {folder}: no {PREDICTIONS} there; give the --output_dir of a run of classifier.py")
    guesses: dict[str, dict[str, str]] = {}
    gold: dict[str, str] = {}
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            guesses.setdefault(row["seed"], {})[row["key"]] = row["predicted"]
            gold[row["key"]] = row["gold"]
    rows = protocol.report
    ours = {example.key: protocol.classes[i] for example, i in zip(rows.examples, rows.classes.tolist(), strict=True)}
    if ours != gold:
        strange = sorted({key for key in ours.keys() | gold.keys() if ours.get(key) != gold.get(key)})
        raise DataError(
            f"--compare {folder}: {len(strange)} rows are not the same or not labelled the same in both runs "
            f"({', '.join(strange[:5])}); a paired test needs one --data_path, --report_split, --split_by and --labels"
        )
    if unknown := {name for run in guesses.values() for name in run.values()} - set(protocol.classes):
        raise DataError(f"--compare {folder}: predicts {', '.join(sorted(unknown))}, which is no class of this run")
    index = {name: i for i, name in enumerate(protocol.classes)}
    return tuple(guesses), np.array([[index[run[key]] for key in ours] for run in guesses.values()])


def comparison(answers: Predictions, protocol: Protocol, folder: Path, our_seeds: tuple[int, ...]) -> dict:
    """Paired bootstrap of the means over seeds, and McNemar's test for every pair of runs in order."""
    seeds, theirs = read_predictions(folder, protocol)
    differences = metrics.paired_difference(answers.gold, answers.predicted, theirs)
    pairs = zip(our_seeds, seeds, answers.predicted, theirs, strict=False)
    tests = [(str(a), b, *metrics.mcnemar(answers.gold, ours, other)) for a, b, ours, other in pairs]
    names = ("our_seed", "their_seed", "only_ours_right", "only_theirs_right", "p")
    return {
        "with": str(folder),
        "difference": {name: vars(difference) for name, difference in differences.items()},
        "mcnemar": [dict(zip(names, test, strict=True)) for test in tests],
    }
