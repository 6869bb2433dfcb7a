"""What a sampled answer is worth, and its advantage over what else the model would say.

Reward parts lie in [0, 1] and are logged raw; the truth of an answer's claims (credit.py), another part, lies in [-1, 1].
Within the group of one clip (its K samples and, where it is drawn, the greedy answer) each part is normalised,
z = (r - m) / (s + 1e-6), then weighted and summed: summing first lets one part swallow the others (per-reward normalisation:
arXiv:2601.05242). Baselines: the greedy answer (SCST, arXiv:1612.00563), the mean of the other samples (arXiv:2003.09971, RLOO
arXiv:2402.14740), the group's own mean and deviation (GRPO, arXiv:2402.03300).
Functions see values that are parsed already: a label or None, a rationale or None, and whether the answer ended by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagebind_llm.config import BASELINES, REWARD_NORMS
from imagebind_llm.critic.verifier import Verifier, label_mentions
from imagebind_llm.records import Answer
from imagebind_llm.taxonomy import Taxonomy
from imagebind_llm.text_metrics import CIDER_SCALE, CiderD, repetition4, rouge_l, words

COARSE_REWARD = 0.25
SHORTEST, LONGEST = 8, 80  # words of a rationale
MOST_REPETITION = 0.2
EPSILON = 1e-6


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


def reward_parts(
    answers: Sequence[Answer], golds: Sequence[str], references: Sequence[str | None], cider: CiderD, verifier: Verifier
) -> dict[str, Tensor]:
    """The four parts of n answers, each (n,) float32 in [0, 1]; golds and references answer by answer."""
    taxonomy = verifier.taxonomy
    parts = {
        "intent": [intent_reward(answer, gold, taxonomy) for answer, gold in zip(answers, golds, strict=True)],
        "rationale": [rationale_reward(answer, text, cider) for answer, text in zip(answers, references, strict=True)],
        "consistency": consistency_rewards(answers, golds, verifier),
        "format": [format_reward(answer) for answer in answers],
    }
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in parts.items()}


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
    norm: str = "group",
    penalty: Tensor | None = None,
) -> Advantage:
    """Advantage of K samples a clip from their reward parts, each (B,K); the greedy answer's parts, where drawn, are (B,).

    norm "group": normalise each part, then sum; "none": sum the raw parts, then compare. `penalty` (B,K) is subtracted from
    the score: beta * sum over tokens of (logp - logp_ref). Baseline greedy and loo take differences of scores, group the score
    itself (with norm "none", normalised once). The greedy answer, which is not scored, counts without a penalty: a baseline
    that the samples do not change leaves the expected gradient as it is. A group in which no weighted part varies is skipped
    with its penalty. Deviations are over the group (population).
    """
    wanted = {name: weight for name, weight in weights.items() if weight}
    _check(parts, baseline, wanted, greedy, norm)
    groups = {name: parts[name].double() if greedy is None else _with_greedy(parts[name], greedy[name]) for name in wanted}
    alike = torch.stack([_spread(group) == 0 for group in groups.values()]).all(0)  # (B,)
    if norm == "group":
        score = _weighted_sum({name: _normalised(group) for name, group in groups.items()}, wanted)  # (B,K) or (B,K+1)
    else:
        score = _weighted_sum(groups, wanted)
        alike = alike | (_spread(score) == 0)
        score = _normalised(score) if baseline == "group" else score
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


def _weighted_sum(groups: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weight * groups[name] for name, weight in weights.items()]).sum(0)


def _spread(group: Tensor) -> Tensor:
    return group.amax(1) - group.amin(1)


def _normalised(group: Tensor) -> Tensor:
    """z = (r - m) / (s + 1e-6) along dim 1; exactly 0 where all are equal."""
    z = (group - group.mean(1, keepdim=True)) / (group.std(1, correction=0, keepdim=True) + EPSILON)
    return z.masked_fill((_spread(group) == 0)[:, None], 0)


def _check(parts: Mapping[str, Tensor], baseline: str, wanted: Mapping[str, float], greedy, norm: str) -> None:
    if baseline not in BASELINES or norm not in REWARD_NORMS:
        raise ValueError(
            f"--baseline {baseline} --reward_norm {norm}: expected one of {' '.join(BASELINES)}, and group or none"
        )
    if unknown := sorted(set(wanted) - set(parts)):
        raise ValueError(f"--reward_weights names {', '.join(unknown)}; expected some of: {', '.join(parts)}")
    if not wanted:
        raise ValueError("--reward_weights: every part weighs 0, nothing is left to reward")
    n_samples = next(iter(parts.values())).shape[1]
    if baseline == "greedy" and greedy is None:
        raise ValueError("--baseline greedy needs the greedy answer's rewards")
    if baseline != "greedy" and n_samples < 2:
        raise ValueError(f"--baseline {baseline} compares samples with each other: --samples {n_samples} must be at least 2")
