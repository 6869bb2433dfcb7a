"""Softmax attention, causal or masked, with grouped queries."""

import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each of T positions sees itself and what precedes it. q (B,H,T,K), k and v (B,KV,T,K); returns (B,H,T,K)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q (B,KV,R,K) reads k and v (B,KV,S,K) where `mask` (B,1,1 or R,S) is true; None: everywhere."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
