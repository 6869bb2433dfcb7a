"""Reading back a run that is started again, and checks that the folder is this run's and that all ranks see the same."""

import hashlib
import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagebind_llm import distributed
from imagebind_llm.corpus.sequences import Corpus
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import Assembled
from imagebind_llm.itsl.checkpoint import CheckpointError
from imagebind_llm.training.continuation import differences, digest_of_rationales, digest_of_vectors
from imagebind_llm.training.epoch import Position
from imagebind_llm.training.settings import TrainSettings

FREE = {  # flags that may differ when a run continues
    *("resume", "num_workers", "device", "log_steps", "save_steps"),
    *("output_dir", "patience", "cache_gb", "checkpoint_activations"),
}


def describe(settings: TrainSettings, assembled: Assembled, corpus: Corpus) -> dict[str, Any]:
    """Description of a run in a checkpoint's JSON, which a continuation must match (continuation.differences)."""
    store = corpus.store
    return {
        "settings": json.loads(json.dumps(asdict(settings))),
        "model": asdict(assembled.config),
        "llama": assembled.llama,
        "start": assembled.start,
        "data": _digest_of_rows(corpus),
        "rationales": digest_of_rationales(corpus),
        "vectors": digest_of_vectors(corpus),
        "taxonomy": corpus.taxonomy.described() if corpus.taxonomy else None,
        "modalities": list(settings.modalities),
        "store": json.loads(json.dumps(asdict(store.identity))) if store else None,
        "world_size": distributed.world_size(),
    }


def _digest_of_rows(corpus: Corpus) -> str:
    digest = hashlib.sha256()
    for split, rows in corpus.splits.items():
        digest.update(repr((split, [(row.key, row.ids, row.intent) for row in rows])).encode())
    if corpus.captions:
        digest.update(repr(corpus.captions).encode())
    return digest.hexdigest()[:16]


def read_info(root: Path, name: str, about: dict[str, Any]) -> dict[str, Any]:
    """The JSON of the checkpoint `name` in a run's folder. Raises CheckpointError if not all ranks see it, or if it does not
    match the description `about`."""
    folder = root / name
    visible = distributed.gather_objects((folder / checkpoint.INFO).is_file())
    if any(visible) and not all(visible):
        raise CheckpointError(f"{folder}: only some of the machines see it; wait until all do, then start again")
    info = checkpoint.read_info(folder)
    if other := differences(info, about, FREE):
        raise CheckpointError(
            f"{root / 'last'} was made with other settings ({', '.join(other)});"
            " give another --output_dir, or start over with --resume no"
        )
    return info


def read_weights(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's tensors into the model's parameters, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in checkpoint.read_tensors(folder).items():
            parameters[name].copy_(tensor)


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the names of the parameters, on the CPU."""
    return {
        f"{name}.{part}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def read_moments(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restore the optimizer's state from a checkpoint, on each parameter's device."""
    state = checkpoint.read_tensors(folder, checkpoint.OPTIMIZER)
    for name, parameter in model.named_parameters():
        if f"{name}.exp_avg" in state:
            parts = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[parameter] = {part: state[f"{name}.{part}"].to(parameter.device) for part in parts}


def refuse_folders_apart(root: Path) -> None:
    """Raise CheckpointError if --output_dir is not the same folder for all ranks, as on local disks of several machines."""
    if distributed.world_size() == 1:
        return
    token = root / f".{distributed.gather_objects(uuid.uuid4().hex)[0]}.tmp"
    if distributed.is_main():
        root.mkdir(parents=True, exist_ok=True)
        token.touch()
    distributed.barrier()
    visible = distributed.gather_objects(token.exists())
    if distributed.is_main():
        token.unlink()
    if not all(visible):
        raise CheckpointError(f"--output_dir {root}: expected a folder that all machines see; give one on a shared disk")


def refuse_steps_apart(root: Path, at: Position) -> None:
    """Raise CheckpointError if ranks would continue from different steps: a machine may see an older state of the disk."""
    steps = distributed.gather_objects((at.epoch, at.step, at.total))
    apart = next((rank for rank, step in enumerate(steps) if step != steps[0]), None)
    if apart is not None:
        got = ", ".join("rank {}: epoch {}, step {}, {} in all".format(rank, *steps[rank]) for rank in (0, apart))
        raise CheckpointError(
            f"{root}: expected one checkpoint for all ranks, got different ones ({got}); "
            "wait until all machines see the same files there, then start again"
        )
