"""How much of a self-critical gradient is signal, part of the reward by part, and does it point where the truth does?

    python data/demo/measure_critic.py --checkpoint runs/demo/itsl/best
    python data/demo/measure_critic.py --checkpoint runs/demo/ablation/blind/seed0/supervised/best --credit claim --batches 16

Answers to train clips are sampled as in training; every baseline, and every part of the reward, gives a gradient of the
trained tensors, batch by batch. Gradients of different batches share their signal and nothing else, so the mean product of two
of them is the squared signal, and what a batch's own square has beyond that is noise. Beside the parts of the reward stand
what no training sees, the cue F1 of each answer against the truth about its clip, and what the supervised loss makes of the
same clips. Where --credit is claim or to_go alone, no gradients of whole answers are taken, which saves most of the time.
"""

import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imagebind_llm import markdown
from imagebind_llm.config import CREDITS
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import Corpus, load_corpus
from imagebind_llm.critic.judge import Judge
from imagebind_llm.critic.judge_fit import open_judges
from imagebind_llm.critic.rewards import REWARD_WEIGHTS, advantage
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.critic.verifier import fit_verifier
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.explain.scoring import Rationale, cue_scores, read_rationales, require_tables
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.itsl.assembly import build, open_language
from imagebind_llm.itsl.checkpoint import read_info
from imagebind_llm.itsl.losses import rationale_nll, self_critical
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.records import Batch
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import with_below

TRUTH, SUPERVISED = "cue F1 (the truth)", "supervised loss"
WAYS: dict[str, tuple[dict[str, float], str]] = {  # weights and baseline
    "all parts, loo": (REWARD_WEIGHTS, "loo"),  # baseline group is (K - 1) / K of it, so no other direction
    "all parts, greedy": (REWARD_WEIGHTS, "greedy"),
    **{name: ({name: 1.0}, "loo") for name in (*REWARD_WEIGHTS, TRUTH)},
}
BY_TOKEN = {"claim": "truth, a claim's own tokens", "to_go": "truth, reward to go"}  # by credit; baseline loo
CLIPS = 8  # a batch


@dataclass(frozen=True)
class CriticSettings:
    """The flags of data/demo/measure_critic.py."""

    checkpoint: str = flag(help="checkpoint folder, such as runs/demo/itsl/best")
    data_path: str = flag("data/demo/clips", "folder of the demo world")
    emb_path: str = flag("runs/demo/emb", "embedding store of --data_path")
    captions: str = flag("", "captions for the judge; if not given, captions.json in the data folder")
    batches: int = flag(12, "batches of 8 clips; the gradients of each are kept in memory")
    credit: tuple[str, ...] = flag(CREDITS, "kinds of credit to measure, see engine_finetune.py --help", CREDITS)
    samples: int = flag(4, "answers per clip")
    seed: int = flag(0, "seed of the clips and the answers")
    dtype: str = flag("auto", "dtype of frozen weights; auto: float32", ("auto", "float32", "bfloat16"))

    def __post_init__(self) -> None:
        if self.batches < 3 or self.samples < 2:
            raise ValueError(f"--batches {self.batches} --samples {self.samples}: at least 3 and 2, they are compared")


def main() -> int:
    settings = parse(CriticSettings, description=__doc__)
    return exit_code("measure_critic.py", lambda: print(measure(settings)))


def measure(settings: CriticSettings) -> str:
    """The table, in Markdown."""
    baseline = "greedy" if "answer" in settings.credit else "loo"  # so that the greedy answers are drawn where they count
    own = {"samples": settings.samples, "w_critic": 1.0, "baseline": baseline}
    train = continued(settings, ("data_path", "emb_path", "captions", "dtype"), own)
    tokenizer, corpus = language_and_corpus(train)
    width = corpus.store.identity.width if corpus.store else None
    model = build(train.build, corpus.taxonomy, width, torch.device("cpu")).model
    critic = critic_of(train, tokenizer, corpus, model)
    truth = read_rationales(Path(settings.data_path, "rationales.jsonl"))
    require_tables(truth.values())

    rows = corpus.splits["train"]
    order = np.random.default_rng(settings.seed).permutation(len(rows))[: settings.batches * CLIPS]
    if len(order) < settings.batches * CLIPS:
        raise DataError(f"{len(rows)} train clips are too few for --batches {settings.batches} of {CLIPS}")
    generator = torch.Generator().manual_seed(settings.seed)
    collate = Collator(corpus.store, corpus.modalities)
    gradients: dict[str, list[Tensor]] = {}
    parts: list[dict[str, Tensor]] = []
    for picked in tqdm(np.split(order, settings.batches), desc="batches", unit="batch"):
        batch = collate([rows[i] for i in picked])
        found, worth = gradients_of(model, critic, batch, truth, generator, settings.credit)
        parts.append(worth)
        for name, gradient in found.items():
            gradients.setdefault(name, []).append(gradient)
    return table({name: torch.stack(gradients.pop(name)) for name in list(gradients)}, parts)


def continued(settings: Any, taken: Sequence[str], given: Mapping[str, Any]) -> TrainSettings:
    """The settings of a training with --credit claim that goes on from `settings.checkpoint`: its own, but for the flags of
    `settings` that are `taken`, where they are given, and for `given`. The judge's captions are the data set's, if none are."""
    made_with = read_info(Path(settings.checkpoint))["settings"]
    kept = ("llama_model_path", "modalities", "rationales", "max_seq_len", "answer_order", "trainable")
    values = {name: tuple(v) if isinstance(v := made_with[name], list) else v for name in kept}
    values |= {"credit": "claim", "captions": str(Path(settings.data_path, "captions.json"))}
    values |= {name: value for name in taken if (value := getattr(settings, name)) != ""}
    return TrainSettings(**values | {"pretrained_path": settings.checkpoint} | given)


def language_and_corpus(train: TrainSettings) -> tuple[LlamaTokenizer, Corpus]:
    """What a training reads before it builds a model."""
    llama, tokenizer = open_language(train.llama_model_path, train.model)
    return tokenizer, load_corpus(train.corpus, tokenizer, min(train.max_seq_len, llama.max_seq_len))


def critic_of(
    train: TrainSettings, tokenizer, corpus: Corpus, model: ITSL, judges: tuple[Judge, Judge] | None = None
) -> Critic:
    """The critic of a training run that starts here; judges are fitted as there, if none are given. Raises DataError without
    intents or rationales."""
    told = [row for row in corpus.splits["train"] if row.rationale and row.intent is not None]
    if corpus.taxonomy is None or not told:
        raise DataError(f"{train.data_path}: no reference rationales to reward answers by")
    intents = [corpus.taxonomy.labels[row.intent or 0] for row in told]
    verifier = fit_verifier([row.rationale or "" for row in told], intents, corpus.taxonomy, None)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    judges = judges or fitted_judges(train, corpus)
    return Critic(train.critic, tokenizer, corpus.taxonomy, corpus.splits["train"], verifier, start, 0, *judges)


def fitted_judges(train: TrainSettings, corpus: Corpus) -> tuple[Judge, Judge]:
    """The judge that pays and the one that watches, of a training run that starts here."""
    with TemporaryDirectory() as folder:
        return open_judges(Path(folder), corpus, train.encoder_weights, train.seed, torch.device("cpu"), print)


def gradients_of(
    model: ITSL,
    critic: Critic,
    batch: Batch,
    truth: dict[str, Rationale],
    generator: torch.Generator,
    credits: tuple[str, ...],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One batch: the gradient (parameters,) by each reward and the supervised loss, and what each answer is worth, (B,K)."""
    sampled = critic.sample(model, batch, generator)
    assert sampled is not None, "every clip of the demo world has an intent"
    shape = sampled.parts["intent"].shape
    told = zip(sampled.answers, sampled.batch.keys, strict=True)
    facts = [cue_scores([answer.rationale or ""], [truth[key]])["cue_f1"] or 0.0 for answer, key in told]
    worth = sampled.parts | {TRUTH: torch.tensor(facts).view(shape)}
    output = model(with_below(model, sampled.batch))
    found = {}
    ways = WAYS if "answer" in credits else {TRUTH: WAYS[TRUTH]}
    for name, (weights, baseline) in ways.items():
        greedy = sampled.greedy if baseline == "greedy" else None
        value = advantage(worth, baseline, weights, greedy).value.flatten()
        found[name] = gradient(model, self_critical(output.logp, output.mask, value, critic.max_new))
    for credit, name in BY_TOKEN.items():
        if credit not in credits:
            continue
        by_claim = copy(critic)
        by_claim.settings = replace(critic.settings, credit=credit, baseline="loo")
        value = by_claim.by_token(sampled, output.mask)
        found[name] = gradient(model, self_critical(output.logp, output.mask, value, critic.max_new))
    output = model(with_below(model, batch))
    found[SUPERVISED] = gradient(model, rationale_nll(output.logp, output.mask))
    return found, worth


def gradient(model: ITSL, loss: Tensor) -> Tensor:
    """Of all trained tensors, in one vector; the graph stays."""
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(trained, found, strict=True)])


def table(gradients: dict[str, Tensor], parts: list[dict[str, Tensor]]) -> str:
    """gradients: (batches, parameters) by reward; parts: a dict of (B,K) a batch."""
    signals = {name: signal(rows, rows) for name, rows in gradients.items()}
    columns = ("reward", "mean", "correlation with the truth", "signal, % of a batch", "batches until signal = noise", "cosine")
    lines = []
    for name, rows in gradients.items():
        squared, (mean, error) = float(rows.square().sum(1).mean()), signals[name]
        worth = [batch[name] for batch in parts] if name in parts[0] else None
        shown = [
            "" if worth is None else f"{float(torch.stack(worth).mean()):.3f}",
            "" if worth is None or name == TRUTH else f"{within(worth, [batch[TRUTH] for batch in parts]):.2f}",
            f"{100 * mean / squared:.2f} ± {100 * error / squared:.2f}" if squared else "no gradient: all answers alike",
            f"{squared / mean - 1:.0f}" if told_from_0(signals[name]) else "not told from 0",
            cosine(rows, gradients[TRUTH], signals[name], signals[TRUTH]) if name != TRUTH else "",
        ]
        lines.append([name, *shown])
    n, k = parts[0][TRUTH].shape
    notes = f"{len(parts)} batches of {n} train clips, {k} answers each; correlation: among the answers to one clip;"
    return f"{markdown.table(columns, lines)}\n\n{notes} cosine: of the signal with the truth's"


def signal(one: Tensor, other: Tensor) -> tuple[float, float]:
    """The product of the means of two kinds of gradients, (batches, parameters) each, from pairs of different batches; and its
    standard error by leaving out one batch at a time (jackknife)."""
    products = (one @ other.T).double().numpy()
    n = len(products)

    def mean(kept: np.ndarray) -> float:
        part = products[np.ix_(kept, kept)]
        return (part.sum() - np.trace(part)) / max(len(kept) * (len(kept) - 1), 1)

    without = np.array([mean(np.delete(np.arange(n), i)) for i in range(n)])
    return mean(np.arange(n)), float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def told_from_0(found: tuple[float, float]) -> bool:
    """Whether a squared signal is beyond two of its standard errors."""
    return found[0] > 2 * found[1]


def cosine(one: Tensor, truth: Tensor, own: tuple[float, float], its: tuple[float, float]) -> str:
    """Of two signals, given with their errors; nothing where either is not told from 0."""
    if not (told_from_0(own) and told_from_0(its)):
        return ""
    return f"{signal(one, truth)[0] / (own[0] * its[0]) ** 0.5:.2f}"


def within(worth: list[Tensor], truth: list[Tensor]) -> float:
    """Correlation of two values of answers, each less its mean over the answers to the same clip."""
    one, other = (torch.cat([v - v.mean(1, keepdim=True) for v in values]).flatten() for values in (worth, truth))
    return float((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt().clamp(min=1e-12))


if __name__ == "__main__":
    sys.exit(main())
