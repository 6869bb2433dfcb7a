"""What a training run ends with: the best checkpoint calibrated on dev, then the test split looked at once.

Where the true cues of dev are known (the demo world), results.json also says how true some dev rationales are, and how far they
follow when sound or pictures are swapped.

OUTPUT_DIR/best/calibration.json    OUTPUT_DIR/results.json    OUTPUT_DIR/predictions_{dev,test}.jsonl
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.explain.calibration import CALIBRATION, Calibration, calibrate, choose_alpha
from imagebind_llm.explain.explainer import MAX_NEW_TOKENS, Explainer, Question
from imagebind_llm.explain.faithfulness import another_clip, perturbed, share_following
from imagebind_llm.explain.scoring import COLUMNS, Rationale, claim_rows, read_rationales
from imagebind_llm.files import write_atomic
from imagebind_llm.itsl import checkpoint
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.metrics import calibration_error, scores
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.training.run import Run

RESULTS = "results.json"  # written last
BATCH = 32  # on a GPU no more than training showed to fit
ALPHA_ROWS = 128  # of dev, for the choice of alpha
SWAPPED_ROWS = 32  # of these, explained again with the sound, then with the pictures of another
Scored = tuple[Tensor, Tensor, Tensor]  # log-probabilities (N,C) by head and by decoder, gold (N,)


def finish(run: Run, tokenizer: LlamaTokenizer, device: torch.device) -> None:
    """Load the best weights, calibrate them on dev, report on test. Collective; ranks share the rows."""
    folder = run.root / distributed.from_main("best" if (run.root / "best").exists() else "last")
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
        for name, tensor in checkpoint.read_tensors(run.root / distributed.from_main(checkpoint.linked(folder))).items():
            parameters[name].copy_(tensor)
    settings = run.settings
    question = Question(taxonomy, settings.modalities, settings.max_seq_len, settings.answer_order)
    explainer = Explainer(run.assembled, tokenizer, question, verifier=run.verifier)
    collate = Collator(corpus.store, corpus.modalities)
    batch = BATCH if device.type == "cpu" else min(BATCH, 2 * run.settings.batch_size)
    splits = {split: corpus.splits[split] for split in ("dev", "test") if split in corpus.splits}
    for split in [name for name, rows in splits.items() if all(row.intent is None for row in rows)]:
        run.say(f"{split}: none of its {len(splits.pop(split))} rows has an intent, so there are no scores of intents")
    found = {split: _scored(explainer, rows, corpus.prompts[split], collate, batch) for split, rows in splits.items()}
    calibration = calibrate(*found["dev"]) if "dev" in found else Calibration()
    written: dict[str, str] = {}
    following: dict[str, float | None] = {}
    if run.verifier is not None and "dev" in found:
        dev = (corpus.splits["dev"], corpus.prompts["dev"], found["dev"])
        calibration, written = _with_alpha(explainer, calibration, *dev, collate, batch, run.settings.seed)
        following = _following(run, explainer, list(written), collate, batch)
    if not distributed.is_main():
        return
    calibration.save(checkpoint.resolve(folder))
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
    if written and (claims := _claims(run, calibration, found["dev"], written)):
        results["dev"]["claims"] = claims
        run.say(_claims_line(claims["model"], len(written)))
    if following:
        results["dev"]["following"] = following
        shares = [f"{name} {'–' if share is None else f'{share:.3f}'}" for name, share in following.items()]
        run.say(f"claims that follow a swap, {min(SWAPPED_ROWS, len(written))} dev clips: {' '.join(shares)}")
    write_atomic(run.root / RESULTS, json.dumps(results, indent=1).encode())


def _is_done(run: Run, folder: Path, step: int) -> bool:
    """Whether the results of these very weights are on disk; the answer of the first rank holds for all."""
    path, found = run.root / RESULTS, {}
    if path.is_file() and (folder / CALIBRATION).is_file():
        found = json.loads(path.read_text())
    return distributed.gather_objects(found.get("step") == step)[0]


def _scored(
    explainer: Explainer, sequences: Sequence[Ids], prompts: Sequence[list[int]], collate: Collator, batch: int
) -> Scored:
    """Head and decoder log-probabilities (N,C) and gold (N,) of the rows with a known intent, in order, from all ranks.

    The `prompts` are those of explain.py; those of the sequences were shortened to leave room for the gold answer.
    """
    known = [i for i, row in enumerate(sequences) if row.intent is not None]
    own = known[distributed.rank() :: distributed.world_size()]
    parts = []
    for start in range(0, len(own), batch):
        part = own[start : start + batch]
        reading = explainer.score([prompts[i] for i in part], *collate.embeddings([sequences[i] for i in part]))
        parts += list(zip(part, reading.head, reading.decoder, strict=True))
    everything = sorted((part for rank in distributed.gather_objects(parts) for part in rank), key=lambda part: part[0])
    gold = torch.tensor([sequences[i].intent for i, _, _ in everything])
    return torch.stack([h for _, h, _ in everything]), torch.stack([d for _, _, d in everything]), gold


def _with_alpha(
    explainer: Explainer,
    calibration: Calibration,
    sequences: Sequence[Ids],
    prompts: Sequence[list[int]],
    found: Scored,
    collate: Collator,
    batch: int,
    seed: int,
) -> tuple[Calibration, dict[str, str]]:
    """The calibration with the alpha that serves ALPHA_ROWS drawn dev rows best, and their rationales by key, written for it.

    Files are often sorted, by intent or episode, so the first rows would speak for some alone.
    """
    explainer.calibration = calibration
    known = [i for i, row in enumerate(sequences) if row.intent is not None]
    drawn = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:ALPHA_ROWS]
    head, decoder, gold = (part[drawn] for part in found)
    known = [known[i] for i in drawn.tolist()]
    p = calibration.probabilities(head, decoder)
    texts = _rationales(explainer, [prompts[i] for i in known], *collate.embeddings([sequences[i] for i in known]), batch)
    alpha = choose_alpha(p, explainer.read(p, texts), gold)
    return replace(calibration, alpha=alpha), {sequences[i].key: text for i, text in zip(known, texts, strict=True)}


def _rationales(
    explainer: Explainer, prompts: Sequence[list[int]], embeddings: Tensor | None, present: Tensor | None, batch: int
) -> list[str]:
    """One for each prompt, in order; ranks share them."""
    own = list(range(len(prompts)))[distributed.rank() :: distributed.world_size()]
    written: list[tuple[int, str]] = []
    for start in range(0, len(own), batch):
        part = own[start : start + batch]
        vectors, there = (None if rows is None else rows[part] for rows in (embeddings, present))
        _, texts = explainer.answer([prompts[i] for i in part], vectors, there, MAX_NEW_TOKENS)
        written += list(zip(part, (text for text, _ in texts), strict=True))
    return [text for _, text in sorted(pair for rank in distributed.gather_objects(written) for pair in rank)]


def _known_cues(run: Run, keys: Sequence[str]) -> dict[str, Rationale]:
    """The references with true cues of these clips; nothing where the data set's rationales.jsonl does not know them all."""
    file = Path(run.settings.data_path) / "rationales.jsonl"  # faithful, whatever --rationales was trained on
    known = read_rationales(file) if file.is_file() else {}
    return known if all(key in known and known[key].cues for key in keys) else {}


def _following(run: Run, explainer: Explainer, keys: Sequence[str], collate: Collator, batch: int) -> dict[str, float | None]:
    """How far rationales follow a swap of sound and of pictures among the first SWAPPED_ROWS of these dev clips; nothing where
    no cues are known, or the words alone."""
    keys = keys[:SWAPPED_ROWS]
    known = _known_cues(run, keys)
    if not known or len(keys) < 2:
        return {}
    places = {row.key: i for i, row in enumerate(run.corpus.splits["dev"])}
    rows = [places[key] for key in keys]
    prompts = [run.corpus.prompts["dev"][i] for i in rows]
    vectors, present = collate.embeddings([run.corpus.splits["dev"][i] for i in rows])
    if vectors is None or present is None:
        return {}
    others, truth = another_clip(len(keys), run.settings.seed), [known[key] for key in keys]
    found: dict[str, float | None] = {}
    for modality in (name for name in ("audio", "vision") if name in run.settings.modalities):
        _, changed, there = perturbed([], vectors, present, modality, "swap", others)
        texts = _rationales(explainer, prompts, changed, there, batch)
        found[modality] = share_following(texts, truth, others, modality)
    return found


def _claims(run: Run, calibration: Calibration, found: Scored, written: dict[str, str]) -> dict[str, dict]:
    """How true the rationales `written` for some dev rows are, beside references and clip-blind templates; nothing where the
    data set does not know the true cues."""
    known = _known_cues(run, list(written))
    if not known:
        return {}
    places = {row.key: i for i, row in enumerate(row for row in run.corpus.splits["dev"] if row.intent is not None)}
    head, decoder, gold = (part[[places[key] for key in written]] for part in found)
    labels = run.corpus.taxonomy.labels if run.corpus.taxonomy else ()
    references = [replace(known[key], intent=labels[i]) for key, i in zip(written, gold.tolist(), strict=True)]
    guesses = calibration.probabilities(head, decoder).argmax(1).tolist()
    return claim_rows(list(written.values()), [labels[i] for i in guesses], references)


def _claims_line(found: dict[str, float | None], n: int) -> str:
    names = ("cue_precision", "cue_recall", "cue_skill", "atypical_precision")
    shown = (f"{COLUMNS[name]} {'–' if (value := found[name]) is None else f'{value:.3f}'}" for name in names)
    return f"claims of {n} dev rationales: {' '.join(shown)}"


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
