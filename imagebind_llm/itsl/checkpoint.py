"""Checkpoints of what we train, never of the frozen LLaMA: safetensors and JSON, written whole or not at all.

    OUTPUT_DIR/checkpoint-0000120/{adapter.safetensors, optimizer.safetensors, checkpoint.json}
    OUTPUT_DIR/last -> checkpoint-0000120        OUTPUT_DIR/best -> checkpoint-0000090

A folder appears under its name when everything in it is on disk; then the links move, each in one rename; then folders
that no link names are deleted. Whatever moment a run is killed, `last` and `best` are whole. On a disk without symbolic links
`last` and `best` are files that hold the folder's name (`resolve`).
"""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagebind_llm import distributed
from imagebind_llm.config import BridgeConfig, LlamaConfig, ModelConfig, PromptConfig, RopeScaling
from imagebind_llm.encoder.store import Store
from imagebind_llm.files import UNSUPPORTED
from imagebind_llm.itsl.names import parameter_name, stored_name

FORMAT = 1
ADAPTER, OPTIMIZER, INFO = "adapter.safetensors", "optimizer.safetensors", "checkpoint.json"
LINKS = ("last", "best")
POINTER = re.compile(r"checkpoint-\d{7,}(\.\d+)?\n")  # what a file that stands for a link holds


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another run; the message says what to do."""


def save(
    root: Path,
    step: int,
    adapter: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    info: dict[str, Any],
    best: bool,
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write checkpoint-STEP, make it `last` and, if it is, `best`. An OSError (a full disk) leaves the old ones."""
    root.mkdir(parents=True, exist_ok=True)
    folder = _free(root, f"checkpoint-{step:07d}")
    temporary = root / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        save_file(_stored(adapter), temporary / ADAPTER)
        save_file(_stored(optimizer), temporary / OPTIMIZER)
        (temporary / INFO).write_text(json.dumps({"format": FORMAT, **info}, indent=1))
        if write_more is not None:
            write_more(temporary)
        for path in temporary.iterdir():
            with contextlib.suppress(PermissionError):  # of a disk that has no modes
                path.chmod((temporary / INFO).stat().st_mode)  # safetensors' files are its owner's alone
            _sync(path)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written ({error}); `last` and `best` are as they were") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if best:  # first: killed in between, the run repeats what led here, and so makes the same checkpoint again
        _link(root / "best", folder.name)
    _link(root / "last", folder.name)
    _prune(root)


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {stored_name(name): tensor for name, tensor in tensors.items()}


def _free(root: Path, name: str) -> Path:
    """A folder that is not there yet: `last` may name one of the same step, which stays until the links have moved."""
    names = (name, *(f"{name}.{number}" for number in range(2, 1000)))
    return next(root / name for name in names if not (root / name).exists())


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _link(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EPERM}:
            raise
        temporary.write_text(f"{target}\n")
        _sync(temporary)
    os.replace(temporary, link)


def resolve(path: Path) -> Path:
    """The checkpoint folder that a path stands for: what `last` or `best` name where they are files, else the path itself."""
    path = Path(path)
    if path.is_file() and path.stat().st_size < 64 and POINTER.fullmatch(path.read_text(errors="replace")):
        return path.with_name(path.read_text().strip())
    return path


def probe(root: Path) -> None:
    """Save a small checkpoint in the folder `root` twice and read it, so that a disk which cannot do that says so before the
    first step and not after the first hour. Raises CheckpointError."""
    place = Path(root) / f".checkpoint-probe.{os.getpid()}.tmp"
    tensors = {"x": torch.zeros(1)}
    try:
        for step in (1, 2):
            save(place, step, tensors, tensors, {}, best=True)
        read_info(place / "best")
        read_tensors(place / "last")
        if not (place / "last").is_symlink():
            distributed.warn(
                f"{root}: no symbolic links on this disk; last and best are files that name a folder, which all commands read"
            )
    except (OSError, CheckpointError) as error:
        raise CheckpointError(
            f"{root}: no checkpoint can be saved here ({error.__cause__ or error}); give an --output_dir on another disk"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def linked(link: Path) -> str:
    """The name of the folder that `last` or `best` stands for; "" if there is none."""
    folder = resolve(link)
    if not folder.is_dir():
        return ""
    return os.readlink(folder) if folder.is_symlink() else folder.name


def _prune(root: Path) -> None:
    named = {os.readlink(root / link) if (root / link).is_symlink() else resolve(root / link).name for link in LINKS}
    for folder in root.glob("checkpoint-*"):
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)
    for left in root.glob(".checkpoint-*.tmp"):  # by a save that was killed
        shutil.rmtree(left, ignore_errors=True)


def clear(root: Path) -> None:
    """Delete a run's checkpoints, log and results, and nothing else in the folder."""
    for link in LINKS:
        (root / link).unlink(missing_ok=True)
    _prune(root)
    for name in ("log.txt", "steps.jsonl", "curves.html", "reference.safetensors", "results.json"):
        (root / name).unlink(missing_ok=True)
    for table in root.glob("predictions_*.jsonl"):
        table.unlink()
    shutil.rmtree(root / "judges", ignore_errors=True)


def read_info(folder: Path) -> dict[str, Any]:
    """A checkpoint's JSON. Raises CheckpointError, saying what was expected, if it is none."""
    path = resolve(folder) / INFO
    if not path.is_file():
        names = (Path(folder) / name for name in ("best", "last"))
        nearby = next((name for name in names if (resolve(name) / INFO).is_file()), None)
        hint = f"; did you mean {nearby}?" if nearby else "; make one with engine_finetune.py"
        raise CheckpointError(f"{folder}: expected a checkpoint folder with {INFO}{hint}")
    try:
        info = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: damaged ({error}); take another checkpoint") from error
    if info.get("format") != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {info.get('format')}, this version reads {FORMAT}")
    return info


def read_tensors(folder: Path, name: str = ADAPTER) -> dict[str, Tensor]:
    """The tensors of `adapter.safetensors` or `optimizer.safetensors`, under the names of the model's parameters."""
    try:
        return {parameter_name(key): tensor for key, tensor in load_file(resolve(folder) / name).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{Path(folder) / name}: cannot be read ({error}); take another checkpoint") from error


def check_store(store: Store, trained_on: dict[str, Any] | None) -> None:
    """Raises CheckpointError if the store's embeddings were made in another way than those that a model was trained on,
    `trained_on` as checkpoint.json has it; None: it was trained on none."""
    ours, theirs = trained_on or {}, asdict(store.identity)
    names = ("encoder", "weights_sha256", "width", "window_rule", "clean_audio")
    if other := [f"{n}: {theirs[n]}, expected {ours[n]}" for n in names if n in ours and ours[n] != theirs[n]]:
        raise CheckpointError(
            f"{store.root}: other embeddings than the model was trained on ({'; '.join(other)}); make them anew with: "
            f"python avt_get_emb.py --data_path DATA --output_dir EMB --encoder {ours['encoder']}"
        )


def config_from_json(fields: dict[str, Any]) -> ModelConfig:
    """The sizes of a model as a checkpoint's JSON has them, the inverse of `asdict`."""
    llama = dict(fields["llama"])
    scaling = llama.pop("rope_scaling")
    return ModelConfig(
        LlamaConfig(**llama, rope_scaling=RopeScaling(**scaling) if scaling else None),
        PromptConfig(**fields["prompts"]),
        BridgeConfig(**fields["bridge"]) if fields["bridge"] else None,
        fields["n_intents"],
    )


def code_commit() -> str:
    """The git commit of the code, "unknown" outside a repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
