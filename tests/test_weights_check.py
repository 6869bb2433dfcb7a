"""python -m imagebind_llm.check: every kind of file is recognised, and what is missing is said."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_adapter import released

from imagebind_llm.check.__main__ import main
from imagebind_llm.check.weights import check
from imagebind_llm.config import LLAMA_PRESETS, imagebind_tiny
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.llama.checkpoint_files import expected_shapes
from imagebind_llm.llama.gguf import smollm2_path

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def meta_folder(tmp_path) -> Path:
    """TARGET_FOLDER with tokenizer.model and 7B/ (a small model whose vocabulary is not the tokenizer's)."""
    shutil.copytree(GOLDEN / "llama" / "f_meta_2shard", tmp_path / "7B", copy_function=shutil.copyfile)
    shutil.copyfile(GOLDEN / "llama" / "tiny.model", tmp_path / "tokenizer.model")
    return tmp_path


def sparse_meta_folder(folder: Path, n_heads: int = 32) -> Path:
    """A folder with LLaMA-7B's names and shapes whose tensors take no space: every element is the same number."""
    (folder / "7B").mkdir()
    params = {"dim": 4096, "multiple_of": 256, "n_heads": n_heads, "n_layers": 32, "norm_eps": 1e-6, "vocab_size": -1}
    (folder / "7B" / "params.json").write_text(json.dumps(params))
    one = torch.ones(1, dtype=torch.float16)
    shapes = expected_shapes(LLAMA_PRESETS["Llama7B_adapter"])
    torch.save({name: one.expand(shape) for name, shape in shapes.items()}, folder / "7B" / "consolidated.00.pth")
    return folder


def test_llama_7b_fits_the_preset_of_the_published_command(tmp_path):
    report = check(sparse_meta_folder(tmp_path))
    assert report.facts["fits"] == "Llama7B_adapter"
    assert report.facts["sizes"] == "32 layers, width 4096, 32 heads, feed-forward 11008, vocabulary 32000"
    assert report.facts["parameters"].startswith("6,738,415,616 (float16")
    assert report.facts["tokenizer"] == "missing"
    assert "no tokenizer: expected" in report.problems[0]


def test_same_shapes_with_other_heads_are_not_the_preset(tmp_path):
    assert check(sparse_meta_folder(tmp_path, n_heads=16)).facts["fits"].startswith("taken with its own sizes")


def test_smollm2_is_usable_and_its_next_step_is_named():
    report = check(smollm2_path())
    assert not report.problems
    assert report.facts["what"] == "LLaMA, GGUF format, 1 file"
    assert report.facts["sizes"].startswith("30 layers, width 576, 9 heads (3 for keys and values), feed-forward 1536")
    assert report.facts["parameters"].startswith("134,515,008 (210 Q4_1, 61 F32, 1 Q8_0; 0.0984 GB")
    assert report.facts["tokenizer"].endswith("(inside), 49152 words")
    assert report.next_step.startswith(f"python -m imagebind_llm.ask --llama_model_path {smollm2_path()}")


def test_foreign_tokenizer_makes_a_model_unusable(meta_folder):
    report = check(meta_folder)
    assert report.facts["what"] == "LLaMA, Meta format, 2 files"
    assert "97 token embeddings, the tokenizer 300 words" in report.problems[0]


def test_single_shard_points_to_its_folder(meta_folder):
    report = check(meta_folder / "7B" / "consolidated.00.pth")
    assert f"check its folder: python -m imagebind_llm.check {meta_folder / '7B'}" in report.problems[0]


def imagebind_weights(preset: str) -> dict[str, torch.Tensor]:
    """Every name and shape of a preset, without its bytes."""
    if preset == "imagebind_tiny":
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in ImageBind(imagebind_tiny()).state_dict().items()}
    else:
        listed = json.loads((GOLDEN / "imagebind" / "imagebind_huge_keys.json").read_text())
        shapes = {name: tuple(shape) for name, (shape, _) in listed["keys"].items()}
    return {name: torch.ones(()).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("preset", "size"), [("imagebind_huge", "vision 32 x 1280"), ("imagebind_tiny", "vision 4 x 128")])
def test_imagebind_file_fits_its_preset(tmp_path, preset, size):
    torch.save(imagebind_weights(preset), tmp_path / "x.pth")
    report = check(tmp_path / "x.pth")
    assert (report.facts["what"], report.facts["fits"], report.problems) == ("ImageBind", f"--encoder {preset}", ())
    assert size in report.facts["sizes"]
    assert report.next_step.startswith(f"python avt_get_emb.py --encoder {preset}")


def test_variant_with_a_point_cloud_tower_is_told_and_usable(tmp_path):
    point = {"point_trunk.x": torch.ones(1), "modality_heads.point.0.weight": torch.ones(1)}
    torch.save(imagebind_weights("imagebind_tiny") | point, tmp_path / "imagebind_w3D.pth")
    report = check(tmp_path / "imagebind_w3D.pth")
    assert report.facts["what"] == "ImageBind, ImageBind-LLM's variant with a point-cloud tower (ignored)"
    assert report.facts["fits"] == "--encoder imagebind_tiny"
    assert not report.problems


def test_imagebind_with_a_missing_tensor_names_it(tmp_path):
    weights = imagebind_weights("imagebind_tiny")
    del weights["modality_trunks.audio.blocks.2.norm_1.bias"]
    torch.save(weights, tmp_path / "x.pth")
    report = check(tmp_path / "x.pth")
    assert report.facts["fits"] == "no preset (nearest: imagebind_tiny)"
    assert "is not imagebind_tiny: 1 missing: modality_trunks.audio.blocks.2.norm_1.bias (it has" in report.problems[0]


@pytest.mark.parametrize(
    ("case", "what", "sizes"),
    [
        ("b_ib_finetune", "ImageBind-LLM adapter", "3 layers x 1 prompts, width 32, {}, LoRA rank 4, biases, bridge 48 -> 32"),
        ("d_ib_legacy", "ImageBind-LLM adapter", "3 layers x 1 prompts, width 32, {}, bridge 48 -> 32, legacy form"),
        ("a_v1", "LLaMA-Adapter v1", "3 layers x 5 prompts, width 64, {}"),
    ],
)
def test_adapter_is_described_by_its_own_settings(tmp_path, case, what, sizes):
    report = check(released(case, tmp_path / "adapter.pth"))
    assert report.facts["what"] == what
    assert report.facts["sizes"] == sizes.format("for a LLaMA of 4 layers")
    assert not report.problems


def test_other_tensors_are_not_taken_for_anything(tmp_path):
    save_file({"conv1.weight": torch.ones(3)}, tmp_path / "resnet.safetensors")
    report = check(tmp_path / "resnet.safetensors")
    assert "1 tensors (conv1.weight): neither ImageBind, an adapter nor a LLaMA folder" in report.problems[0]


def test_exit_code_says_whether_it_can_be_used(tmp_path, capsys):
    assert main([str(smollm2_path())]) == 0
    assert "usable      yes" in capsys.readouterr().out
    save_file({"conv1.weight": torch.ones(3)}, tmp_path / "resnet.safetensors")
    assert main([str(tmp_path / "resnet.safetensors")]) == 2
    assert "usable      no" in capsys.readouterr().out
    assert main([]) == main(["one", "two"]) == 2


def test_module_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "imagebind_llm.check", str(tmp_path / "absent")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "absent: no such file" in result.stdout, result.stderr
