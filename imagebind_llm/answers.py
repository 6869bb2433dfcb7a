"""Answers about clips, for people and for files: what explain.py prints and writes."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from imagebind_llm.clip_encoder import ClipEncoder
from imagebind_llm.datasets import DataError, load_dataset
from imagebind_llm.inference import Explainer, Explanation
from imagebind_llm.records import Example
from imagebind_llm.scoring import side_by_side
from imagebind_llm.seen import keys_seen
from imagebind_llm.settings import ExplainSettings, ScoringSettings
from imagebind_llm.store import Store, write_atomic


def embed_clip(explainer: Explainer, example: Example, settings: ExplainSettings) -> tuple[Tensor | None, Tensor | None]:
    """Embeddings (1,M,E) and presence (1,M) of a clip, made as those that the model was trained on.

    What cannot be read of it counts as absent, and is said. Raises DataError if nothing can.
    """
    if not explainer.needs_embeddings or explainer.store_identity is None:
        return None, None
    encoder = ClipEncoder.load(explainer.store_identity, settings.encoder_weights, explainer.device)
    encoded = encoder.encode(example, explainer.modalities)
    for failure in encoded.failures:
        print(f"not used, {failure.modality}: {failure.reason}")
    if not encoded.present.any():
        reasons = "; ".join(failure.reason for failure in encoded.failures) or "no words"
        raise DataError(f"{example.clip}: nothing of it can be used: {reasons}")
    return encoded.vectors, encoded.present


def shown(explanation: Explanation, labels: Sequence[str], example: Example) -> str:
    """The answer as a person reads it."""
    lines = [f"Intent:     {explanation.intent} ({float(explanation.probabilities.max()):.2f})"]
    lines.append("Or:         " + ", ".join(f"{label} ({p:.2f})" for label, p in explanation.runners_up(labels)))
    lines.append(f"Rationale:  {explanation.rationale}{'' if explanation.finished else ' ... (cut at --max_new_tokens)'}")
    if not explanation.consistent:
        other = labels[int(explanation.criticised.argmax())]
        lines.append(f"Careful:    the rationale speaks for {other} rather than {explanation.intent}")
    if example.intent is not None:
        lines.append(f"Labelled:   {example.intent}")
    return "\n".join(lines)


def answer_split(explainer: Explainer, settings: ExplainSettings) -> None:
    """Write an answer a line for every clip of a split; rows that an interrupted run wrote are kept.

    A file of another model's answers is moved to NAME.old.jsonl, in place of an older one, and that is said. `seen` in a line
    says whether the model was trained or chosen on that clip: then its answer is no result, and scores say so.
    """
    dataset = load_dataset(settings.data_path, (settings.split,))
    examples = dataset.splits[settings.split][: settings.limit or None]
    path = Path(settings.batch)
    stamp = {"model": explainer.digest, "max_new_tokens": settings.max_new_tokens}
    done, others = _written(path, stamp)
    if others:
        old = path.replace(path.with_suffix(f".old{path.suffix}"))
        print(f"{path} held {others} answers of another model or --max_new_tokens; they are in {old} now")
    todo = [example for example in examples if example.key not in done]
    store = open_store(explainer, settings)
    known = keys_seen(Path(settings.checkpoint), dataset.splits[settings.split], store)
    with tqdm(total=len(examples), initial=len(examples) - len(todo), unit="clip", desc="explaining", smoothing=0.1) as bar:
        for start in range(0, len(todo), settings.batch_size):
            part = todo[start : start + settings.batch_size]
            vectors, present = store.read([e.key for e in part]) if store else (None, None)
            for example, found in zip(part, explainer.explain(part, vectors, present, settings.max_new_tokens), strict=True):
                done[example.key] = row(explainer, example, found) | stamp | {"seen": example.key in known}
            lines = [json.dumps(done[example.key]) for example in examples if example.key in done]
            write_atomic(path, ("\n".join(lines) + "\n").encode())
            bar.update(len(part))
    unfinished = sum(not done[example.key]["finished"] for example in examples)
    doubtful = sum(not done[example.key]["consistent"] for example in examples)
    print(f"{len(examples)} answers in {path}; {doubtful} whose rationale speaks for another intent (consistent: false)")
    if unfinished:
        print(f"{unfinished} rationales were cut at --max_new_tokens {settings.max_new_tokens}")


def scores_beside(data_path: str, answers: Sequence[Path], split: str) -> tuple[dict[str, dict[str, float | None]], str]:
    """Scores of files of answers beside references, shuffled and template rationales, and what the judge of them is worth.

    Nothing where there are no references.
    """
    if not (Path(data_path) / "rationales.jsonl").is_file() or split not in ("dev", "test"):
        return {}, ""
    return side_by_side(ScoringSettings(data_path, candidates=tuple(map(str, answers)), split=split))


def row(explainer: Explainer, example: Example, found: Explanation) -> dict:
    """One line of the file: what rationales.jsonl has, and what the model thought."""
    return {
        "key": example.key,
        "gold": example.intent,
        "intent": found.intent,
        "probability": round(float(found.probabilities.max()), 5),
        "runners_up": [[label, round(p, 5)] for label, p in found.runners_up(explainer.taxonomy.labels)],
        "rationale": found.rationale,
        "finished": found.finished,
        "consistent": found.consistent,
        "criticised": explainer.taxonomy.labels[int(found.criticised.argmax())],
    }


def _written(path: Path, stamp: dict) -> tuple[dict[str, dict], int]:
    """Rows of this very model that are there already, and how many of others; a last line that was cut off is forgotten."""
    if not path.is_file():
        return {}, 0
    rows, others = {}, 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if {name: found.get(name) for name in stamp} == stamp:
            rows[found["key"]] = found
        else:
            others += 1
    return rows, others


def open_store(explainer: Explainer, settings: ExplainSettings) -> Store | None:
    """--emb_path, checked; None for a model that knows words alone."""
    if not explainer.needs_embeddings:
        return None
    if not settings.emb_path:
        raise DataError(
            f"this model looks at {' '.join(explainer.modalities)}: pass --emb_path, a store made by: "
            f"python avt_get_emb.py --data_path {settings.data_path} --output_dir EMB"
        )
    store = Store(Path(settings.emb_path))
    explainer.check_store(store)
    return store
