"""The decoder's own kernels against torch's and against finite differences."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from imagebind_llm.kernels import attention
from imagebind_llm.kernels.attention import cached_attention, causal_attention, gated_attention
from imagebind_llm.kernels.fused import rms_norm, swiglu
from imagebind_llm.kernels.logp import token_logp


def random(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 4, 11], ids=["one token", "one block", "a last block that is not full"])
def test_blocked_causal_attention_equals_torch_and_finite_differences(kv_heads, length, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 4)
    q, k, v = random(2, 4, length, 3), random(2, kv_heads, length, 3), random(2, kv_heads, length, 3)
    wanted = scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
    torch.testing.assert_close(causal_attention(q, k, v), wanted)
    assert torch.autograd.gradcheck(causal_attention, (q, k, v))


def test_blocked_causal_attention_in_bf16_is_about_as_near_to_float32_as_torchs():
    q, k, v = (random(2, heads, 200, 16, dtype=torch.float32) for heads in (6, 2, 2))
    wanted = scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
    theirs = scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), is_causal=True, scale=1.0, enable_gqa=True)
    ours = causal_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    slope = random(*wanted.shape, dtype=torch.float32).detach()  # drawn from a seed: the largest errors of few draws vary
    grads = [torch.autograd.grad(out, (q, k, v), slope.to(out.dtype)) for out in (wanted, theirs, ours)]
    assert (ours - wanted).abs().max() < 1.5 * (theirs - wanted).abs().max()
    for exact, torchs, own in zip(*grads, strict=True):
        assert (own - exact).abs().max() < 2 * (torchs - exact).abs().max()


@pytest.mark.parametrize("rows", [1, 2], ids=["the same prompts for every row", "prompts of each row"])
@pytest.mark.parametrize("masked", [False, True])
def test_gated_attention_equals_torch_and_finite_differences(rows, masked):
    q, k, v, gate = random(2, 4, 5, 3), random(rows, 2, 3, 3), random(rows, 2, 3, 3), random(1, 4, 1, 1)
    absent = torch.tensor([[False, True, False], [False, False, True]]) if masked else None
    keys, values = k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1)
    mask = ~absent[:, None, None] if masked else None
    wanted = gate * scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=1.0, enable_gqa=True)
    torch.testing.assert_close(gated_attention(q, k, v, gate, absent), wanted)
    assert torch.autograd.gradcheck(lambda *args: gated_attention(*args, absent), (q, k, v, gate))


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says it lies on a GPU."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_the_kernel_of_gpus_is_asked_for_the_same_causal_attention(kv_heads):
    q, k, v = (random(2, heads, 11, 3).detach() for heads in (4, kv_heads, kv_heads))
    found = causal_attention(*(tensor.as_subclass(OnGpu) for tensor in (q, k, v)))
    assert type(found) is OnGpu, "torch's kernel and not the blocks of the CPU"
    torch.testing.assert_close(found.as_subclass(torch.Tensor), causal_attention(q, k, v))


def test_both_kernels_leave_out_what_is_hidden(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 4)
    q, k, v = (random(2, heads, 11, 3) for heads in (4, 2, 2))
    hidden = attention.other_segments(torch.tensor([[0] * 3 + [1] * 4 + [2] * 4, [0] * 5 + [1] * 2 + [2] * 4]))
    seen = ~hidden[:, None] & torch.ones(11, 11, dtype=torch.bool).tril()
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0, enable_gqa=True)
    torch.testing.assert_close(causal_attention(q, k, v, hidden), wanted)
    assert torch.autograd.gradcheck(lambda *args: causal_attention(*args, hidden), (q, k, v))
    on_gpu = causal_attention(*(tensor.detach().as_subclass(OnGpu) for tensor in (q, k, v)), hidden)
    assert type(on_gpu) is OnGpu
    torch.testing.assert_close(on_gpu.as_subclass(torch.Tensor), wanted.detach())


def test_cached_attention_equals_torch():
    q, k, v = random(2, 4, 3, 5), random(2, 2, 7, 5), random(2, 2, 7, 5)
    mask = torch.rand(2, 1, 3, 7, generator=torch.Generator().manual_seed(0)) > 0.4
    bias = torch.zeros(2, 1, 1, 3, 7).masked_fill(~mask[:, :, None], -torch.inf)
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)
    torch.testing.assert_close(cached_attention(q, k, v, bias), wanted)


def test_gradients_of_norm_swiglu_and_token_logp_equal_finite_differences():
    x, weight = random(4, 6), random(6)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * weight)
    assert torch.autograd.gradcheck(lambda *args: rms_norm(*args, 1e-3), (x, weight))
    a, b = random(4, 6), random(4, 5)[:, :1]
    torch.testing.assert_close(swiglu(a, b.expand(4, 6)), silu(a) * b)
    assert torch.autograd.gradcheck(swiglu, (a, random(4, 6) + 1))
    head, targets = random(9, 6).detach(), torch.tensor([0, 8, 3, 3])
    assert torch.autograd.gradcheck(lambda hidden: token_logp(hidden, head, targets), (x,), eps=1e-2, atol=1e-3)


def test_norm_in_bf16_rounds_before_the_weight_as_the_public_decoder_does():
    x, weight = random(64, 96, dtype=torch.float32).detach().bfloat16(), torch.full((96,), 3.0).bfloat16()
    wide = x.float()
    wanted = (wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()).bfloat16() * weight
    assert torch.equal(rms_norm(x, weight, 1e-5), wanted)
