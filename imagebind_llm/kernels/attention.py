"""Softmax attention with grouped queries: causal, over a cache, and gated over prompts. All take q / sqrt K as q.

On a GPU the causal part is torch's own fused kernel. On CPU that kernel runs bf16 at the speed of float32 and its
backward at a fraction of the matrix units' rate (512 tokens, 8 heads, one thread: 81 ms in float32, 66 ms in bf16), so
here blocks of queries go through plain batched matrix products (61 ms and 26 ms), skipping the keys that none of the
block may see. Probabilities are computed again in the backward pass: what is kept stays linear in T.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # queries at a time


def causal_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Each of T positions sees itself and what precedes it. q (B,H,T,K), k and v (B,KV,T,K); returns (B,H,T,K).

    `hidden` (B,T,T) bool: what a position (row) does not see of what precedes it.
    """
    (b, h, t, width), kv = q.shape, k.shape[1]
    if q.is_cuda:
        seen = None if hidden is None else ~hidden[:, None] & torch.ones(t, t, dtype=torch.bool, device=q.device).tril()
        return F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, scale=1.0, enable_gqa=h != kv)
    q = q.reshape(b * kv, h // kv, t, width)  # (N,G,T,K), N = B*KV
    out = _BlockedCausal.apply(q, k.reshape(b * kv, t, width), v.reshape(b * kv, t, width), hidden)
    return out.view(b, h, t, width)  # (B,H,T,K)


def other_segments(segments: Tensor) -> Tensor:
    """(B,T,T) bool: which column belongs neither to segment 0 nor to the row's own, from segments (B,T)."""
    return (segments[:, None] != 0) & (segments[:, None] != segments[:, :, None])


def cached_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """A few new positions read a cache: q (B,H,T,K); k and v (B,KV,S,K); bias (B or 1,1,1,T,S), -inf on what is hidden.

    Two products and a softmax: with one query a head, the fused kernel on CPU spends its time on setting up its blocks.
    """
    (b, h, t, width), kv = q.shape, k.shape[1]
    scores = _scores(q, k).view(b, kv, h // kv, t, -1) + bias  # (B,KV,G,T,S)
    return (scores.softmax(-1).flatten(2, 3) @ v).view(b, h, t, width)  # (B,H,T,K)


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, absent: Tensor | None) -> Tensor:
    """gate * softmax(q k^T) v for a few prompts: q (B,H,T,K), k and v (B or 1,KV,P,K), gate (1,H,1,1).

    `absent` (B,P) bool says which prompts a row does not have; None: it has all. The gate scales the small (T,P) matrix,
    so nothing of the size of the output is kept for its gradient.
    """
    (b, h, t, width), kv = q.shape, k.shape[1]
    scores = _scores(q, k)
    if absent is not None:
        scores = scores.masked_fill(absent[:, None, None], -torch.inf)
    p = scores.softmax(-1).view(b, h, t, -1) * gate  # (B,H,T,P)
    return (p.view(b, kv, -1, p.shape[3]) @ v).view(b, h, t, width)  # (B,H,T,K)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T with the G*T queries that share a key side by side: (B,KV,G*T,S) of q (B,H,T,K), k (B or 1,KV,S,K)."""
    return q.reshape(len(q), k.shape[1], -1, q.shape[3]) @ k.transpose(2, 3)


class _BlockedCausal(torch.autograd.Function):
    """q (N,G,T,K): the G heads that share keys and values k, v (N,T,K); hidden (B,T,T) or None, N a multiple of B."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.hidden = hidden
        out = torch.empty_like(q)
        for block, end in _blocks(q.shape[2]):
            p = _probabilities(q[:, :, block], k[:, :end], None if hidden is None else hidden[:, block, :end])
            out[:, :, block] = torch.bmm(p, v[:, :end]).view_as(q[:, :, block])
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (q, k, v), hidden = ctx.saved_tensors, ctx.hidden
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, end in _blocks(q.shape[2]):
            rows, slope = q[:, :, block].flatten(1, 2), grads[0][:, :, block].flatten(1, 2)  # (N,G*n,K)
            part = None if hidden is None else hidden[:, block, :end]
            p = _probabilities(q[:, :, block], k[:, :end], part)  # (N,G*n,S)
            dv[:, :end].baddbmm_(p.transpose(1, 2), slope)
            dp = torch.bmm(slope, v[:, :end].transpose(1, 2))  # (N,G*n,S)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)  # (N,G*n,S)
            dq[:, :, block] = torch.bmm(ds, k[:, :end]).view_as(q[:, :, block])
            dk[:, :end].baddbmm_(ds.transpose(1, 2), rows)
        return dq, dk, dv, None


def _blocks(length: int) -> list[tuple[slice, int]]:
    """Slices of queries, and how many keys the last query of each may see."""
    starts = range(0, length, BLOCK)
    return [(slice(start, min(start + BLOCK, length)), min(start + BLOCK, length)) for start in starts]


def _probabilities(q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
    """softmax(q k^T) of the last n of S positions: q (N,G,n,K), k (N,S,K), hidden (B,n,S) or None; returns (N,G*n,S)."""
    (m, groups, n, _), s = q.shape, k.shape[1]
    scores = torch.bmm(q.flatten(1, 2), k.transpose(1, 2))  # (N,G*n,S)
    later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)  # (n,n)
    scores.view(m, groups, n, s)[..., s - n :].masked_fill_(later, -torch.inf)
    if hidden is not None:
        scores.view(len(hidden), -1, n, s).masked_fill_(hidden[:, None], -torch.inf)
    return scores.softmax(-1)
