"""Losses as pure functions of log-probabilities: no model, no file.

The cross-entropy of a language model is cheap to write and dear to run: over all T positions its logits and their
gradient are the largest tensors of a training step (ImageBind-LLM at width 512: 1 GB of 2.6 GB). Here the head sees the
answer positions only, a chunk at a time. log p of a token depends on its own hidden state alone, so the derivative
    d log p_n / d h_n = W[target_n] - softmax(W h_n) W
is computed together with the value and kept, (N, D) numbers; no logits survive their chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from imagebind_llm.linear import linear
from imagebind_llm.records import IGNORE

CHUNK_ENTRIES = 4_000_000  # logits of one chunk: 16 MB in float32, small enough for a last-level cache


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        assert not ctx.needs_input_grad[1], "the head is frozen"
        logp = hidden.new_empty(len(targets), dtype=torch.float32)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, CHUNK_ENTRIES // weight.shape[0])
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            logits = linear(hidden[part], weight).float()  # (N,V)
            normaliser = logits.logsumexp(1, keepdim=True)  # (N,1)
            logp[part] = (logits.gather(1, targets[part, None]) - normaliser).squeeze(1)
            if slope is not None:
                p = logits.sub_(normaliser).exp_().to(weight.dtype)  # (N,V)
                slope[part] = weight[targets[part]] - linear(p, weight.t())
        if slope is not None:
            ctx.save_for_backward(slope)
        return logp

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (slope,) = ctx.saved_tensors
        return (slope * grads[0][:, None]).to(slope.dtype), None, None


def token_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p of each target under softmax(weight @ hidden), float32 (N,). hidden (N,D), frozen weight (V,D), targets (N,)."""
    return _TokenLogp.apply(hidden, weight, targets)


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
