"""ImageBind's weights on their way in: strict about the whole file, reading of it what is needed, straight to the device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from imagebind_sizes import GOLDEN_TINY
from safetensors.torch import load_file, save_file

from imagebind_llm import distributed
from imagebind_llm.config import IMAGEBIND_PRESETS, MODALITIES
from imagebind_llm.encoder import extraction
from imagebind_llm.encoder.clip_encoder import ClipEncoder
from imagebind_llm.encoder.extraction import ExtractSettings, extract
from imagebind_llm.encoder.registry import ENCODERS
from imagebind_llm.encoder.weights import file_sha256, find_weights, load_imagebind
from imagebind_llm.weight_files import TensorFile, WeightsError

PUBLIC = Path(__file__).parent / "golden" / "imagebind" / "model_tiny_a.weights.safetensors"


@pytest.fixture(autouse=True)
def six_towers(monkeypatch):
    """The golden case's towers, all six of the public checkpoint, as a preset."""
    monkeypatch.setitem(IMAGEBIND_PRESETS, "six", lambda: GOLDEN_TINY)


@pytest.fixture(params=["safetensors", "pth"])
def file(request, tmp_path) -> Path:
    if request.param == "safetensors":
        return PUBLIC
    torch.save(load_file(PUBLIC), tmp_path / "six.pth")
    return tmp_path / "six.pth"


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of all tensors that are read from weight files."""
    names: list[str] = []
    real = TensorFile.read
    monkeypatch.setattr(TensorFile, "read", lambda self, name: names.append(name) or real(self, name))
    return names


@pytest.mark.parametrize("towers", [MODALITIES, ("text",)])
def test_towers_that_nothing_feeds_are_neither_made_nor_read(file, read, towers):
    loaded, public = load_imagebind(file, "six", towers=towers).state_dict(), load_file(PUBLIC)
    wanted = {name for name in public if name.split(".")[1] in towers}
    assert set(loaded) == set(read) == wanted and len(read) == len(wanted)
    assert all(torch.equal(loaded[name], public[name]) for name in wanted)


def test_every_tensor_goes_straight_to_the_device(file, monkeypatch):
    went, real = [], torch.Tensor.to

    def to(tensor, *arguments, **keywords):
        went.append(real(tensor, *arguments, **keywords))
        return went[-1]

    monkeypatch.setattr(torch.Tensor, "to", to)
    model = load_imagebind(file, "six", torch.bfloat16, device="meta")
    assert {tensor.device.type for tensor in went} == {"meta"} and len(went) == len(model.state_dict())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop("modality_heads.depth.2.weight"), "1 missing: modality_heads.depth.2.weight"),
        (lambda t: t.update({"modality_trunks.smell.x": torch.ones(1)}), "1 unexpected: modality_trunks.smell.x"),
        (lambda t: t.update({"modality_heads.imu.3.weight": torch.ones(2)}), "1 of another shape: modality_heads.imu.3.weight"),
    ],
    ids=["missing", "unexpected", "reshaped"],
)
def test_the_keys_of_towers_that_are_left_out_are_checked_all_the_same(tmp_path, change, problem):
    tensors = load_file(PUBLIC)
    change(tensors)
    save_file(tensors, tmp_path / "six.safetensors")
    with pytest.raises(WeightsError, match=f"is not six: {problem}"):
        load_imagebind(tmp_path / "six.safetensors", "six", towers=("text",))


def test_extraction_and_clips_of_ones_own_load_the_towers_that_they_feed(tmp_path, monkeypatch):
    loaded = []
    spec = ENCODERS["imagebind_tiny"]
    noted = replace(spec, load=lambda *a, **k: loaded.append(spec.load(*a, **k)) or loaded[-1])
    monkeypatch.setitem(ENCODERS, "imagebind_tiny", noted)
    (tmp_path / "list.csv").write_text("path,text\na.mp4,hello\n")
    flags = {"encoder": "imagebind_tiny", "modalities": ("text",), "num_workers": 0, "device": "cpu"}
    extract(ExtractSettings(str(tmp_path), str(tmp_path / "emb"), **flags))
    sha = file_sha256(find_weights("imagebind_tiny", ""))
    identity = {"encoder": "imagebind_tiny", "modalities": ["text", "audio"], "weights_sha256": sha}
    identity |= {"window_rule": "to_end", "clean_audio": False, "dtype": "float32", "width": 1024, "code": "1"}
    towers = [set(model.modality_trunks) for model in (loaded[0], ClipEncoder.load(identity).model)]
    assert towers == [{"text"}, {"text", "audio"}]


def test_the_weights_are_hashed_by_the_first_rank_of_a_machine_which_tells_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "node_rank", lambda: 3)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: ["aa11", None, None, value])
    assert extraction._shared_sha256(tmp_path / "a file that is not there") == "aa11"


def test_machines_with_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, None, "bb22", None])
    with pytest.raises(WeightsError, match=r"expected the same file on every machine, got 2 \(sha256 .*bb22.*copy one of them"):
        extraction._shared_sha256(PUBLIC)
