"""Reads training data as token sequences by split: a data set of clips, a JSON of instructions or a JSON of captions.

MIntRec, MIntRec2.0, a table with splits and labels: a clip's answer is its intent and, if rationales.jsonl has one, a rationale
instructions.json     [{"instruction", "input", "output"}, ...]; optionally "key" or "clip", "intent", "rationale", "split"
captions.json         [{"key" or "clip", "caption"}, ...]; optionally "split"; for --stage pretrain
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from imagebind_llm.config import MODALITIES, NO_MODALITY
from imagebind_llm.corpus.seen import (
    Stage,
    joined,
    json_example,
    notes,
    refuse_overlap,
    refuse_seen,
    row_key,
    row_marks,
    stages_before,
    stored_marks,
)
from imagebind_llm.datasets.readers import SPLITS, DataError, load_dataset, rationale_rows
from imagebind_llm.encoder.store import Store
from imagebind_llm.itsl.checkpoint import check_store, read_info, resolve
from imagebind_llm.itsl.instructions import (
    LEAD,
    answer_text,
    caption_exchange,
    clip_exchange,
    encode_exchange,
    encode_prompt,
    instruction_exchange,
)
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.records import Example, Exchange, Sequence
from imagebind_llm.taxonomy import MINTREC, MINTREC2, Taxonomy

TEXTS = ("instruction", "output", "caption", "key", "clip", "intent", "rationale", "split")  # text fields of a row of JSON
# exchanges by split, examples by split (to recognise rows, seen.py), the taxonomy of their intents
Read = tuple[dict[str, list[Exchange]], dict[str, list[Example]], Taxonomy | None]


@dataclass(frozen=True)
class CorpusSettings:
    """The flags of engine_finetune.py that decide which rows are read and how."""

    data_path: str
    emb_path: str
    stage: str
    pretrained_path: str
    modalities: tuple[str, ...]
    rationales: str
    limit: int
    answer_order: str
    captions: str
    w_caption: float
    w_contrast: float


@dataclass(frozen=True)
class Corpus:
    """The data of a training run."""

    splits: dict[str, list[Sequence]]
    taxonomy: Taxonomy | None  # None: no row has an intent
    store: Store | None  # None: no row has a clip
    modalities: tuple[str, ...]  # those that the model may see
    train_rows: list[Sequence]  # the rows of train that are trained on: all, or --limit of them
    prompts: dict[str, list[list[int]]]  # token ids of each prompt of dev and test, as in inference, whatever its answer
    stages: tuple[Stage, ...]  # what this training and those before it train and choose on
    notes: list[str]  # sentences for a report, see `seen.notes`
    captions: dict[str, dict[str, list[str]]]  # of train and dev clips: {split: {key: texts}}
    caption_rows: list[Sequence]  # captions of train clips to mix in, with --w_caption

    @property
    def head_rows(self) -> list[Sequence]:
        """The prompts of all train rows with an intent, which supervise the intent head during self-critical training; empty if
        --limit excludes no row."""
        if len(self.train_rows) == len(self.splits["train"]):
            return []
        return [_prompt_of(row) for row in self.splits["train"] if row.intent is not None]

    @property
    def n_cut(self) -> int:
        """Number of sequences whose prompt was shortened."""
        return sum(sequence.cut for rows in self.splits.values() for sequence in rows)


def load_corpus(settings: CorpusSettings, tokenizer: LlamaTokenizer, max_len: int) -> Corpus:
    """Read, check and tokenise the data.

    Raises DataError, StoreError or InstructionError for bad data, also if test has rows that were trained or chosen on in any
    stage; CheckpointError if --pretrained_path was trained on other embeddings.
    """
    path = Path(settings.data_path)
    if path.suffix == ".json":
        exchanges, examples, taxonomy = _read_json(path, settings)
    else:
        if settings.stage == "pretrain":
            raise DataError(f"--stage pretrain: expected a JSON of captions, got {path}; the demo world's is captions.json")
        exchanges, examples, taxonomy = _read_folder(path, settings)
    modalities = tuple(name for name in MODALITIES if name in settings.modalities)
    store = _open_store(settings, exchanges) if any(e.embedded for rows in exchanges.values() for e in rows) else None
    if store and settings.pretrained_path and resolve(Path(settings.pretrained_path)).is_dir():
        check_store(store, read_info(Path(settings.pretrained_path)).get("store"))
    stages, warnings = _stages(settings, examples, store, taxonomy is not None)
    splits = {name: [encode_exchange(e, tokenizer, max_len) for e in rows] for name, rows in exchanges.items()}
    scored = {name: rows for name, rows in exchanges.items() if name in ("dev", "test")}
    prompts = {name: [encode_prompt(e, tokenizer, max_len) for e in rows] for name, rows in scored.items()}
    train_rows = _evenly_spaced(splits["train"], settings.limit)
    if taxonomy is not None and all(row.intent is None for row in train_rows):
        raise DataError(
            f"{path}: none of the {len(train_rows)} rows to train on has an intent, so the intents of other rows cannot be "
            f"learnt; give rows of train an intent, or take it out of the others"
        )
    captions = read_captions(Path(settings.captions), splits) if settings.captions else {}
    if settings.w_caption and store is None:
        raise DataError(f"--w_caption {settings.w_caption:g}: expected rows with clips, {path} has none; leave it out")
    if settings.w_contrast and (store is None or taxonomy is None):
        raise DataError(f"--w_contrast {settings.w_contrast:g}: expected clips with intents, {path} has none; leave it out")
    caption_rows: list[Sequence] = []
    if settings.w_caption:
        exchanges_of = [caption_exchange(key, text) for key, texts in captions.get("train", {}).items() for text in texts]
        caption_rows = [replace(encode_exchange(e, tokenizer, max_len), caption=True) for e in exchanges_of]
    modalities = modalities if store else ()
    return Corpus(splits, taxonomy, store, modalities, train_rows, prompts, stages, warnings, captions, caption_rows)


def _stages(
    settings: CorpusSettings, examples: dict[str, list[Example]], store: Store | None, reports: bool
) -> tuple[tuple[Stage, ...], list[str]]:
    """The stages of this training and those before it, and sentences on them for a report.

    All of train counts even with --limit, because the verifier reads it. Raises DataError if test is reported and one of its
    rows was seen.
    """
    before = stages_before(settings.pretrained_path)
    marks = {name: row_marks(rows, stored_marks(rows, store)) for name, rows in examples.items()}
    warnings = []
    if reports and "test" in marks:
        for name in ("train", "dev"):
            refuse_overlap(name, marks.get(name, []), examples["test"], marks["test"])
        refuse_seen(f"--pretrained_path {settings.pretrained_path}", before, examples["test"], marks["test"])
        warnings = notes(settings.pretrained_path, before, marks["test"])
    stage = Stage(settings.data_path, joined(marks["train"]), joined(marks.get("dev", [])))
    return (*before, stage), warnings


def _prompt_of(row: Sequence) -> Sequence:
    """The row without its answer, so that only its intent is a target."""
    return replace(row, ids=row.ids[: row.n_prompt], rationale=None)


def _evenly_spaced(rows: list[Sequence], limit: int) -> list[Sequence]:
    """`limit` evenly spaced rows; all rows if it is 0."""
    return [rows[i * len(rows) // limit] for i in range(limit)] if 0 < limit < len(rows) else rows


def _open_store(settings: CorpusSettings, exchanges: dict[str, list[Exchange]]) -> Store:
    command = f"python avt_get_emb.py --data_path {_clips_of(settings)} --output_dir {settings.emb_path or 'EMB'}"
    if not settings.emb_path:
        raise DataError(
            f"--modalities {' '.join(settings.modalities)} needs embeddings: pass --emb_path, a store made by: {command}; "
            f"or train on the words alone with --modalities none"
        )
    store = Store(Path(settings.emb_path))
    missing = [e.key for rows in exchanges.values() for e in rows if e.embedded and e.key not in store]
    if missing:
        raise DataError(
            f"{settings.emb_path}: no embedding for {len(missing)} clips ({', '.join(missing[:5])}); make them with: {command}"
        )
    return store


def _clips_of(settings: CorpusSettings) -> str:
    path = Path(settings.data_path)
    return str(path if path.is_dir() else path.parent)


# --- folders ----------------------------------------------------------------------------------------------------------


def _read_folder(path: Path, settings: CorpusSettings) -> Read:
    dataset = load_dataset(path)
    if dataset.taxonomy is None:
        raise DataError(
            f"{path}: no splits and labels to train on; expected MIntRec's or MIntRec2.0's train.tsv and dev.tsv, a table of "
            f"your own with the columns path, text, split (train, dev, test) and label, or a JSON of instructions"
        )
    if dotted := [label for label in dataset.taxonomy.labels if "." in label]:
        raise DataError(f"{path}: the label {dotted[0]!r} has a full stop, which ends a label in an answer; write it without")
    if "train" not in dataset.splits:
        raise DataError(f"{path}: no train.tsv; there are: {', '.join(dataset.splits)}")
    unknown = dataset.taxonomy.out_of_scope
    if unknown and any(example.intent == unknown for example in dataset.examples):
        raise DataError(
            f"{path}: holds rows out of scope ({unknown}), which no class stands for; train on the in-scope release"
        )
    splits = with_rationales(dataset.splits, rationales_file(dataset.root, settings.rationales))
    order, modalities = settings.answer_order, settings.modalities
    exchanges = {name: [ask(e, dataset.taxonomy, modalities, order) for e in rows] for name, rows in splits.items()}
    return exchanges, splits, dataset.taxonomy


def ask(example: Example, taxonomy: Taxonomy | None, modalities: tuple[str, ...], order: str = "label") -> Exchange:
    """The exchange about a clip for a model of these modalities: its words are in the prompt with "text" or "none"."""
    text_only = NO_MODALITY in modalities
    return clip_exchange(example, taxonomy, text_only or "text" in modalities, not text_only, order)


def rationales_file(root: Path, path: str) -> Path | None:
    """The file that --rationales names or, if `path` is "", rationales.jsonl in the data folder, if it exists."""
    if path and not Path(path).is_file():
        raise DataError(f"--rationales {path}: no such file; expected JSON lines of {{key, rationale}}")
    default = root / "rationales.jsonl"
    return Path(path) if path else default if default.is_file() else None


def with_rationales(splits: dict[str, list[Example]], file: Path | None) -> dict[str, list[Example]]:
    """The examples with the rationales of a JSONL file of {key, rationale}; None for those that are not in it."""
    if file is None:
        return splits
    rationales = {key: row["rationale"] for key, row in rationale_rows(file).items()}
    return {name: [replace(e, rationale=rationales.get(e.key)) for e in rows] for name, rows in splits.items()}


# --- JSON -------------------------------------------------------------------------------------------------------------


def _read_json(path: Path, settings: CorpusSettings) -> Read:
    rows = _json_rows(path)
    field = "caption" if settings.stage == "pretrain" else "instruction"
    lacking = [number for number, row in enumerate(rows) if not isinstance(row.get(field), str)]
    if lacking:
        other = "finetune" if field == "caption" else "pretrain"
        raise DataError(
            f"{path}, row {lacking[0]}: expected a {field} for --stage {settings.stage}, got the fields "
            f"{', '.join(rows[lacking[0]]) or 'of an empty object'}; {len(lacking)} rows lack it (is it for --stage {other}?)"
        )
    taxonomy = _taxonomy_of(path, rows) if settings.stage == "finetune" else None  # captions have no intents to learn
    splits: dict[str, list[Exchange]] = {}
    examples: dict[str, list[Example]] = {}
    for number, row in enumerate(rows):
        exchange = _json_exchange(path, number, row, taxonomy, settings)
        label = taxonomy.labels[exchange.intent] if taxonomy and exchange.intent is not None else None
        example = json_example(row, label)
        splits.setdefault(example.split, []).append(exchange)
        examples.setdefault(example.split, []).append(example)
    if unread := [name for name in splits if name not in SPLITS]:
        raise DataError(f"{path}: rows of split {', '.join(unread)}, which nothing would read; expected {', '.join(SPLITS)}")
    if "train" not in splits:
        raise DataError(f"{path}: no row of split train; there are: {', '.join(splits)}")
    return splits, examples, taxonomy


def _json_rows(path: Path, flag: str = "--data_path") -> list[dict]:
    if not path.is_file():
        raise DataError(f"{flag} {path}: no such file; expected a JSON list of objects")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects with at least one in it, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        if other := [name for name in TEXTS if not isinstance(row.get(name), str | None)]:
            raise DataError(f"{path}, row {number}: expected a text as {other[0]}, got {row[other[0]]!r}")
    return rows


def read_captions(path: Path, splits: dict[str, list[Sequence]]) -> dict[str, dict[str, list[str]]]:
    """Captions of the train and dev clips of `splits`, by split and key, without those of other clips.

    Raises DataError for a caption without key or text, for one whose split is not that of its clip, and if train has none.
    """
    split_of = {row.key: split for split, rows in splits.items() for row in rows}
    captions: dict[str, dict[str, list[str]]] = {"train": {}, "dev": {}}
    for number, row in enumerate(_json_rows(path, "--captions")):
        key = row_key(row)
        if not key or not isinstance(row.get("caption"), str):
            raise DataError(f"{path}, row {number}: expected key (or clip) and caption, got the fields {', '.join(row)}")
        split = str(row.get("split", "train"))
        if split_of.get(key, split) != split:
            raise DataError(
                f"{path}, row {number}: {key} is a clip of {split_of[key]}, its caption one of {split}; a caption's split must "
                f"be its clip's, so that nothing is fitted on what is reported on"
            )
        if key in split_of and split in captions:
            captions[split].setdefault(key, []).append(row["caption"])
    if not captions["train"]:
        raise DataError(f"--captions {path}: no caption of a train clip of this data; keys must be those of the clips")
    return captions


def _taxonomy_of(path: Path, rows: list[dict]) -> Taxonomy | None:
    """The first taxonomy that has every intent of the file. Raises DataError if none has, or for an intent out of scope."""
    labels = {row["intent"] for row in rows if row.get("intent") is not None}
    for taxonomy in (MINTREC, MINTREC2):
        if all(taxonomy.knows(label) for label in labels):
            if unknown := [label for label in labels if taxonomy.canonical(label) == taxonomy.out_of_scope]:
                places = [number for number, row in enumerate(rows) if row.get("intent") in unknown]
                raise DataError(
                    f"{path}, row {places[0]}: intent {unknown[0]} is out of scope, which no class stands for; take such rows "
                    f"out ({len(places)} of {len(rows)}), or leave out their intent and give them an output"
                )
            return taxonomy if labels else None
    unknown = sorted(label for label in labels if not MINTREC2.knows(label)) or sorted(labels)
    raise DataError(
        f"{path}: intents {', '.join(map(repr, unknown[:5]))} are in neither MIntRec's nor MIntRec2.0's taxonomy together"
    )


def _json_exchange(path: Path, number: int, row: dict, taxonomy: Taxonomy | None, settings: CorpusSettings) -> Exchange:
    clip = row_key(row)
    if settings.stage == "pretrain":
        if clip is None:
            raise DataError(f"{path}, row {number}: a caption needs the key (or clip) of what it describes")
        return caption_exchange(clip, row["caption"])
    label = taxonomy.canonical(row["intent"]) if taxonomy and row.get("intent") is not None else None
    answer = row.get("output") or (answer_text(label, row.get("rationale"), settings.answer_order) if label else "")
    if not answer and row.get("output") is None:  # an output "" is allowed, Alpaca's file has some: the end token alone
        raise DataError(f"{path}, row {number}: expected an output (or an intent), got neither")
    lead = LEAD[settings.answer_order]
    if not label or not answer.startswith(lead):
        lead = ""  # else the prompt ends with it, as with clips, so that the head reads where the decoder predicts the label
    fields = {"intent": taxonomy.index(label) if taxonomy and label else None, "rationale": row.get("rationale")}
    embedded = clip is not None and NO_MODALITY not in settings.modalities
    context = str(row.get("input") or "")
    return instruction_exchange(
        clip or f"row {number}", row["instruction"], context, answer.removeprefix(lead), lead, embedded=embedded, **fields
    )
