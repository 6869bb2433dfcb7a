"""torch.distributed in one place: start and end a process group, split work over ranks, gather results."""

import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def node() -> int:
    """The number of this machine among those that torchrun started on."""
    return int(os.environ.get("GROUP_RANK", 0)) if dist.is_initialized() else 0


def node_rank() -> int:
    """This rank's number on its own machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def node_size() -> int:
    """How many ranks this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the group that torchrun announces (nccl for tensors on CUDA, gloo for those on CPU); without torchrun, do nothing.

    Yields the device of this rank: `cuda` becomes `cuda:LOCAL_RANK`. Ranks leave together: the first writes what all have
    made, and one that ends badly while it does would take it along. The group is destroyed on the way out, but not by a rank
    that fails: nccl would have it wait for the others, which wait for it. `leave` ends such a rank.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    if launched:
        # a rank that is done waits for the slowest; one that dies is noticed by torchrun, not by this clock
        # running sums stay on the CPU, also of ranks that train on GPUs: nccl alone would refuse them
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))
    yield torch.device(device)
    barrier()
    if launched:
        gc.collect()  # what still holds the group would destroy it while the interpreter ends, which can abort
        dist.destroy_process_group()


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code. Under torchrun a rank that failed ends at once, so that torchrun
    ends the others; tidying up could wait for them."""
    launched = "RANK" in os.environ
    try:
        code = main()
    except Exception:
        if not launched:
            raise
        traceback.print_exc()
        code = 1
    if code and launched:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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


def from_main(value):
    """`value` of the main rank, on every rank: for what is read off a disk, which machines may see at different times."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, elementwise, of a small tensor."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def wrap(model: nn.Module) -> nn.Module:
    """The model as every rank trains it: gradients are averaged over ranks. Alone, the model itself.

    Every rank built the same model from the same seed and files, so nothing is sent around at the start.
    """
    if not dist.is_initialized():
        return model
    return DistributedDataParallel(model, init_sync=False, gradient_as_bucket_view=True)


def without_sync(model: nn.Module):
    """A context in which backward passes only add to this rank's gradients: all but the last of a step."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def choose_device(name: str) -> str:
    """ "auto" as cuda where there is one. Raises ValueError for a cuda that is not there, or has fewer cards than ranks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu, or install torch's CUDA build")
    if name == "cuda" and int(os.environ.get("LOCAL_RANK", 0)) >= torch.cuda.device_count():
        raise ValueError(f"more ranks than the {torch.cuda.device_count()} GPUs here; lower --nproc_per_node")
    return name


def card_without_bfloat16(device: torch.device) -> str:
    """The name of a GPU that would emulate bfloat16 (NVIDIA's before Ampere: V100, T4); "" for every other device."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0):
        return ""
    return torch.cuda.get_device_name(device)


def warn_of_emulation(dtype: str, device: torch.device) -> None:
    """Say, on the main rank, that this device was told to compute in bfloat16 and has none."""
    if dtype == "bfloat16" and (card := card_without_bfloat16(device)):
        warn(f"--dtype bfloat16: {card} has no bfloat16 and emulates it, slowly; --dtype float32 is faster where it fits")


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX512-BF16, AMX, Arm's BF16), which trains about twice as fast there;
    on others bfloat16 is slower than float32."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def warn(text: str) -> None:
    """One line to standard error, on the main rank."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


def ranks_here() -> int:
    """How many ranks our recipes start here, at most 2: one for each GPU; without any, one for each core."""
    places = torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count() or 1
    return min(places, 2)
