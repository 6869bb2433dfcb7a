"""The oneDNN path of frozen matrix products against plain F.linear in double precision."""

from threading import Thread

import pytest
import torch
import torch.nn.functional as F

from imagebind_llm.kernels import linear as module
from imagebind_llm.kernels.linear import linear, reordered_weights


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(1, 48), (2, 48), (3, 5, 48), (2, 3, 7, 48)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_output_and_gradient_equal_double_precision(shape, with_bias):
    x, weight, bias = random(*shape).requires_grad_(), random(64, 48), random(64) if with_bias else None
    exact = x.detach().double().requires_grad_()
    want = F.linear(exact, weight.double(), None if bias is None else bias.double())
    got = linear(x, weight, bias)
    upstream = random(*want.shape)
    got.backward(upstream)
    want.backward(upstream.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-4)


def test_bfloat16_output_and_gradient_are_those_of_float32_rounded():
    x, weight, bias = random(5, 48).bfloat16().requires_grad_(), random(64, 48).bfloat16(), random(64).bfloat16()
    wide = x.detach().float().requires_grad_()
    got, want = linear(x, weight, bias), F.linear(wide, weight.float(), bias.float())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=0.1)
    upstream = random(5, 64)
    got.backward(upstream.bfloat16())
    want.backward(upstream.bfloat16().float())
    torch.testing.assert_close(x.grad.float(), wide.grad, rtol=1e-2, atol=0.1)


def test_strided_input_is_read_in_its_own_order():
    x, weight = random(6, 4, 48).transpose(0, 1), random(64, 48)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)


def test_trained_weights_get_their_gradient():
    x, weight, bias = random(5, 48), random(64, 48).requires_grad_(), random(64).requires_grad_()
    linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(64, -1))
    torch.testing.assert_close(bias.grad, torch.full((64,), 5.0))


def test_a_trained_bias_of_a_frozen_matrix_gets_its_gradient():
    x, weight, bias = random(5, 48).requires_grad_(), random(64, 48), random(64).requires_grad_()
    out = linear(x, weight, bias)
    torch.testing.assert_close(out, F.linear(x, weight, bias), rtol=1e-5, atol=1e-4)
    out.sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((64,), 5.0))
    torch.testing.assert_close(x.grad, weight.sum(0).expand(5, -1), rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_switched_off_onednn_takes_the_ordinary_path():
    x, weight = random(5, 48), random(64, 48)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reordered_weights_give_the_same_bits_and_are_let_go(dtype, monkeypatch):
    weights, x = [random(64, 48).to(dtype), random(64, 48, 1)[..., 0].to(dtype)], random(5, 48).to(dtype)
    wanted = [linear(x, weight) for weight in weights]
    for most, kept in ((2**30, 2), (weights[0].numel() * weights[0].element_size(), 1)):
        monkeypatch.setattr(module, "MOST_BYTES", most)
        with reordered_weights(), torch.no_grad():
            for _ in range(2):
                assert all(linear(x, weight).equal(own) for weight, own in zip(weights, wanted, strict=True))
            assert len(module._copies.get()) == kept, "copies of no more than MOST_BYTES"
        assert module._copies.get() is None


def test_copies_of_one_thread_are_not_anothers():
    seen = []
    with reordered_weights():
        thread = Thread(target=lambda: seen.append(module._copies.get()))
        thread.start()
        thread.join()
    assert seen == [None]
