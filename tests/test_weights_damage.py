"""Damaged weights of every kind: `weights check` says what is wrong with them and never ends in a traceback."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_adapter import released
from tiny_gguf import random_weights, write_gguf

from imagebind_llm.check.weights import check
from imagebind_llm.llama.load import open_llama
from imagebind_llm.weight_files import WeightsError

GOLDEN = Path(__file__).parent / "golden" / "llama"
NO_COUNT = (0, -1, "2", 1.5, True, [], {}, 10**30)
NO_AMOUNT = (0, -1.0, "2", True, [], float("nan"), float("inf"), 10**400)
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
TENSORS = {"conv1.weight": torch.ones(2), "conv1.bias": torch.ones(2)}


@pytest.fixture
def meta(tmp_path) -> Path:
    folder = Path(shutil.copytree(GOLDEN / "f_meta_2shard", tmp_path / "7B", copy_function=shutil.copyfile))
    return folder / "params.json"


@pytest.fixture
def huggingface(tmp_path) -> Path:
    sizes = json.loads((GOLDEN / "f_plain_llama.json").read_text())["config"]["hf_config"]
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    shutil.copyfile(GOLDEN / "f_plain_llama.hf.safetensors", tmp_path / "model.safetensors")
    return tmp_path / "config.json"


def refusal(file: Path, changes: dict) -> str:
    """The message with which the model of this settings file is refused after these changes."""
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | changes))
    with pytest.raises(WeightsError) as refused:
        open_llama(file.parent)
    assert check(file.parent).problems == (str(refused.value),)
    file.write_text(whole)
    return str(refused.value)


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len"])
def test_meta_sizes_that_are_no_positive_integers_are_named(meta, key):
    for value in NO_COUNT:
        assert f"params.json: {key} must be a positive integer, got {value!r}" in refusal(meta, {key: value})


@pytest.mark.parametrize("key", ["norm_eps", "rope_theta"])
def test_meta_numbers_that_are_not_positive_and_finite_are_named(meta, key):
    for value in NO_AMOUNT:
        assert f"params.json: {key} must be a positive number, got {value!r}" in refusal(meta, {key: value})


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"],
)
def test_huggingface_sizes_that_are_no_positive_integers_are_named(huggingface, key):
    for value in NO_COUNT:
        assert f"config.json: {key} must be a positive integer, got {value!r}" in refusal(huggingface, {key: value})


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_huggingface_numbers_that_are_not_positive_and_finite_are_named(huggingface, key):
    for value in NO_AMOUNT:
        assert f"config.json: {key} must be a positive number, got {value!r}" in refusal(huggingface, {key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "no hidden_size; it is incomplete"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object or null, got 'linear'"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": "8"}}, "must be a positive integer, got '8'"),
        ({"rope_scaling": LLAMA3 | {"factor": [8]}}, "factor must be a positive number, got [8]"),
        ({"architectures": 3}, "got llama, 3"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers, expected at most 10000"),
    ],
)
def test_huggingface_settings_of_the_wrong_kind_are_named(huggingface, changes, message):
    assert message in refusal(huggingface, changes)


@pytest.mark.parametrize("shards", [3, [], "x", {"a": 3}])
def test_index_of_the_wrong_kind_is_refused(huggingface, shards):
    (huggingface.parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "index.json" in check(huggingface.parent).problems[0]


def weight_file(kind: str, folder: Path) -> Path:
    if kind == "adapter.pth":
        return released("b_ib_finetune", folder / kind)
    if kind == "model.gguf":
        return write_gguf(folder / kind, random_weights())
    if kind == "x.safetensors":
        save_file(TENSORS, folder / kind)
    else:
        torch.save(TENSORS, folder / kind, _use_new_zipfile_serialization=kind != "old.pth")
    return folder / kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip.pth", "old.pth", "adapter.pth", "x.safetensors", "model.gguf"])
def test_files_with_two_changed_bytes_are_reported_not_a_traceback(tmp_path, kind):
    file, draw = weight_file(kind, tmp_path), random.Random(0)
    whole = file.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(2):
            damaged[draw.randrange(min(len(whole), 4000))] = draw.randrange(256)
        file.write_bytes(damaged)
        assert check(file).text().startswith("path")


@pytest.mark.parametrize("name", ["prefix_query.weight", "image_bind_proj.weight", "image_bind_f1_1.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_adapter_matrices_that_are_none_are_named(tmp_path, name, shape):
    file = released("b_ib_finetune", tmp_path / "adapter.pth", lambda tensors: tensors.update({name: torch.ones(shape)}))
    problem = check(file).problems[0]
    assert "expected matrices, got" in problem and f"{name} {shape}" in problem


def test_meta_tensor_that_is_a_single_number_is_named(meta):
    for file in meta.parent.glob("*.pth"):
        torch.save(torch.load(file, weights_only=True) | {"tok_embeddings.weight": torch.ones(())}, file)
    assert "tok_embeddings.weight: single numbers, expected matrices" in check(meta.parent).problems[0]


def test_file_without_any_tensor_is_reported(tmp_path):
    save_file({}, tmp_path / "x.safetensors")
    assert "0 tensors" in check(tmp_path / "x.safetensors").problems[0]


def test_imagebind_names_without_a_block_are_reported(tmp_path):
    save_file(
        {"modality_trunks.audio.blocks.x.norm_1.weight": torch.ones(()), "modality_trunks.y": torch.ones(1)}, tmp_path / "x"
    )
    assert "2 unexpected: modality_trunks.audio" in check(tmp_path / "x").problems[0]
