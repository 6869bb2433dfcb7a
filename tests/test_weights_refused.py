"""LLaMA files that do not fit or are damaged: an error for every fault, and nothing is loaded by halves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from llama_folders import GOLDEN, change_json, copy_shards, random_meta_folder, rewrite_shard, write_huggingface
from safetensors.torch import load_file, save_file

from imagebind_llm.llama.decoder import Llama
from imagebind_llm.llama.load import assign, load_llama
from imagebind_llm.weight_files import TensorFile, WeightsError, open_shards

META = {k: v for k, v in load_file(GOLDEN / "f_plain_llama.meta.safetensors").items() if k != "rope.freqs"}
FLOAT = torch.float32


@pytest.fixture
def shards(tmp_path) -> Path:
    return copy_shards(tmp_path / "7B")


@pytest.fixture
def huggingface(tmp_path) -> Path:
    return write_huggingface(tmp_path / "hf")


def test_missing_shard_in_the_middle_is_named(tmp_path):
    random_meta_folder(tmp_path / "m", 4)
    (tmp_path / "m" / "consolidated.01.pth").unlink()
    with pytest.raises(WeightsError, match=r"consolidated\.01\.pth is missing"):
        load_llama(tmp_path / "m", FLOAT)


def test_missing_last_shard_is_noticed_by_the_width(tmp_path):
    random_meta_folder(tmp_path / "m", 4)
    for last in ("consolidated.02.pth", "consolidated.03.pth"):
        (tmp_path / "m" / last).unlink()
    with pytest.raises(WeightsError, match="found 2 of 4"):
        load_llama(tmp_path / "m", FLOAT)


def test_shards_of_two_models_of_one_size_do_not_belong_together(tmp_path):
    random_meta_folder(tmp_path / "a", 2)
    random_meta_folder(tmp_path / "b", 2, seed=1)
    shutil.copyfile(tmp_path / "b" / "consolidated.01.pth", tmp_path / "a" / "consolidated.01.pth")
    with pytest.raises(WeightsError, match=r"don't belong together: layers\.0\.attention_norm\.weight differs"):
        load_llama(tmp_path / "a", FLOAT)


def test_shards_of_models_of_two_sizes_do_not_belong_together(tmp_path, shards):
    random_meta_folder(tmp_path / "b", 2)
    shutil.copyfile(tmp_path / "b" / "consolidated.01.pth", shards / "consolidated.01.pth")
    with pytest.raises(WeightsError, match=r"don't belong together: consolidated\.01\.pth and consolidated\.00\.pth differ in"):
        load_llama(shards, FLOAT)


def test_unknown_key_in_params_is_named(shards):
    change_json(shards / "params.json", sliding_window=4096)
    with pytest.raises(WeightsError, match="got unknown keys sliding_window"):
        load_llama(shards, FLOAT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 48}, "says width 48, the shards have 32"),
        ({"vocab_size": 32000}, "says vocab_size 32000, the embedding has 97 rows"),
        ({"n_layers": 4}, r"9 missing: layers\.3\.attention_norm\.weight"),
        ({"n_layers": 2}, r"9 unexpected: layers\.2\.attention\.wk\.weight"),
        ({"n_heads": 5}, "5 heads.*do not divide"),
        (
            {"n_kv_heads": 2},
            r"is not a LLaMA of its own sizes: 6 of another shape: layers\.0\.attention\.wk\.weight is \(32, 32\), expected",
        ),
        ({"use_scaled_rope": True}, "use_scaled_rope does not say by how much"),
    ],
)
def test_params_of_another_model_are_refused(shards, change, message):
    change_json(shards / "params.json", **change)
    with pytest.raises(WeightsError, match=message):
        load_llama(shards, FLOAT)


def test_missing_tensor_in_all_shards_is_named(shards):
    for file in shards.glob("*.pth"):
        rewrite_shard(file, lambda tensors: tensors.pop("output.weight"))
    with pytest.raises(WeightsError, match=r"1 missing: output\.weight \(it has 30 tensors\)"):
        load_llama(shards, FLOAT)


def test_missing_params_file_is_named(shards):
    (shards / "params.json").unlink()
    with pytest.raises(WeightsError, match=r"params\.json: missing"):
        load_llama(shards, FLOAT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "expected model_type llama.*got mistral"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "got llama, LlamaForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias must be False, got True"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, got gelu"),
        ({"use_sliding_window": True}, "use_sliding_window must be False, got True"),
        ({"head_dim": 16}, "head_dim must be 8, got 16"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "got linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 without low_freq_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be None"),
        ({"hidden_size": 64}, r"model\.embed_tokens\.weight is \(97, 32\), expected \(97, 64\)"),
        ({"num_hidden_layers": 2}, r"9 unexpected: model\.layers\.2\."),
    ],
)
def test_huggingface_config_that_this_decoder_does_not_have_is_refused(huggingface, change, message):
    change_json(huggingface / "config.json", **change)
    with pytest.raises(WeightsError, match=message):
        load_llama(huggingface, FLOAT)


def test_missing_huggingface_shard_is_named(huggingface):
    weights = load_file(huggingface / "model.safetensors")
    (huggingface / "model.safetensors").unlink()
    half = dict(list(weights.items())[:15])
    save_file(half, huggingface / "model-00001-of-00002.safetensors")
    files = {name: f"model-0000{1 if name in half else 2}-of-00002.safetensors" for name in weights}
    (huggingface / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(WeightsError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        load_llama(huggingface, FLOAT)


def test_context_of_a_meta_folder_is_what_params_say_else_that_of_llama_1(shards):
    assert load_llama(shards, FLOAT)[0].max_seq_len == 2048
    change_json(shards / "params.json", max_seq_len=4096)
    assert load_llama(shards, FLOAT)[0].max_seq_len == 4096


@pytest.mark.parametrize(("content", "message"), [("{", "not readable as JSON"), ("[1]", "expected a JSON object, got list")])
@pytest.mark.parametrize("name", ["params.json", "config.json", "model.safetensors.index.json"])
def test_damaged_json_is_named(shards, huggingface, name, content, message):
    folder = shards if name == "params.json" else huggingface
    (folder / name).write_text(content)
    with pytest.raises(WeightsError, match=f"{name}: {message}"):
        load_llama(folder, FLOAT)


def test_index_that_names_no_shards_is_refused(huggingface):
    (huggingface / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="expected a weight_map"):
        load_llama(huggingface, FLOAT)


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("new_format", [True, False])
def test_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, new_format):
    torch.save({"x": Malicious(tmp_path / "ran")}, tmp_path / "bad.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match=r"got a pickle that calls .*open; loading it could run code"):
        TensorFile(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["consolidated.00.pth", "old.pth", "model.safetensors"])
def test_truncated_file_is_refused(tmp_path, name, share):
    file = tmp_path / name
    if name == "model.safetensors":
        save_file(META, file)
    else:
        torch.save(META, file, _use_new_zipfile_serialization=name != "old.pth")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(WeightsError, match="download it again"):
        TensorFile(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "something that starts with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        TensorFile(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [{"epoch": 3, "w": torch.ones(1)}, [torch.ones(1)], {"w": [torch.ones(1)]}])
def test_checkpoint_with_other_things_than_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"expected (tensors only|a dict of tensors)"):
        TensorFile(tmp_path / "x.pth")


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_wrapped_state_dict_is_looked_through(tmp_path, wrapper):
    torch.save({wrapper: {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "x.pth")
    assert TensorFile(tmp_path / "x.pth").shapes == {"w": (2,)}


def mapped_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_reading_a_large_file_holds_a_window_of_it_only(tmp_path, monkeypatch, name):
    monkeypatch.setattr("imagebind_llm.weight_files.WINDOW_BYTES", 4 * 2**20)
    whole = {str(i): torch.full((2**19,), float(i)) for i in range(40)}  # 2 MB each
    (save_file if name == "x.safetensors" else torch.save)(whole, tmp_path / name)
    file = TensorFile(tmp_path / name)
    before = mapped_mb()
    assert all(torch.equal(file.read(key), whole[key]) for key in whole)
    assert mapped_mb() - before < 16


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_many_shards_share_one_window(tmp_path, monkeypatch):
    monkeypatch.setattr("imagebind_llm.weight_files.WINDOW_BYTES", 4 * 2**20)
    paths = [tmp_path / f"{i}.safetensors" for i in range(20)]
    for path in paths:
        save_file({"a": torch.ones(2**19), "b": torch.ones(2**17)}, path)  # 2.5 MB each
    files = open_shards(paths)
    before = mapped_mb()
    assert sum(float(file.read(name).sum()) for name in "ab" for file in files) == 20 * (2**19 + 2**17)
    assert mapped_mb() - before < 20


def test_folder_without_a_model_says_what_would_be_one(tmp_path):
    with pytest.raises(WeightsError, match=r"a folder without one; pass a folder with params\.json"):
        load_llama(tmp_path, FLOAT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layers.1.attention.wo.weight"), r"1 are missing: layers\.1\.attention\.wo\.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "1 are unknown to it: extra"),
        (lambda state: state.update({"norm.weight": torch.ones(3)}), r"norm\.weight is \(3,\), expected \(32,\)"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_untouched(shards, change, message):
    config, state = load_llama(shards, FLOAT)
    change(state)
    llama = Llama(config, device="meta")
    with pytest.raises(WeightsError, match=message):
        assign(llama, state)
    assert llama.tok_embeddings.weight.is_meta
