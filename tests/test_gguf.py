"""GGUF files: header, dequantised weights, SmolLM2 against transformers' own GGUF loading, and an error for every fault."""

import gguf
import pytest
import torch
from gguf.quants import dequantize, quantize
from tiny_gguf import CONFIG, random_weights, write_gguf
from transformers import LlamaConfig as TheirConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from imagebind_llm.llama.gguf import smollm2_path
from imagebind_llm.llama.gguf_header import GGUFError, read_header
from imagebind_llm.llama.load import load_decoder, load_llama
from imagebind_llm.llama.rotary import rope_table
from imagebind_llm.weight_files import WeightsError

FLOAT = torch.float32
Kind = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def smollm2():
    return load_decoder(smollm2_path(), FLOAT)


@pytest.fixture
def weights():
    return random_weights()


def test_file_of_float32_gives_sizes_and_weights_exactly(tmp_path, weights):
    config, state = load_llama(write_gguf(tmp_path / "x.gguf", weights), FLOAT)
    assert config == CONFIG
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_file_without_an_output_matrix_is_tied(tmp_path, weights):
    del weights["output.weight"]
    assert load_llama(write_gguf(tmp_path / "x.gguf", weights), FLOAT)[0].tied


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1])
def test_every_stored_type_is_dequantised(tmp_path, weights, kind):
    name = "layers.1.feed_forward.w1.weight"
    _, state = load_llama(write_gguf(tmp_path / "x.gguf", weights, {name: kind}), FLOAT)
    expected = torch.from_numpy(dequantize(quantize(weights[name].numpy(), kind), kind))
    assert torch.equal(state[name], expected)
    assert (state[name] - weights[name]).abs().max() < 0.5  # and that is the matrix, coarsely


def test_rotary_divisors_of_llama_3_1_give_its_frequencies(tmp_path, weights):
    rule = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = rule | {"rope_type": "llama3", "rope_theta": 5e5}
    theirs = TheirConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=rope)
    stretched = LlamaRotaryEmbedding(theirs).inv_freq
    divisors = 5e5 ** -(torch.arange(0, 16, 2) / 16) / stretched
    file = write_gguf(tmp_path / "x.gguf", weights, keys={"llama.rope.freq_base": 5e5}, more={"rope_freqs.weight": divisors})
    config = load_llama(file, FLOAT)[0]
    ours = rope_table(torch.ones(1, 1), config).angle().flatten()
    assert divisors.max() > 31
    assert torch.allclose(ours, stretched, rtol=1e-4, atol=0)


def test_rotary_divisors_of_another_rule_are_refused(tmp_path, weights):
    divisors = {"rope_freqs.weight": torch.linspace(1, 8, 8)}
    with pytest.raises(WeightsError, match=r"rope_freqs\.weight do not follow LLaMA 3\.1's rule"):
        load_llama(write_gguf(tmp_path / "x.gguf", weights, more=divisors), FLOAT)


def test_header_equals_that_of_the_gguf_package():
    ours, theirs = read_header(smollm2_path()), gguf.GGUFReader(smollm2_path())
    assert len(ours.metadata) == 33
    assert ours.metadata == {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert len(ours.tensors) == 272
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert (entry.shape[::-1], entry.type, entry.offset) == (tuple(tensor.shape), tensor.tensor_type, tensor.data_offset)


def test_smollm2_logits_equal_transformers_loading_of_the_same_file(smollm2):
    from transformers import AutoModelForCausalLM

    path = smollm2_path()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=FLOAT)
    tokens = torch.randint(0, 49152, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (smollm2.logits(smollm2(tokens)) - theirs(tokens).logits).abs().max()
    assert difference < 2e-4  # of logits up to 36; 7.8e-5 measured


# --- bad input ---


def test_quantisation_that_cannot_be_read_is_named_with_its_tensor(tmp_path, weights):
    file = write_gguf(tmp_path / "x.gguf", weights, {"layers.0.feed_forward.w2.weight": Kind.Q8_1})
    with pytest.raises(WeightsError, match=r"blk\.0\.ffn_down\.weight is quantised as Q8_1, which cannot .* as F16"):
        load_llama(file, FLOAT)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llama.block_count": 3}, r"9 missing: blk\.2\.attn_norm\.weight"),
        ({"llama.block_count": 1}, r"9 unexpected: blk\.1\."),
        ({"llama.embedding_length": 128}, r"token_embd\.weight is \(40, 64\), expected \(40, 128\)"),
        ({"llama.block_count": None}, r"metadata lack llama\.block_count"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary scaling yarn"),
        ({"split.count": 2}, "one of 2 parts"),
    ],
)
def test_metadata_of_another_model_are_refused(tmp_path, weights, keys, message):
    with pytest.raises(WeightsError, match=message):
        load_llama(write_gguf(tmp_path / "x.gguf", weights, keys=keys), FLOAT)


def test_another_architecture_is_named(tmp_path, weights):
    with pytest.raises(WeightsError, match="architecture llama, got qwen2"):
        load_llama(write_gguf(tmp_path / "x.gguf", weights, architecture="qwen2"), FLOAT)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.999])
def test_truncated_file_is_refused(tmp_path, weights, share):
    file = write_gguf(tmp_path / "x.gguf", weights)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(WeightsError, match="truncated"):
        load_llama(file, FLOAT)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(GGUFError, match="expected a GGUF file"):
        read_header(tmp_path / "x.gguf")


def test_absent_smollm2_package_names_make_setup(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="run: make setup"):
        smollm2_path()
