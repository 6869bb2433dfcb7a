"""The same golden numbers on a GPU: run by `make test-all` where there is one."""

from pathlib import Path

import pytest
import torch
from imagebind_sizes import GOLDEN_TINY
from safetensors.torch import load_file

from imagebind_llm.attention import causal_attention
from imagebind_llm.encoder import ImageBind

GOLDEN = Path(__file__).parent / "golden" / "imagebind"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_towers_equal_the_public_outputs_on_a_gpu():
    io = load_file(GOLDEN / "model_tiny_a.io.safetensors")
    model = ImageBind(GOLDEN_TINY).eval()
    model.load_state_dict(load_file(GOLDEN / "model_tiny_a.weights.safetensors"))
    model.cuda()
    for name in ("vision_clips", "audio", "text", "depth", "thermal", "imu"):
        modality = name.split("_")[0]
        want = io[f"out.{name}"]
        with torch.inference_mode():
            got = model({modality: io[f"in.{name}"]})[modality].cpu()
        assert (got - want).abs().max() <= 2e-5 * want.abs().max(), name


def test_causal_attention_on_a_gpu_equals_the_blocks_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 130, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 130, 16, generator=generator)
    on_gpu = causal_attention(q.cuda(), k.cuda(), v.cuda()).cpu()
    torch.testing.assert_close(on_gpu, causal_attention(q, k, v), rtol=1e-4, atol=1e-5)
