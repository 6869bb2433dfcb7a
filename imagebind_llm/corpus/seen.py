"""Which rows a model has seen in training, so that a report on them is refused.

    CHECKPOINT/checkpoint.json  "chain": the data of every stage of training, first to last; "seen": the digest of seen.json
    CHECKPOINT/seen.json        by stage, 8-byte digests of the rows that it was trained on and chosen on

The checkpoint carries this list, so it works without the training data, for every stage of training. A row is recognised by any
one of its key, file, sound and picture. Its text is weaker evidence, because two people may say `thank you`: only if most
reported rows repeat text and label, they are taken for a copy.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from imagebind_llm.config import MODALITIES
from imagebind_llm.datasets.readers import DataError, load_dataset, normal_text
from imagebind_llm.encoder.store import Store
from imagebind_llm.itsl.checkpoint import CheckpointError, read_info, resolve
from imagebind_llm.records import Example

SEEN = "seen.json"
CLIP = ("key", "file", "sound", "picture")  # two rows with one of these in common are the same clip
SAID = ("said", "text")  # text with label, text alone
LISTED = 5
CHUNK = 1024  # rows whose vectors are read at a time
RowMarks = dict[str, str]  # marks of one row: from kind to digest
Marks = dict[str, set[str]]  # marks of many rows: from kind to digests


# --- rows -------------------------------------------------------------------------------------------------------------


def row_key(row: Mapping[str, Any]) -> str | None:
    """The key of a row of JSON: its field `key`, or its `clip` without the ending; None if it has neither."""
    if row.get("key"):
        return str(row["key"])
    return str(Path(row["clip"]).with_suffix("")) if row.get("clip") else None


def json_example(row: Mapping[str, Any], label: str | None = None) -> Example:
    """An Example of a row of JSON, for its marks: key, text, and label or, without a label, its output.

    The instruction of a row with a clip is not its text, because it is the same question for all clips.
    """
    key = row_key(row) or ""
    text = row.get("input") or row.get("caption") or ("" if key else row.get("instruction")) or ""
    return Example(key, row.get("split") or "train", None, str(text), label or row.get("intent") or row.get("output"))


# --- marks ------------------------------------------------------------------------------------------------------------


def vector_marks(vectors: Tensor, present: Tensor) -> list[RowMarks]:
    """Digests of the sound and the picture of each row of vectors (N,M,E); absent (`present` (N,M)) or zero ones have none."""
    columns = {"sound": MODALITIES.index("audio"), "picture": MODALITIES.index("vision")}
    present = present & (vectors != 0).any(-1)
    return [
        {kind: _digest(row[m].numpy().tobytes()) for kind, m in columns.items() if presence[m]}
        for row, presence in zip(vectors.float(), present, strict=True)
    ]


def stored_marks(examples: Sequence[Example], store: Store | None) -> list[RowMarks]:
    """`vector_marks` of the examples' embeddings in a store; empty for those that it does not have."""
    rows: list[RowMarks] = [{} for _ in examples]
    stored = [i for i, example in enumerate(examples) if store is not None and example.key in store]
    for start in range(0, len(stored), CHUNK):
        part = stored[start : start + CHUNK]
        assert store is not None
        for i, marks in zip(part, vector_marks(*store.read([examples[i].key for i in part])), strict=True):
            rows[i] = marks
    return rows


def row_marks(examples: Sequence[Example], vectors: Sequence[RowMarks]) -> list[RowMarks]:
    """The marks of each row of one split; `vectors`: the result of `vector_marks` or `stored_marks` for them.

    What different clips of the split share is no mark: silence, black frames, a text with several labels.
    """
    shared, ambiguous = _shared(examples, vectors), _ambiguous_texts(examples)
    rows = []
    for example, digests in zip(examples, vectors, strict=True):
        marks = {kind: mark for kind, mark in digests.items() if mark not in shared}
        marks |= {"key": _digest(example.key)} if example.key else {}
        marks |= {"file": _digest(str(example.clip.resolve()))} if example.clip else {}
        if text := spoken(example.text):
            marks["text"] = _digest(text)
            marks |= {"said": _digest(f"{text}\0{example.intent or ''}")} if text not in ambiguous else {}
        rows.append(marks)
    return rows


def _shared(examples: Sequence[Example], vectors: Sequence[RowMarks]) -> set[str]:
    """Digests of sounds that occur with different pictures and vice versa; without the other, with different texts.

    A clip that is twice in the split has the same sound and picture both times, so these are not among them.
    """
    partners, words = defaultdict(set), defaultdict(set)
    for example, marks in zip(examples, vectors, strict=True):
        for kind, other in (("sound", "picture"), ("picture", "sound")):
            if kind in marks and other in marks:
                partners[marks[kind]].add(marks[other])
            elif kind in marks:
                words[marks[kind]].add(spoken(example.text))
    without_partner = {mark for mark, texts in words.items() if len(texts) > 1 and mark not in partners}
    return without_partner | {mark for mark, others in partners.items() if len(others) > 1}


def _ambiguous_texts(examples: Sequence[Example]) -> set[str]:
    """Texts that occur with several labels."""
    labels_by_text = defaultdict(set)
    for example in examples:
        labels_by_text[spoken(example.text)].add(example.intent)
    return {text for text, labels in labels_by_text.items() if len(labels) > 1}


def spoken(text: str) -> str:
    """The words of a text, without case and punctuation; the text itself if it has none."""
    return " ".join(re.findall(r"\w+", text.lower())) or normal_text(text)


def joined(rows: Iterable[RowMarks]) -> Marks:
    """The marks of many rows, by kind."""
    all_marks: Marks = {kind: set() for kind in (*CLIP, *SAID)}
    for marks in rows:
        for kind, mark in marks.items():
            all_marks[kind].add(mark)
    return all_marks


def _digest(content: str | bytes) -> str:
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=8).hexdigest()


# --- overlap ----------------------------------------------------------------------------------------------------------


def overlap(report: Sequence[RowMarks], seen: Marks) -> tuple[list[int], str]:
    """Numbers of the reported rows that are among the seen ones, and what they have in common with them.

    These are the rows of a common clip, if there is any, else the rows of common text and label, if most rows are.
    """
    clips = [i for i, marks in enumerate(report) if any(marks[kind] in seen[kind] for kind in CLIP if kind in marks)]
    if clips:
        return clips, "key, file or embedding"
    copied = [i for i, marks in enumerate(report) if marks.get("said") in seen["said"]]
    return (copied, "text and label") if len(copied) > len(report) / 2 else ([], "")


def refuse_overlap(name: str, other: Sequence[RowMarks], examples: Sequence[Example], report: Sequence[RowMarks]) -> None:
    """Raise DataError if a reported row is also in another split; `other` and `report`: marks of both, `name`: the other's."""
    rows, why = overlap(report, joined(other))
    if rows:
        raise DataError(
            f"{len(rows)} of {len(report)} rows to report are also rows to {name}, by {why} ({_listed(rows, examples)}): a "
            f"split that is reported on is neither trained on nor selected on; take them out of one of the two tables"
        )


def _listed(rows: Sequence[int], examples: Sequence[Example]) -> str:
    return ", ".join(examples[i].key or f"row {i}" for i in rows[:LISTED]) + (" ..." if len(rows) > LISTED else "")


# --- what a checkpoint has seen ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage of a checkpoint's training."""

    data: str  # path
    trained: Marks  # of the rows that it was trained on
    chosen: Marks  # of the rows on which the epoch was chosen
    unknown: str = ""  # a sentence on what is not known about this stage; empty if all is known

    def parts(self) -> Iterator[tuple[str, Marks]]:
        yield "trained", self.trained
        yield "chosen", self.chosen


def summary(stages: Sequence[Stage]) -> dict[str, Any]:
    """The fields "chain" and "seen" of checkpoint.json."""
    chain = [
        {"data": stage.data, **{f"{part}_keys": len(marks["key"]) for part, marks in stage.parts()}, "unknown": stage.unknown}
        for stage in stages
    ]
    return {"chain": chain, "seen": _digest(_encoded(stages))}


def save_stages(folder: Path, stages: Sequence[Stage]) -> None:
    """Write seen.json into a checkpoint's folder."""
    (Path(folder) / SEEN).write_bytes(_encoded(stages))


def _encoded(stages: Sequence[Stage]) -> bytes:
    rows = [
        {"data": stage.data, "unknown": stage.unknown}
        | {part: {kind: sorted(digests) for kind, digests in marks.items()} for part, marks in stage.parts()}
        for stage in stages
    ]
    return (json.dumps(rows, separators=(",", ":")) + "\n").encode()


def read_stages(folder: Path) -> tuple[Stage, ...]:
    """The stages of a checkpoint. Those of an old checkpoint without seen.json are derived from its data, if they are there.

    Raises CheckpointError if seen.json is missing or not the one that was saved.
    """
    info, path = read_info(folder), resolve(folder) / SEEN
    if "seen" not in info:
        return _looked_up(Path(folder), info)
    content = path.read_bytes() if path.is_file() else b""
    if _digest(content) != info["seen"]:
        state = "damaged" if content else "missing"
        raise CheckpointError(f"{path}: {state}; it lists the rows of training: copy the whole checkpoint folder again")
    return tuple(
        Stage(row["data"], _as_sets(row["trained"]), _as_sets(row["chosen"]), row["unknown"]) for row in json.loads(content)
    )


def _as_sets(marks: Mapping[str, list[str]]) -> Marks:
    return {kind: set(digests) for kind, digests in marks.items()}


def stages_before(start: str) -> tuple[Stage, ...]:
    """The stages of --pretrained_path: those of a checkpoint, or one unknown stage for a released adapter."""
    if not start:
        return ()
    path = resolve(Path(start))
    if path.is_dir():
        return read_stages(path)
    return (_unknown(path.name, f"{path.name}: its training data are unknown, so reported rows may be among them"),)


def _looked_up(folder: Path, info: dict[str, Any]) -> tuple[Stage, ...]:
    """The stages of an old checkpoint without seen.json, from the paths of its data and of --pretrained_path."""
    settings = info["settings"]
    path, start = Path(settings["data_path"]), settings.get("pretrained_path", "")
    before: tuple[Stage, ...] = ()
    if start:
        why = f"{start}: {folder} was trained from it, and it is not here, so reported rows may be among its training data"
        before = stages_before(start) if Path(start).exists() else (_unknown(start, why),)
    try:
        examples = _examples_of(path)
    except (DataError, ValueError, OSError):
        why = f"{folder}: its training data, {path}, are not here, so reported rows may be among them"
        return (*before, _unknown(str(path), why))
    parts = [[e for e in examples if (e.split == "dev") == chosen and e.split != "test"] for chosen in (False, True)]
    trained, chosen = (joined(row_marks(part, [{} for _ in part])) for part in parts)
    old = f"{folder}: of an older version; its training rows were read from {path} and compared by key, file and text only"
    return (*before, Stage(str(path), trained, chosen, old))


def _examples_of(path: Path) -> list[Example]:
    if path.suffix == ".json":
        return [json_example(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    return load_dataset(path).examples


def _unknown(data: str, why: str) -> Stage:
    return Stage(data, joined([]), joined([]), why)


def refuse_seen(folder: str, stages: Sequence[Stage], examples: Sequence[Example], report: Sequence[RowMarks]) -> None:
    """Raise DataError if the model of `folder` was trained or chosen on a reported row, in any of its stages."""
    if common := _overlap_of(stages, report):
        rows, why, data = common
        raise DataError(
            f"{folder}: {len(rows)} of the {len(report)} rows to report are rows of {data} that it was trained or chosen on "
            f"({_listed(rows, examples)}; by {why}); report on rows that it has not seen, or take another model"
        )


def keys_seen(folder: Path, examples: Sequence[Example], store: Store | None) -> set[str]:
    """The keys of those examples, all of one split, that the model of a checkpoint was trained or chosen on."""
    common = _overlap_of(read_stages(folder), row_marks(examples, stored_marks(examples, store)))
    return {examples[i].key for i in common[0]} if common else set()


def _overlap_of(stages: Sequence[Stage], report: Sequence[RowMarks]) -> tuple[list[int], str, str] | None:
    """`overlap` with the rows of all stages, and the data of the stages that have them; None if there is none."""
    all_marks = {kind: set().union(*(m[kind] for stage in stages for _, m in stage.parts())) for kind in (*CLIP, *SAID)}
    rows, why = overlap(report, all_marks)
    if not rows:
        return None
    kinds = CLIP if why != "text and label" else SAID[:1]
    marks = joined(report)
    data = [stage.data for stage in stages if any(m[kind] & marks[kind] for _, m in stage.parts() for kind in kinds)]
    return rows, why, " and ".join(dict.fromkeys(data))


def notes(folder: str, stages: Sequence[Stage], report: Sequence[RowMarks]) -> list[str]:
    """Sentences for a report: what is unknown about the stages, and how many reported texts occur in them."""
    seen_texts = set().union(*(marks["text"] for stage in stages for _, marks in stage.parts()))
    count = sum(marks.get("text") in seen_texts for marks in report)
    repeated = [f"{folder}: reported texts that occur in what it was trained or chosen on: {count} of {len(report)}"]
    return [stage.unknown for stage in stages if stage.unknown] + (repeated if count else [])
