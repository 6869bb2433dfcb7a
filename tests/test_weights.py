"""Loading LLaMA from Meta shards and Hugging Face folders: the same numbers from every form."""

import json
from pathlib import Path

import pytest
import torch
from llama_folders import GOLDEN, change_json, copy_shards, random_meta_folder, rewrite_shard, write_huggingface
from safetensors.torch import load_file

from imagebind_llm.config import LLAMA_PRESETS
from imagebind_llm.llama.decoder import Llama
from imagebind_llm.llama.load import assign, load_decoder, load_llama
from imagebind_llm.weight_files import WeightsError

IO = load_file(GOLDEN / "f_plain_llama.io.safetensors")
META = {k: v for k, v in load_file(GOLDEN / "f_plain_llama.meta.safetensors").items() if k != "rope.freqs"}
FLOAT = torch.float32


@pytest.fixture
def shards(tmp_path) -> Path:
    return copy_shards(tmp_path / "7B")


@pytest.fixture
def huggingface(tmp_path) -> Path:
    return write_huggingface(tmp_path / "hf")


@pytest.mark.parametrize("form", ["f_meta_2shard", "f_meta_7B_style", "huggingface"])
def test_every_form_gives_the_public_weights_and_logits(form, huggingface):
    folder = huggingface if form == "huggingface" else GOLDEN / form
    config, state = load_llama(folder, FLOAT)
    assert state.keys() == META.keys()
    assert all(torch.equal(state[name], META[name]) for name in META)
    llama = Llama(config, device="meta")
    assign(llama, state)
    with torch.no_grad():
        assert (llama.logits(llama(IO["tokens"])) - IO["logits"]).abs().max() < 5e-5


@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_merged_shards_equal_the_whole_with_grouped_queries(tmp_path, n_shards):
    whole = random_meta_folder(tmp_path / "m", n_shards)
    config, state = load_llama(tmp_path / "m", FLOAT)
    assert (config.n_kv_heads, config.hidden_dim, config.vocab_size, config.rope_theta) == (4, 96, 40, 5e5)
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_embedding_cut_along_the_vocabulary_is_merged_too(tmp_path):
    whole = random_meta_folder(tmp_path / "m", 2)
    name = "tok_embeddings.weight"
    for i, half in enumerate(whole[name].chunk(2, 0)):
        file = tmp_path / "m" / f"consolidated.{i:02d}.pth"
        rewrite_shard(file, lambda tensors, half=half: tensors.update({name: half.clone()}))
    assert torch.equal(load_llama(tmp_path / "m", FLOAT)[1][name], whole[name])


@pytest.mark.parametrize("name", ["rope.freqs", "layers.0.attention.inner_attention.rope.freqs"])
def test_rotary_table_in_a_shard_is_passed_over(shards, name):
    rewrite_shard(shards / "consolidated.01.pth", lambda tensors: tensors.update({name: torch.ones(4)}))
    assert name not in load_llama(shards, FLOAT)[1]


def test_parent_folder_stands_for_the_only_model_in_it(shards):
    assert load_llama(shards.parent, FLOAT)[0] == load_llama(shards, FLOAT)[0]


def test_of_several_models_the_named_one_is_taken(shards, monkeypatch):
    random_meta_folder(shards.parent / "13B", 2)
    seven, thirteen = (load_llama(shards.parent / size, FLOAT)[0] for size in ("7B", "13B"))
    monkeypatch.setitem(LLAMA_PRESETS, "Llama7B_adapter", seven)
    monkeypatch.setitem(LLAMA_PRESETS, "Llama13B_adapter", thirteen)
    assert load_llama(shards.parent, FLOAT, model="Llama7B_adapter")[0] == seven
    assert load_llama(shards.parent, FLOAT, model="Llama13B_adapter")[0] == thirteen
    with pytest.raises(WeightsError, match=r"several models \(13B, 7B\); pass one of them"):
        load_llama(shards.parent, FLOAT)


def test_model_name_stands_for_its_sizes(shards):
    message = (
        "Llama7B_adapter has 32 layers, width 4096, vocabulary 32000; these weights have 3 layers, width 32, vocabulary 97"
    )
    with pytest.raises(WeightsError, match=message):
        load_llama(shards, FLOAT, model="Llama7B_adapter")
    with pytest.raises(WeightsError, match="unknown model Llama7B: expected Llama7B_adapter or auto"):
        load_llama(shards, FLOAT, model="Llama7B")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_converted_while_reading(dtype):
    _, state = load_llama(GOLDEN / "f_meta_2shard", dtype)
    assert all(torch.equal(tensor, META[name].to(dtype)) for name, tensor in state.items())


@pytest.mark.parametrize(("kv_heads", "tied", "shard_size"), [(2, False, "20KB"), (4, True, "5GB"), (1, True, "5GB")])
def test_folder_saved_by_transformers_gives_its_logits(tmp_path, kv_heads, tied, shard_size):
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 60}
    rope = {"rope_type": "default", "rope_theta": 250.0}
    theirs = LlamaForCausalLM(
        TheirConfig(
            **sizes, num_key_value_heads=kv_heads, tie_word_embeddings=tied, rope_parameters=rope, initializer_range=0.3
        )
    ).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    ours = load_decoder(tmp_path, FLOAT)
    tokens = torch.randint(0, 60, (2, 25))
    with torch.no_grad():
        assert (ours.logits(ours(tokens)) - theirs(tokens).logits).abs().max() < 5e-5
    assert ours.config.rope_theta == 250.0
    assert ours.config.tied == tied


@pytest.mark.parametrize("where", ["rope_theta", "rope_parameters", "rope_scaling"])
def test_rotary_base_is_found_wherever_transformers_wrote_it(huggingface, where):
    value = 7e4 if where == "rope_theta" else {"rope_theta": 7e4, "rope_type": "default"}
    raw = json.loads((huggingface / "config.json").read_text())
    del raw["rope_theta"]
    (huggingface / "config.json").write_text(json.dumps(raw | {where: value}))
    assert load_llama(huggingface, FLOAT)[0].rope_theta == 7e4


def test_llama3_rotary_stretching_is_read_from_transformers_config(huggingface):
    keys = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 4096}
    change_json(huggingface / "config.json", rope_scaling={"rope_type": "llama3"} | keys)
    scaling = load_llama(huggingface, FLOAT)[0].rope_scaling
    assert (scaling.factor, scaling.original_max_seq_len) == (32.0, 4096)


def test_decoder_holds_the_tensors_that_were_read_and_no_second_copy(shards):
    config, state = load_llama(shards, FLOAT)
    llama = Llama(config, device="meta")
    assign(llama, state)
    parameters = dict(llama.named_parameters())
    assert all(parameters[name].data_ptr() == state[name].data_ptr() for name in state)
