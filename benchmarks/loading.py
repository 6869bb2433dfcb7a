"""Merging Meta shards: time and peak memory, against loading every shard and joining the pieces.

The shards have LLaMA-7B's shapes (float16), by default an eighth of its layers; `n_layers` 32 is the whole model, 13.5 GB
on disk and as much in memory. They are written to a temporary folder before the clock starts.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from imagebind_llm.config import LLAMA_PRESETS
from imagebind_llm.llama.checkpoint_files import expected_shapes
from imagebind_llm.llama.load import load_llama
from imagebind_llm.llama.meta import CUT_COLUMNS

from .runner import Case

LAYERS, SHARDS = 4, 2


def _axis(name: str) -> int:
    return 1 if name.split(".")[-2] in CUT_COLUMNS | {"tok_embeddings"} else 0


def write_shards(folder: Path, n_layers: int, n_shards: int) -> float:
    """A Meta folder with LLaMA-7B's shapes; returns the size of the merged weights in GB."""
    config = dataclasses.replace(LLAMA_PRESETS["Llama7B_adapter"], n_layers=n_layers)
    params = {"dim": config.dim, "n_layers": n_layers, "n_heads": config.n_heads, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))
    shapes = expected_shapes(config)
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).half()
    for i in range(n_shards):
        shard = {}
        for name, shape in shapes.items():
            part = [size // n_shards if len(shape) == 2 and axis == _axis(name) else size for axis, size in enumerate(shape)]
            count = torch.Size(part).numel()
            shard[name] = block.repeat(-(-count // len(block)))[:count].reshape(part).clone()
        torch.save(shard, folder / f"consolidated.{i:02d}.pth")
    return sum(torch.Size(shape).numel() for shape in shapes.values()) * 2 / 1e9


def ours(n_layers: int = LAYERS, n_shards: int = SHARDS) -> Callable[[], float]:
    folder = tempfile.TemporaryDirectory()
    gigabytes = write_shards(Path(folder.name), n_layers, n_shards)

    def run() -> float:
        load_llama(folder.name, torch.float16)
        return gigabytes

    return run


def load_and_join(n_layers: int = LAYERS, n_shards: int = SHARDS) -> Callable[[], float]:
    """The peer: every shard in memory, then one tensor after the other joined."""
    folder = tempfile.TemporaryDirectory()
    gigabytes = write_shards(Path(folder.name), n_layers, n_shards)

    def run() -> float:
        files = sorted(Path(folder.name).glob("*.pth"))
        shards = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
        for name, first in list(shards[0].items()):
            if first.ndim == 2:
                shards[0][name] = torch.cat([shard[name] for shard in shards], _axis(name))
        return gigabytes

    return run


CASES = [
    Case(
        f"LLaMA-7B shape, {LAYERS} of 32 layers in {SHARDS} shards, float16, 2.14 GB",
        "GB",
        "benchmarks.loading:ours",
        "benchmarks.loading:load_and_join",
        "above MB at most 1.2 copies = 2453",
    )
]
