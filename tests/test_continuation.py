"""What may change between a stop and its continuation, and what may not: shares of a step, places, contents, LLaMAs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked_ranks import on_two_ranks
from safetensors.torch import load_file
from toy_training import (
    Done,
    apart,
    call,
    interrupted,
    key_of,
    read_lines,
    write_alpaca,
    write_intents,
    write_llama,
    write_store,
)

import engine_finetune
from imagebind_llm.encoder.store import Store, StoreWriter
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import llama_fingerprint
from imagebind_llm.llama.load import load_llama
from imagebind_llm.training.continuation import differences, sums_of_rank

ROOT = Path(__file__).parent.parent
SMALL = {"epochs": 2, "warmup_epochs": 0, "lr": 0.05, "adapter_layer": 2, "adapter_len": 3, "device": "cpu", "save_steps": 1}


def train(**flags: object) -> Done:
    return call(engine_finetune.main, **SMALL | flags)


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory) -> dict[str, object]:
    """16 rows; 4 a step are 4 steps an epoch."""
    root = tmp_path_factory.mktemp("alpaca")
    return {"data_path": write_alpaca(root / "alpaca.json", 16), "llama_model_path": write_llama(root / "LLAMA", 4)}


@pytest.fixture(scope="module")
def whole(alpaca, tmp_path_factory) -> Path:
    """A run that nothing interrupted, 4 rows a step."""
    out = tmp_path_factory.mktemp("whole")
    done = train(**alpaca, batch_size=4, output_dir=out)
    assert done.code == 0, done.err
    return out


def same_run(one: Path, other: Path) -> None:
    weights = [load_file(folder / "last" / "adapter.safetensors") for folder in (one, other)]
    assert apart(*weights) < 1e-6
    losses = [[row["train"]["nll"] for row in read_lines(folder / "log.txt")] for folder in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


# --- who computes the rows of a step ---


def test_half_the_rows_a_pass_and_twice_the_passes_go_on_with_the_same_steps(alpaca, whole, tmp_path):
    with interrupted(6):
        assert train(**alpaca, batch_size=4, output_dir=tmp_path).code == 2
    done = train(**alpaca, batch_size=2, accum_iter=2, checkpoint_activations="", output_dir=tmp_path)
    assert done.code == 0 and "epoch 1, step 1" in done.out, done.err
    same_run(whole, tmp_path)


STOPPED = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import engine_finetune
from toy_training import interrupted
engine_finetune.is_worth_it = lambda device: True  # the longest step is tried first, on two ranks too
with interrupted(6):
    engine_finetune.distributed.leave(engine_finetune.main)
"""


@pytest.mark.slow
def test_one_rank_continues_what_two_began(alpaca, whole, tmp_path):
    (tmp_path / "stopped.py").write_text(STOPPED.format(root=str(ROOT)))
    flags = SMALL | alpaca | {"batch_size": 2, "output_dir": tmp_path / "run"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(tmp_path / "stopped.py")]
    command = [*launch, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "interrupted; start again" in stopped.stderr, stopped.stderr
    assert "the longest step fits into memory" in stopped.stdout
    done = train(**flags | {"accum_iter": 2})
    assert done.code == 0 and "epoch 1, step 1" in done.out, done.err
    same_run(whole, tmp_path / "run")


def test_another_llama_of_the_same_sizes_is_refused(alpaca, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    other = write_llama(tmp_path / "other", 4, seed=1)
    said = refused(train(**alpaca | {"llama_model_path": other}, batch_size=4, output_dir=tmp_path / "run"))
    assert f"--llama_model_path {other} holds another LLaMA" in said


def test_other_rows_a_step_are_refused(alpaca, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    done = train(**alpaca, batch_size=2, output_dir=tmp_path / "run")
    few = "2 (--batch_size 2 --accum_iter 1, 1 rank)"
    assert done.code == 2 and f"rows a step: 4 (--batch_size 4 --accum_iter 1, 1 rank) -> {few}" in done.err


@pytest.mark.parametrize(("ranks", "losses"), [(3, [1.0, 2.0, 4.0]), (2, [5.0, 2.0]), (1, [7.0]), (4, [1.0, 2.0, 4.0, 0.0])])
def test_no_running_sum_is_lost_whatever_number_of_ranks_goes_on(ranks, losses):
    parts = ((1.0, 10.0, 0.5), (2.0, 20.0, 0.25), (4.0, 40.0, 0.125))
    info = {"step": 3, "sums": [[{"nll": nll, "tokens": tokens}, {"answers": answers}] for nll, tokens, answers in parts]}
    found = [sums_of_rank(info, rank, ranks) for rank in range(ranks)]
    assert [own.get("nll", 0.0) for own, _ in found] == losses
    assert sum(own.get("tokens", 0.0) for own, _ in found) == 70
    assert sum(critic.get("answers", 0.0) for _, critic in found) == 0.875
    assert sums_of_rank(info | {"step": 0}, 0, ranks) == ({}, {}), "an epoch begins with none"


def test_a_run_that_an_older_version_stopped_within_an_epoch_is_refused():
    old = {"epoch": 2, "step": 3, "sums": [[[*range(10)], [*range(19)]]]}
    with pytest.raises(checkpoint.CheckpointError, match=r"older version at step 3 of epoch 2; start over with --resume no"):
        sums_of_rank(old, 0, 1)
    assert sums_of_rank(old | {"step": 0}, 0, 1) == ({}, {}), "between epochs it continues"


def test_a_run_with_a_removed_flag_continues_if_it_had_the_value_that_always_holds_now(whole):
    now = checkpoint.read_info(whole / "last")
    then = {value: now | {"settings": now["settings"] | {"reward_norm": value}} for value in ("group", "none")}
    assert differences(then["group"], now, ()) == []
    assert differences(then["none"], now, ()) == ["--reward_norm none, which no longer exists"]


# --- machines that see a shared disk differently ---


@pytest.fixture
def seen(alpaca, whole, tmp_path):
    """Continues a finished run on two ranks, the second of which sees what a patch makes of the disk: how each ends."""
    shutil.copytree(whole, tmp_path / "run", symlinks=True)

    def start(place: object, name: str, value: object) -> list:
        def rank(number: int) -> Done:
            with pytest.MonkeyPatch.context() as patch:
                if number:
                    patch.setattr(place, name, value)
                return train(**alpaca, batch_size=2, output_dir=tmp_path / "run")

        return on_two_ranks(rank)

    return start


def test_the_main_rank_decides_what_is_continued(seen):
    first, second = seen(checkpoint, "linked", lambda link: "")  # as if `last` were not there yet
    assert (first.code, second.code) == (0, 0), second.err
    assert "epoch 2, step 0" in first.out and second.out == ""


def test_ranks_that_would_go_on_from_different_steps_are_refused(seen):
    read, old = checkpoint.read_info, {"epoch": 1, "step": 2, "total": 6, "sums": [[[], []]]}
    for done in seen(checkpoint, "read_info", lambda folder: read(folder) | old):
        assert done.code == 2 and "rank 0: epoch 2, step 0, 8 in all, rank 1: epoch 1, step 2, 6 in all" in done.err, done.err
        assert "wait until all machines see the same files there, then start again" in done.err


def test_a_checkpoint_that_a_machine_does_not_see_is_waited_for(seen):
    is_file = Path.is_file
    for done in seen(Path, "is_file", lambda path: path.name != checkpoint.INFO and is_file(path)):
        assert done.code == 2 and "checkpoint-0000008: only some of the machines see it; wait until all do" in done.err


# --- where things lie, and what they hold ---


@pytest.fixture
def clips(tmp_path) -> dict[str, object]:
    """The flags of a run of one epoch on clips, from a start; everything in a folder `old`."""
    old = tmp_path / "old"
    old.mkdir()
    data = {"data_path": write_intents(old / "MIntRec"), "emb_path": write_store(old / "emb")}
    shape = {"llama_model_path": write_llama(old / "LLAMA", 4), "batch_size": 4, "epochs": 1}
    captions = {"stage": "pretrain", "data_path": old / "MIntRec" / "captions.json", "output_dir": old / "first"}
    assert train(**data | shape | captions).code == 0
    flags = data | shape | {"pretrained_path": old / "first" / "best", "rationales": old / "MIntRec" / "rationales.jsonl"}
    with interrupted(2):
        assert train(**flags, output_dir=tmp_path / "run").code == 2
    return flags


def test_data_embeddings_llama_and_start_may_move(clips, tmp_path):
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = {name: str(value).replace("/old/", "/new/") for name, value in clips.items()}
    done = train(**moved | {"data_path": moved["data_path"] + "/"}, output_dir=tmp_path / "run")
    assert done.code == 0 and "epoch 0, step 1" in done.out, done.err
    info = json.loads((tmp_path / "run" / "last" / "checkpoint.json").read_text())
    assert info["settings"]["llama_model_path"] == str(tmp_path / "new" / "LLAMA"), "explain.py looks there"


def test_what_lies_in_the_same_place_must_be_the_same(clips, tmp_path):
    out = {"output_dir": tmp_path / "run"}
    captions = clips | out | {"data_path": tmp_path / "old" / "MIntRec" / "captions.json", "stage": "pretrain"}
    assert "captions.json holds other rows" in refused(train(**captions))

    emb = tmp_path / "old" / "emb"
    identity, keys = Store(emb).identity, [key_of("train", number) for number in range(12)]
    vectors, present = Store(emb).read(keys)
    with StoreWriter(emb, identity) as writer:  # other pictures under the same keys
        writer.append(keys, vectors.flip(0), present, list(range(len(keys))))
    assert f"--emb_path {emb} holds other embeddings" in refused(train(**clips | out))
    with StoreWriter(emb, identity) as writer:
        writer.append(keys, vectors, present, list(range(len(keys))))
    assert train(**clips | out).code == 0
    mixed = write_store(tmp_path / "mixed", encoder="imagebind_huge")
    done = train(**clips | out | {"emb_path": mixed})
    assert done.code == 2 and f"{mixed}: other embeddings than the model was trained on (encoder: imagebind_huge" in done.err


def refused(done: Done) -> str:
    assert done.code == 2 and "--resume no" in done.err and "Traceback" not in done.err, done.err
    return done.err


# --- which LLaMA it is ---


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> dict[str, torch.Tensor]:
    return load_llama(write_llama(tmp_path_factory.mktemp("state") / "LLAMA", 3), torch.float32)[1]


def test_a_merged_adapter_makes_another_llama(state):
    assert llama_fingerprint(state) == llama_fingerprint({name: tensor.clone() for name, tensor in state.items()})
    draw = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.ndim == 2:
            update = 0.02 * torch.randn(len(tensor), 2, generator=draw) @ torch.randn(2, tensor.shape[1], generator=draw)
            assert llama_fingerprint(state) != llama_fingerprint(state | {name: tensor + update}), name


def test_dtype_and_trained_norms_leave_a_llama_the_same(state):
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    trained = {name: tensor + 0.1 if tensor.ndim == 1 else tensor for name, tensor in state.items()}
    assert llama_fingerprint(state) == llama_fingerprint(half) == llama_fingerprint(trained)
