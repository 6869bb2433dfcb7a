"""Credit by claim: the values of an answer's claims, and the advantage of each of its tokens.

A claim's value is v = 2 P - 1 in [-1, 1], where P is the judge's probability that it holds of the clip (judge.py). A single
advantage for a whole answer is mostly noise from its wording; here the tokens of a claim get the difference between its value
and those of the claims in the other answers to the same clip. Pure functions between judge and loss: no model, no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagebind_llm.config import BASELINES

DEAD_ZONE = 0.2  # |v| below it is no verdict
SAME = 0.9  # cosine above which a clause repeats another
CAP = 4  # true claims that are paid
FEWEST, MISSING = 2, 0.25  # claims an answer should have at least, and what each that is missing costs
SPREAD = 0.7  # standard deviation of v in a trial (0.35 of P): brings credit to the scale of normalised reward parts


@dataclass(frozen=True)
class Verdict:
    """A claim of an answer: its tokens [first, last), its value v, and whether it counts: neither undecided nor repeated, and
    not a true one beyond the CAP largest."""

    first: int
    last: int
    value: float
    counts: bool


def counting(values: Sequence[float], repeated: Sequence[bool]) -> list[bool]:
    """Which claims of an answer count; `repeated`: an earlier claim of it says the same."""
    decided = [abs(v) >= DEAD_ZONE and not again for v, again in zip(values, repeated, strict=True)]
    true = sorted((i for i, counts in enumerate(decided) if counts and values[i] > 0), key=lambda i: -values[i])
    beyond = set(true[CAP:])
    return [counts and i not in beyond for i, counts in enumerate(decided)]


def repeats(clauses: Sequence[str], vectors: Tensor) -> list[bool]:
    """Whether an earlier clause is the same or nearly so: vectors (n,E) of length 1."""
    alike = (vectors @ vectors.T > SAME).tril(-1).any(1).tolist() if clauses else []
    return [near or clause in clauses[:i] for i, (near, clause) in enumerate(zip(alike, clauses, strict=True))]


def floor(verdicts: Sequence[Verdict]) -> float:
    """Penalty of an answer with fewer claims than FEWEST: 0 or negative."""
    return -MISSING * max(0, FEWEST - sum(verdict.counts for verdict in verdicts))


def truth(verdicts: Sequence[Verdict]) -> float:
    """Score of an answer in [-1, 1]: the sum of its CAP largest true values and all false ones, over CAP, plus the floor.

    Not their mean (one sure claim would beat any careful answer) and not their sum (saying everything would win).
    """
    total = sum(verdict.value for verdict in verdicts if verdict.counts)
    return min(1.0, max(-1.0, total / CAP + floor(verdicts)))


def claim_advantages(
    group: Sequence[Sequence[Verdict]], baseline: str, greedy: Sequence[Verdict] | None = None
) -> tuple[list[list[float]], list[float]]:
    """Advantages of the claims of K answers to one clip, claim by claim, and of each answer's floor.

    loo: v less the mean over the other answers' claims (0 if there are none). greedy: v less that of the greedy answer's claim
    of the same place or, where that does not count, the mean over the greedy answer's. Both over SPREAD. group: v less the
    mean over all answers' claims, over their deviation. Claims that do not count get 0 and are in no mean. Exactly 0 where all
    that is compared is equal.
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

    def compared_with(answer: int, place: int) -> list[float]:
        if baseline == "loo":
            return [v for other, claims in enumerate(values) if other != answer for v in claims]
        if baseline == "group" or greedy is None:
            return pooled
        if place < len(greedy) and greedy[place].counts:
            return [greedy[place].value]
        return [verdict.value for verdict in greedy if verdict.counts]

    claims = [
        [_less(v.value, compared_with(k, place)) / scale if v.counts else 0.0 for place, v in enumerate(answer)]
        for k, answer in enumerate(group)
    ]
    floors = [floor(answer) for answer in group]
    if baseline == "greedy" and greedy is not None:
        return claims, [_less(low, [floor(greedy)]) / scale for low in floors]
    others = [floors if baseline == "group" else floors[:k] + floors[k + 1 :] for k in range(len(floors))]
    return claims, [_less(low, rest) / scale for low, rest in zip(floors, others, strict=True)]


def best(truths: Tensor) -> Tensor:
    """1 for the truest of a clip's K answers (of equal ones the first), 0 for all others: (B,K) of (B,K); 0 for all of a clip
    whose answers are worth the same. As an advantage it is supervision on the best of K (RAFT, arXiv:2304.06767)."""
    chosen = torch.zeros_like(truths).scatter(1, truths.argmax(1, keepdim=True), 1.0)
    return chosen.masked_fill((truths == truths[:, :1]).all(1, keepdim=True), 0.0)


def _less(value: float, others: Sequence[float]) -> float:
    """value less the mean of others, 0 for no others; exactly 0 where all are equal."""
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
    """Advantage (R,columns) of the tokens of R answers: each claim's on its own tokens, the floor's on the last of `lengths`
    tokens (the end token, where an answer has one). `to_go`: a claim's on all tokens before it as well."""
    out = torch.zeros(len(verdicts), columns)
    for row, (answer, values) in enumerate(zip(verdicts, claims, strict=True)):
        for verdict, value in zip(answer, values, strict=True):
            out[row, 0 if to_go else verdict.first : verdict.last] += value
        if lengths[row]:
            out[row, 0 if to_go else lengths[row] - 1 : lengths[row]] += floors[row]
    return out
