"""What explain.py prints and writes: answers about a clip or a split."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from imagebind_llm.corpus.seen import keys_seen
from imagebind_llm.critic.checked_claims import CheckedClaim, ClaimCheck, in_words
from imagebind_llm.datasets.readers import DataError, folder_of, load_dataset
from imagebind_llm.encoder.clip_encoder import ClipEncoder
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain.explainer import MAX_NEW_TOKENS, Explainer, Explanation, batch_slices
from imagebind_llm.explain.scoring import ScoringSettings, side_by_side
from imagebind_llm.files import json_lines, write_json_lines
from imagebind_llm.flags import flag
from imagebind_llm.records import Example


@dataclass(frozen=True)
class ExplainSettings:
    """The flags of explain.py."""

    checkpoint: str = flag(help="a checkpoint folder of engine_finetune.py, such as runs/demo/itsl/best")
    clip: str = flag("", "video file to explain, together with --text")
    text: str = flag("", "transcript of the clip")
    data_path: str = flag("", "data set to explain instead of --clip; needs --emb_path")
    emb_path: str = flag("", "embedding store of --data_path, made by avt_get_emb.py")
    key: str = flag("", "key of the clip of --data_path to explain")
    batch: str = flag("", "JSONL file for answers to all clips of --split; an interrupted run continues")
    split: str = flag("test", "split that --batch explains")
    limit: int = flag(0, "number of clips of the split, from the first; 0: all")
    llama_model_path: str = flag("", "path of the LLaMA; if not given, the one that the checkpoint names")
    encoder_weights: str = flag("", "weights of the encoder for --clip; if not given, checkpoints/ENCODER.safetensors or .pth")
    max_new_tokens: int = flag(MAX_NEW_TOKENS, "largest number of tokens of a rationale")
    best_of: int = flag(0, "rationales to sample in addition to the greedy one; the judge picks the best; 0: greedy only")
    temperature: float = flag(0.6, "sampling temperature of --best_of")
    judge: str = flag("", "checkpoint folder with the judge of claims and of --best_of; if not given, --checkpoint")
    batch_size: int = flag(32, "clips per batch")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    dtype: str = flag("auto", "dtype of frozen weights; auto: bfloat16 on a GPU, else float32", ("auto", "float32", "bfloat16"))

    def __post_init__(self) -> None:
        if bool(self.clip or (self.text and not self.data_path)) == bool(self.data_path):
            raise ValueError(
                'pass either --clip FILE --text "...", or --data_path and --emb_path with --key or --batch'
            )
        if self.data_path and bool(self.key) == bool(self.batch):
            raise ValueError("--data_path needs either --key KEY for one clip, or --batch FILE for all of a split")
        if self.max_new_tokens < 1 or self.batch_size < 1 or self.limit < 0 or self.best_of < 0:
            raise ValueError("--max_new_tokens and --batch_size must be at least 1, --limit and --best_of at least 0")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"--temperature {self.temperature}: above 0, and finite")


def embed_clip(explainer: Explainer, example: Example, settings: ExplainSettings) -> tuple[Tensor | None, Tensor | None]:
    """Embeddings (1,M,E) and presence (1,M) of a clip, made in the same way as those that the model was trained on.

    A modality that cannot be read is absent, and the reason is printed. Raises DataError if none can be read.
    """
    if not explainer.needs_embeddings or explainer.store_identity is None:
        return None, None
    encoder = ClipEncoder.load(explainer.store_identity, settings.encoder_weights, explainer.device)
    encoded = encoder.encode(example, explainer.modalities)
    for failure in encoded.failures:
        print(f"not used, {failure.modality}: {failure.reason}")
    if not encoded.present.any():
        reasons = "; ".join(failure.reason for failure in encoded.failures) or "no words"
        raise DataError(f"{example.clip}: nothing of it can be used ({reasons}); pass another --clip, or --text")
    return encoded.vectors, encoded.present


def shown(
    explanation: Explanation, labels: Sequence[str], example: Example, claims: Sequence[CheckedClaim] | None = None
) -> str:
    """The answer as printed text; `claims`: the checked claims of the rationale, if there is a judge."""
    lines = [f"Intent:     {explanation.intent} ({float(explanation.probabilities.max()):.2f})"]
    lines.append("Or:         " + ", ".join(f"{label} ({p:.2f})" for label, p in explanation.runners_up(labels)))
    lines.append(f"Rationale:  {explanation.rationale}{'' if explanation.finished else ' ... (cut at --max_new_tokens)'}")
    if claims is not None:
        lines.append(f"Checked:    {in_words(claims) or 'no claim'}")
    if not explanation.consistent:
        other = labels[int(explanation.criticised.argmax())]
        lines.append(f"Careful:    the rationale speaks for {other} rather than {explanation.intent}")
    if example.intent is not None:
        lines.append(f"Labelled:   {example.intent}")
    return "\n".join(lines)


def answer_split(explainer: Explainer, settings: ExplainSettings, check: ClaimCheck | None = None) -> None:
    """Write a line of JSON for every clip of a split, with checked claims; lines of an interrupted run are kept.

    Answers of another model in the file are moved to NAME.old.jsonl (or .old2, .old3 ...). `seen` in a line says whether the
    model was trained or chosen on that clip; such answers are no results, and scores say so. Raises DataError if the file holds
    anything but answers about clips of this split.
    """
    whole = load_dataset(settings.data_path, (settings.split,)).splits[settings.split]
    examples = whole[: settings.limit or None]
    path = Path(settings.batch)
    refuse_other_content(path, settings.split, {example.key for example in whole})
    choice = (settings.best_of, settings.temperature, settings.judge) if settings.best_of else (None, None, None)
    stamp: dict[str, Any] = {"model": explainer.digest, "max_new_tokens": settings.max_new_tokens}
    stamp |= dict(zip(("best_of", "temperature", "judge"), choice, strict=True))
    done, others = _written(path, stamp)
    if others:
        old = path.replace(_unused_name(path))
        print(f"{path} held {others} answers of another model or --max_new_tokens; they are in {old} now")
        _write(path, whole, done)
    todo = [example for example in examples if example.key not in done]
    store = open_store(explainer, settings)
    seen_keys = keys_seen(Path(settings.checkpoint), whole, store)
    with tqdm(total=len(examples), initial=len(examples) - len(todo), unit="clip", desc="explaining", smoothing=0.1) as bar:
        for part in (todo[rows] for rows in batch_slices(len(todo), settings.batch_size)):
            vectors, present = store.read([e.key for e in part]) if store else (None, None)
            explanations = explainer.explain(part, vectors, present, settings.max_new_tokens)
            for example, explanation in zip(part, explanations, strict=True):
                done[example.key] = answer_row(explainer, example, explanation) | stamp | {"seen": example.key in seen_keys}
            _write(path, whole, done)
            bar.update(len(part))
    if check and store:
        for example in examples:
            vectors, present = store.read([example.key])
            done[example.key]["claims"] = [asdict(c) for c in check(done[example.key]["rationale"], vectors[0], present[0])]
        _write(path, whole, done)
    unfinished = sum(not done[example.key]["finished"] for example in examples)
    doubtful = sum(not done[example.key]["consistent"] for example in examples)
    print(f"{len(examples)} answers in {path}; {doubtful} whose rationale speaks for another intent (consistent: false)")
    if unfinished:
        print(f"{unfinished} rationales were cut at --max_new_tokens {settings.max_new_tokens}")


def scores_beside(data_path: str, answers: Sequence[Path], split: str) -> tuple[dict[str, dict[str, float | None]], str]:
    """Scores of files of answers together with those of references, shuffled references and templates, and a sentence on them.

    Both are empty without references; with too few references the sentence gives the reason why there are no scores.
    """
    if not (folder_of(data_path) / "rationales.jsonl").is_file() or split not in ("dev", "test"):
        return {}, ""
    try:
        return side_by_side(ScoringSettings(data_path, candidates=tuple(map(str, answers)), split=split))
    except ValueError as error:  # the answers are written, and worth more than their scores
        return {}, f"the rationales have no scores: {error}"


def answer_row(explainer: Explainer, example: Example, explanation: Explanation) -> dict:
    """A line of the file: the fields of rationales.jsonl, and the model's probabilities."""
    return {
        "key": example.key,
        "gold": example.intent,
        "intent": explanation.intent,
        "probability": round(float(explanation.probabilities.max()), 5),
        "runners_up": [[label, round(p, 5)] for label, p in explanation.runners_up(explainer.taxonomy.labels)],
        "rationale": explanation.rationale,
        "finished": explanation.finished,
        "consistent": explanation.consistent,
        "criticised": explainer.taxonomy.labels[int(explanation.criticised.argmax())],
    }


def _write(path: Path, examples: Sequence[Example], rows: dict[str, dict]) -> None:
    """Write the rows to a file, in the order of the examples; examples without a row are skipped."""
    write_json_lines(path, (rows[example.key] for example in examples if example.key in rows))


def refuse_other_content(path: Path, split: str, keys: Collection[str]) -> None:
    """Raise DataError if a file holds lines that are not answers about the clips `keys`, which would be overwritten."""
    other = [line for line, content in json_lines(path) if not isinstance(content, dict) or content.get("key") not in keys]
    if other:
        raise DataError(
            f"{path}: {len(other)} of its lines are no answers about clips of split {split}, {other[0][:60]!r} for one; "
            f"they stay as they are: give another file for this split"
        )


def _written(path: Path, stamp: dict) -> tuple[dict[str, dict], int]:
    """The rows of a file with this stamp by key, and the number of others."""
    rows = [row for _, row in json_lines(path)]
    matching = {row["key"]: row for row in rows if {name: row.get(name) for name in stamp} == stamp}
    return matching, sum({name: row.get(name) for name in stamp} != stamp for row in rows)


def _unused_name(path: Path) -> Path:
    """NAME.old.jsonl or, if that exists, NAME.old2.jsonl and so on."""
    names = (path.with_suffix(f".old{number}{path.suffix}") for number in ("", *range(2, 10_000)))
    return next(name for name in names if not name.exists())


def open_store(explainer: Explainer, settings: ExplainSettings) -> Store | None:
    """The store --emb_path, checked against the model; None for a model of text only. Raises DataError if it is not given."""
    if not explainer.needs_embeddings:
        return None
    if not settings.emb_path:
        raise DataError(
            f"this model uses {' '.join(explainer.modalities)}: pass --emb_path, a store made by: "
            f"python avt_get_emb.py --data_path {settings.data_path} --output_dir EMB"
        )
    store = Store(Path(settings.emb_path))
    explainer.check_store(store)
    return store
