"""The protocol of an evaluation: the rows to train on, to select on and to report, and checks for leaks between them.

A split that is reported is neither trained on nor selected on. ClassifierSettings checks the names of the splits; here the rows
themselves are compared, because a copied file or a clip with a second key is a leak too. A text that also occurs in training is
no leak: such rows are counted, and the score without them is reported as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from imagebind_llm.config import MODALITIES, NO_SELECTION
from imagebind_llm.corpus.seen import RowMarks, refuse_overlap, row_marks, vector_marks
from imagebind_llm.datasets.readers import PLAIN, SPLITS, DataError, Dataset, load_dataset, normal_text
from imagebind_llm.encoder.store import Identity, PtFolders, Store, StoreError
from imagebind_llm.intents.registry import METHODS
from imagebind_llm.intents.settings import ClassifierSettings
from imagebind_llm.records import Example
from imagebind_llm.taxonomy import Taxonomy

MISSING_LIMIT = 0.1  # share of a split without embeddings above which a run would say little
LISTED = 5


@dataclass(frozen=True)
class EmbeddedClips:
    """N examples with their embeddings and classes."""

    examples: list[Example]
    vectors: Tensor  # (N,M,E), zero where absent
    present: Tensor  # (N,M) bool
    classes: Tensor  # (N,) class indices

    def __len__(self) -> int:
        return len(self.examples)

    def only(self, modalities: Sequence[str]) -> "EmbeddedClips":
        """The same rows with all other modalities absent."""
        mask = torch.tensor([name in modalities for name in MODALITIES])
        return replace(self, vectors=self.vectors * mask[:, None], present=self.present & mask)


@dataclass(frozen=True)
class Protocol:
    """The data of an evaluation; `train` and `select` are None for methods that do not train.

    `coarse`: (C,) index of each class's coarse class; None if the labels have none. `repeated`: (N,) bool, reported rows whose
    text occurs in training. `notes`: sentences for the report.
    """

    dataset: Dataset
    store: Store | PtFolders
    classes: tuple[str, ...]
    coarse: np.ndarray | None
    train: EmbeddedClips | None
    select: EmbeddedClips | None
    report: EmbeddedClips
    repeated: np.ndarray
    missing: list[str]
    notes: list[str]


def load_protocol(settings: ClassifierSettings) -> Protocol:
    """Read the data set and its embeddings, and refuse what would make the result untrue or impossible.

    Raises DataError or StoreError: a split or embeddings that are not there, more than a tenth of a split without them,
    embeddings that are not finite, labels outside the taxonomy or absent from training, rows that are reported on and seen
    before.
    """
    dataset = load_dataset(settings.data_path)
    splits = episode_splits(dataset, settings.episode_fold) if settings.split_by == "episode" else dataset.splits
    parts = _parts(splits, dataset, settings)
    classes, index = _classes(dataset, parts, settings)
    store = open_embeddings(settings.emb_path, dataset)
    _refuse_absent_modalities(store.identity, settings)
    rows = {part: _rows(part, examples, store, index, settings) for part, examples in parts.items() if examples}
    missing = [example.key for examples in parts.values() for example in examples if example.key not in store]
    report, train, select = rows["report"], rows.get("train"), rows.get("select")
    if train:
        _refuse_untrainable(train, select, report, classes)
        for name, other in (("train", train), ("select", select)):
            if other:
                refuse_overlap(name, marks(other), report.examples, marks(report))
    coarse = _coarse(dataset.taxonomy, classes)
    repeated = repeated_texts(report.examples, train.examples if train else [])
    notes = _notes(parts, rows, missing, repeated, classes, settings)
    return Protocol(dataset, store, classes, coarse, train, select, report, repeated, missing, notes)


# --- splits -----------------------------------------------------------------------------------------------------------


def episode_splits(dataset: Dataset, fold: int) -> dict[str, list[Example]]:
    """MIntRec's rows split anew so that no episode is in two splits: a fifth test, a fifth dev, the rest train.

    Whole episodes go to one of five folds of like size and like intents (scikit-learn's StratifiedGroupKFold, seed 0);
    `fold` is test, the next one dev. Over the five values of `fold` every row is in test once.
    """
    if dataset.layout != "MIntRec":
        raise DataError(f"--split_by episode is for MIntRec, whose splits share episodes; {dataset.root} is {dataset.layout}")
    examples = dataset.examples
    episodes = [example.key.rsplit("_", 1)[0] for example in examples]
    if len(set(episodes)) < 5:
        raise DataError(f"{dataset.root}: --split_by episode needs at least 5 episodes, got {len(set(episodes))}")
    intents = [example.intent for example in examples]
    folds = [test for _, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(examples, intents, episodes)]
    place = {int(row): number for number, rows in enumerate(folds) for row in rows}
    name = {fold: "test", (fold + 1) % 5: "dev"}
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for row, example in enumerate(examples):
        split = name.get(place[row], "train")
        splits[split].append(replace(example, split=split))
    return splits


def _parts(splits: dict[str, list[Example]], dataset: Dataset, settings: ClassifierSettings) -> dict[str, list[Example]]:
    """The examples that train, select and are reported on."""
    chosen = {"report": (settings.report_split,), "train": settings.train_splits, "select": (settings.select_split,)}
    if settings.select_split == NO_SELECTION:
        chosen["select"] = ()
    if not METHODS[settings.method].uses_training:
        chosen |= {"train": (), "select": ()}
    for part, names in chosen.items():
        if gone := [name for name in names if name not in splits]:
            hint = f"; --select_split {NO_SELECTION} keeps the last epoch" if part == "select" else ""
            raise DataError(f"{dataset.root}: no split {', '.join(gone)} here; there are: {', '.join(splits)}{hint}")
    return {part: [example for name in names for example in splits[name]] for part, names in chosen.items()}


# --- labels -----------------------------------------------------------------------------------------------------------


def _classes(dataset: Dataset, parts: dict[str, list[Example]], settings: ClassifierSettings):
    """The class names in order, and a function from label to class index."""
    used = [example for examples in parts.values() for example in examples]
    if nameless := [example.key for example in used if not example.intent]:
        raise DataError(
            f"{dataset.root}: {len(nameless)} of {len(used)} rows have no label ({', '.join(nameless[:LISTED])}); "
            f"add a column label to the table"
        )
    taxonomy = dataset.taxonomy
    if settings.labels == "coarse" and not (taxonomy and taxonomy.coarse_classes):
        raise DataError(
            f"{dataset.root}: its labels have no coarse classes; add a column coarse to a table of your own, or leave out "
            "--labels coarse"
        )
    if taxonomy is None or (dataset.layout == PLAIN and settings.labels == "fine"):
        names = tuple(sorted({str(example.intent) for example in used}))
        return names, names.index
    unknown = taxonomy.out_of_scope is not None and any(example.intent == taxonomy.out_of_scope for example in used)
    if settings.labels == "coarse":
        if unknown:
            raise DataError(f"{dataset.root}: label {taxonomy.out_of_scope} has no coarse class; take the in-scope folder")
        return taxonomy.coarse_classes, lambda label: taxonomy.coarse_classes.index(taxonomy.coarse(label))
    return (*taxonomy.labels, *((taxonomy.out_of_scope,) if unknown else ())), taxonomy.index


def _coarse(taxonomy: Taxonomy | None, classes: tuple[str, ...]) -> np.ndarray | None:
    """(C,) class indices; None where a class is coarse itself, out of scope, or of a taxonomy without coarse classes."""
    if taxonomy is None or not taxonomy.coarse_classes or not set(classes) <= set(taxonomy.labels):
        return None
    return np.array([taxonomy.coarse_classes.index(taxonomy.coarse(name) or "") for name in classes])


# --- embeddings -------------------------------------------------------------------------------------------------------


def open_embeddings(path: str, dataset: Dataset) -> Store | PtFolders:
    """A store, or the original's folders of .pt files. Raises StoreError if it is neither."""
    if not list(Path(path).glob("manifest-*.json")) and list(Path(path).glob("*_emb")):
        keys = {split: [example.key for example in examples] for split, examples in dataset.splits.items()}
        return PtFolders(Path(path), keys)
    return Store(Path(path))


def _rows(part: str, examples: list[Example], store: Store | PtFolders, index, settings: ClassifierSettings) -> EmbeddedClips:
    """Rows with their vectors. A row without embeddings is left out of training; in the report it stays, with nothing known."""
    embedded = [example for example in examples if example.key in store]
    gone = [example.key for example in examples if example.key not in store]
    if len(gone) > MISSING_LIMIT * len(examples):
        raise StoreError(
            f"{settings.emb_path}: no embedding for {len(gone)} of the {len(examples)} rows to {part} "
            f"({', '.join(gone[:LISTED])}), more than a tenth; make them with: python avt_get_emb.py "
            f"--data_path {settings.data_path} --output_dir {settings.emb_path}"
        )
    kept = examples if part == "report" else embedded
    vectors = torch.zeros(len(kept), len(MODALITIES), store.identity.width)
    present = torch.zeros(len(kept), len(MODALITIES), dtype=torch.bool)
    positions = [i for i, example in enumerate(kept) if example.key in store]
    vectors[positions], present[positions] = store.read([example.key for example in embedded])
    if bad := [kept[i].key for i in (~vectors.isfinite().all(-1).all(-1)).nonzero()[:, 0].tolist()]:
        raise StoreError(
            f"{settings.emb_path}: embeddings of {len(bad)} clips are not finite ({', '.join(bad[:LISTED])}); rebuild with: "
            f"python avt_get_emb.py --data_path {settings.data_path} --output_dir {settings.emb_path} --overwrite"
        )
    return EmbeddedClips(kept, vectors, present, torch.tensor([index(example.intent) for example in kept]))


def _refuse_absent_modalities(identity: Identity, settings: ClassifierSettings) -> None:
    if never := [name for name in settings.modalities if name not in identity.modalities]:
        raise StoreError(
            f"{settings.emb_path}: made with --modalities {' '.join(identity.modalities)}, this run needs {' '.join(never)} "
            f"too; give --modalities {' '.join(identity.modalities)} here, or embed the rest into another store"
        )


# --- what cannot be learnt, and what was seen before ------------------------------------------------------------------


def _refuse_untrainable(
    train: EmbeddedClips, select: EmbeddedClips | None, report: EmbeddedClips, classes: tuple[str, ...]
) -> None:
    trained = set(train.classes.tolist())
    if len(trained) < 2:
        raise DataError(f"all {len(train)} training rows are {classes[min(trained)]}: one class leaves nothing to tell apart")
    for name, rows in (("report", report), ("select", select)):
        if rows and (strange := sorted(set(rows.classes.tolist()) - trained)):
            names = ", ".join(f"{classes[i]} ({int((rows.classes == i).sum())} rows)" for i in strange)
            raise DataError(
                f"no training row has the label {names} of the rows to {name}: it can never be named; "
                f"add training rows of it, or take those rows out"
            )


def marks(rows: EmbeddedClips) -> list[RowMarks]:
    """What each row is known by under any name: its key, its file, its sound, its picture, its words."""
    return row_marks(rows.examples, vector_marks(rows.vectors, rows.present))


def repeated_texts(report: list[Example], train: list[Example]) -> np.ndarray:
    """(N,) bool: the reported rows whose text occurs in training."""
    train_texts = {normal_text(example.text) for example in train}
    return np.array([normal_text(example.text) in train_texts for example in report])


# --- what a reader must know ------------------------------------------------------------------------------------------


def _notes(
    parts, rows: dict[str, EmbeddedClips], missing: list[str], repeated, classes, settings: ClassifierSettings
) -> list[str]:
    report = rows["report"]
    counts = ", ".join(f"{part} {len(parts[part])}" for part in ("train", "select", "report") if parts[part])
    by_episode = f" (split by episode, fold {settings.episode_fold})" if settings.split_by == "episode" else ""
    notes = [f"{len(classes)} classes; rows{by_episode}: {counts}"]
    if missing:
        some = ", ".join(missing[:LISTED]) + (" ..." if len(missing) > LISTED else "")
        notes += [
            f"no embedding for {len(missing)} rows ({some}; all in results.json): left out of training and selection; "
            f"in the report they count as clips of which nothing is known"
        ]
    absent = {name: int((~report.present[:, MODALITIES.index(name)]).sum()) for name in settings.modalities}
    if any(absent.values()):
        listed = ", ".join(f"{name} {n}" for name, n in absent.items() if n)
        notes += [f"reported rows without a modality (it counts as absent): {listed}"]
    if "train" in rows:
        also = repeated_texts(report.examples, [example for part in ("train", "select") for example in parts[part]])
        notes += [
            f"reported texts that occur in training too: {int(repeated.sum())} of {len(repeated)}"
            + (f" ({int(also.sum())} with the rows that select)" if "select" in rows else "")
        ]
    for part in ("select", "report"):
        if "train" in rows and part in rows:
            gone = sorted(set(rows["train"].classes.tolist()) - set(rows[part].classes.tolist()))
            listed = ", ".join(classes[i] for i in gone)
            notes += [f"classes without a row to {part} (no part of its macro averages): {listed}"] if gone else []
    return notes
