"""Log-probabilities of answer tokens without a tensor of all logits.

The cross-entropy of a language model is cheap to write and dear to run: over all T positions its logits and their
gradient are the largest tensors of a training step (ImageBind-LLM at width 512: 1 GB of 2.6 GB). Here the head sees the
answer positions only, a chunk at a time. log p of a token depends on its own hidden state alone, so the derivative
    d log p_n / d h_n = W[target_n] - softmax(W h_n) W
is computed together with the value and kept, (N, D) numbers; no logits survive their chunk.
"""

import torch
from torch import Tensor

from imagebind_llm.kernels.linear import linear

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
