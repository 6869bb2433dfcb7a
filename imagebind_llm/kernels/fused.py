"""Elementwise pieces of the decoder that keep less for their gradient than autograd would.

Written out, RMSNorm and SwiGLU save five tensors of the size of their inputs; their gradients need two and three.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis in float32, cast back to x's type, times `weight`."""
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _rms_norm(x, weight, eps)


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) * b."""
    return _SwiGLU.apply(a, b) if torch.is_grad_enabled() else F.silu(a).mul_(b)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """With r = 1 / rms(x) and u = x r: dx = r (g w - u mean(g w u)), dw = sum(g u)."""
        (x, weight), grad = ctx.saved_tensors, grads[0]
        width, wide = x.shape[-1], torch.promote_types(x.dtype, torch.float32)
        r = (torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / width + ctx.eps).rsqrt()
        dw = (grad * x * r).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        scaled = grad * weight.to(grad.dtype)
        dot = torch.linalg.vecdot(scaled, x)[..., None].to(wide)
        dx = scaled.mul_(r.to(x.dtype)).addcmul_(x, (dot * r**3 / -width).to(x.dtype))
        return dx, dw, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        a, b = ctx.saved_tensors
        da = torch.ops.aten.silu_backward(grads[0] * b, a)
        return da, F.silu(a).mul_(grads[0])
