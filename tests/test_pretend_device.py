"""Everything that may run on a GPU, on an accelerator that is none (pretend_device.py): no line mixes devices, and the numbers
are the CPU's."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from media_files import write_clip
from pretend_device import pretend_accelerator
from safetensors.torch import load_file
from tiny_itsl import random_itsl
from toy_training import Done, call, read_lines, write_intents, write_llama, write_store

import avt_get_emb
import classifier
import engine_finetune
import explain
from imagebind_llm import distributed
from imagebind_llm.config import MODALITIES
from imagebind_llm.critic import self_critical
from imagebind_llm.critic.rewards import reward_parts
from imagebind_llm.encoder import extraction
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain import faithfulness, wording
from imagebind_llm.itsl import checkpoint
from imagebind_llm.kernels import linear
from imagebind_llm.records import IGNORE, Batch
from imagebind_llm.training import log
from imagebind_llm.training import run as run_on_disk
from imagebind_llm.training.schedule import make_optimizer


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """Rationales of a few tokens, and samples not much longer: what they take is time."""

    def few(model, prompts, max_new, *given, **named):
        return whole_answers(model, prompts, min(max_new, 4), *given, **named)

    whole_answers = wording.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wording, "generate", few)
        patch.setattr(self_critical, "SPARE_TOKENS", -24)
        patch.setattr(log, "draw", lambda root, history: None)
        yield


@contextmanager
def accelerator():
    """Commands compute on the pretend accelerator."""
    with pretend_accelerator() as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "choose_device", lambda name: str(device))
        yield device


@contextmanager
def processor():
    """Commands compute on the CPU, by the products that serve other devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_onednn_serves", lambda x, weight: False)
        yield torch.device("cpu")


# --- the stand-in itself ---

MIXED = {
    "sum": lambda here: torch.ones(2, device=here) + torch.ones(2),
    "sum, the other way round": lambda here: torch.ones(2) + torch.ones(2, device=here),
    "sum into a number of the CPU": lambda here: torch.tensor(1.0).add_(torch.tensor(1.0, device=here)),
    "product": lambda here: torch.nn.functional.linear(torch.ones(2, 3, device=here), torch.ones(2, 3)),
    "mask": lambda here: torch.ones(2, device=here).masked_fill(torch.ones(2) > 0, 0.0),
    "number in a list": lambda here: torch.stack([torch.tensor(1.0, device=here), torch.tensor(1.0)]),
    "indices into a tensor of the CPU": lambda here: torch.ones(2)[torch.tensor([0], device=here)],
    "values at indices": lambda here: torch.ones(3, device=here).__setitem__([0, 1], torch.ones(2)),
    "gradient": lambda here: torch.ones(2, device=here, requires_grad=True).sin().backward(torch.ones(2)),
    "generator of the CPU": lambda here: torch.rand(2, generator=torch.Generator(), device=here),
    "generator for the CPU": lambda here: torch.rand(2, generator=torch.Generator(here)),
}
ALLOWED = {
    "number of the CPU": lambda here: torch.ones(2, device=here) + torch.tensor(1.0),
    "indices of the CPU": lambda here: torch.full((3,), 2.0, device=here)[torch.tensor([0, 2])],
    "list as indices": lambda here: torch.full((3,), 2.0, device=here)[[0, 2]],
    "copy": lambda here: torch.ones(2, device=here).copy_(torch.full((2,), 2.0)),
    "list": lambda here: torch.tensor([2.0, 2.0], device=here),
    "move without waiting": lambda here: torch.full((2,), 2.0).to(here, non_blocking=True),
    "generator": lambda here: torch.rand(2, generator=torch.Generator(here), device=here).ceil() * 2,
}


@pytest.mark.parametrize("what", MIXED)
def test_devices_are_not_mixed(what):
    with pretend_accelerator() as here, pytest.raises(RuntimeError, match="device"):
        MIXED[what](here)


@pytest.mark.parametrize("what", ALLOWED)
def test_what_a_gpu_allows_is_allowed(what):
    with pretend_accelerator() as here:
        found = ALLOWED[what](here)
        assert found.device == here and found.cpu().device.type == "cpu" and found.tolist() == [2, 2]


def test_memory_of_the_device_is_nothing_for_numpy_and_onednn():
    with pretend_accelerator() as here:
        x = torch.ones(2, 3, device=here)
        with pytest.raises(TypeError, match="to numpy"):
            x.numpy()
        with pytest.raises(NotImplementedError, match="Could not run"):
            torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], "")
    assert torch.Generator(device="cpu").device.type == "cpu" and not hasattr(torch, here.type), "nothing is left behind"


def one_step(place, checkpoint: bool) -> dict[str, torch.Tensor]:
    """Log-probabilities, gradients and updated parameters of a tiny model with bridge, LoRA and prompts."""
    with place as device:
        model = random_itsl("separate", lora_rank=2).to(device)
        model.train_only("all")
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, 60, (3, 9), generator=draw)
        targets = tokens.masked_fill(torch.arange(9) < 5, IGNORE)
        vectors, present = torch.randn(3, 3, 12, generator=draw), torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]]).bool()
        output = model(Batch(tokens, targets, vectors, present).to(device), checkpoint)
        output.logp.sum().backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = {"logp": output.logp.detach().clone()} | {name: p.grad.clone() for name, p in trained.items()}
        make_optimizer(model, 0.02).step()
        found |= {f"new {name}": p.detach() for name, p in trained.items()}
        return {name: tensor.cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_and_updates_are_those_of_the_cpu(checkpoint):
    want, got = one_step(processor(), False), one_step(accelerator(), checkpoint)
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_every_tensor_that_is_read_ahead_is_page_locked(monkeypatch):
    """What data loaders ask of batches for a GPU; here pinning makes a copy that is remembered."""
    locked: list[torch.Tensor] = []

    def pin_memory(tensor):
        locked.append(tensor.clone())
        return locked[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    numbers = torch.ones(1, 2)
    batch = Batch(numbers, numbers, numbers, numbers, numbers, numbers, ("key",), numbers).pin_memory()
    found = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(found) == len(locked) == 7 and all(any(one is copy for copy in locked) for one in found)
    clip = extraction.Batch([], {name: extraction.Inputs([0], numbers, [(1,)]) for name in MODALITIES}, [], 0, []).pin_memory()
    assert all(any(inputs.windows is copy for copy in locked) for inputs in clip.inputs.values())


# --- the commands on it ---


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    (root / "raw_data" / "S01" / "E01").mkdir(parents=True)
    lines = ["season\tepisode\tclip\ttext\tlabel"]
    for i in range(3):
        write_clip(root / "raw_data" / "S01" / "E01" / f"{i}.mp4", seconds=(0.5, 2.6, 0.9)[i], seed=i)
        lines.append(f"S01\tE01\t{i}\tutterance {i}\tInform")
    (root / "train.tsv").write_text("\n".join(lines) + "\n")
    return root


def test_extraction_stores_what_the_cpu_stores(clips, tmp_path):
    flags = {"data_path": clips, "encoder": "imagebind_tiny", "num_workers": 0, "batch_size": 2}
    stored = []
    for place in (processor(), accelerator()):
        with place as device:
            done = call(avt_get_emb.main, **flags, output_dir=tmp_path / device.type)
        assert done.code == 0, done.err
        stored.append(Store(tmp_path / device.type).read([f"S01_E01_{i}" for i in range(3)]))
    (want, present), (got, there) = stored
    assert present.all() and torch.equal(there, present)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, object]:
    """The flags of a run that criticises its answers from the second step on."""
    root = tmp_path_factory.mktemp("world")
    data = {"data_path": write_intents(root / "MIntRec"), "emb_path": write_store(root / "emb")}
    shape = {"llama_model_path": write_llama(root / "LLAMA", 3), "adapter_layer": 2, "adapter_len": 2, "lora_rank": 2}
    pace = {"epochs": 2, "warmup_epochs": 0, "lr": 0.02, "batch_size": 6, "save_steps": 1, "log_steps": 1}
    return data | shape | pace | {"trainable": "all", "w_critic": 0.5, "samples": 2, "kl": 0.1}


def train(world: dict[str, object], out: Path, **flags: object) -> Done:
    """Answers are worth the more the later they come, on top of what they are worth: a random LLaMA's are all worth nothing."""

    def worth(answers, *given):
        slope = torch.linspace(0, 1, len(answers))
        return {name: part + slope for name, part in reward_parts(answers, *given).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_critical, "reward_parts", worth)
        return call(engine_finetune.main, **world | flags, output_dir=out)


@contextmanager
def interrupted(step: int):
    line = log.Log.step

    def interrupting(self, moment):
        line(self, moment)
        if moment.position.total == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log.Log, "step", interrupting)
        yield


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A run on the pretend accelerator, interrupted after its third step of four."""
    out = tmp_path_factory.mktemp("run")
    with accelerator():
        with interrupted(3):
            done = train(world, out)
        assert "interrupted; start again" in done.err, done.err
        done = train(world, out)
    assert done.code == 0 and "epoch 1, step 0" in done.out, done.err
    return out


def test_a_run_with_the_critic_ends_with_the_weights_of_the_cpu(world, run, tmp_path):
    with processor():
        done = train(world, tmp_path)
    assert done.code == 0, done.err
    for link, file in (("best", "adapter"), ("last", "adapter"), ("last", "optimizer"), (".", "reference")):
        want, got = (load_file(root / link / f"{file}.safetensors") for root in (tmp_path, run))
        assert want.keys() == got.keys()
        assert max(float((got[name] - want[name]).abs().max()) for name in want) < 1e-3, (link, file)
    want, got = (read_lines(root / "log.txt")[-1] for root in (tmp_path, run))
    assert got["train"]["kl"] and got["train"]["advantage"] and not got["train"]["skipped"]
    assert got["train"] == pytest.approx(want["train"], abs=1e-3) and got["dev"] == pytest.approx(want["dev"], abs=1e-3)
    want, got = (json.loads((root / "results.json").read_text()) for root in (tmp_path, run))
    del got["calibration"]["alpha"], want["calibration"]["alpha"]  # chosen by texts, which one token can turn
    assert got["calibration"] == want["calibration"] and got["test"]["mixed"] == pytest.approx(want["test"]["mixed"], abs=1e-3)


def test_a_line_that_forgets_the_device_is_found(world, tmp_path, monkeypatch):
    """The frozen copy that samples are held against, as it is read from the disk."""
    monkeypatch.setattr(run_on_disk.Run, "reference", lambda run: checkpoint.read_tensors(run.root, run_on_disk.REFERENCE))
    with accelerator(), pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        train(world, tmp_path, epochs=1)


@pytest.fixture(scope="module")
def other(world, tmp_path_factory) -> Path:
    """A run that takes the other turn at every fork."""
    out = tmp_path_factory.mktemp("other")
    ways = {"answer_order": "rationale", "baseline": "greedy", "fusion": "average", "cache_gb": 0}
    with accelerator():
        done = train(world, out, epochs=1, batch_size=3, accum_iter=2, checkpoint_activations="", **ways)
    assert done.code == 0 and read_lines(out / "log.txt")[-1]["train"]["advantage"], done.err
    return out


def test_explain_answers_as_on_the_cpu(world, run, tmp_path):
    told = []
    for place in (processor(), accelerator()):
        with place as device:
            file = tmp_path / f"{device.type}.jsonl"
            data = {"data_path": world["data_path"], "emb_path": world["emb_path"], "batch": file}
            done = call(explain.main, checkpoint=run / "best", **data, max_new_tokens=4)
        assert done.code == 0, done.err
        told.append(read_lines(file))
    assert len(told[0]) == 6
    for want, got in zip(*told, strict=True):
        assert (got["key"], got["intent"], got["rationale"]) == (want["key"], want["intent"], want["rationale"])


def test_a_clip_of_ones_own_is_explained(run, tmp_path):
    write_clip(tmp_path / "own.mp4", seconds=0.6)
    with accelerator():
        done = call(explain.main, checkpoint=run / "best", clip=tmp_path / "own.mp4", text="hello", max_new_tokens=4)
    assert done.code == 0 and done.out.startswith("Intent: ") and "not used" not in done.out, done.err


def test_classifier_and_faithfulness_ask_a_model_that_gives_its_reasons_first(world, other, tmp_path):
    data = write_intents(tmp_path / "MIntRec")
    table = data / "test.tsv"
    table.write_text(table.read_text().replace("say it", "say so"))  # no text of train's or dev's
    told = {"checkpoint": other / "best", "data_path": data, "emb_path": world["emb_path"]}
    with accelerator():
        done = call(classifier.main, **told, method="itsl", output_dir=tmp_path / "out")
        assert done.code == 0 and "explanations_0" in done.out, done.err
        words = [part for name, value in told.items() for part in (f"--{name}", str(value))]
        assert faithfulness.main([*words, "--limit", "2", "--max_new_tokens", "4"]) == 0
