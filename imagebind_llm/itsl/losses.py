"""Losses as pure functions of log-probabilities. kernels/logp.py computes the log-probabilities."""

import torch.nn.functional as F
from torch import Tensor

from imagebind_llm.records import IGNORE


def rationale_nll(logp: Tensor, mask: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Mean negative log-likelihood of the answer tokens; 0 if there are none.

    logp (B,T); mask (B,T), which of them belong to answer tokens; `count`: what to divide the sum by if this batch is a part of
    a larger one (other ranks, other forward passes).
    """
    return -(logp * mask).sum() / _positive(mask.sum() if count is None else count)


def intent_cross_entropy(logits: Tensor, intents: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of the intent head over the rows with a known intent; 0 if there are none.

    logits (B,C) float32; intents (B,) class indices, IGNORE where unknown; `count` as in `rationale_nll`.
    """
    total = F.cross_entropy(logits, intents, ignore_index=IGNORE, reduction="sum")
    return total / _positive((intents != IGNORE).sum() if count is None else count)


def contrast(logp: Tensor, swapped: Tensor, mask: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Contrastive loss: an answer should be likelier with its own clip than with another clip.

        -log sigmoid(mean log p(answer | own clip) - mean log p(answer | other clip)), means over the answer's tokens
    It is log 2 where the clip makes no difference, and bounded below by 0, so that the gap does not grow without end.

    logp and swapped (R,T): log-probabilities of the same answers with their own clip and with another; mask (R,T): which
    positions are answer tokens; `count`: what to divide the sum over rows by, R if not given.
    """
    gap = ((logp - swapped) * mask).sum(1) / mask.sum(1).clamp(min=1)  # (R,)
    return -F.logsigmoid(gap).sum() / _positive(len(mask) if count is None else count)


def _positive(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def self_critical(logp: Tensor, mask: Tensor, advantage: Tensor, max_tokens: int) -> Tensor:
    """REINFORCE with a baseline: -1/(R max_tokens) * sum over answer tokens, EOS included, of advantage * log p(token).

    Args:
        logp, mask: (R,T) of the R = B*K sampled answers.
        advantage: (R,) one for each answer, or (R,T) one for each token; no gradient flows into it.
        max_tokens: the sampling limit. A constant, so that the loss prefers neither short nor long answers.
    """
    by_token = advantage if advantage.ndim == 2 else advantage[:, None]
    weighted = by_token.detach().to(logp.dtype) * logp.masked_fill(~mask, 0)  # (R,T)
    return -weighted.sum() / (len(advantage) * max_tokens)


def local_expectation(logp: Tensor, values: Tensor) -> Tensor:
    """Negative expected value over P alternative claims at one place of an answer: -sg(sum pi) * sum softmax(log pi) * v.

    If the alternatives are all that the model can say there, its gradient is the exact policy gradient, without sampling;
    otherwise it is the policy gradient if each missing alternative had the mean value of those present.

    Args:
        logp: (P,) log pi, the model's log-probability of each alternative; no two of them can occur together.
        values: (P,) v, the value of each; no gradient flows into them, nor into sg(sum pi).
    """
    share = logp.detach().exp().sum()  # total probability of the alternatives
    return -share * (logp.softmax(0) * values.detach().to(logp.dtype)).sum()
