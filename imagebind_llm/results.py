"""What a training run ends with: the best checkpoint calibrated on dev, then the test split looked at once.

OUTPUT_DIR/best/calibration.json    OUTPUT_DIR/results.json    OUTPUT_DIR/predictions_{dev,test}.jsonl
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm import checkpoint, distributed
from imagebind_llm.batches import Collator
from imagebind_llm.inference import (
    CALIBRATION,
    MAX_NEW_TOKENS,
    Calibration,
    Explainer,
    as_rows,
    calibrate,
    choose_alpha,
    save_calibration,
)
from imagebind_llm.metrics import calibration_error, scores
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.run import Run
from imagebind_llm.store import write_atomic
from imagebind_llm.tokenizers import LlamaTokenizer

RESULTS = "results.json"  # written last
BATCH = 32  # on a GPU no more than training showed to fit
ALPHA_ROWS = 128  # of dev, for the choice of alpha
Scored = tuple[Tensor, Tensor, Tensor]  # log-probabilities (N,C) by head and by decoder, gold (N,)


def finish(run: Run, tokenizer: LlamaTokenizer, device: torch.device) -> None:
    """Load the best weights, calibrate them on dev, report on test. Collective; ranks share the rows."""
    folder = run.root / ("best" if (run.root / "best").exists() else "last")
    run.say(f"{folder}: the checkpoint to use")
    corpus, taxonomy = run.corpus, run.corpus.taxonomy
    if taxonomy is None:
        return
    step = checkpoint.read_info(folder)["total"]
    if _is_done(run, checkpoint.resolve(folder), step):
        run.say(f"{run.root / RESULTS}: there already, from these weights")
        return
    parameters = dict(run.assembled.model.named_parameters())
    with torch.no_grad():
        for name, tensor in checkpoint.read_tensors(folder).items():
            parameters[name].copy_(tensor)
    explainer = Explainer(
        run.assembled,
        tokenizer,
        taxonomy,
        run.settings.modalities,
        run.settings.max_seq_len,
        verifier=run.verifier,
        order=run.settings.answer_order,
    )
    collate = Collator(corpus.store, corpus.modalities)
    batch = BATCH if device.type == "cpu" else min(BATCH, 2 * run.settings.batch_size)
    splits = {split: corpus.splits[split] for split in ("dev", "test") if split in corpus.splits}
    found = {split: _scored(explainer, rows, collate, batch) for split, rows in splits.items()}
    calibration = calibrate(*found["dev"]) if "dev" in found else Calibration()
    if run.verifier is not None and "dev" in found:
        calibration = _with_alpha(explainer, calibration, corpus.splits["dev"], found["dev"], collate, batch)
    if not distributed.is_main():
        return
    save_calibration(checkpoint.resolve(folder), calibration)
    results: dict = {"checkpoint": str(folder), "step": step, "calibration": vars(calibration)}
    for split, (head, decoder, gold) in found.items():
        results[split] = {
            "mixed": _scores(calibration.probabilities(head, decoder), gold),
            "head": _scores(head.exp(), gold),
            "decoder": _scores(decoder.exp(), gold),
        }
        _write_predictions(
            run.root / f"predictions_{split}.jsonl", corpus.splits[split], taxonomy.labels, head, decoder, calibration
        )
        run.say(f"{split}: " + "; ".join(_line(name, one) for name, one in results[split].items()))
    write_atomic(run.root / RESULTS, json.dumps(results, indent=1).encode())


def _is_done(run: Run, folder: Path, step: int) -> bool:
    """Whether the results of these very weights are on disk; the answer of the first rank holds for all."""
    path, found = run.root / RESULTS, {}
    if path.is_file() and (folder / CALIBRATION).is_file():
        found = json.loads(path.read_text())
    return distributed.gather_objects(found.get("step") == step)[0]


def _scored(explainer: Explainer, sequences: Sequence[Ids], collate: Collator, batch: int) -> Scored:
    """Head and decoder log-probabilities (N,C) and gold (N,) of the rows with a known intent, in order, from all ranks."""
    known = [i for i, row in enumerate(sequences) if row.intent is not None]
    own = known[distributed.rank() :: distributed.world_size()]
    parts = []
    for start in range(0, len(own), batch):
        rows = [sequences[i] for i in own[start : start + batch]]
        reading = explainer.score(as_rows(rows), *collate.embeddings(rows))
        parts += list(zip(own[start : start + batch], reading.head, reading.decoder, strict=True))
    everything = sorted((part for rank in distributed.gather_objects(parts) for part in rank), key=lambda part: part[0])
    gold = torch.tensor([sequences[i].intent for i, _, _ in everything])
    return torch.stack([h for _, h, _ in everything]), torch.stack([d for _, _, d in everything]), gold


def _with_alpha(
    explainer: Explainer, calibration: Calibration, sequences: Sequence[Ids], found: Scored, collate: Collator, batch: int
) -> Calibration:
    """The calibration with the alpha that serves the first dev rows best: their rationales are written for it."""
    explainer.calibration = calibration
    head, decoder, gold = (part[:ALPHA_ROWS] for part in found)
    known = [row for row in sequences if row.intent is not None][:ALPHA_ROWS]
    p = calibration.probabilities(head, decoder)
    own = list(range(len(known)))[distributed.rank() :: distributed.world_size()]
    written: list[tuple[int, str]] = []
    for start in range(0, len(own), batch):
        part = own[start : start + batch]
        rows = [known[i] for i in part]
        _, texts = explainer.answer(as_rows(rows), *collate.embeddings(rows), MAX_NEW_TOKENS)
        written += list(zip(part, (text for text, _ in texts), strict=True))
    texts_in_order = [text for _, text in sorted(pair for rank in distributed.gather_objects(written) for pair in rank)]
    return replace(calibration, alpha=choose_alpha(p, explainer.read(p, texts_in_order), gold))


def _scores(p: Tensor, gold: Tensor) -> dict[str, float]:
    """Accuracy, macro F1, and expected calibration error of probabilities (N,C)."""
    confidence, guess = (part.numpy() for part in p.max(1))
    found = scores(gold.numpy(), guess)
    error = calibration_error(guess == gold.numpy(), confidence)
    return {"accuracy": found["accuracy"], "macro_f1": found["macro_f1"], "ece": error}


def _line(name: str, found: dict[str, float]) -> str:
    return f"{name} accuracy {100 * found['accuracy']:.2f} macro F1 {100 * found['macro_f1']:.2f} ECE {found['ece']:.3f}"


def _write_predictions(
    path: Path, sequences: Sequence[Ids], labels: Sequence[str], head: Tensor, decoder: Tensor, calibration: Calibration
) -> None:
    rows = [row for row in sequences if row.intent is not None]
    probabilities = calibration.probabilities(head, decoder)
    lines = []
    for row, p, h, d in zip(rows, probabilities, head, decoder, strict=True):
        assert row.intent is not None
        known = {"key": row.key, "gold": labels[row.intent], "predicted": labels[int(p.argmax())]}
        numbers = {name: [round(x, 5) for x in t.tolist()] for name, t in (("probabilities", p), ("head", h), ("decoder", d))}
        lines.append(json.dumps(known | numbers))
    write_atomic(path, ("\n".join(lines) + "\n").encode())
