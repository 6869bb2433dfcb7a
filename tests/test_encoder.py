"""The towers against the public implementation's numbers (golden case model_tiny_a) and names (imagebind_huge)."""

import json
from pathlib import Path

import pytest
import torch
from imagebind_sizes import GOLDEN_TINY
from safetensors.torch import load_file

from imagebind_llm.config import imagebind_huge
from imagebind_llm.encoder.towers import ImageBind

GOLDEN = Path(__file__).parent / "golden" / "imagebind"
TOLERANCE = 2e-5  # of the output's maximum


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "model_tiny_a.io.safetensors")


@pytest.fixture(scope="module")
def towers() -> ImageBind:
    model = ImageBind(GOLDEN_TINY).eval().requires_grad_(False)
    model.load_state_dict(load_file(GOLDEN / "model_tiny_a.weights.safetensors"))
    return model


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got - want).abs().max() <= TOLERANCE * want.abs().max()


def test_imagebind_huge_has_the_public_names_shapes_and_parameter_count():
    public = json.loads((GOLDEN / "imagebind_huge_keys.json").read_text())
    with torch.device("meta"):
        model = ImageBind(imagebind_huge())
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(ours) == 1311
    assert ours == {name: shape for name, (shape, _) in public["keys"].items()}
    assert {name for name, _ in model.named_buffers()} == {n for n, (_, kind) in public["keys"].items() if kind == "buffer"}
    assert sum(p.numel() for p in model.parameters()) == public["n_parameters"] == 1_200_781_057


@pytest.mark.parametrize("name", ["vision_image", "vision_clips", "vision_bigger", "audio", "text", "depth", "thermal", "imu"])
def test_tower_equals_the_public_output(towers, io, name):
    modality = name.split("_")[0]
    assert_near(towers({modality: io[f"in.{name}"]})[modality], io[f"out.{name}"])


def test_four_dimensional_sound_is_one_window(towers, io):
    assert_near(towers({"audio": io["in.audio"][:, 0]})["audio"], io["out.audio_single"])


def test_five_dimensional_pictures_are_several_stills_of_one_clip(towers, io):
    stills = torch.stack([io["in.vision_image"], io["in.vision_image"].flip(-1)], dim=1)
    assert_near(towers({"vision": stills})["vision"], io["out.vision_imageclips"])


def test_positions_of_a_larger_picture_are_interpolated_as_the_public_ones(towers, io):
    table = towers.modality_preprocessors["vision"].pos_embedding_helper
    assert_near(table(36), io["pos_embed.vision_bigger"])


def test_positions_of_an_oblong_picture_are_refused(towers):
    with pytest.raises(ValueError, match="positions of square pictures only: 16 patches known, 24 asked for"):
        towers({"vision": torch.zeros(1, 3, 28, 42)})


def test_text_tower_stops_at_the_last_end_without_changing_the_numbers(towers, io):
    ids = io["in.text"][:1]
    end = int(ids.argmax())
    assert end + 1 < ids.shape[1]
    changed = ids.clone()
    changed[:, end + 1 :] = 5  # what stands after the end can't matter, in one batch with longer texts or alone
    longer = io["in.text"]
    alone = towers.encode("text", changed)
    assert_near(alone, towers.encode("text", longer)[:1])


def test_weighted_distinct_windows_equal_the_full_schedule(towers, io):
    clip = io["in.vision_clips"][0]  # (3 windows,3,2,28,28)
    schedule = clip[[0, 0, 0, 1, 2, 2]]
    got = towers.encode_clips("vision", torch.cat([clip, clip[:1]]), [(3, 1, 2), (15,)])
    torch.testing.assert_close(got[0], towers({"vision": schedule[None]})["vision"][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(got[1], towers({"vision": clip[None, [0] * 15]})["vision"][0], rtol=0, atol=1e-6)


def test_bfloat16_stays_close_and_returns_float32(towers, io):
    low = ImageBind(GOLDEN_TINY).eval()
    low.load_state_dict(towers.state_dict())
    low.bfloat16()
    for name in ("vision_clips", "audio", "text"):
        modality = name.split("_")[0]
        got = low({modality: io[f"in.{name}"]})[modality]
        assert got.dtype == torch.float32
        assert torch.cosine_similarity(got, io[f"out.{name}"]).min() > 0.9997


def test_drop_path_acts_in_training_only(towers, io):
    torch.manual_seed(0)
    model = ImageBind(GOLDEN_TINY)
    sound = io["in.audio"][:, 0]
    model.eval()
    assert torch.equal(model.encode("audio", sound), model.encode("audio", sound))
    model.train()
    draws = torch.stack([model.encode("audio", sound) for _ in range(40)])
    assert draws.std(0).max() > 1e-3
