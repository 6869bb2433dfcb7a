"""The end of a training run: calibrate the best checkpoint on dev, then evaluate it on test once.

If the true cues of dev are known (the demo world), results.json also has the truth of some dev rationales, and the share of
their claims that follow when sound or pictures are swapped.

OUTPUT_DIR/best/calibration.json    OUTPUT_DIR/results.json    OUTPUT_DIR/predictions_{dev,test}.jsonl
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import Corpus
from imagebind_llm.explain.calibration import CALIBRATION, Calibration, calibrate, choose_alpha
from imagebind_llm.explain.explainer import MAX_NEW_TOKENS, Explainer, Question, batch_slices
from imagebind_llm.explain.faithfulness import another_clip, perturbed, share_following
from imagebind_llm.explain.scoring import COLUMNS, Rationale, claim_rows, read_rationales
from imagebind_llm.files import write_json, write_json_lines
from imagebind_llm.itsl import checkpoint
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.metrics import calibration_error, scores
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.training.log import say
from imagebind_llm.training.resume import read_weights
from imagebind_llm.training.run import Run

RESULTS = "results.json"  # written last
BATCH = 32  # on a GPU at most twice the batch size of training, which is known to fit
ALPHA_ROWS = 128  # dev rows for the choice of alpha
SWAPPED_ROWS = 32  # of these, rows that are explained again with the sound or the pictures of another clip
T = TypeVar("T")
Scored = tuple[Tensor, Tensor, Tensor]  # log-probabilities (N,C) by head and by decoder, gold (N,)


def finish(run: Run, tokenizer: LlamaTokenizer, device: torch.device) -> None:
    """Load the best weights, calibrate them on dev and evaluate them on test. Collective; ranks share the rows."""
    folder = run.root / distributed.from_main("best" if (run.root / "best").exists() else "last")
    say(f"{folder}: the checkpoint to use")
    if run.corpus.taxonomy is None:
        return
    step = checkpoint.read_info(folder)["total"]
    if _is_done(run, checkpoint.resolve(folder), step):
        say(f"{run.root / RESULTS}: there already, from these weights")
        return
    read_weights(run.assembled.model, run.root / distributed.from_main(checkpoint.linked(folder)))
    settings = run.settings
    question = Question(run.corpus.taxonomy, settings.modalities, settings.max_seq_len, settings.answer_order)
    explainer = Explainer(run.assembled, tokenizer, question, verifier=run.verifier)
    collate = Collator(run.corpus.store, run.corpus.modalities)
    batch = BATCH if device.type == "cpu" else min(BATCH, 2 * run.settings.batch_size)
    corpus = run.corpus
    scored = {name: _scored(explainer, rows, corpus.prompts[name], collate, batch) for name, rows in _splits(corpus).items()}
    calibration = calibrate(*scored["dev"]) if "dev" in scored else Calibration()
    rationales: dict[str, str] = {}
    following: dict[str, float | None] = {}
    if run.verifier is not None and "dev" in scored:
        dev = (corpus.splits["dev"], corpus.prompts["dev"], scored["dev"])
        calibration, rationales = _with_alpha(explainer, calibration, *dev, collate, batch, run.settings.seed)
        following = _following(run, explainer, list(rationales), collate, batch)
    if distributed.is_main():
        calibration.save(checkpoint.resolve(folder))
        results: dict = {"checkpoint": str(folder), "step": step, "calibration": vars(calibration)}
        results |= {split: _report_split(run, split, scores, calibration) for split, scores in scored.items()}
        if rationales:
            results["dev"] |= _report_rationales(run, calibration, scored["dev"], rationales, following)
        write_json(run.root / RESULTS, results)


def _splits(corpus: Corpus) -> dict[str, list[Ids]]:
    """The rows of dev and test, without a split in which no row has an intent."""
    splits: dict[str, list[Ids]] = {split: corpus.splits[split] for split in ("dev", "test") if split in corpus.splits}
    for split in [name for name, rows in splits.items() if all(row.intent is None for row in rows)]:
        say(f"{split}: none of its {len(splits.pop(split))} rows has an intent, so there are no scores of intents")
    return splits


def _report_split(run: Run, split: str, scored: Scored, calibration: Calibration) -> dict[str, dict[str, float]]:
    """Scores of a split by head, decoder and both. Prints them and writes the predictions."""
    assert run.corpus.taxonomy is not None
    head, decoder, gold = scored
    report = {
        "mixed": _scores(calibration.probabilities(head, decoder), gold),
        "head": _scores(head.exp(), gold),
        "decoder": _scores(decoder.exp(), gold),
    }
    path, labels = run.root / f"predictions_{split}.jsonl", run.corpus.taxonomy.labels
    _write_predictions(path, run.corpus.splits[split], labels, head, decoder, calibration)
    say(f"{split}: " + "; ".join(_line(name, row) for name, row in report.items()))
    return report


def _report_rationales(
    run: Run, calibration: Calibration, scored: Scored, rationales: dict[str, str], following: dict[str, float | None]
) -> dict[str, dict]:
    """Truth of some dev rationales, and the share of claims that follow a swap, if true cues are known. Prints both."""
    report: dict[str, dict] = {}
    if claims := _claims(run, calibration, scored, rationales):
        report["claims"] = claims
        say(_claims_line(claims["model"], len(rationales)))
    if following:
        report["following"] = following
        shares = [f"{name} {'–' if share is None else f'{share:.3f}'}" for name, share in following.items()]
        say(f"claims that follow a swap, {min(SWAPPED_ROWS, len(rationales))} dev clips: {' '.join(shares)}")
    return report


def _is_done(run: Run, folder: Path, step: int) -> bool:
    """Whether the results of these weights are on disk, as the main rank sees it."""
    path, results = run.root / RESULTS, {}
    if path.is_file() and (folder / CALIBRATION).is_file():
        results = json.loads(path.read_text())
    return distributed.gather_objects(results.get("step") == step)[0]


def _scored(
    explainer: Explainer, sequences: Sequence[Ids], prompts: Sequence[list[int]], collate: Collator, batch: int
) -> Scored:
    """Head and decoder log-probabilities (N,C) and gold (N,) of the rows with a known intent, in order, from all ranks.

    `prompts` are those of inference, because the prompts of `sequences` may be shortened to fit the gold answer.
    """
    labelled = [i for i, row in enumerate(sequences) if row.intent is not None]

    def scores(part: Sequence[int]) -> Iterable[tuple[Tensor, Tensor]]:
        reading = explainer.score([prompts[i] for i in part], *collate.embeddings([sequences[i] for i in part]))
        return zip(reading.head, reading.decoder, strict=True)

    head, decoder = zip(*_by_ranks(labelled, batch, scores), strict=True)
    return torch.stack(head), torch.stack(decoder), torch.tensor([sequences[i].intent for i in labelled])


def _by_ranks(rows: Sequence[int], batch: int, work: Callable[[Sequence[int]], Iterable[T]]) -> list[T]:
    """What `work` makes of each row, in order; ranks share the rows, and each takes so many at a time."""
    share = rows[distributed.rank() :: distributed.world_size()]
    done = [pair for part in batch_slices(len(share), batch) for pair in zip(share[part], work(share[part]), strict=True)]
    pairs = sorted((pair for rank in distributed.gather_objects(done) for pair in rank), key=lambda pair: pair[0])
    return [value for _, value in pairs]


def _with_alpha(
    explainer: Explainer,
    calibration: Calibration,
    sequences: Sequence[Ids],
    prompts: Sequence[list[int]],
    scored: Scored,
    collate: Collator,
    batch: int,
    seed: int,
) -> tuple[Calibration, dict[str, str]]:
    """The calibration with the alpha that is best on ALPHA_ROWS random dev rows, and these rows' generated rationales by key.

    Random, because files are often sorted by intent or episode.
    """
    explainer.calibration = calibration
    labelled = [i for i, row in enumerate(sequences) if row.intent is not None]
    sample = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed))[:ALPHA_ROWS]
    head, decoder, gold = (part[sample] for part in scored)
    rows = [labelled[i] for i in sample.tolist()]
    p = calibration.probabilities(head, decoder)
    texts = _rationales(explainer, [prompts[i] for i in rows], *collate.embeddings([sequences[i] for i in rows]), batch)
    alpha = choose_alpha(p, explainer.read(p, texts), gold)
    return replace(calibration, alpha=alpha), {sequences[i].key: text for i, text in zip(rows, texts, strict=True)}


def _rationales(
    explainer: Explainer, prompts: Sequence[list[int]], embeddings: Tensor | None, present: Tensor | None, batch: int
) -> list[str]:
    """The generated rationale of each prompt, in order; ranks share them."""

    def written(part: Sequence[int]) -> list[str]:
        vectors, presence = (None if rows is None else rows[part] for rows in (embeddings, present))
        return [text for text, _ in explainer.answer([prompts[i] for i in part], vectors, presence, MAX_NEW_TOKENS)[1]]

    return _by_ranks(list(range(len(prompts))), batch, written)


def _references(run: Run, keys: Sequence[str]) -> dict[str, Rationale]:
    """The references of these clips with their true cues; empty if rationales.jsonl does not have those of all clips."""
    file = Path(run.settings.data_path) / "rationales.jsonl"  # with the clips' true cues, whatever --rationales was
    references = read_rationales(file) if file.is_file() else {}
    return references if all(key in references and references[key].cues for key in keys) else {}


def _following(run: Run, explainer: Explainer, keys: Sequence[str], collate: Collator, batch: int) -> dict[str, float | None]:
    """Share of claims that follow a swap of sound or pictures among the first SWAPPED_ROWS of these dev clips, by modality.

    Empty if no true cues are known or the model sees text only.
    """
    keys = keys[:SWAPPED_ROWS]
    references = _references(run, keys)
    if not references or len(keys) < 2:
        return {}
    places = {row.key: i for i, row in enumerate(run.corpus.splits["dev"])}
    rows = [places[key] for key in keys]
    prompts = [run.corpus.prompts["dev"][i] for i in rows]
    vectors, present = collate.embeddings([run.corpus.splits["dev"][i] for i in rows])
    if vectors is None or present is None:
        return {}
    others, truth = another_clip(len(keys), run.settings.seed), [references[key] for key in keys]
    shares: dict[str, float | None] = {}
    for modality in (name for name in ("audio", "vision") if name in run.settings.modalities):
        _, swapped, presence = perturbed([], vectors, present, modality, "swap", others)
        texts = _rationales(explainer, prompts, swapped, presence, batch)
        shares[modality] = share_following(texts, truth, others, modality)
    return shares


def _claims(run: Run, calibration: Calibration, scored: Scored, rationales: dict[str, str]) -> dict[str, dict]:
    """Scores of the claims of generated rationales (by key), of the references and of templates that do not depend on the clip.

    Empty if the data set has no true cues.
    """
    references = _references(run, list(rationales))
    if not references:
        return {}
    places = {row.key: i for i, row in enumerate(row for row in run.corpus.splits["dev"] if row.intent is not None)}
    head, decoder, gold = (part[[places[key] for key in rationales]] for part in scored)
    labels = run.corpus.taxonomy.labels if run.corpus.taxonomy else ()
    truth = [replace(references[key], intent=labels[i]) for key, i in zip(rationales, gold.tolist(), strict=True)]
    guesses = calibration.probabilities(head, decoder).argmax(1).tolist()
    return claim_rows(list(rationales.values()), [labels[i] for i in guesses], truth)


def _claims_line(scores: dict[str, float | None], n: int) -> str:
    names = ("cue_precision", "cue_recall", "cue_skill", "atypical_precision")
    columns = (f"{COLUMNS[name]} {'–' if (value := scores[name]) is None else f'{value:.3f}'}" for name in names)
    return f"claims of {n} dev rationales: {' '.join(columns)}"


def _scores(p: Tensor, gold: Tensor) -> dict[str, float]:
    """Accuracy, macro F1, and expected calibration error of probabilities (N,C)."""
    confidence, guess = (part.numpy() for part in p.max(1))
    by_class = scores(gold.numpy(), guess)
    error = calibration_error(guess == gold.numpy(), confidence)
    return {"accuracy": by_class["accuracy"], "macro_f1": by_class["macro_f1"], "ece": error}


def _line(name: str, row: dict[str, float]) -> str:
    return f"{name} accuracy {100 * row['accuracy']:.2f} macro F1 {100 * row['macro_f1']:.2f} ECE {row['ece']:.3f}"


def _write_predictions(
    path: Path, sequences: Sequence[Ids], labels: Sequence[str], head: Tensor, decoder: Tensor, calibration: Calibration
) -> None:
    rows = [row for row in sequences if row.intent is not None]
    probabilities = calibration.probabilities(head, decoder)
    lines = []
    for row, p, h, d in zip(rows, probabilities, head, decoder, strict=True):
        assert row.intent is not None
        answer = {"key": row.key, "gold": labels[row.intent], "predicted": labels[int(p.argmax())]}
        numbers = {name: [round(x, 5) for x in t.tolist()] for name, t in (("probabilities", p), ("head", h), ("decoder", d))}
        lines.append(answer | numbers)
    write_json_lines(path, lines)
