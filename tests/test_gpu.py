"""The same golden numbers on a GPU, and a run that trains there: `make test-all` where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from imagebind_sizes import GOLDEN_TINY
from safetensors.torch import load_file
from toy_training import read_lines, write_intents, write_llama, write_store

from imagebind_llm.attention import causal_attention
from imagebind_llm.encoder import ImageBind

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize("baseline", ["loo", "greedy"])
def test_torchrun_trains_criticises_and_continues_on_a_gpu(baseline, tmp_path):
    """bf16 under the trained float32, a group of nccl and gloo, sampling, the KL reference, optimizer state read again."""
    data = [f"--data_path={write_intents(tmp_path / 'MIntRec')}", f"--emb_path={write_store(tmp_path / 'emb')}"]
    shape = [
        f"--llama_model_path={write_llama(tmp_path / 'LLAMA', 4)}",
        "--adapter_layer=2",
        "--adapter_len=3",
        "--lora_rank=2",
    ]
    pace = [
        "--trainable=all",
        "--batch_size=4",
        "--warmup_epochs=0",
        "--lr=0.02",
        "--epochs=2",
        "--save_steps=1",
        "--log_steps=1",
    ]
    critic = ["--w_critic=0.5", "--samples=2", f"--baseline={baseline}", f"--output_dir={tmp_path / 'run'}", "--device=cuda"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", str(ROOT / "engine_finetune.py")]
    command = [*launch, *data, *shape, *pace, *critic]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None and any(line.startswith("epoch 1 [1/3]") for line in process.stdout)
        process.terminate()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "continuing " in done.stdout, done.stderr
    assert "the longest step fits into memory: 4 rows a pass" in done.stdout
    scores = read_lines(tmp_path / "run" / "log.txt")[-1]
    assert scores["epoch"] == 1 and scores["train"]["nll"] > 0 and "kl" in scores["train"]
    assert (tmp_path / "run" / "results.json").is_file()
