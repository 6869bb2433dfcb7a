"""Which rows a model has seen, and how a row is known again under any name.

    CHECKPOINT/checkpoint.json  "chain": the data of every stage of training, first to last; "seen": the digest of seen.json
    CHECKPOINT/seen.json        by stage, 8-byte digests of the rows that it was trained on and chosen on

So a report on such rows is refused wherever the checkpoint goes, whether or not its training data are still there, and
whichever stage saw them. A row is known by its key, its file, its sound and its picture, each alone; its text says less,
because two people may say `thank you`: only where most reported rows repeat text and label, they are a copy.
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
CLIP = ("key", "file", "sound", "picture")  # any of them in common: the same clip
SAID = ("said", "text")  # text with label, text alone
LISTED = 5
CHUNK = 1024  # rows whose vectors are in memory at a time
RowMarks = dict[str, str]  # of one row: kind -> digest
Marks = dict[str, set[str]]  # of many


# --- rows -------------------------------------------------------------------------------------------------------------


def row_key(row: Mapping[str, Any]) -> str | None:
    """The key of a row of a JSON: what it gives as key, or its clip without the ending; None if it names no clip."""
    if row.get("key"):
        return str(row["key"])
    return str(Path(row["clip"]).with_suffix("")) if row.get("clip") else None


def json_example(row: Mapping[str, Any], label: str | None = None) -> Example:
    """A row of a JSON as it can be known again: key, words, and label or, without one, its answer.

    An instruction about a clip is the question that all clips are asked, so it counts as no words.
    """
    key = row_key(row) or ""
    text = row.get("input") or row.get("caption") or ("" if key else row.get("instruction")) or ""
    return Example(key, row.get("split") or "train", None, str(text), label or row.get("intent") or row.get("output"))


# --- marks ------------------------------------------------------------------------------------------------------------


def vector_marks(vectors: Tensor, present: Tensor) -> list[RowMarks]:
    """Digests of the sound and the picture of each row of vectors (N,M,E); absent (`present` (N,M)) or zero ones have none."""
    columns = {"sound": MODALITIES.index("audio"), "picture": MODALITIES.index("vision")}
    there = present & (vectors != 0).any(-1)
    return [
        {kind: _digest(row[m].numpy().tobytes()) for kind, m in columns.items() if own[m]}
        for row, own in zip(vectors.float(), there, strict=True)
    ]


def stored_marks(examples: Sequence[Example], store: Store | None) -> list[RowMarks]:
    """The same of the clips of a store; nothing for rows that it does not have."""
    found: list[RowMarks] = [{} for _ in examples]
    there = [i for i, example in enumerate(examples) if store is not None and example.key in store]
    for start in range(0, len(there), CHUNK):
        part = there[start : start + CHUNK]
        assert store is not None
        for i, marks in zip(part, vector_marks(*store.read([examples[i].key for i in part])), strict=True):
            found[i] = marks
    return found


def row_marks(examples: Sequence[Example], vectors: Sequence[RowMarks]) -> list[RowMarks]:
    """What each row of one split is known by; `vectors`: what `vector_marks` says of it.

    What different clips of the split share is no mark: silence, black frames, a text that goes with several labels.
    """
    shared, loose = _shared(examples, vectors), _loose_texts(examples)
    rows = []
    for example, own in zip(examples, vectors, strict=True):
        marks = {kind: mark for kind, mark in own.items() if mark not in shared}
        marks |= {"key": _digest(example.key)} if example.key else {}
        marks |= {"file": _digest(str(example.clip.resolve()))} if example.clip else {}
        if text := spoken(example.text):
            marks["text"] = _digest(text)
            marks |= {"said": _digest(f"{text}\0{example.intent or ''}")} if text not in loose else {}
        rows.append(marks)
    return rows


def _shared(examples: Sequence[Example], vectors: Sequence[RowMarks]) -> set[str]:
    """Sounds that come with different pictures and pictures with different sounds; without the other, with different words.

    A clip that stands in the split twice, whatever the words, has both in common with itself, and so stays known.
    """
    beside, words = defaultdict(set), defaultdict(set)
    for example, marks in zip(examples, vectors, strict=True):
        for kind, other in (("sound", "picture"), ("picture", "sound")):
            if kind in marks and other in marks:
                beside[marks[kind]].add(marks[other])
            elif kind in marks:
                words[marks[kind]].add(spoken(example.text))
    alone = {mark for mark, texts in words.items() if len(texts) > 1 and mark not in beside}
    return alone | {mark for mark, others in beside.items() if len(others) > 1}


def _loose_texts(examples: Sequence[Example]) -> set[str]:
    labels = defaultdict(set)
    for example in examples:
        labels[spoken(example.text)].add(example.intent)
    return {text for text, known in labels.items() if len(known) > 1}


def spoken(text: str) -> str:
    """The words of a text, without case and punctuation; the text itself if it has none."""
    return " ".join(re.findall(r"\w+", text.lower())) or normal_text(text)


def joined(rows: Iterable[RowMarks]) -> Marks:
    """The marks of many rows, by kind."""
    found: Marks = {kind: set() for kind in (*CLIP, *SAID)}
    for marks in rows:
        for kind, mark in marks.items():
            found[kind].add(mark)
    return found


def _digest(content: str | bytes) -> str:
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=8).hexdigest()


# --- overlap ----------------------------------------------------------------------------------------------------------


def overlap(report: Sequence[RowMarks], seen: Marks) -> tuple[list[int], str]:
    """Which rows to report are among the seen ones, and by what they are known.

    A clip in common is one too many. Text alone says less; but where most reported rows repeat text and label, files were
    mixed up.
    """
    again = [i for i, marks in enumerate(report) if any(marks[kind] in seen[kind] for kind in CLIP if kind in marks)]
    if again:
        return again, "key, file or embedding"
    copied = [i for i, marks in enumerate(report) if marks.get("said") in seen["said"]]
    return (copied, "text and label") if len(copied) > len(report) / 2 else ([], "")


def refuse_overlap(name: str, other: Sequence[RowMarks], examples: Sequence[Example], report: Sequence[RowMarks]) -> None:
    """Raise DataError if a reported clip is among the rows of another split, under any name; `report`: marks of `examples`."""
    found, why = overlap(report, joined(other))
    if found:
        raise DataError(
            f"{len(found)} of {len(report)} rows to report are also rows to {name}, by {why} ({_listed(found, examples)}): a "
            f"split that is reported on is neither trained on nor selected on; take them out of one of the two tables"
        )


def _listed(rows: Sequence[int], examples: Sequence[Example]) -> str:
    return ", ".join(examples[i].key or f"row {i}" for i in rows[:LISTED]) + (" ..." if len(rows) > LISTED else "")


# --- what a checkpoint has seen ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One training of those that a checkpoint went through: its data, and the marks of what it was trained and chosen on.

    `unknown` says what cannot be known of it; empty where everything is.
    """

    data: str
    trained: Marks
    chosen: Marks
    unknown: str = ""

    def parts(self) -> Iterator[tuple[str, Marks]]:
        yield "trained", self.trained
        yield "chosen", self.chosen


def summary(stages: Sequence[Stage]) -> dict[str, Any]:
    """What checkpoint.json says of the stages: their data, how many keys, and the digest of seen.json."""
    chain = [
        {"data": one.data, **{f"{part}_keys": len(marks["key"]) for part, marks in one.parts()}, "unknown": one.unknown}
        for one in stages
    ]
    return {"chain": chain, "seen": _digest(_encoded(stages))}


def save_stages(folder: Path, stages: Sequence[Stage]) -> None:
    """Write seen.json into a checkpoint's folder."""
    (Path(folder) / SEEN).write_bytes(_encoded(stages))


def _encoded(stages: Sequence[Stage]) -> bytes:
    rows = [
        {"data": one.data, "unknown": one.unknown}
        | {part: {kind: sorted(found) for kind, found in marks.items()} for part, marks in one.parts()}
        for one in stages
    ]
    return (json.dumps(rows, separators=(",", ":")) + "\n").encode()


def read_stages(folder: Path) -> tuple[Stage, ...]:
    """What a checkpoint has seen, stage by stage. The data of one made before this was noted are looked up.

    Raises CheckpointError if seen.json is not the one that was saved.
    """
    info, path = read_info(folder), resolve(folder) / SEEN
    if "seen" not in info:
        return _looked_up(Path(folder), info)
    content = path.read_bytes() if path.is_file() else b""
    if _digest(content) != info["seen"]:
        state = "damaged" if content else "missing"
        raise CheckpointError(f"{path}: {state}; it says what the model was trained on: copy the whole checkpoint folder again")
    return tuple(
        Stage(row["data"], _as_sets(row["trained"]), _as_sets(row["chosen"]), row["unknown"]) for row in json.loads(content)
    )


def _as_sets(marks: Mapping[str, list[str]]) -> Marks:
    return {kind: set(found) for kind, found in marks.items()}


def stages_before(start: str) -> tuple[Stage, ...]:
    """What --pretrained_path has seen: the stages of a checkpoint of ours, nothing that is known of another's adapter."""
    if not start:
        return ()
    path = resolve(Path(start))
    if path.is_dir():
        return read_stages(path)
    return (_unknown(path.name, f"{path.name}: what it was trained on is unknown; that no reported row was among it too"),)


def _looked_up(folder: Path, info: dict[str, Any]) -> tuple[Stage, ...]:
    """The stages of a checkpoint of ours that has no seen.json, by the paths of their data and starts."""
    settings = info["settings"]
    path, start = Path(settings["data_path"]), settings.get("pretrained_path", "")
    before: tuple[Stage, ...] = ()
    if start:
        gone = f"{start}: {folder} began with it, and it is not here; that no reported row was trained on is not known"
        before = stages_before(start) if Path(start).exists() else (_unknown(start, gone),)
    try:
        examples = _examples_of(path)
    except (DataError, ValueError, OSError):
        gone = f"{folder}: its training data, {path}, are not here; that no reported row was trained on is not known"
        return (*before, _unknown(str(path), gone))
    parts = [[e for e in examples if (e.split == "dev") == chosen and e.split != "test"] for chosen in (False, True)]
    trained, chosen = (joined(row_marks(part, [{} for _ in part])) for part in parts)
    old = f"{folder}: of an older version; what it was trained on was looked up in {path}, by key, file and text alone"
    return (*before, Stage(str(path), trained, chosen, old))


def _examples_of(path: Path) -> list[Example]:
    if path.suffix == ".json":
        return [json_example(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    return load_dataset(path).examples


def _unknown(data: str, why: str) -> Stage:
    return Stage(data, joined([]), joined([]), why)


def refuse_seen(folder: str, stages: Sequence[Stage], examples: Sequence[Example], report: Sequence[RowMarks]) -> None:
    """Raise DataError if the model of `folder` was trained or chosen on a reported row, in any of its stages."""
    if found := _overlap_of(stages, report):
        rows, why, data = found
        raise DataError(
            f"{folder}: {len(rows)} of the {len(report)} rows to report are rows of {data} that it was trained or chosen on "
            f"({_listed(rows, examples)}; by {why}); report on rows that it has not seen, or take another model"
        )


def keys_seen(folder: Path, examples: Sequence[Example], store: Store | None) -> set[str]:
    """The keys of those rows of one split that the model of a checkpoint was trained or chosen on."""
    found = _overlap_of(read_stages(folder), row_marks(examples, stored_marks(examples, store)))
    return {examples[i].key for i in found[0]} if found else set()


def _overlap_of(stages: Sequence[Stage], report: Sequence[RowMarks]) -> tuple[list[int], str, str] | None:
    everything = {kind: set().union(*(m[kind] for one in stages for _, m in one.parts())) for kind in (*CLIP, *SAID)}
    rows, why = overlap(report, everything)
    if not rows:
        return None
    kinds = CLIP if why != "text and label" else SAID[:1]
    shares = [one.data for one in stages if any(m[kind] & joined(report)[kind] for _, m in one.parts() for kind in kinds)]
    return rows, why, " and ".join(dict.fromkeys(shares))


def notes(folder: str, stages: Sequence[Stage], report: Sequence[RowMarks]) -> list[str]:
    """What a reader of a report must know: what is unknown of the stages, and how many reported texts they had."""
    said = set().union(*(marks["text"] for one in stages for _, marks in one.parts()))
    again = sum(marks.get("text") in said for marks in report)
    repeated = [f"{folder}: reported texts that occur in what it was trained or chosen on: {again} of {len(report)}"]
    return [one.unknown for one in stages if one.unknown] + (repeated if again else [])
