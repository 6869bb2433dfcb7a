"""The reward of a sampled answer, and its advantage over a baseline.

Reward parts lie in [0, 1] and are logged raw; the truth of an answer's claims (credit.py), another part, lies in [-1, 1].
Within the group of one clip (its K samples and, if it is generated, the greedy answer) each part is normalised,
z = (r - m) / (s + 1e-6), and only then weighted and summed, so that no part dominates the others by its scale (per-reward
normalisation: arXiv:2601.05242). Baselines: the greedy answer (SCST, arXiv:1612.00563), the mean of the other samples
(arXiv:2003.09971, RLOO arXiv:2402.14740), the mean and deviation of the group (GRPO, arXiv:2402.03300).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagebind_llm.config import BASELINES
from imagebind_llm.critic.verifier import Verifier, label_mentions
from imagebind_llm.records import Answer
from imagebind_llm.taxonomy import Taxonomy
from imagebind_llm.text_metrics import CIDER_SCALE, CiderD, repetition4, rouge_l, words

COARSE_REWARD = 0.25
SHORTEST, LONGEST = 8, 80  # words of a rationale
MOST_REPETITION = 0.2
EPSILON = 1e-6
TRUTH = "truth"  # the part that a judge computes from the clip, not a function of the text


def intent_reward(answer: Answer, gold: str, taxonomy: Taxonomy) -> float:
    """1 for the gold label, 0.25 for another label of its coarse class, else 0.

    "Out of scope" has no coarse class, and neither have the labels of a table without a column `coarse`.
    """
    if answer.intent == gold:
        return 1.0
    if answer.intent is None:
        return 0.0
    coarse = taxonomy.coarse(gold)
    return COARSE_REWARD if coarse is not None and taxonomy.coarse(answer.intent) == coarse else 0.0


def rationale_reward(answer: Answer, reference: str | None, cider: CiderD) -> float:
    """min(CIDEr-D / 10, 1) / 2 + ROUGE-L / 2 against the reference; 0 if either text is missing."""
    if not answer.rationale or not reference:
        return 0.0
    return min(cider.score(answer.rationale, reference) / CIDER_SCALE, 1.0) / 2 + rouge_l(answer.rationale, reference) / 2


def consistency_rewards(answers: Sequence[Answer], golds: Sequence[str], verifier: Verifier) -> list[float]:
    """The verifier's probability of each gold label, given the rationale with label words masked; 0 without a rationale.

    Of the gold label, not of the label that the answer names, so that a convincing rationale for a wrong label earns nothing.
    """
    q = verifier.predict_proba([answer.rationale or "" for answer in answers])
    labels = verifier.taxonomy.labels
    return [
        float(row[labels.index(gold)]) if answer.rationale and gold in labels else 0.0
        for row, answer, gold in zip(q, answers, golds, strict=True)
    ]


def format_reward(answer: Answer) -> float:
    """Share of four conditions that hold: ends with EOS and punctuation; 8-80 words; names its label at most once; repetition
    below 0.2. 0 for an answer without a known label or without a rationale."""
    if answer.intent is None or not answer.rationale:
        return 0.0
    text = answer.rationale.strip()
    conditions = (
        answer.finished and text.endswith((".", "!", "?", '."', '!"', '?"')),
        SHORTEST <= len(words(text)) <= LONGEST,
        label_mentions(text, answer.intent) <= 1,
        repetition4(text) < MOST_REPETITION,
    )
    return sum(conditions) / len(conditions)


@dataclass(frozen=True)
class RewardInputs:
    """n answers with their gold labels and reference rationales (None: none), and the models that score texts."""

    answers: Sequence[Answer]
    golds: Sequence[str]
    references: Sequence[str | None]
    cider: CiderD
    verifier: Verifier


def _intents(inputs: RewardInputs) -> list[float]:
    taxonomy = inputs.verifier.taxonomy
    return [intent_reward(answer, gold, taxonomy) for answer, gold in zip(inputs.answers, inputs.golds, strict=True)]


def _rationales(inputs: RewardInputs) -> list[float]:
    pairs = zip(inputs.answers, inputs.references, strict=True)
    return [rationale_reward(answer, reference, inputs.cider) for answer, reference in pairs]


@dataclass(frozen=True)
class Reward:
    """A part of the reward: its default weight with --credit answer, and the function that computes it for n answers; None for
    the part that the judge computes (self_critical.py)."""

    weight: float
    function: Callable[[RewardInputs], list[float]] | None


# To add a part: a function of n answers that returns n numbers in [0, 1], and its line here, which gives it its name in
# --reward_weights, its column in the log and its curve.
REWARDS = {
    "intent": Reward(1.0, _intents),
    "rationale": Reward(0.5, _rationales),
    "consistency": Reward(0.5, lambda inputs: consistency_rewards(inputs.answers, inputs.golds, inputs.verifier)),
    "format": Reward(0.1, lambda inputs: [format_reward(answer) for answer in inputs.answers]),
    TRUTH: Reward(0.0, None),
}
REWARD_WEIGHTS = {name: reward.weight for name, reward in REWARDS.items()}


def column(part: str) -> str:
    """The column of a part of the reward in the log."""
    return f"reward_{part}"


def reward_parts(
    answers: Sequence[Answer], golds: Sequence[str], references: Sequence[str | None], cider: CiderD, verifier: Verifier
) -> dict[str, Tensor]:
    """Every part of the reward that is a function of n answers, each (n,) float32 in [0, 1]."""
    inputs = RewardInputs(answers, golds, references, cider, verifier)
    return {name: torch.tensor(part.function(inputs)).float() for name, part in REWARDS.items() if part.function}


@dataclass(frozen=True)
class Advantage:
    """value (B,K): each sample's score less its baseline. skipped (B,) bool: the samples do not differ, so value is 0."""

    value: Tensor
    skipped: Tensor


def advantage(
    parts: Mapping[str, Tensor],
    baseline: str,
    weights: Mapping[str, float],
    greedy: Mapping[str, Tensor] | None = None,
    penalty: Tensor | None = None,
) -> Advantage:
    """Advantages of K sampled answers to each of B clips.

    Each part is normalised within its group (population deviation); the weighted sum of the parts less `penalty` is the score.
    The baselines greedy and loo subtract another score from it, group subtracts nothing. A group in which no weighted part
    varies is skipped.

    Args:
        parts: reward parts (B,K) of the samples by name.
        greedy: reward parts (B,) of the greedy answers. They have no penalty: the baseline must not depend on the samples.
        penalty: (B,K), beta * sum over tokens of (logp - logp_ref).
    """
    weights = {name: weight for name, weight in weights.items() if weight}
    _check(parts, baseline, weights, greedy)
    groups = {name: parts[name].double() if greedy is None else _with_greedy(parts[name], greedy[name]) for name in weights}
    constant = torch.stack([_spread(group) == 0 for group in groups.values()]).all(0)  # (B,)
    score = torch.stack([weight * _normalised(groups[name]) for name, weight in weights.items()]).sum(0)  # (B,K) or (B,K+1)
    n_samples = next(iter(parts.values())).shape[1]
    samples = score[:, :n_samples] - (0 if penalty is None else penalty.double())
    if baseline == "greedy":
        value = samples - score[:, -1:]
    elif baseline == "loo":
        value = samples - (samples.sum(1, keepdim=True) - samples) / (n_samples - 1)
        value = value.masked_fill((_spread(samples) == 0)[:, None], 0)
    else:
        value = samples
    return Advantage(value.masked_fill(constant[:, None], 0).float(), constant)


def _with_greedy(samples: Tensor, greedy: Tensor) -> Tensor:
    return torch.cat([samples.double(), greedy.double()[:, None]], 1)  # (B,K+1)


def _spread(group: Tensor) -> Tensor:
    return group.amax(1) - group.amin(1)


def _normalised(group: Tensor) -> Tensor:
    """z = (r - m) / (s + 1e-6) along dim 1; exactly 0 if all are equal."""
    z = (group - group.mean(1, keepdim=True)) / (group.std(1, correction=0, keepdim=True) + EPSILON)
    return z.masked_fill((_spread(group) == 0)[:, None], 0)


def _check(parts: Mapping[str, Tensor], baseline: str, weights: Mapping[str, float], greedy) -> None:
    if baseline not in BASELINES:
        raise ValueError(f"--baseline {baseline}: expected one of {' '.join(BASELINES)}")
    if unknown := sorted(set(weights) - set(parts)):
        raise ValueError(f"--reward_weights names {', '.join(unknown)}; expected some of: {', '.join(parts)}")
    if not weights:
        raise ValueError("--reward_weights: every part weighs 0, nothing is left to reward")
    n_samples = next(iter(parts.values())).shape[1]
    if baseline == "greedy" and greedy is None:
        raise ValueError("--baseline greedy needs the greedy answer's rewards")
    if baseline != "greedy" and n_samples < 2:
        raise ValueError(f"--baseline {baseline} compares samples with each other: --samples {n_samples} must be at least 2")
