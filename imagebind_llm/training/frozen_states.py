"""Cache of the hidden states below the lowest adapted layer, which do not change in training.

With prompts and LoRA in the top 12 of 30 layers a step costs 12 forward and 12 backward layers instead of 30 and 12.
The states are in one memory-mapped file per machine; each rank computes a share of the rows.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator, by_length
from imagebind_llm.files import UNSUPPORTED
from imagebind_llm.llama.decoder import Llama
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.training.log import say

LEAST_SHARE = 4  # use the cache if at least a quarter of the layers are below the adapted ones
ZEROS = 2**24  # bytes per write


class FrozenStates:
    """Inputs (T,D) of the lowest adapted layer for every distinct row of token ids, in a memory-mapped file."""

    def __init__(self, path: Path, rows: Sequence[Ids], width: int, dtype: torch.dtype):
        """Map `path`, which is created if it does not exist. Raises OSError if the disk is full, RuntimeError if it does not
        support shared mappings."""
        self._places: dict[tuple[int, ...], int] = {}
        total = 0
        for row in rows:
            if row.ids not in self._places:
                self._places[row.ids] = total
                total += len(row.ids)
        n_bytes = total * width * dtype.itemsize
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _reserve(file, n_bytes)
        finally:
            os.close(file)
        self._states = torch.from_file(str(path), shared=True, size=total * width, dtype=dtype).view(total, width)

    def __contains__(self, row: Ids) -> bool:
        return row.ids in self._places

    def put(self, row: Ids, states: Tensor) -> None:
        """Write the states (T,D) of a row."""
        start = self._places[row.ids]
        self._states[start : start + len(row.ids)] = states

    def batch(self, rows: Sequence[Ids]) -> Tensor:
        """The states (B,T,D) of rows, zeros in the padding."""
        longest = max(len(row.ids) for row in rows)
        out = self._states.new_zeros(len(rows), longest, self._states.shape[1])
        for i, row in enumerate(rows):
            start = self._places[row.ids]
            out[i, : len(row.ids)] = self._states[start : start + len(row.ids)]
        return out  # (B,T,D)


def _reserve(file: int, n_bytes: int) -> None:
    """Allocate the file on the disk, because a write to a mapping on a full disk would kill the process. Raises OSError."""
    try:
        os.posix_fallocate(file, 0, n_bytes)
        return
    except AttributeError:  # macOS has no such call
        pass
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    size = os.fstat(file).st_size  # another rank of this machine may have written a part
    while size < n_bytes:
        size += os.pwrite(file, bytes(min(ZEROS, n_bytes - size)), size)


def states_size(rows: Sequence[Ids], llama: Llama) -> int:
    """Bytes of the states of these rows; 0 if too few layers are below the adapted ones for a cache."""
    if llama.lowest * LEAST_SHARE < llama.config.n_layers:
        return 0
    return sum(map(len, {row.ids for row in rows})) * llama.config.dim * llama.tok_embeddings.weight.element_size()


@contextmanager
def cached_states(
    root: Path, rows: Sequence[Ids], llama: Llama, cache_gb: float, device: torch.device, batch_size: int
) -> Iterator[FrozenStates | None]:
    """The states of these rows in a file under `root`, which is deleted afterwards. Collective.

    None if they are larger than `cache_gb`, or if too few layers are below the adapted ones for a cache.
    """
    size = states_size(rows, llama)
    if not 0 < size <= cache_gb * 1e9:
        if size and cache_gb:
            say(
                f"--cache_gb {cache_gb:g} is too little for the states below the adapted layers: every pass computes them "
                f"again; --cache_gb {math.ceil(size / 1e8) / 10:g} would hold them"
            )
        yield None
        return
    path = root / f"frozen-states-{distributed.node()}.tmp"
    try:
        yield compute_states(path, rows, llama, device, batch_size)
    finally:
        if distributed.node_rank() == 0:
            path.unlink(missing_ok=True)


def compute_states(path: Path, rows: Sequence[Ids], llama: Llama, device: torch.device, batch_size: int) -> FrozenStates | None:
    """Compute the states of all rows into a new file. Collective: the ranks of a machine share the work and the file.

    Returns None, with a warning, if the disk does not support shared mappings.
    """
    if distributed.node_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    distributed.barrier()
    dtype = llama.tok_embeddings.weight.dtype
    states, problem = None, ""
    try:
        states = FrozenStates(path, rows, llama.config.dim, dtype)
    except RuntimeError as error:
        problem = str(error)
    problems = [text for text in distributed.gather_objects(problem) if text]  # and waits, as zeros may have been written
    if states is None or problems:
        distributed.warn(
            f"{path.parent}: no shared mapping on this disk ({problems[0]}); states of the frozen layers are not kept, as with "
            "--cache_gb 0: the same training, slower"
        )
        return None
    distinct = list({row.ids: row for row in rows}.values())
    plan = by_length([len(row.ids) for row in distinct], batch_size)[distributed.node_rank() :: distributed.node_size()]
    collate = Collator(None, ())
    for numbers in tqdm(plan, desc="frozen layers", unit="batch", disable=not distributed.is_main(), leave=False):
        batch = [distinct[number] for number in numbers]
        with torch.no_grad():
            hidden = llama.lower(collate(batch).tokens.to(device)).to("cpu")  # (B,T,D)
        for row, state in zip(batch, hidden, strict=True):
            states.put(row, state[: len(row.ids)])
    distributed.barrier()
    return states
