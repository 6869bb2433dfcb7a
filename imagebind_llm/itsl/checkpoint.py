"""Checkpoints: the trained tensors (not the frozen LLaMA) as safetensors, and JSON, written completely or not at all.

    OUTPUT_DIR/checkpoint-0000120/{adapter.safetensors, optimizer.safetensors, checkpoint.json}
    OUTPUT_DIR/last -> checkpoint-0000120        OUTPUT_DIR/best -> checkpoint-0000090

A folder is written under a temporary name and renamed when it is complete; then each link is replaced in one rename; then
folders that no link names are deleted. So `last` and `best` are complete whenever a run is killed. On a disk without symbolic
links they are files that hold the folder's name (`resolve`).
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
POINTER = re.compile(r"checkpoint-\d{7,}(\.\d+)?\n")  # contents of a file that replaces a link


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or from another run; the message says what to do."""


def save(
    root: Path,
    step: int,
    adapter: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    info: dict[str, Any],
    best: bool,
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write checkpoint-STEP and point `last` to it, and `best` too if `best`.

    `write_more` writes further files into the folder that it is given. Raises OSError if the disk is full; the old checkpoints
    remain.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = _unused_folder(root, f"checkpoint-{step:07d}")
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
            with contextlib.suppress(PermissionError):  # some disks have no file modes
                path.chmod((temporary / INFO).stat().st_mode)  # safetensors writes files that only their owner can read
            _sync(path)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written ({error}); `last` and `best` are as they were") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if best:  # before `last`: a run that is killed in between resumes from the old `last` and makes this checkpoint again
        _link(root / "best", folder.name)
    _link(root / "last", folder.name)
    _prune(root)


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {stored_name(name): tensor for name, tensor in tensors.items()}


def _unused_folder(root: Path, name: str) -> Path:
    """A folder that does not exist: `last` may name one of the same step, which is kept until the links are replaced."""
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
    """The folder of a checkpoint: the folder that the path names if it is a file in place of a link, else the path itself."""
    path = Path(path)
    if path.is_file() and path.stat().st_size < 64 and POINTER.fullmatch(path.read_text(errors="replace")):
        return path.with_name(path.read_text().strip())
    return path


def probe(root: Path) -> None:
    """Save a small checkpoint in `root` twice and read it, to find out before the first step whether the disk can do that.

    Raises CheckpointError if not.
    """
    folder = Path(root) / f".checkpoint-probe.{os.getpid()}.tmp"
    tensors = {"x": torch.zeros(1)}
    try:
        for step in (1, 2):
            save(folder, step, tensors, tensors, {}, best=True)
        read_info(folder / "best")
        read_tensors(folder / "last")
        if not (folder / "last").is_symlink():
            distributed.warn(
                f"{root}: no symbolic links on this disk; last and best are files that name a folder, which all commands read"
            )
    except (OSError, CheckpointError) as error:
        raise CheckpointError(
            f"{root}: no checkpoint can be saved here ({error.__cause__ or error}); give an --output_dir on another disk"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def linked(link: Path) -> str:
    """The name of the folder that `last` or `best` points to; "" if there is none."""
    folder = resolve(link)
    if not folder.is_dir():
        return ""
    return os.readlink(folder) if folder.is_symlink() else folder.name


def _prune(root: Path) -> None:
    targets = {os.readlink(root / link) if (root / link).is_symlink() else resolve(root / link).name for link in LINKS}
    for folder in root.glob("checkpoint-*"):
        if folder.name not in targets:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in root.glob(".checkpoint-*.tmp"):  # left by a save that was killed
        shutil.rmtree(folder, ignore_errors=True)


def clear(root: Path) -> None:
    """Delete a run's checkpoints, log and results; other files in the folder stay."""
    for link in LINKS:
        (root / link).unlink(missing_ok=True)
    _prune(root)
    for name in ("log.txt", "steps.jsonl", "curves.html", "reference.safetensors", "results.json"):
        (root / name).unlink(missing_ok=True)
    for table in root.glob("predictions_*.jsonl"):
        table.unlink()
    shutil.rmtree(root / "judges", ignore_errors=True)


def read_info(folder: Path) -> dict[str, Any]:
    """A checkpoint's JSON. Raises CheckpointError if the folder is no checkpoint, is damaged or has another format."""
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
    """The tensors of `adapter.safetensors` or `optimizer.safetensors`, under the names of the model's parameters.

    Raises CheckpointError if the file is missing or damaged.
    """
    try:
        return {parameter_name(key): tensor for key, tensor in load_file(resolve(folder) / name).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{Path(folder) / name}: cannot be read ({error}); take another checkpoint") from error


def check_store(store: Store, trained_on: dict[str, Any] | None) -> None:
    """Raise CheckpointError if the store's embeddings were made in another way than those that a model was trained on.

    `trained_on`: the store's identity in checkpoint.json; None if the model was trained on no embeddings.
    """
    expected, stored = trained_on or {}, asdict(store.identity)
    names = ("encoder", "weights_sha256", "width", "window_rule", "clean_audio")
    if other := [f"{n}: {stored[n]}, expected {expected[n]}" for n in names if n in expected and expected[n] != stored[n]]:
        raise CheckpointError(
            f"{store.root}: other embeddings than the model was trained on ({'; '.join(other)}); make them anew with: "
            f"python avt_get_emb.py --data_path DATA --output_dir EMB --encoder {expected['encoder']}"
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
        process = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "unknown"
    return process.stdout.strip() if process.returncode == 0 else "unknown"
