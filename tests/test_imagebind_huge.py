"""The public checkpoint's shape at full size, with random weights in the public file format: 5 GB of disk, 10 of memory."""

import pytest
import torch

from imagebind_llm.config import imagebind_huge
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.encoder.weights import load_imagebind


@pytest.mark.slow
def test_a_full_size_pth_with_a_point_tower_loads_and_encodes(tmp_path):
    torch.manual_seed(0)
    state = ImageBind(imagebind_huge()).state_dict()
    picture = torch.randn(1, 3, 224, 224)
    torch.save(state | {"point_trunk.blocks.0.weight": torch.zeros(3)}, tmp_path / "imagebind_w3D.pth")
    names = ("modality_heads.vision.2.weight", "modality_trunks.audio.blocks.5.norm_2.bias")
    kept = {name: state[name].clone() for name in names}
    del state
    model = load_imagebind(tmp_path / "imagebind_w3D.pth", "imagebind_huge")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in kept.items())
    assert not [name for name in loaded if any(tower in name for tower in ("depth", "thermal", "imu"))]
    with torch.inference_mode():
        vector = model.encode("vision", picture)
    assert vector.shape == (1, 1024) and abs(float(vector.norm()) - 1) < 1e-5
