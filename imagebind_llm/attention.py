"""Softmax attention with grouped queries: causal, over a cache, and gated over prompts.

On a GPU the causal part is torch's own fused kernel. On CPU that kernel runs bf16 at the speed of float32 and its
backward at a fraction of the matrix units' rate (512 tokens, 8 heads, one thread: 81 ms in float32, 66 ms in bf16), so
here blocks of queries go through plain batched matrix products (61 ms and 26 ms), skipping the keys that none of the
block may see. Probabilities are computed again in the backward pass: what is kept stays linear in T.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # queries at a time


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each of T positions sees itself and what precedes it. q (B,H,T,K), k and v (B,KV,T,K); returns (B,H,T,K)."""
    (b, h, t, width), kv = q.shape, k.shape[1]
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=h != kv)
    q = q.reshape(b * kv, h // kv, t, width)  # (N,G,T,K), N = B*KV
    out = _BlockedCausal.apply(q, k.reshape(b * kv, t, width), v.reshape(b * kv, t, width))
    return out.view(b, h, t, width)  # (B,H,T,K)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q (B,KV,R,K) reads k and v (B,KV,S,K) where `mask` (B,1,1 or R,S) is true; None: everywhere."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, present: Tensor | None) -> Tensor:
    """tanh(gate) * softmax(q k^T / sqrt K) v for a few prompts: q (B,H,T,K), k and v (B or 1,KV,P,K), gate (1,H,1,1).

    `present` (B,P) bool says which prompts a row has; None: all. The gate scales the small (T,P) matrix, so nothing of
    the size of the output is kept for its gradient.
    """
    (b, h, t, width), kv = q.shape, k.shape[1]
    scores = q.reshape(b, kv, -1, width) @ (k * width**-0.5).transpose(2, 3)  # (B,KV,G*T,P)
    if present is not None:
        scores = scores.masked_fill(~present[:, None, None], -torch.inf)
    p = scores.softmax(-1).view(b, h, t, -1) * torch.tanh(gate).to(q.dtype)  # (B,H,T,P)
    return (p.view(b, kv, -1, p.shape[3]) @ v).view(b, h, t, width)  # (B,H,T,K)


class _BlockedCausal(torch.autograd.Function):
    """q (N,G,T,K): the G heads that share keys and values k, v (N,T,K)."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for block, end in _blocks(q.shape[2]):
            p = _probabilities(q[:, :, block], k[:, :end])
            out[:, :, block] = torch.bmm(p, v[:, :end]).view_as(q[:, :, block])
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (q, k, v), scale = ctx.saved_tensors, ctx.saved_tensors[0].shape[3] ** -0.5
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, end in _blocks(q.shape[2]):
            rows, slope = q[:, :, block].flatten(1, 2), grads[0][:, :, block].flatten(1, 2)  # (N,G*n,K)
            p = _probabilities(q[:, :, block], k[:, :end])  # (N,G*n,S)
            dv[:, :end].baddbmm_(p.transpose(1, 2), slope)
            dp = torch.bmm(slope, v[:, :end].transpose(1, 2))  # (N,G*n,S)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale)
            dq[:, :, block] = torch.bmm(ds, k[:, :end]).view_as(q[:, :, block])
            dk[:, :end].baddbmm_(ds.transpose(1, 2), rows)
        return dq, dk, dv


def _blocks(length: int) -> list[tuple[slice, int]]:
    """Slices of queries, and how many keys the last query of each may see."""
    starts = range(0, length, BLOCK)
    return [(slice(start, min(start + BLOCK, length)), min(start + BLOCK, length)) for start in starts]


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt K) of the last n of S positions: q (N,G,n,K), k (N,S,K); returns (N,G*n,S)."""
    (m, groups, n, width), s = q.shape, k.shape[1]
    scores = torch.bmm(q.flatten(1, 2), k.transpose(1, 2)).mul_(width**-0.5)  # (N,G*n,S)
    later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)  # (n,n)
    scores.view(m, groups, n, s)[..., s - n :].masked_fill_(later, -torch.inf)
    return scores.softmax(-1)
