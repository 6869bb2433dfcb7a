"""What runs on a GPU, held against the CPU: `make test-all` where there is one.

Commands run under every name in ON; `cpu` (gloo) stands for the test itself, so that on a GPU the device alone is new.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from imagebind_sizes import GOLDEN_TINY
from media_files import write_clip
from safetensors.torch import load_file
from toy_training import call, read_lines, write_alpaca, write_intents, write_llama, write_store

import avt_get_emb
import classifier
import engine_finetune
import explain
from imagebind_llm.ask import AskSettings, answer
from imagebind_llm.encoder.store import Store
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.kernels.attention import causal_attention

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "imagebind"


def on_gpus(count: int) -> list[pytest.MarkDecorator]:
    return [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < count, reason=f"fewer than {count} CUDA devices")]


CPU = pytest.param("cpu", marks=pytest.mark.slow)
gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpus(1))])
ON = pytest.mark.parametrize("device", [CPU, pytest.param("cuda", marks=on_gpus(1))])
ON_TWO = pytest.mark.parametrize("device", [CPU, pytest.param("cuda", marks=on_gpus(2))])


@gpu
def test_towers_equal_the_public_outputs_on_a_gpu(device):
    io = load_file(GOLDEN / "model_tiny_a.io.safetensors")
    model = ImageBind(GOLDEN_TINY).eval()
    model.load_state_dict(load_file(GOLDEN / "model_tiny_a.weights.safetensors"))
    model.to(device)
    for name in ("vision_clips", "audio", "text", "depth", "thermal", "imu"):
        modality = name.split("_")[0]
        want = io[f"out.{name}"]
        with torch.inference_mode():
            got = model({modality: io[f"in.{name}"]})[modality].cpu()
        assert (got - want).abs().max() <= 2e-5 * want.abs().max(), name


@gpu
def test_causal_attention_on_a_gpu_equals_the_blocks_of_the_cpu(device):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 130, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 130, 16, generator=generator)
    on_gpu = causal_attention(q.to(device), k.to(device), v.to(device)).cpu()
    torch.testing.assert_close(on_gpu, causal_attention(q, k, v), rtol=1e-4, atol=1e-5)


@gpu
def test_a_question_is_answered_on_a_gpu_as_on_the_cpu(device, tmp_path):
    asked = AskSettings("Hello", str(write_llama(tmp_path / "LLAMA", 4)), max_new_tokens=4, device="cpu")
    assert answer(replace(asked, device=device)) == answer(asked)
    assert answer(replace(asked, device=device, temperature=1.0)), "draws on the device"


# --- commands ---


def torchrun(ranks: int, **flags: object) -> list[str]:
    words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "engine_finetune.py", *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def finished(command: list[str]) -> str:
    """What the command printed; it must have ended well."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def continued(command: list[str], at: str) -> str:
    """The same of a command that is ended once it prints a line that starts so, and then started again."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT) as process:
        assert process.stdout is not None and any(line.startswith(at) for line in process.stdout)
        process.terminate()
    printed = finished(command)
    assert "continuing " in printed
    return printed


def apart(one: Path, other: Path) -> float:
    """The largest difference between two runs' last weights."""
    a, b = (load_file(root / "last" / "adapter.safetensors") for root in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def losses(root: Path) -> list[float]:
    return [row["train"]["nll"] for row in read_lines(root / "log.txt")]


def alone(**flags: object) -> None:
    done = call(engine_finetune.main, **flags)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, object]:
    """The flags of a run on clips' embeddings, with LoRA."""
    root = tmp_path_factory.mktemp("world")
    data = {"data_path": write_intents(root / "MIntRec"), "emb_path": write_store(root / "emb")}
    shape = {"llama_model_path": write_llama(root / "LLAMA", 4), "adapter_layer": 2, "adapter_len": 3, "lora_rank": 2}
    pace = {"batch_size": 4, "warmup_epochs": 0, "lr": 0.02, "epochs": 2, "save_steps": 1, "log_steps": 1}
    return data | shape | pace | {"trainable": "all"}


@ON_TWO
def test_two_ranks_of_the_published_command_share_rows_that_do_not_divide(device, tmp_path):
    """Nine rows in steps of eight: a rank of the last step has none, and its pass takes part with nothing to say."""
    data = {"data_path": write_alpaca(tmp_path / "alpaca_data.json", 9), "max_seq_len": 512, "dtype": "float32"}
    llama = {"llama_model_path": write_llama(tmp_path / "LLAMA", 32), "model": "Llama7B_adapter"}
    shape = {"adapter_layer": 30, "adapter_len": 10, "epochs": 2, "warmup_epochs": 1, "lr": 0.05, "weight_decay": 0.02}
    flags = data | llama | shape
    printed = finished(torchrun(2, **flags, batch_size=4, device=device, output_dir=tmp_path / "two"))
    assert "rows: train 9" in printed and printed.count("epoch 1 done:") == 1
    alone(**flags, batch_size=8, device="cpu", output_dir=tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    assert apart(tmp_path / "one", tmp_path / "two") < 5e-3


@ON
def test_killed_and_continued_it_ends_with_the_weights_of_a_run_in_one_go(world, device, tmp_path):
    flags = world | {"device": device, "dtype": "float32"}
    continued(torchrun(1, **flags, output_dir=tmp_path / "cut"), "epoch 1 [1/3]")
    alone(**flags, output_dir=tmp_path / "whole")
    assert apart(tmp_path / "whole", tmp_path / "cut") <= (0 if device == "cpu" else 5e-3)  # kernels there add in any order
    alone(**flags | {"device": "cpu"}, output_dir=tmp_path / "cpu")
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "cpu"), abs=2e-3)


@pytest.mark.parametrize("baseline", ["loo", "greedy"])
@ON
def test_torchrun_trains_criticises_and_continues(world, device, baseline, tmp_path):
    """bf16 under the trained float32, a group of nccl and gloo, sampling, the KL reference, optimizer state read again."""
    critic = {"w_critic": 0.5, "samples": 2, "baseline": baseline, "dtype": "bfloat16"}
    printed = continued(torchrun(1, **world | critic, device=device, output_dir=tmp_path / "run"), "epoch 1 [1/3]")
    assert device == "cpu" or "the longest step fits into memory: " in printed
    scores = read_lines(tmp_path / "run" / "log.txt")[-1]
    assert scores["epoch"] == 1 and scores["train"]["nll"] > 0 and "kl" in scores["train"]
    assert (tmp_path / "run" / "results.json").is_file()


@ON
def test_extraction_with_workers_and_pinned_memory_stores_what_the_cpu_stores(device, tmp_path):
    clips = tmp_path / "clips" / "raw_data" / "S01" / "E01"
    clips.mkdir(parents=True)
    lines = ["season\tepisode\tclip\ttext\tlabel"]
    for i in range(5):
        write_clip(clips / f"{i}.mp4", seconds=(0.5, 2.6)[i % 2], seed=i)
        lines.append(f"S01\tE01\t{i}\tutterance {i}\tInform")
    (tmp_path / "clips" / "train.tsv").write_text("\n".join(lines) + "\n")
    stored = []
    for name, workers in (("cpu", 0), (device, 2)):
        out = tmp_path / f"{name}-{workers}"
        flags = {"data_path": tmp_path / "clips", "encoder": "imagebind_tiny", "batch_size": 2, "output_dir": out}
        done = call(avt_get_emb.main, **flags, device=name, num_workers=workers)
        assert done.code == 0, done.err
        stored.append(Store(out).read([f"S01_E01_{i}" for i in range(5)]))
    (want, present), (got, there) = stored
    assert present.all() and torch.equal(there, present)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5 * float(want.abs().max()))


@ON
def test_explain_and_classifier_answer_as_on_the_cpu(world, device, tmp_path):
    table = write_intents(tmp_path / "MIntRec") / "test.tsv"
    table.write_text(table.read_text().replace("say it", "say so"))  # no text of train's or dev's
    alone(**world | {"epochs": 1, "dtype": "float32"}, device=device, output_dir=tmp_path / "run")
    told = {"checkpoint": tmp_path / "run" / "best", "data_path": table.parent, "emb_path": world["emb_path"]}
    answers, probabilities = [], []
    for name in ("cpu", device):
        file, out = tmp_path / f"{len(answers)}.jsonl", tmp_path / f"classifier-{len(answers)}"
        done = call(explain.main, **told, batch=file, max_new_tokens=4, device=name, dtype="float32")
        assert done.code == 0, done.err
        answers.append(read_lines(file))
        done = call(classifier.main, **told, method="itsl", device=name, output_dir=out)
        assert done.code == 0, done.err
        lines = (out / "predictions.tsv").read_text().splitlines()[1:]
        probabilities.append([[float(cell) for cell in line.split("\t")[6:]] for line in lines])
    assert len(answers[0]) == 6 == len(probabilities[0])
    for want, got in zip(*answers, strict=True):
        assert got["key"] == want["key"] and got["probability"] == pytest.approx(want["probability"], abs=1e-3)
    for wanted, found in zip(*probabilities, strict=True):
        assert found == pytest.approx(wanted, abs=0.03)  # there the LLaMA is bfloat16
