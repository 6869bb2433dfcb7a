"""Losses as pure functions of log-probabilities: no model, no file. The log-probabilities: logp.py."""

import torch.nn.functional as F
from torch import Tensor

from imagebind_llm.records import IGNORE


def rationale_nll(logp: Tensor, mask: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Negative log-likelihood of the answer tokens, logp and mask (B,T), over their number; 0 without any.

    `count` is the number to divide by if this batch is a part of a larger one (other ranks, other forward passes).
    """
    return -(logp * mask).sum() / _positive(mask.sum() if count is None else count)


def intent_cross_entropy(logits: Tensor, intents: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of the intent head, logits (B,C) float32, intents (B,) or IGNORE, over the known ones' number."""
    total = F.cross_entropy(logits, intents, ignore_index=IGNORE, reduction="sum")
    return total / _positive((intents != IGNORE).sum() if count is None else count)


def contrast(logp: Tensor, swapped: Tensor, mask: Tensor, count: Tensor | int | None = None) -> Tensor:
    """-log sigmoid(mean log p with the own clip - mean log p with another's), the means over each answer's tokens: the same
    answer must be likelier with its own clip. log 2 where the clip makes no difference; bounded below, so that it cannot pay
    for ever. logp, swapped and mask (R,T); summed over the rows and divided by `count`, their number if not given."""
    gap = ((logp - swapped) * mask).sum(1) / mask.sum(1).clamp(min=1)  # (R,)
    return -F.logsigmoid(gap).sum() / _positive(len(mask) if count is None else count)


def _positive(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def self_critical(logp: Tensor, mask: Tensor, advantage: Tensor, max_tokens: int) -> Tensor:
    """- 1/(R max_tokens) * sum over answer tokens, EOS included, of advantage * log p(token): REINFORCE with a baseline.

    logp and mask (R,T) of the R = B*K sampled answers; advantage (R,) of whole answers or (R,T) of their tokens. max_tokens is
    the sampling limit, a constant, so that no answer gains by being short or long.
    """
    by_token = advantage if advantage.ndim == 2 else advantage[:, None]
    weighted = by_token.detach().to(logp.dtype) * logp.masked_fill(~mask, 0)  # (R,T)
    return -weighted.sum() / (len(advantage) * max_tokens)


def local_expectation(logp: Tensor, values: Tensor) -> Tensor:
    """- sg(sum_P pi) * sum_P softmax_P(log pi(p)) * v(p): how much what is said at one place is worth on average, negated.

    logp (P,): log pi of the alternatives there, events that exclude each other; values (P,) v of each. sg: no gradient. With
    all that could be said among them its gradient is the policy gradient without sampling; with some missing it is that in
    which the missing ones are worth the mean of those present.
    """
    share = logp.detach().exp().sum()  # of the probability
    return -share * (logp.softmax(0) * values.detach().to(logp.dtype)).sum()
