"""The reward of a sampled answer, and its advantage over a baseline.

Reward parts lie in [0, 1] and are logged raw; the truth of an answer's claims (credit.py), another part, lies in [-1, 1].
Within the group of one clip (its K samples and, where it is drawn, the greedy answer) each part is normalised,
z = (r - m) / (s + 1e-6), then weighted and summed: summing first lets one part swallow the others (per-reward normalisation:
arXiv:2601.05242). Baselines: the greedy answer (SCST, arXiv:1612.00563), the mean of the other samples (arXiv:2003.09971, RLOO
arXiv:2402.14740), the group's own mean and deviation (GRPO, arXiv:2402.03300).
Functions see values that are parsed already: a label or None, a rationale or None, and whether the answer ended by itself.
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
TRUTH = "truth"  # the part that a judge sees, not a function of the text


def intent_reward(answer: Answer, gold: str, taxonomy: Taxonomy) -> float:
    """1 if the label is right, 0.25 if only its coarse class is, else 0. Out of scope has none, nor have labels of a table
    without a column coarse."""
    if answer.intent == gold:
        return 1.0
    if answer.intent is None:
        return 0.0
    coarse = taxonomy.coarse(gold)
    return COARSE_REWARD if coarse is not None and taxonomy.coarse(answer.intent) == coarse else 0.0


def rationale_reward(answer: Answer, reference: str | None, cider: CiderD) -> float:
    """Half min(CIDEr-D/10, 1), half ROUGE-L against the reference; 0 where either text is missing."""
    if not answer.rationale or not reference:
        return 0.0
    return min(cider.score(answer.rationale, reference) / CIDER_SCALE, 1.0) / 2 + rouge_l(answer.rationale, reference) / 2


def consistency_rewards(answers: Sequence[Answer], golds: Sequence[str], verifier: Verifier) -> list[float]:
    """q(gold label | rationale with every label word masked); 0 without a rationale. All at once, for it is one product.

    Gold and not the answer's own label, so that a confident wrong story earns nothing.
    """
    q = verifier.predict_proba([answer.rationale or "" for answer in answers])
    labels = verifier.taxonomy.labels
    return [
        float(row[labels.index(gold)]) if answer.rationale and gold in labels else 0.0
        for row, answer, gold in zip(q, answers, golds, strict=True)
    ]


def format_reward(answer: Answer) -> float:
    """The share that holds of: ended with EOS and punctuation; 8-80 words; its label named at most once; hardly repeats itself.

    0 if it does not parse. An answer cut at the length limit is never finished, however it ends.
    """
    if answer.intent is None or not answer.rationale:
        return 0.0
    text = answer.rationale.strip()
    holds = (
        answer.finished and text.endswith((".", "!", "?", '."', '!"', '?"')),
        SHORTEST <= len(words(text)) <= LONGEST,
        label_mentions(text, answer.intent) <= 1,
        repetition4(text) < MOST_REPETITION,
    )
    return sum(holds) / len(holds)


@dataclass(frozen=True)
class Answered:
    """n answers with their gold labels and reference rationales, and what texts are compared by."""

    answers: Sequence[Answer]
    golds: Sequence[str]
    references: Sequence[str | None]
    cider: CiderD
    verifier: Verifier


def _intents(given: Answered) -> list[float]:
    taxonomy = given.verifier.taxonomy
    return [intent_reward(answer, gold, taxonomy) for answer, gold in zip(given.answers, given.golds, strict=True)]


def _rationales(given: Answered) -> list[float]:
    pairs = zip(given.answers, given.references, strict=True)
    return [rationale_reward(answer, reference, given.cider) for answer, reference in pairs]


@dataclass(frozen=True)
class Reward:
    """A part of the reward: its weight where --reward_weights says nothing (and --credit is answer), and the function that
    gives it for n answers; None: the judge does (self_critical.py)."""

    weight: float
    of: Callable[[Answered], list[float]] | None


# To add a part: a function of n answers that returns n numbers in [0, 1], and its line here, which gives it its name in
# --reward_weights, its column in the log and its curve.
REWARDS = {
    "intent": Reward(1.0, _intents),
    "rationale": Reward(0.5, _rationales),
    "consistency": Reward(0.5, lambda given: consistency_rewards(given.answers, given.golds, given.verifier)),
    "format": Reward(0.1, lambda given: [format_reward(answer) for answer in given.answers]),
    TRUTH: Reward(0.0, None),
}
REWARD_WEIGHTS = {name: reward.weight for name, reward in REWARDS.items()}


def column(part: str) -> str:
    """The name of a part of the reward in the log."""
    return f"reward_{part}"


def reward_parts(
    answers: Sequence[Answer], golds: Sequence[str], references: Sequence[str | None], cider: CiderD, verifier: Verifier
) -> dict[str, Tensor]:
    """Every part of the reward that has a function, each (n,) float32 in [0, 1]; golds and references answer by answer."""
    given = Answered(answers, golds, references, cider, verifier)
    return {name: torch.tensor(part.of(given), dtype=torch.float32) for name, part in REWARDS.items() if part.of}


@dataclass(frozen=True)
class Advantage:
    """value (B,K): how much better a sample is than its baseline. skipped (B,) bool: all alike, nothing to learn, value 0."""

    value: Tensor
    skipped: Tensor


def advantage(
    parts: Mapping[str, Tensor],
    baseline: str,
    weights: Mapping[str, float],
    greedy: Mapping[str, Tensor] | None = None,
    penalty: Tensor | None = None,
) -> Advantage:
    """Advantage of K samples a clip from their reward parts, each (B,K); the greedy answer's parts, where drawn, are (B,).

    Each part is normalised within its group, then the parts are weighted and summed to the score, from which `penalty` (B,K) is
    subtracted: beta * sum over tokens of (logp - logp_ref). Baselines greedy and loo take differences of scores, group the
    score itself. The greedy answer, which is not scored, counts without a penalty: a baseline that the samples do not change
    leaves the expected gradient as it is. A group in which no weighted part varies is skipped with its penalty. Deviations are
    over the group (population).
    """
    wanted = {name: weight for name, weight in weights.items() if weight}
    _check(parts, baseline, wanted, greedy)
    groups = {name: parts[name].double() if greedy is None else _with_greedy(parts[name], greedy[name]) for name in wanted}
    alike = torch.stack([_spread(group) == 0 for group in groups.values()]).all(0)  # (B,)
    score = torch.stack([weight * _normalised(groups[name]) for name, weight in wanted.items()]).sum(0)  # (B,K) or (B,K+1)
    n_samples = next(iter(parts.values())).shape[1]
    samples = score[:, :n_samples] - (0 if penalty is None else penalty.double())
    if baseline == "greedy":
        value = samples - score[:, -1:]
    elif baseline == "loo":
        value = samples - (samples.sum(1, keepdim=True) - samples) / (n_samples - 1)
        value = value.masked_fill((_spread(samples) == 0)[:, None], 0)
    else:
        value = samples
    return Advantage(value.masked_fill(alike[:, None], 0).float(), alike)


def _with_greedy(samples: Tensor, greedy: Tensor) -> Tensor:
    return torch.cat([samples.double(), greedy.double()[:, None]], 1)  # (B,K+1)


def _spread(group: Tensor) -> Tensor:
    return group.amax(1) - group.amin(1)


def _normalised(group: Tensor) -> Tensor:
    """z = (r - m) / (s + 1e-6) along dim 1; exactly 0 where all are equal."""
    z = (group - group.mean(1, keepdim=True)) / (group.std(1, correction=0, keepdim=True) + EPSILON)
    return z.masked_fill((_spread(group) == 0)[:, None], 0)


def _check(parts: Mapping[str, Tensor], baseline: str, wanted: Mapping[str, float], greedy) -> None:
    if baseline not in BASELINES:
        raise ValueError(f"--baseline {baseline}: expected one of {' '.join(BASELINES)}")
    if unknown := sorted(set(wanted) - set(parts)):
        raise ValueError(f"--reward_weights names {', '.join(unknown)}; expected some of: {', '.join(parts)}")
    if not wanted:
        raise ValueError("--reward_weights: every part weighs 0, nothing is left to reward")
    n_samples = next(iter(parts.values())).shape[1]
    if baseline == "greedy" and greedy is None:
        raise ValueError("--baseline greedy needs the greedy answer's rewards")
    if baseline != "greedy" and n_samples < 2:
        raise ValueError(f"--baseline {baseline} compares samples with each other: --samples {n_samples} must be at least 2")
