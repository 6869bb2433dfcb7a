"""The decoder: numbers of the public implementations, of transformers, and what it does not compute."""

import dataclasses

import golden_llama
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

from imagebind_llm.config import LlamaConfig, PromptConfig, RopeScaling
from imagebind_llm.llama.cache import KVCache
from imagebind_llm.llama.decoder import ContextError, Llama, Prompts

HF_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "layers",
}


def from_hf(state: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Hugging Face keys and half-split rows -> Meta keys and adjacent pairs."""
    ours = {}
    for name, value in state.items():
        for theirs, meta in HF_NAMES.items():
            name = name.replace(theirs, meta)
        if name.endswith(("wq.weight", "wk.weight")):
            value = value.view(-1, 2, head_dim // 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        ours[name] = value
    return ours


def random_llama(prompts: PromptConfig | None = None, seed: int = 0, **sizes) -> Llama:
    """A tiny decoder with every parameter random and every gate open."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **({"dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "vocab_size": 61} | sizes)
    )
    llama = Llama(config, prompts).requires_grad_(False)
    for name, parameter in llama.named_parameters():
        if name.endswith(("gate", "norm.weight", "wq.lora_up.weight", "bias")):
            parameter.data = torch.randn_like(parameter) * 0.5 + 0.5
    return llama


PLAIN = LlamaConfig(32, 3, 4, 4, 96, 97, norm_eps=1e-6)


def test_plain_llama_equals_the_public_implementation_and_both_key_formats_agree():
    io = load_file(golden_llama.FOLDER / "f_plain_llama.io.safetensors")
    meta = load_file(golden_llama.FOLDER / "f_plain_llama.meta.safetensors")
    del meta["rope.freqs"]
    for state in (meta, from_hf(load_file(golden_llama.FOLDER / "f_plain_llama.hf.safetensors"), 8)):
        llama = Llama(PLAIN)
        llama.load_state_dict(state)
        logits = llama.logits(llama(io["tokens"]))
        torch.testing.assert_close(logits, io["logits"], atol=5e-5, rtol=0)
        torch.testing.assert_close(logits[:, -1], io["last_logits"], atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("kv_heads", "tied", "theta"),
    [(4, False, 10000.0), (2, False, 500000.0), (1, True, 100000.0)],
    ids=["mha", "gqa", "mqa-tied"],
)
def test_logits_equal_transformers_on_random_weights(kv_heads, tied, theta):
    torch.manual_seed(1)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = HFConfig(**sizes, num_key_value_heads=kv_heads, tie_word_embeddings=tied, rope_theta=theta, rms_norm_eps=1e-5)
    peer = LlamaForCausalLM(config).eval()
    tokens = torch.randint(61, (3, 23))
    state = from_hf(peer.state_dict(), 8)
    if tied:
        del state["output.weight"]
    llama = Llama(LlamaConfig(32, 3, 4, kv_heads, 48, 61, rope_theta=theta, tied=tied))
    llama.load_state_dict(state)
    torch.testing.assert_close(llama.logits(llama(tokens)), peer(tokens).logits, atol=1e-5, rtol=0)


def test_stretched_rotary_equals_transformers_llama3_rule():
    torch.manual_seed(2)
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = HFConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        rope_parameters=rope | {"rope_theta": 10000.0, "original_max_position_embeddings": 64},
    )
    peer = LlamaForCausalLM(config).eval()
    tokens = torch.randint(61, (1, 300))
    ours = LlamaConfig(64, 2, 2, 1, 48, 61, rope_scaling=RopeScaling(original_max_seq_len=64))
    llama, unscaled = Llama(ours), Llama(dataclasses.replace(ours, rope_scaling=None))
    for model in (llama, unscaled):
        model.load_state_dict(from_hf(peer.state_dict(), 32))
    wanted = peer(tokens).logits
    torch.testing.assert_close(llama.logits(llama(tokens)), wanted, atol=1e-5, rtol=0)
    assert (unscaled.logits(unscaled(tokens)) - wanted).abs().max() > 1e-3


def by_hand(llama: Llama, layer: int, x: Tensor, prefix: Tensor) -> Tensor:
    """One layer's gated attention written out head by head and position by position, for one row x (T,D)."""
    attention, norm = llama.layers[layer].attention, llama.layers[layer].attention_norm
    t, width, groups = len(x), 8, 2
    y = x / (x.pow(2).mean(-1, keepdim=True) + llama.config.norm_eps).sqrt() * norm.weight
    angles = torch.arange(t)[:, None] * llama.config.rope_theta ** (-torch.arange(0, width, 2) / width)

    def turned(z: Tensor) -> Tensor:
        even, odd = z[:, 0::2], z[:, 1::2]
        pairs = [even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()]
        return torch.stack(pairs, -1).flatten(1)

    heads = []
    for head in range(4):
        own, shared = slice(head * width, (head + 1) * width), slice(head // groups * width, (head // groups + 1) * width)
        q, k = turned(y @ attention.wq.weight[own].T), turned(y @ attention.wk.weight[shared].T)
        v, pk, pv = (z @ w.weight[shared].T for z, w in ((y, attention.wv), (prefix, attention.wk), (prefix, attention.wv)))
        scores = (q @ k.T / width**0.5).masked_fill(torch.ones(t, t).triu(1).bool(), -torch.inf)
        gate = attention.gate.flatten()[head].tanh()
        heads.append(scores.softmax(1) @ v + gate * (q @ pk.T / width**0.5).softmax(1) @ pv)
    return torch.cat(heads, 1) @ attention.wo.weight.T


@pytest.mark.parametrize("length", [1, 5])
def test_gated_attention_equals_the_formula_written_out(length):
    llama = random_llama(PromptConfig(1, length, normalise_prefix=False), n_layers=1)
    tokens, prefix = torch.randint(61, (2, 7)), torch.randn(2, 1, length, 32)
    x = llama.tok_embeddings(tokens)
    block = llama.layers[0]
    for row in range(2):
        h = x[row] + by_hand(llama, 0, x[row], prefix[row, 0])
        out = h + block.feed_forward(block.ffn_norm(h))
        torch.testing.assert_close(llama(tokens, Prompts(prefix))[row], llama.norm(out), atol=2e-6, rtol=0)


def test_prompts_are_read_through_the_frozen_matrices_alone():
    """As in LLaMA-Adapter and ImageBind-LLM: neither LoRA nor biases touch what prompts are as keys and values."""
    llama = random_llama(PromptConfig(1, 5, normalise_prefix=False, lora_rank=2, bias=True), n_layers=1)
    for name, parameter in llama.named_parameters():
        if "lora" in name or "bias" in name:
            torch.nn.init.normal_(parameter)
    attention, prefix = llama.layers[0].attention, torch.randn(2, 5, 32)
    read = attention.prompt_kv(prefix, None)
    for found, name in ((read.keys, "wk"), (read.values, "wv")):
        wanted = prefix @ getattr(attention, name).weight.T
        torch.testing.assert_close(found.transpose(1, 2).flatten(2), wanted)
        assert (getattr(attention, name)(prefix) - wanted).abs().max() > 0.1


def test_normalised_prefix_ignores_the_length_of_the_prompt_vectors():
    prefix = torch.randn(1, 2, 3, 32)
    tokens = torch.randint(61, (1, 5))
    on, off = (random_llama(PromptConfig(2, 3, normalise)) for normalise in (True, False))
    torch.testing.assert_close(on(tokens, Prompts(prefix)), on(tokens, Prompts(prefix * 50)), atol=1e-5, rtol=0)
    assert (off(tokens, Prompts(prefix)) - off(tokens, Prompts(prefix * 50))).abs().max() > 0.01
    unit = prefix / prefix.pow(2).mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(on(tokens, Prompts(prefix)), off(tokens, Prompts(unit)), atol=1e-5, rtol=0)


def test_zero_prompt_vectors_give_finite_gradients_in_a_deep_llama():
    llama = random_llama(PromptConfig(30, 3), n_layers=30)
    prefix = torch.zeros(1, 30, 3, 32, requires_grad=True)
    llama(torch.randint(61, (2, 9)), Prompts(prefix)).square().sum().backward()
    assert prefix.grad.isfinite().all()


def test_kept_positions_equal_those_of_the_whole_forward():
    llama = random_llama(PromptConfig(2, 3))
    tokens, prompts = torch.randint(61, (2, 9)), Prompts(torch.randn(2, 2, 3, 32))
    keep = torch.tensor([3, 8, 9, 17])
    torch.testing.assert_close(llama(tokens, prompts, keep=keep), llama(tokens, prompts).flatten(0, 1)[keep], atol=1e-6, rtol=0)
    assert llama(tokens, prompts, keep=torch.tensor([], dtype=torch.long)).shape == (0, 32)


def test_padding_on_the_right_changes_nothing_before_it():
    llama = random_llama(PromptConfig(2, 3))
    tokens, prompts = torch.randint(61, (1, 9)), Prompts(torch.randn(1, 2, 3, 32))
    other = tokens.clone()
    other[:, 6:] = 0
    torch.testing.assert_close(llama(tokens, prompts)[:, :6], llama(other, prompts)[:, :6], atol=1e-6, rtol=0)


def saved_bytes(llama: Llama, layers: int, tokens: Tensor) -> int:
    """Activations that autograd keeps when the top `layers` have prompts that train; weights are not counted."""
    prefix = torch.randn(1, layers, 2, llama.config.dim, requires_grad=True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in llama.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = llama(tokens, Prompts(prefix))
    assert held.requires_grad
    return sum(kept.values())


def test_layers_below_the_prompts_keep_no_activations_and_no_gradient():
    tokens = torch.randint(61, (2, 64))
    deep, shallow = random_llama(PromptConfig(2, 2), n_layers=8), random_llama(PromptConfig(2, 2), n_layers=2)
    inputs = []
    for layer in deep.layers:
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].requires_grad))
    assert saved_bytes(deep, 2, tokens) == saved_bytes(shallow, 2, tokens) > 0
    assert inputs == [False] * 7 + [True]
    assert saved_bytes(deep, 4, tokens) > 1.5 * saved_bytes(deep, 2, tokens)


def test_a_cache_gives_the_same_states_as_no_cache():
    llama = random_llama(PromptConfig(2, 3))
    tokens, prompts = torch.randint(61, (2, 9)), Prompts(torch.randn(2, 2, 3, 32))
    whole = llama(tokens, prompts)
    cache = KVCache(llama.config, 2, 9, like=whole)
    parts = [llama(tokens[:, :5], prompts, cache=cache)]
    for start, end in ((5, 6), (6, 9)):
        positions = torch.arange(start, end).expand(2, -1)
        parts.append(llama(tokens[:, start:end], cache=cache, positions=positions))
    assert cache.used == 9
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-6, rtol=0)


def test_bf16_stays_near_float32_with_trained_parameters_in_float32():
    llama = random_llama(PromptConfig(4, 3, lora_rank=2, bias=True))
    tokens, prompts = torch.randint(61, (2, 9)), Prompts(torch.randn(2, 4, 3, 32))
    wanted = llama.logits(llama(tokens, prompts))
    for name, parameter in llama.named_parameters():
        if not any(part in name for part in ("gate", "norm", "bias", "lora")):
            parameter.data = parameter.data.bfloat16()
    hidden = llama(tokens, prompts)
    assert hidden.dtype == torch.bfloat16
    assert (llama.logits(hidden) - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("layers", [0, 5])
def test_adapter_layer_outside_the_depth_is_refused(layers):
    with pytest.raises(ValueError, match=f"adapter_layer {layers}: this LLaMA has 4 layers; pass --adapter_layer 1 to 4"):
        random_llama(PromptConfig(layers, 2))


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ContextError, match="17 positions, but the context of this LLaMA is 16; shorten the prompt"):
        random_llama(max_seq_len=16)(torch.zeros(1, 17, dtype=torch.long))
