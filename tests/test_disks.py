"""Disks and systems that lack something: no links, no locks, no modes, no shared mapping, no reservation of room (macOS)."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_itsl import random_itsl
from toy_training import call, key_of, write_world

import classifier
import engine_finetune
import explain
from imagebind_llm import distributed
from imagebind_llm.encoder.store import Identity, Store, StoreWriter, clear
from imagebind_llm.files import LockedError
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.checkpoint import CheckpointError, probe, read_info, read_tensors, resolve, save
from imagebind_llm.records import Sequence
from imagebind_llm.training import frozen_states
from imagebind_llm.training.frozen_states import FrozenStates, compute_states

IDENTITY = Identity("imagebind_tiny", "ab" * 32, "float32", ("text", "audio", "vision"), "to_end", False, 8, "1")
ROWS = [Sequence(f"k{i}", tuple(range(3, 8 + i)), 3) for i in range(5)]
CPU = torch.device("cpu")
CANNOT_MAP = "unable to mmap 4096 bytes from file </x>: No such device (19)"


def failing(code: int):
    """A system call that is answered with this error."""

    def call(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    return call


def write(root: Path, step: int, best: bool = False) -> None:
    tensors = {"w": torch.full((3,), float(step))}
    save(root, step, tensors, tensors, {"total": step}, best)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A LLaMA, data, embeddings and an epoch of training on a disk that lacks nothing."""
    return write_world(tmp_path_factory.mktemp("world"))


def flags_of(world: Path) -> dict[str, object]:
    """The flags of its run."""
    data = {"data_path": world / "MIntRec", "emb_path": world / "emb", "llama_model_path": world / "LLAMA", "device": "cpu"}
    return data | {"adapter_layer": 2, "adapter_len": 3, "epochs": 1, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4}


# --- no symbolic links ---


@pytest.fixture
def no_links(monkeypatch):
    monkeypatch.setattr(os, "symlink", failing(errno.EPERM))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_links_last_and_best_are_files_that_name_a_folder(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "symlink", failing(code))
    for step, best in ((1, True), (2, False), (3, True), (4, False), (5, False)):
        write(tmp_path, step, best)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint-0000003", "checkpoint-0000005", "last"]
    assert (tmp_path / "best").read_text() == "checkpoint-0000003\n" and not (tmp_path / "best").is_symlink()
    for name, step in (("last", 5), ("best", 3)):
        assert read_info(tmp_path / name)["total"] == step == int(read_tensors(tmp_path / name)["w"][0])
    with pytest.raises(CheckpointError, match=r"did you mean .*best\?"):
        read_info(tmp_path)
    checkpoint.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_copied_between_disks_with_and_without_links_goes_on(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "symlink", failing(errno.EPERM))
        write(tmp_path, 1, best=True)
    write(tmp_path, 2)
    assert (tmp_path / "last").is_symlink() and not (tmp_path / "best").is_symlink()
    assert (read_info(tmp_path / "last")["total"], read_info(tmp_path / "best")["total"]) == (2, 1)


def test_a_full_disk_is_not_taken_for_one_without_links(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(os, "symlink", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2)
    assert read_info(tmp_path / "last")["total"] == 1


def test_killed_while_such_a_file_is_written_the_one_before_is_whole(tmp_path, no_links, monkeypatch):
    write(tmp_path, 1, best=True)
    real = Path.write_text

    def half(path, text, *arguments):
        if not text.startswith("checkpoint-"):
            return real(path, text, *arguments)
        real(path, text[:5])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2, best=True)
    assert [read_info(tmp_path / name)["total"] for name in ("last", "best")] == [1, 1]
    write(tmp_path, 3)
    assert [read_info(tmp_path / name)["total"] for name in ("last", "best")] == [3, 1]


@pytest.mark.parametrize(
    "content", ["../checkpoint-0000001\n", "checkpoint-0000001/..\n", "checkpoint-0000001\n\n", "", "x" * 100]
)
def test_no_other_file_is_taken_for_a_link(tmp_path, content):
    (tmp_path / "last").write_text(content)
    assert resolve(tmp_path / "last") == tmp_path / "last"


def test_a_run_on_a_disk_without_links_says_so_once_ends_and_is_used_like_any_other(world, tmp_path, no_links):
    run, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(world / "run", start, ignore=shutil.ignore_patterns("last", "best"))
    for name in ("last", "best"):
        checkpoint._link(start / name, os.readlink(world / "run" / name))
    done = call(engine_finetune.main, **flags_of(world), pretrained_path=start / "best", output_dir=run)
    assert done.code == 0 and {"best", "last"} == {path.name for path in run.iterdir() if resolve(path) != path}, done.err
    assert f"{run / 'best'}: the checkpoint to use" in done.out
    assert done.err.count("no symbolic links on this disk; last and best are files") == 1
    again = call(engine_finetune.main, **flags_of(world), pretrained_path=start / "best", output_dir=run)
    assert again.code == 0 and f"continuing {run / 'last'}: epoch 1" in again.out and "there already" in again.out
    data = {name: flags_of(world)[name] for name in ("data_path", "emb_path", "device")}
    told = call(explain.main, **data, checkpoint=run / "best", key=key_of("test", 1), max_new_tokens=4)
    assert told.code == 0 and told.out.startswith("Intent:"), told.err
    explainer = explain.load_explainer(run / "best")
    assert explainer.verifier is not None and vars(explainer.calibration) != vars(type(explainer.calibration)())
    refused = call(classifier.main, data_path=data["data_path"], emb_path=data["emb_path"], output_dir=run)
    assert refused.code == 2 and "holds a training run" in refused.err


# --- the probe at the start ---


def test_a_disk_that_cannot_hold_a_checkpoint_is_refused_before_anything_is_deleted_or_trained(world, monkeypatch):
    before = sorted(path.name for path in (world / "run").iterdir())
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    done = call(engine_finetune.main, **flags_of(world), resume="no", output_dir=world / "run")
    assert done.code == 2 and "epoch 0" not in done.out
    told = "no checkpoint can be saved here ([Errno 22] Invalid argument); give an --output_dir on another disk"
    assert f"{world / 'run'}: {told}" in done.err
    assert sorted(path.name for path in (world / "run").iterdir()) == before


def test_the_probe_tries_to_move_a_link_and_to_read_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    probe(tmp_path)
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""
    real, moved = os.replace, []

    def once(source, target):
        if Path(target).name in moved:
            raise PermissionError(errno.EACCES, "Permission denied")
        moved.append(Path(target).name)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", once)
        with pytest.raises(CheckpointError, match=r"no checkpoint can be saved here .*Permission denied"):
            probe(tmp_path)
    monkeypatch.setattr(checkpoint, "load_file", failing(errno.ENODEV))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be saved here .*No such device"):
        probe(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_modes_holds_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chmod", failing(errno.EPERM))
    write(tmp_path, 1)
    assert read_info(tmp_path / "last")["total"] == 1


# --- frozen states ---


def answer_of_the_disk(monkeypatch, answer: int | None) -> None:
    """os.posix_fallocate is answered with this error; None: there is no such call, as on macOS."""
    if answer is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", failing(answer))


@pytest.mark.parametrize("answer", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_room_cannot_be_reserved_it_is_written_and_the_states_are_the_same(tmp_path, monkeypatch, answer):
    model = random_itsl(None, lora_rank=2)
    wanted = compute_states(tmp_path / "reserved", ROWS, model.llama, CPU, 3).batch(ROWS)
    answer_of_the_disk(monkeypatch, answer)
    monkeypatch.setattr(frozen_states, "ZEROS", 100)  # so that it takes several writes
    assert torch.equal(compute_states(tmp_path / "written", ROWS, model.llama, CPU, 3).batch(ROWS), wanted)
    assert (tmp_path / "written").stat().st_size == (tmp_path / "reserved").stat().st_size


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_is_said_when_room_is_taken(tmp_path, monkeypatch, call):
    if call == "pwrite":
        answer_of_the_disk(monkeypatch, None)
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        FrozenStates(tmp_path / "states", ROWS, 16, torch.float32)


def test_a_disk_without_shared_mapping_trains_the_same_without_kept_states(world, tmp_path, monkeypatch):
    real = torch.from_file

    def refusing(*arguments, **keywords):
        if keywords.get("shared"):
            raise RuntimeError(CANNOT_MAP)
        return real(*arguments, **keywords)

    monkeypatch.setattr(torch, "from_file", refusing)
    done = call(engine_finetune.main, **flags_of(world), output_dir=tmp_path)
    assert done.code == 0 and f"no shared mapping on this disk ({CANNOT_MAP})" in done.err, done.err
    kept, anew = (read_tensors(run / "last") for run in (world / "run", tmp_path))
    assert kept.keys() == anew.keys()
    for name in kept:
        torch.testing.assert_close(anew[name], kept[name], atol=1e-4, rtol=0)


def test_one_rank_without_a_mapping_is_enough_for_all_to_do_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, CANNOT_MAP])
    assert compute_states(tmp_path / "states", ROWS, random_itsl(None, lora_rank=2).llama, CPU, 3) is None
    assert capsys.readouterr().err.count(CANNOT_MAP) == 1


# --- no locks ---


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_written_with_a_warning(tmp_path, monkeypatch, capsys, code):
    monkeypatch.setattr(fcntl, "lockf", failing(code))
    with StoreWriter(tmp_path, IDENTITY) as writer:
        writer.append(["a"], torch.ones(1, 3, 8), torch.ones(1, 3, dtype=torch.bool), [1])
    assert Store(tmp_path).keys == ["a"]
    said = f"no locks on this disk ({os.strerror(code)}); see to it that no other run writes here"
    assert capsys.readouterr().err == f"{tmp_path / 'writer-0.lock'}: {said}\n"
    clear(tmp_path)
    assert not list(tmp_path.glob("manifest-*"))


def test_a_lock_that_another_run_holds_and_a_broken_disk_stop_it_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", failing(errno.EAGAIN))
    with pytest.raises(LockedError, match="another run is writing here"):
        StoreWriter(tmp_path, IDENTITY)
    monkeypatch.setattr(fcntl, "lockf", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        StoreWriter(tmp_path, IDENTITY)
