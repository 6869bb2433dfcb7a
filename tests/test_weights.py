"""Loading LLaMA from Meta shards and Hugging Face folders: the same numbers from every form, and an error for every fault."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagebind_llm.config import LLAMA_PRESETS, LlamaConfig
from imagebind_llm.llama.decoder import Llama
from imagebind_llm.llama.load import assign, load_decoder, load_llama
from imagebind_llm.weight_files import TensorFile, WeightsError, open_shards

GOLDEN = Path(__file__).parent / "golden" / "llama"
IO = load_file(GOLDEN / "f_plain_llama.io.safetensors")
META = {k: v for k, v in load_file(GOLDEN / "f_plain_llama.meta.safetensors").items() if k != "rope.freqs"}
FLOAT = torch.float32


@pytest.fixture
def shards(tmp_path) -> Path:
    """A copy of the golden two-shard folder that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "f_meta_2shard", tmp_path / "7B", copy_function=shutil.copyfile))


@pytest.fixture
def huggingface(tmp_path) -> Path:
    """The golden weights as a Hugging Face folder."""
    folder = tmp_path / "hf"
    folder.mkdir()
    sizes = json.loads((GOLDEN / "f_plain_llama.json").read_text())["config"]["hf_config"]
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    shutil.copyfile(GOLDEN / "f_plain_llama.hf.safetensors", folder / "model.safetensors")
    return folder


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite_shard(file: Path, change) -> None:
    tensors = torch.load(file, weights_only=True)
    change(tensors)
    torch.save(tensors, file)


def random_meta_folder(folder: Path, n_shards: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A Meta folder with grouped queries cut into `n_shards`; returns the whole tensors."""
    config = LlamaConfig(dim=64, n_layers=2, n_heads=8, n_kv_heads=4, hidden_dim=96, vocab_size=40)
    torch.manual_seed(seed)
    whole = {name: torch.randn_like(tensor) for name, tensor in Llama(config).state_dict().items()}
    folder.mkdir(parents=True)
    params = {"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "norm_eps": 1e-5, "vocab_size": -1, "rope_theta": 5e5}
    (folder / "params.json").write_text(json.dumps(params))
    columns = ("wo.weight", "w2.weight", "tok_embeddings.weight")
    for i in range(n_shards):
        shard = {
            name: tensor.clone() if tensor.ndim == 1 else tensor.chunk(n_shards, 1 if name.endswith(columns) else 0)[i].clone()
            for name, tensor in whole.items()
        }
        torch.save(shard, folder / f"consolidated.{i:02d}.pth")
    return whole


# --- the same model from every form ---


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


# --- bad input ---


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
