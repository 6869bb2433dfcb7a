"""Every kernel can be replaced by plain PyTorch: the model gives the same numbers and passes its tests with the plain form."""

import sys
from collections.abc import Callable

import pytest
import test_llama
import test_model
import test_packing
import torch
import torch.nn.functional as F
from test_packing import case  # noqa: F401 (a fixture)
from tiny_itsl import random_itsl
from torch import Tensor

from imagebind_llm.itsl.losses import rationale_nll
from imagebind_llm.kernels import attention, fused, linear, logp
from imagebind_llm.records import Batch


def causal_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    t = q.shape[2]
    seen = torch.ones(t, t, dtype=torch.bool).tril()
    seen = seen if hidden is None else seen & ~hidden[:, None]
    return F.scaled_dot_product_attention(q, k, v, seen, scale=1.0, enable_gqa=True)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, bias[:, 0], scale=1.0, enable_gqa=True)


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, absent: Tensor | None) -> Tensor:
    k, v = (part.expand(len(q), -1, -1, -1).repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
    seen = None if absent is None else ~absent[:, None, None]
    return gate * F.scaled_dot_product_attention(q, k, v, seen, scale=1.0)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight


def token_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


PLAIN: dict[str, dict[Callable, Callable]] = {
    "attention": {
        attention.causal_attention: causal_attention,
        attention.cached_attention: cached_attention,
        attention.gated_attention: gated_attention,
    },
    "fused": {fused.rms_norm: rms_norm, fused.swiglu: lambda a, b: F.silu(a) * b},
    "linear": {linear.linear: F.linear},
    "logp": {logp.token_logp: token_logp},
}


@pytest.fixture(params=PLAIN)
def put_in(request, monkeypatch) -> Callable[[], set[str]]:
    """A function that puts a kernel's plain forms in wherever the package uses it; what it returns gets the names of those that
    are called from then on."""

    def counted(function: Callable, calls: set[str], name: str) -> Callable:
        return lambda *arguments, **keywords: calls.add(name) or function(*arguments, **keywords)

    def replace() -> set[str]:
        calls: set[str] = set()
        for kernel, plain in PLAIN[request.param].items():
            users = [module for name, module in sys.modules.items() if name.startswith(("imagebind_llm", "test_"))]
            for module in users:
                if getattr(module, kernel.__name__, None) is kernel:
                    monkeypatch.setattr(module, kernel.__name__, counted(plain, calls, kernel.__name__))
        return calls

    replace.wanted = {kernel.__name__ for kernel in PLAIN[request.param]}
    return replace


def step(batch: Batch) -> dict[str, Tensor]:
    """Log-probabilities, loss and every gradient of a toy model with prompts, LoRA, biases and a bridge."""
    model = random_itsl("separate", lora_rank=2)
    for name, parameter in model.named_parameters():
        if "lora" in name or "bias" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 10
    model.train_only("all")
    output = model(batch)
    loss = rationale_nll(output.logp, output.mask)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logp": output.logp.detach(), "loss": loss.detach(), **gradients}


def test_logits_loss_and_gradients_are_those_of_the_plain_form(put_in):
    batch = test_model.random_batch()
    wanted = step(batch)
    calls = put_in()
    numbers = step(batch)
    assert calls == put_in.wanted - {"cached_attention"}
    assert numbers.keys() == wanted.keys() and len(wanted) > 60
    for name, value in wanted.items():
        torch.testing.assert_close(numbers[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_plain_form_passes_the_tests_of_the_model(put_in, case):  # noqa: F811
    calls = put_in()
    for name in test_model.ALL_CASES:
        test_model.test_logits_and_loss_equal_the_public_implementation(name)
        test_model.test_gradients_equal_the_public_implementation(name)
    test_llama.test_plain_llama_equals_the_public_implementation_and_both_key_formats_agree()
    test_llama.test_a_cache_gives_the_same_states_as_no_cache()
    test_llama.test_gated_attention_equals_the_formula_written_out(5)
    test_packing.test_answers_in_one_row_have_the_likelihoods_and_gradients_of_rows_of_their_own(case)
    assert calls == put_in.wanted
