"""Credit by claim: the values of an answer's claims, and the advantage of each of its tokens.

A claim's value is v = 2 P - 1 in [-1, 1], where P is the judge's probability that it is true of the clip (judge.py). One
advantage for a whole answer is mostly noise from its wording; here the tokens of a claim get the difference between its value
and the values of the claims in the other answers to the same clip. Pure functions: no model, no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagebind_llm.config import BASELINES

DEAD_ZONE = 0.2  # below this |v| a claim is undecided
SAME = 0.9  # cosine above which a clause repeats another
CAP = 4  # largest number of true claims that are rewarded
FEWEST, MISSING = 2, 0.25  # smallest number of claims without a penalty, and the penalty for each missing one
SPREAD = 0.7  # standard deviation of v in a trial (0.35 of P): scales credit like the normalised reward parts


@dataclass(frozen=True)
class Verdict:
    """A claim of an answer: its tokens [first, last), its value v, and whether it counts, see `counting`."""

    first: int
    last: int
    value: float
    counts: bool


def counting(values: Sequence[float], repeated: Sequence[bool]) -> list[bool]:
    """Which claims of an answer count: those that are decided and no repetition of an earlier one (`repeated`), of the true
    ones only the CAP with the largest values."""
    decided = [abs(v) >= DEAD_ZONE and not is_repeat for v, is_repeat in zip(values, repeated, strict=True)]
    true = sorted((i for i, counts in enumerate(decided) if counts and values[i] > 0), key=lambda i: -values[i])
    excess = set(true[CAP:])
    return [counts and i not in excess for i, counts in enumerate(decided)]


def repeats(clauses: Sequence[str], vectors: Tensor) -> list[bool]:
    """Whether an earlier clause is the same or nearly the same as each clause; vectors (n,E) of length 1."""
    similar = (vectors @ vectors.T > SAME).tril(-1).any(1).tolist() if clauses else []
    return [is_similar or clause in clauses[:i] for i, (is_similar, clause) in enumerate(zip(similar, clauses, strict=True))]


def floor(verdicts: Sequence[Verdict]) -> float:
    """Penalty of an answer with fewer claims that count than FEWEST: 0 or negative."""
    return -MISSING * max(0, FEWEST - sum(verdict.counts for verdict in verdicts))


def truth(verdicts: Sequence[Verdict]) -> float:
    """Score of an answer in [-1, 1]: the sum of its CAP largest positive values and all negative ones, over CAP, plus `floor`.

    A mean would prefer a single certain claim, an uncapped sum as many claims as possible.
    """
    total = sum(verdict.value for verdict in verdicts if verdict.counts)
    return min(1.0, max(-1.0, total / CAP + floor(verdicts)))


def claim_advantages(
    group: Sequence[Sequence[Verdict]], baseline: str, greedy: Sequence[Verdict] | None = None
) -> tuple[list[list[float]], list[float]]:
    """Advantages of the claims of K answers to one clip, by answer and claim, and of each answer's `floor`.

    loo: v less the mean over the other answers' claims (0 if there are none), over SPREAD. greedy: v less the value of the
    greedy answer's claim with the same number or, if that does not count, less the mean over the greedy answer's claims; over
    SPREAD. group: v less the mean over all answers' claims, over their deviation. Claims that do not count get 0 and are in no
    mean. Exactly 0 if all compared values are equal.
    """
    if baseline not in BASELINES:
        raise ValueError(f"--baseline {baseline}: expected one of {', '.join(BASELINES)}")
    if baseline == "greedy" and greedy is None:
        raise ValueError("--baseline greedy needs the greedy answer's claims")
    values = [[verdict.value for verdict in answer if verdict.counts] for answer in group]
    pooled = [v for answer in values for v in answer]
    scale = SPREAD
    if baseline == "group" and len(set(pooled)) > 1:
        scale = float(torch.tensor(pooled, dtype=torch.float64).std(correction=0))

    def baseline_values(answer: int, place: int) -> list[float]:
        if baseline == "loo":
            return [v for other, claims in enumerate(values) if other != answer for v in claims]
        if baseline == "group" or greedy is None:
            return pooled
        if place < len(greedy) and greedy[place].counts:
            return [greedy[place].value]
        return [verdict.value for verdict in greedy if verdict.counts]

    claims = [
        [_difference(v.value, baseline_values(k, place)) / scale if v.counts else 0.0 for place, v in enumerate(answer)]
        for k, answer in enumerate(group)
    ]
    floors = [floor(answer) for answer in group]
    if baseline == "greedy" and greedy is not None:
        return claims, [_difference(penalty, [floor(greedy)]) / scale for penalty in floors]
    baselines = [floors if baseline == "group" else floors[:k] + floors[k + 1 :] for k in range(len(floors))]
    return claims, [_difference(penalty, values) / scale for penalty, values in zip(floors, baselines, strict=True)]


def best(truths: Tensor) -> Tensor:
    """Mask (B,K), 1.0 for the highest of a clip's K truths (B,K), the first of equal ones; 0 for all if the K are equal.

    Used as an advantage, this is supervision on the best of K (RAFT, arXiv:2304.06767).
    """
    mask = torch.zeros_like(truths).scatter(1, truths.argmax(1, keepdim=True), 1.0)
    return mask.masked_fill((truths == truths[:, :1]).all(1, keepdim=True), 0.0)


def _difference(value: float, others: Sequence[float]) -> float:
    """`value` less the mean of `others` (0 if there are none); exactly 0 if all are equal."""
    if others and min(others) == max(others):
        return value - others[0]
    return value - sum(others) / len(others) if others else value


def spread_over_tokens(
    verdicts: Sequence[Sequence[Verdict]],
    claims: Sequence[Sequence[float]],
    floors: Sequence[float],
    lengths: Sequence[int],
    columns: int,
    to_go: bool = False,
) -> Tensor:
    """Advantage (R,columns) of the tokens of R answers.

    Each claim's advantage goes to its tokens and, with `to_go`, to all earlier ones; that of the floor goes to the last of an
    answer's `lengths` tokens (the end token, if it has one) and, with `to_go`, to all.
    """
    out = torch.zeros(len(verdicts), columns)
    for row, (answer, values) in enumerate(zip(verdicts, claims, strict=True)):
        for verdict, value in zip(answer, values, strict=True):
            out[row, 0 if to_go else verdict.first : verdict.last] += value
        if lengths[row]:
            out[row, 0 if to_go else lengths[row] - 1 : lengths[row]] += floors[row]
    return out
