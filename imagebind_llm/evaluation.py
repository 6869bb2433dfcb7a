"""What a method is worth on the reported rows: its answers, by subset of modalities, by slice, beside another run's.

A method is one function, METHODS[name](protocol, modalities, settings, tick) -> predictor: it fits itself to what it may
see, and the predictor turns Rows into probabilities (S,N,C), one row of answers for each seed.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imagebind_llm import metrics
from imagebind_llm.config import ENCODERS, MODALITIES, ClassifierSettings, ProbeConfig
from imagebind_llm.datasets import DataError
from imagebind_llm.demo_world import cues
from imagebind_llm.probe import Scaling, fit_logistic, train_probes
from imagebind_llm.protocol import Protocol, Rows
from imagebind_llm.store import Identity, StoreError
from imagebind_llm.tokenizers import ClipBPE
from imagebind_llm.weights.imagebind import file_sha256, find_imagebind, load_imagebind
from imagebind_llm.zeroshot import label_sentences, nearest_label

Predictor = Callable[[Rows], np.ndarray]
WORDS = ((1, 4), (5, 8), (9, 12), (13, 10**6))


@dataclass(frozen=True)
class Answers:
    """Probabilities (S,N,C) of one method on the reported rows, and what is right (N,)."""

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
    answers: Answers
    masked: Answers | None
    baseline: Answers | None
    epochs: tuple[int, ...]

    @property
    def name(self) -> str:
        return " + ".join(self.modalities)


# --- methods ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A method after fitting: the predictor, its plain baseline (if it has one), the epochs that were chosen."""

    predict: Predictor
    baseline: Predictor | None = None
    epochs: tuple[int, ...] = ()


def fit_probe(protocol: Protocol, modalities: tuple[str, ...], settings: ClassifierSettings, tick) -> Fitted:
    """The MLP, `settings.seeds` times, and logistic regression, on the concatenated embeddings of these modalities."""
    columns = [MODALITIES.index(name) for name in modalities]
    train, select = protocol.train, protocol.select
    assert train is not None
    scaling = Scaling.of(train.vectors[:, columns], train.present[:, columns])

    def inputs(rows: Rows):
        return scaling.apply(rows.vectors[:, columns], rows.present[:, columns])

    selection = (inputs(select), select.classes) if select else None
    config = ProbeConfig(hidden=settings.hidden, epochs=settings.epochs, class_weights=settings.class_weights)
    known, n_classes = (inputs(train), train.classes), len(protocol.classes)
    probes = train_probes(*known, selection, n_classes, config, settings.seeds, tick)
    logistic = fit_logistic(*known, selection, n_classes, settings.class_weights)
    return Fitted(
        lambda rows: probes.probabilities(inputs(rows)), lambda rows: logistic(inputs(rows))[None], tuple(probes.epochs)
    )


def fit_zeroshot(protocol: Protocol, modalities: tuple[str, ...], settings: ClassifierSettings, tick) -> Fitted:
    """Nothing is fitted: the label sentences are encoded by the encoder that made the store."""
    sentences = label_sentences(protocol.classes, settings.sentences)
    vectors = encode_sentences(sentences, protocol.identity, settings)
    tick()
    return Fitted(lambda rows: nearest_label(rows.vectors, rows.present, vectors, modalities).numpy()[None])


def encode_sentences(sentences: list[str], identity: Identity, settings: ClassifierSettings):
    """(C,E) public text vectors. Raises StoreError unless the weights at hand are those that made the store."""
    if identity.encoder not in ENCODERS or ENCODERS[identity.encoder]().out_width != identity.width:
        raise StoreError(
            f"{settings.emb_path}: made by {identity.encoder}, width {identity.width}; zero-shot needs the encoder to read "
            f"the label sentences too, and knows {' and '.join(ENCODERS)} (width {ENCODERS['imagebind_huge']().out_width})"
        )
    weights = find_imagebind(identity.encoder, settings.encoder_weights)
    if identity.weights_sha256 and file_sha256(weights) != identity.weights_sha256:
        raise StoreError(
            f"{settings.emb_path}: made by other weights of {identity.encoder} (sha256 {identity.weights_sha256[:12]}...) than "
            f"{weights}; give theirs by --encoder_weights, or embed the clips again with these"
        )
    return load_imagebind(weights, identity.encoder).encode("text", ClipBPE().encode(sentences)).detach()


METHODS = {"probe": fit_probe, "zeroshot": fit_zeroshot}


# --- subsets of modalities --------------------------------------------------------------------------------------------


def evaluate(protocol: Protocol, settings: ClassifierSettings) -> list[Subset]:
    """The method on `settings.modalities`; with --ablate on every subset of them too, small ones first."""
    wanted = tuple(name for name in MODALITIES if name in settings.modalities)
    chosen = [subset for subset in cues.subsets() if set(subset) <= set(wanted)] if settings.ablate else [wanted]
    gold = protocol.report.classes.numpy()
    found: dict[tuple[str, ...], Subset] = {}
    masked: dict[tuple[str, ...], Answers] = {}
    n_ticks = len(chosen) * (settings.epochs if settings.method == "probe" else 1)
    with tqdm(total=n_ticks, desc=settings.method, unit="epoch" if settings.method == "probe" else "subset") as bar:
        for subset in reversed(chosen):  # the whole first: the others need its answers to masked rows
            bar.set_postfix_str("+".join(subset))
            fitted = METHODS[settings.method](protocol, subset, settings, bar.update)
            if subset == wanted and settings.method != "zeroshot":
                masked = {other: Answers(fitted.predict(protocol.report.only(other)), gold) for other in chosen}
            answers = Answers(fitted.predict(protocol.report), gold)
            baseline = Answers(fitted.baseline(protocol.report), gold) if fitted.baseline else None
            found[subset] = Subset(subset, answers, masked.get(subset) if settings.ablate else None, baseline, fitted.epochs)
    return [found[subset] for subset in chosen]


def ceilings(root: Path) -> dict[tuple[str, ...], float]:
    """What anyone can reach from each subset of modalities; known for the demo world alone, empty for other data."""
    return {subset: cues.bayes_accuracy(subset) for subset in cues.subsets()} if (root / "world.json").exists() else {}


# --- slices -----------------------------------------------------------------------------------------------------------


def slices(protocol: Protocol, needed_modality: str) -> dict[str, np.ndarray]:
    """Name -> (N,) bool of the reported rows: by what people need, by words, by whether the text occurs in training."""
    examples = protocol.report.examples
    found = {}
    if needed_modality:
        needed = read_needed(Path(needed_modality))
        of_rows = [needed.get(example.key, "") for example in examples]
        if not any(of_rows):
            raise DataError(f"--needed_modality {needed_modality}: none of its {len(needed)} clips is among the reported rows")
        found["people need the text alone"] = np.array([one == "text" for one in of_rows])
        found["people need more, or something else"] = np.array([one not in ("", "text") for one in of_rows])
    n_words = np.array([len(example.text.split()) for example in examples])
    for low, high in WORDS:
        found[f"{low} to {high} words" if high < 100 else f"{low} words or more"] = (n_words >= low) & (n_words <= high)
    if protocol.train:
        found["text occurs in training"] = protocol.repeated
        found["text does not occur in training"] = ~protocol.repeated
    return {name: rows for name, rows in found.items() if rows.any()}


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


def summary(answers: Answers, protocol: Protocol, intervals: bool = True) -> dict:
    """Every number of one method's answers: mean and s.d. over seeds of each score, 95 % intervals, calibration."""
    runs = [metrics.scores(answers.gold, run) for run in answers.predicted]
    if protocol.express is not None:
        for scores, run in zip(runs, answers.predicted, strict=True):
            coarse = metrics.scores((~protocol.express[answers.gold]).astype(int), (~protocol.express[run]).astype(int))
            scores |= {f"coarse_{name}": coarse[name] for name in ("accuracy", "macro_f1")}
    for scores, correct, confidence in zip(runs, answers.correct, answers.confidence, strict=True):
        scores["calibration_error"] = metrics.calibration_error(correct, confidence)
        scores["accuracy_of_surest_half"] = float(metrics.selective_accuracy(correct, confidence)[(len(correct) - 1) // 2])
    found = {name: mean_and_sd([scores[name] for scores in runs]) for name in runs[0]}
    if intervals:
        for name, values in metrics.resampled(answers.gold, answers.predicted).items():
            found[name]["interval"] = list(metrics.bootstrap_interval(values, found[name]["mean"]))
    return found


def mean_and_sd(values: list[float]) -> dict:
    """Mean, standard deviation (n-1; None for one seed) and the values themselves."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None, "values": values}


def slice_scores(answers: Answers, rows: np.ndarray) -> dict:
    """Accuracy and macro F1 on the rows of one slice (N,) bool, means over seeds with 95 % intervals over rows.

    The interval of the accuracy is exact, not a bootstrap's: a slice may be a dozen rows, all of them right.
    """
    gold, predicted = answers.gold[rows], answers.predicted[:, rows]
    n, right = len(gold), float((predicted == gold).mean(0).sum())
    f1 = mean_and_sd(metrics.macro_f1(gold, predicted).tolist())
    f1["interval"] = list(metrics.bootstrap_interval(metrics.resampled(gold, predicted)["macro_f1"], f1["mean"]))
    accuracy = mean_and_sd((predicted == gold).mean(1).tolist()) | {"interval": list(metrics.share_interval(right, n))}
    return {"n": n, "accuracy": accuracy, "macro_f1": f1}


def results(protocol: Protocol, subsets: list[Subset], settings: ClassifierSettings) -> dict:
    """All numbers of a run, as results.json has them; shares from 0 to 1. Per class and confusion are of the last subset."""
    ceiling, parts = ceilings(protocol.dataset.root), slices(protocol, settings.needed_modality)
    whole = subsets[-1].answers
    each_class = np.mean([metrics.per_class(whole.gold, run, len(protocol.classes)) for run in whole.predicted], axis=0)
    found = {
        "notes": protocol.notes,
        "classes": list(protocol.classes),
        "subsets": [
            {
                "modalities": list(one.modalities),
                "best_reachable": ceiling.get(one.modalities),
                "scores": summary(one.answers, protocol),
                "masked_in_test": summary(one.masked, protocol) if one.masked else None,
                "logistic_regression": summary(one.baseline, protocol) if one.baseline else None,
                "epochs": list(one.epochs),
                "slices": {name: slice_scores(one.answers, rows) for name, rows in parts.items()},
            }
            for one in subsets
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
        found["comparison"] = comparison(whole, protocol, Path(settings.compare), settings.seeds)
    return found


# --- per-sample answers, written and compared --------------------------------------------------------------------------

PREDICTIONS = "predictions.tsv"
COLUMNS = ("seed", "key", "text", "gold", "predicted", "confidence")


def predictions_table(answers: Answers, protocol: Protocol, seeds: tuple[int, ...]) -> str:
    """A line a seed and reported row: key, text, gold, predicted, confidence and the probability of every class."""

    def rows() -> Iterator[list[str]]:
        yield [*COLUMNS, *(f"p({name})" for name in protocol.classes)]
        for seed, predicted, probabilities in zip(seeds, answers.predicted, answers.probabilities, strict=True):
            for example, gold, said, p in zip(protocol.report.examples, answers.gold, predicted, probabilities, strict=True):
                named = [" ".join(example.text.split()), protocol.classes[gold], protocol.classes[said], f"{p[said]:.4f}"]
                yield [str(seed), example.key, *named, *(f"{one:.4f}" for one in p)]

    return "".join("\t".join(row) + "\n" for row in rows())


def read_predictions(folder: Path, protocol: Protocol) -> tuple[tuple[str, ...], np.ndarray]:
    """Seeds and predicted class indices (S,N) of another run, in the order of our rows.

    Raises DataError if it answered other rows, or has other gold labels.
    """
    table = folder / PREDICTIONS
    if not table.is_file():
        raise DataError(f"--compare {folder}: no {PREDICTIONS} there; give the --output_dir of a run of classifier.py")
    said: dict[str, dict[str, str]] = {}
    gold: dict[str, str] = {}
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            said.setdefault(row["seed"], {})[row["key"]] = row["predicted"]
            gold[row["key"]] = row["gold"]
    rows = protocol.report
    ours = {one.key: protocol.classes[i] for one, i in zip(rows.examples, rows.classes.tolist(), strict=True)}
    if ours != gold:
        strange = sorted({key for key in ours.keys() | gold.keys() if ours.get(key) != gold.get(key)})
        raise DataError(
            f"--compare {folder}: {len(strange)} rows are not the same or not labelled the same in both runs "
            f"({', '.join(strange[:5])}); a paired test needs one --data_path, --report_split, --split_by and --labels"
        )
    if unknown := {name for run in said.values() for name in run.values()} - set(protocol.classes):
        raise DataError(f"--compare {folder}: predicts {', '.join(sorted(unknown))}, which is no class of this run")
    index = {name: i for i, name in enumerate(protocol.classes)}
    return tuple(said), np.array([[index[run[key]] for key in ours] for run in said.values()])


def comparison(answers: Answers, protocol: Protocol, folder: Path, our_seeds: tuple[int, ...]) -> dict:
    """Paired bootstrap of the means over seeds, and McNemar's test for every pair of runs in order."""
    seeds, theirs = read_predictions(folder, protocol)
    differences = metrics.paired_difference(answers.gold, answers.predicted, theirs)
    pairs = zip(our_seeds, seeds, answers.predicted, theirs, strict=False)
    tests = [(str(a), b, *metrics.mcnemar(answers.gold, ours, other)) for a, b, ours, other in pairs]
    names = ("our_seed", "their_seed", "only_ours_right", "only_theirs_right", "p")
    return {
        "with": str(folder),
        "difference": {name: vars(one) for name, one in differences.items()},
        "mcnemar": [dict(zip(names, test, strict=True)) for test in tests],
    }
