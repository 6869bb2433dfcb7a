"""torch.distributed in one place: start and end a process group, split work over ranks, gather results."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the group that torchrun announces (nccl on CUDA, gloo on CPU); without torchrun, do nothing.

    Yields the device of this rank: `cuda` becomes `cuda:LOCAL_RANK`. The group is destroyed on the way out.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    if launched:
        # a rank that is done waits for the slowest; one that dies is noticed by torchrun, not by this clock
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=1))
    try:
        yield torch.device(device)
    finally:
        if launched:
            dist.destroy_process_group()


def barrier() -> None:
    """Wait for every rank (nothing to wait for on one)."""
    if dist.is_initialized():
        dist.barrier()


def gather_objects(value) -> list:
    """`value` of every rank, in rank order, on every rank. For small picklable things."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
