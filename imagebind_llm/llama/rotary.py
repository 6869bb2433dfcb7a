"""Rotary position embeddings (RoFormer, arXiv:2104.09864) on adjacent pairs, with the stretching of LLaMA-3.1."""

from typing import NamedTuple

import torch
from torch import Tensor

from imagebind_llm.config import LlamaConfig, RopeScaling


class Rope(NamedTuple):
    """The rotary table of a pass: of keys, and of queries, which it also divides by sqrt K."""

    q: Tensor
    k: Tensor


def rope_table(positions: Tensor, config: LlamaConfig) -> Tensor:
    """e^(i * position * frequency), complex64 (B or 1, T, 1, K/2); frequency j is theta^(-2j/K), stretched if so set."""
    width = config.dim // config.n_heads
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    frequencies = config.rope_theta**-exponents  # (K/2,)
    if config.rope_scaling:
        frequencies = _stretched(frequencies, config.rope_scaling)
    angles = positions[..., None, None].float() * frequencies  # (B,T,1,K/2)
    return torch.polar(torch.ones_like(angles), angles)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """LLaMA-3.1's rule: slow frequencies are divided by `factor`, fast ones kept, those in between mixed linearly."""
    turns = scaling.original_max_seq_len * frequencies / (2 * torch.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Multiply the adjacent pairs (2i, 2i+1) of x (B,T,H,K) by the table's complex numbers, in float32, cast back."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B,T,H,K/2)
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)  # (B,T,H,K)
