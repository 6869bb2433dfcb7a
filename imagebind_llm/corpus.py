"""What is trained on: a MIntRec-like folder, a JSON of instructions or a JSON of captions, as token sequences by split.

MIntRec, MIntRec2.0   every clip asks for its intent and, where rationales.jsonl has one, for its rationale
instructions.json     [{"instruction", "input", "output"}, ...]; optionally "key" or "clip", "intent", "rationale", "split"
captions.json         [{"key" or "clip", "caption"}, ...]; optionally "split": the first stage
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from imagebind_llm.config import MODALITIES, NO_MODALITY
from imagebind_llm.datasets import DataError, load_dataset, rationale_rows
from imagebind_llm.instructions import LEAD, answer_text, caption_exchange, clip_exchange, encode_exchange, instruction_exchange
from imagebind_llm.labels import MINTREC, MINTREC2, Taxonomy
from imagebind_llm.records import Example, Exchange, Sequence
from imagebind_llm.settings import TrainSettings
from imagebind_llm.store import Store
from imagebind_llm.tokenizers import LlamaTokenizer


@dataclass(frozen=True)
class Corpus:
    """Token sequences by split, the taxonomy of their intents (None: there are none), and the embeddings of their clips."""

    splits: dict[str, list[Sequence]]
    taxonomy: Taxonomy | None
    store: Store | None
    modalities: tuple[str, ...]  # that the model may know
    taught: list[Sequence]  # the rows of train that are trained on: all but for --limit
    captions: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # of train and dev clips: {split: {key: texts}}

    @property
    def headed(self) -> list[Sequence]:
        """The prompts of all train rows with an intent, where --limit keeps some of them from being trained on: what the intent
        head is supervised on while answers are criticised."""
        if len(self.taught) == len(self.splits["train"]):
            return []
        return [_prompt_of(row) for row in self.splits["train"] if row.intent is not None]

    @property
    def n_cut(self) -> int:
        """Sequences that lost context to fit."""
        return sum(sequence.cut for rows in self.splits.values() for sequence in rows)


def load_corpus(settings: TrainSettings, tokenizer: LlamaTokenizer, max_len: int) -> Corpus:
    """Read, check and tokenise everything. Raises DataError, StoreError, InstructionError."""
    path = Path(settings.data_path)
    if path.suffix == ".json":
        exchanges, taxonomy = _read_json(path, settings)
    else:
        if settings.stage == "pretrain":
            raise DataError(f"--stage pretrain: expected a JSON of captions, got {path}; the demo world's is captions.json")
        exchanges, taxonomy = _read_folder(path, settings)
    modalities = tuple(name for name in MODALITIES if name in settings.modalities)
    store = _open_store(settings, exchanges) if any(e.embedded for rows in exchanges.values() for e in rows) else None
    splits = {name: [encode_exchange(e, tokenizer, max_len) for e in rows] for name, rows in exchanges.items()}
    captions = read_captions(Path(settings.captions), splits) if settings.captions else {}
    return Corpus(splits, taxonomy, store, modalities if store else (), _spread(splits["train"], settings.limit), captions)


def _prompt_of(row: Sequence) -> Sequence:
    """Without its answer, and so without a target for the decoder."""
    return replace(row, ids=row.ids[: row.n_prompt], rationale=None)


def _spread(rows: list[Sequence], limit: int) -> list[Sequence]:
    """So many rows, evenly spread; 0: all."""
    return [rows[i * len(rows) // limit] for i in range(limit)] if 0 < limit < len(rows) else rows


def _open_store(settings: TrainSettings, exchanges: dict[str, list[Exchange]]) -> Store:
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


def _clips_of(settings: TrainSettings) -> str:
    path = Path(settings.data_path)
    return str(path if path.is_dir() else path.parent)


# --- folders ----------------------------------------------------------------------------------------------------------


def _read_folder(path: Path, settings: TrainSettings) -> tuple[dict[str, list[Exchange]], Taxonomy | None]:
    dataset = load_dataset(path)
    if dataset.taxonomy is None:
        raise DataError(
            f"{path}: a plain folder of clips has no splits and labels to train on; expected MIntRec's or MIntRec2.0's "
            f"train.tsv and dev.tsv, or a JSON of instructions"
        )
    if "train" not in dataset.splits:
        raise DataError(f"{path}: no train.tsv; there are: {', '.join(dataset.splits)}")
    unknown = dataset.taxonomy.out_of_scope
    if unknown and any(example.intent == unknown for example in dataset.examples):
        raise DataError(
            f"{path}: holds rows out of scope ({unknown}), which no class stands for; train on the in-scope release"
        )
    splits = with_rationales(dataset.splits, rationales_file(dataset.root, settings.rationales))
    order, modalities = settings.answer_order, settings.modalities
    asked = {name: [ask(e, dataset.taxonomy, modalities, order) for e in rows] for name, rows in splits.items()}
    return asked, dataset.taxonomy


def ask(example: Example, taxonomy: Taxonomy | None, modalities: tuple[str, ...], order: str = "label") -> Exchange:
    """A clip's exchange as the modalities allow it: the words are in the prompt with "text" or with "none"."""
    alone = NO_MODALITY in modalities
    return clip_exchange(example, taxonomy, alone or "text" in modalities, not alone, order)


def rationales_file(root: Path, named: str) -> Path | None:
    """The file that --rationales names, or the one beside the data, if there is one."""
    if named and not Path(named).is_file():
        raise DataError(f"--rationales {named}: no such file; expected JSON lines of {{key, rationale}}")
    beside = root / "rationales.jsonl"
    return Path(named) if named else beside if beside.is_file() else None


def with_rationales(splits: dict[str, list[Example]], file: Path | None) -> dict[str, list[Example]]:
    """The examples with the rationales of a JSONL of {key, rationale}; those that it does not have go without."""
    if file is None:
        return splits
    known = {key: row["rationale"] for key, row in rationale_rows(file).items()}
    return {name: [replace(e, rationale=known.get(e.key)) for e in rows] for name, rows in splits.items()}


# --- JSON -------------------------------------------------------------------------------------------------------------


def _read_json(path: Path, settings: TrainSettings) -> tuple[dict[str, list[Exchange]], Taxonomy | None]:
    rows = _json_rows(path)
    field = "caption" if settings.stage == "pretrain" else "instruction"
    lacking = [number for number, row in enumerate(rows) if not isinstance(row.get(field), str)]
    if lacking:
        other = "finetune" if field == "caption" else "pretrain"
        raise DataError(
            f"{path}, row {lacking[0]}: expected a {field} for --stage {settings.stage}, got the fields "
            f"{', '.join(rows[lacking[0]]) or 'of an empty object'}; {len(lacking)} rows lack it (is it for --stage {other}?)"
        )
    taxonomy = _taxonomy_of(path, rows)
    splits: dict[str, list[Exchange]] = {}
    for number, row in enumerate(rows):
        exchange = _json_exchange(path, number, row, taxonomy, settings)
        splits.setdefault(str(row.get("split", "train")), []).append(exchange)
    if "train" not in splits:
        raise DataError(f"{path}: no row of split train; there are: {', '.join(splits)}")
    return splits, taxonomy


def _json_rows(path: Path, flag: str = "--data_path") -> list[dict]:
    if not path.is_file():
        raise DataError(f"{flag} {path}: no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects with at least one in it, got {type(rows).__name__}")
    return rows


def read_captions(path: Path, splits: dict[str, list[Sequence]]) -> dict[str, dict[str, list[str]]]:
    """Captions of the train and dev clips among `splits`, by split and key; those of other clips are left out.

    Raises DataError for a caption without key or text, for one whose split is not its clip's, and if train has none.
    """
    known = {row.key: split for split, rows in splits.items() for row in rows}
    found: dict[str, dict[str, list[str]]] = {"train": {}, "dev": {}}
    for number, row in enumerate(_json_rows(path, "--captions")):
        key = row.get("key") or (str(Path(row["clip"]).with_suffix("")) if row.get("clip") else None)
        if not key or not isinstance(row.get("caption"), str):
            raise DataError(f"{path}, row {number}: expected key (or clip) and caption, got the fields {', '.join(row)}")
        split = str(row.get("split", "train"))
        if known.get(key, split) != split:
            raise DataError(
                f"{path}, row {number}: {key} is a clip of {known[key]}, its caption one of {split}; a caption's split must be "
                f"its clip's, so that nothing is fitted on what is reported on"
            )
        if key in known and split in found:
            found[split].setdefault(key, []).append(row["caption"])
    if not found["train"]:
        raise DataError(f"--captions {path}: no caption of a train clip of this data; keys must be those of the clips")
    return found


def _taxonomy_of(path: Path, rows: list[dict]) -> Taxonomy | None:
    """The first taxonomy that knows every intent of the file."""
    labels = {str(row["intent"]) for row in rows if row.get("intent") is not None}
    for taxonomy in (MINTREC, MINTREC2):
        if all(taxonomy.knows(label) for label in labels):
            return taxonomy if labels else None
    strange = sorted(label for label in labels if not MINTREC2.knows(label)) or sorted(labels)
    raise DataError(f"{path}: intents {', '.join(strange[:5])} are in neither MIntRec's nor MIntRec2.0's taxonomy together")


def _json_exchange(path: Path, number: int, row: dict, taxonomy: Taxonomy | None, settings: TrainSettings) -> Exchange:
    clip = row.get("key") or (str(Path(row["clip"]).with_suffix("")) if row.get("clip") else None)
    if settings.stage == "pretrain":
        if clip is None:
            raise DataError(f"{path}, row {number}: a caption needs the key (or clip) of what it describes")
        return caption_exchange(clip, row["caption"])
    label = taxonomy.canonical(row["intent"]) if taxonomy and row.get("intent") is not None else None
    answer = row.get("output") or (answer_text(label, row.get("rationale"), settings.answer_order) if label else "")
    if not isinstance(answer, str) or not answer:
        raise DataError(f"{path}, row {number}: expected an output (or an intent), got neither")
    lead = LEAD[settings.answer_order]
    if not label or not answer.startswith(lead):
        lead = ""  # else it is the prompt's end, as with clips: the head reads where the decoder chooses the label
    known = {"intent": taxonomy.index(label) if taxonomy and label else None, "rationale": row.get("rationale")}
    embedded = clip is not None and NO_MODALITY not in settings.modalities
    given = str(row.get("input") or "")
    return instruction_exchange(
        clip or f"row {number}", row["instruction"], given, answer.removeprefix(lead), lead, embedded=embedded, **known
    )
