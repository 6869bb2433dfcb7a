"""Elementwise pieces of the decoder."""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis in float32, cast back to x's type, times `weight`."""
    return F.rms_norm(x, x.shape[-1:], None, eps) * weight.to(x.dtype)


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) * b."""
    return F.silu(a) * b
