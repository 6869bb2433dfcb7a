"""Matrix products with frozen weights on the CPU, through oneDNN.

torch sends float32 `F.linear` to MKL, which on AMD processors runs at less than half of what oneDNN reaches with the
same weights (measured with torch 2.13 on an AMD EPYC with AVX-512, 2 threads: 104 against 47 CPU-ms for 771 x 1280 -> 5120,
44 against 18 for 2048 x 512 -> 1536, likewise backwards). bfloat16 goes through oneDNN either way, but F.linear first copies
the bias into every row of the output (7 % of the vision tower). Single rows, trained weights and GPUs take F.linear.

oneDNN brings a weight into its own layout in every call, which for a few rows takes as long as the product: while an answer
is written, `reordered_weights` keeps that layout (16 rows, 576 -> 1536 in bf16: 371 against 262 us; the logits of 16 rows
over 49,152 tokens 22.7 against 12.5 ms; the same bits).
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out); the gradient reaches x only, if weight is frozen."""
    if not _onednn_serves(x, weight):
        return F.linear(x, weight, bias)
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return linear(x, weight) + bias  # ImageBind-LLM trains biases of frozen matrices
    if torch.is_grad_enabled() and x.requires_grad:
        return _FrozenLinear.apply(x, weight, bias)
    return _onednn(x, _in_own_layout(weight, x), bias)


Copies = dict[int, tuple[Tensor, Tensor]]  # by id: weights and their copies
_copies: ContextVar[Copies | None] = ContextVar("copies", default=None)  # None: none are kept; each thread has its own
MOST_BYTES = 2**30  # of weights whose copies are kept


@contextmanager
def reordered_weights() -> Iterator[None]:
    """Keep copies of frozen weights in oneDNN's layout, up to MOST_BYTES of them, for the products inside without gradients."""
    before = _copies.set({})
    try:
        yield
    finally:
        _copies.reset(before)


def _in_own_layout(weight: Tensor, x: Tensor) -> Tensor:
    """The kept copy for x (..., in); the weight itself where none is kept."""
    copies = _copies.get()
    if copies is None:
        return weight
    if id(weight) not in copies:
        kept = sum(copy.numel() * copy.element_size() for copy, _ in copies.values())
        if kept + weight.numel() * weight.element_size() > MOST_BYTES:
            return weight
        rows = x.numel() // x.shape[-1]
        copies[id(weight)] = weight, torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return copies[id(weight)][1]


def _onednn_serves(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _bfloat16_serves()))
        and x.numel() > x.shape[-1]  # one row is a matrix-vector product, which MKL does faster
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not (weight.requires_grad and torch.is_grad_enabled())
    )


@functools.cache
def _bfloat16_serves() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _FrozenLinear(torch.autograd.Function):
    """x W^T + b with the gradient of x alone: nothing of x needs to be kept for it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (weight,) = ctx.saved_tensors
        return _onednn(gradients[0], weight.t(), None), None, None
