"""Two ranks of a gloo group, forked from the test's own process: much sooner there than torchrun's, and able to differ."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable

import torch

SECONDS = 60


def on_two_ranks(body: Callable[[int], object]) -> list[object]:
    """What `body(rank)` returns on each rank, or the exception that it raises. It joins the group (process_group) itself."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [context.Process(target=_rank, args=(rank, port, body, ends[rank][1])) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        return [there.recv() if there.poll(SECONDS) else TimeoutError(f"rank {r}") for r, (there, _) in enumerate(ends)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(rank: int, port: int, body: Callable[[int], object], result) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        found = body(rank)
    except Exception as error:
        found = error
    result.send(found)
    sys.stdout.flush()
    os._exit(0)
