"""What ranks do together, on the one rank that a test has, and how one leaves that failed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked_ranks import on_two_ranks

from imagebind_llm import distributed

ROOT = Path(__file__).parents[1]
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def launched(monkeypatch) -> None:
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)


def test_what_the_main_rank_says_holds_on_every_rank():
    def told(rank: int) -> tuple:
        with distributed.process_group("cpu"):
            return distributed.from_main({"rank": rank}), distributed.gather_objects(rank)

    assert on_two_ranks(told) == [({"rank": 0}, [0, 1])] * 2
    assert distributed.from_main("alone") == "alone"


@pytest.mark.parametrize(("gpus", "cores", "ranks"), [(1, 16, 1), (2, 1, 2), (8, 16, 2), (0, 1, 1), (0, 2, 2), (0, None, 1)])
def test_recipes_take_as_many_ranks_as_there_are_places(gpus, cores, ranks, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert distributed.ranks_here() == ranks


def test_running_sums_on_the_cpu_are_added_up_by_ranks_on_gpus_too(monkeypatch):
    """nccl moves tensors on CUDA alone, as gloo does here when it is told to."""
    start = dist.init_process_group

    def without_a_gpu(backend, **more):
        start("cuda:gloo" if backend == "nccl" else backend.replace("cuda:nccl", "cuda:gloo"), **more)

    monkeypatch.setattr(dist, "init_process_group", without_a_gpu)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    launched(monkeypatch)
    with distributed.process_group("cuda") as device:
        assert device == torch.device("cuda:0")
        assert distributed.all_sum(torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist() == [1, 2]
        assert distributed.gather_objects("told") == ["told"]
        distributed.barrier()


def test_a_rank_that_fails_does_not_tear_the_group_down(monkeypatch):
    """With nccl that waits for the others, which wait for this one."""
    launched(monkeypatch)
    try:
        with pytest.raises(ValueError, match="on one rank"), distributed.process_group("cpu"):
            raise ValueError("on one rank")
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("body", "code", "said"), [("return 2", 2, ""), ("raise RuntimeError('no memory')", 1, "no memory")])
def test_a_rank_that_fails_ends_at_once_and_says_why(body, code, said):
    """What would run at the interpreter's end, such as a teardown, is left out."""
    script = f"""
import atexit
from imagebind_llm.distributed import leave
atexit.register(print, "tidying up")
def main():
    {body}
leave(main)
"""
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | ALONE, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code and said in done.stderr and "tidying up" not in done.stdout
    alone = {name: value for name, value in os.environ.items() if name not in ALONE}
    done = subprocess.run([sys.executable, "-c", script], env=alone, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code and said in done.stderr and "tidying up" in done.stdout
