"""LLaMA-1 and 2 as Meta published them: a folder with params.json and consolidated.NN.pth, one file or several shards.

Shards are cut along one axis per matrix (the layout of the column- and row-parallel layers they were trained with); norms
are copied to every shard. Merging copies each piece to its place in the finished tensor, so there is one copy of the
weights in memory and never two. The width of the feed-forward layers and the vocabulary are read from the tensors.
"""

import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm.config import LlamaConfig
from imagebind_llm.llama.checkpoint_files import LlamaCheckpoint, check_numbers, check_sizes, expected_shapes
from imagebind_llm.weight_files import Shape, TensorFile, WeightsError, check_tensors, listed, open_shards, read_json

SIZES = {"dim", "n_layers", "n_heads", "norm_eps"}
OTHER_KEYS = {"n_kv_heads", "rope_theta", "use_scaled_rope", "vocab_size", "multiple_of", "ffn_dim_multiplier", "max_seq_len"}
COUNTS = ("dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len")
CUT_ROWS = {"wq", "wk", "wv", "w1", "w3", "output"}
CUT_COLUMNS = {"wo", "w2"}


def is_meta_folder(path: Path) -> bool:
    """Whether this folder, or a folder in it, has the files of a Meta model."""
    return path.is_dir() and bool(_model_folders(path))


def _model_folders(path: Path) -> list[Path]:
    folders = [path] if (path / "params.json").is_file() or any(path.glob("consolidated.*.pth")) else []
    return folders or sorted(file.parent for file in path.glob("*/params.json"))


def model_folder(path: Path, model: str = "auto") -> Path:
    """The folder with params.json: `path`, the subfolder that `model` names (Llama7B_adapter: 7B), or the only one there is."""
    folders = _model_folders(path)
    size = match[0] if (match := re.search(r"\d+B", model)) else ""
    chosen = [folder for folder in folders if folder.name == size] or folders
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise WeightsError(
            f"{path}: holds several models ({listed(f.name for f in chosen)}); pass one of them, e.g. {chosen[0]}"
        )
    raise WeightsError(
        f"{path}: expected params.json and consolidated.00.pth here or in a subfolder such as 7B/, found neither"
    )


def open_meta(path: Path, model: str = "auto") -> LlamaCheckpoint:
    """Recognise and check a Meta folder. Raises WeightsError for a missing, surplus or foreign shard or an unknown size."""
    folder = model_folder(path, model)
    params = _read_params(folder / "params.json")
    shards = open_shards(_shard_files(folder))
    cuts = _cuts(folder, shards, params["dim"])
    shapes = {name: _merged(name, cut, shards) for name, cut in cuts.items()}
    config = _config(folder, params, shapes, len(shards))
    check_sizes(folder, config)
    check_tensors(folder, shapes, expected_shapes(config))
    _check_same_model(shards, [name for name, cut in cuts.items() if cut is None])

    def copy_into(name: str, out: Tensor) -> None:
        start = 0
        for shard in shards[:1] if cuts[name] is None else shards:
            piece, axis = shard.read(name), cuts[name] or 0
            out.narrow(axis, start, piece.shape[axis]).copy_(piece)
            start += piece.shape[axis]

    dtypes = Counter(dtype for name, dtype in shards[0].dtypes.items() if name in cuts)
    return LlamaCheckpoint("Meta", tuple(shard.path for shard in shards), config, dtypes, copy_into)


def _read_params(file: Path) -> dict:
    if not file.is_file():
        raise WeightsError(f"{file}: missing; it comes with the shards and says how many layers and heads there are")
    params = read_json(file)
    unknown, missing = sorted(set(params) - SIZES - OTHER_KEYS), sorted(key for key in SIZES if params.get(key) is None)
    if unknown or missing:
        got = f"unknown keys {listed(unknown)}" if unknown else f"no {listed(missing)}"
        raise WeightsError(
            f"{file}: expected the keys {listed(sorted(SIZES | OTHER_KEYS), most=20)}, got {got}; an unknown key "
            "could change the model: use the model's Hugging Face or GGUF form, or remove the key if it does not"
        )
    check_numbers(file, params, COUNTS, ("norm_eps", "rope_theta"))
    if params.get("use_scaled_rope"):
        raise WeightsError(
            f"{file}: use_scaled_rope does not say by how much (8 in LLaMA 3.1, 32 in 3.2); use the model's Hugging Face form"
        )
    return params


def _shard_files(folder: Path) -> list[Path]:
    """consolidated.00.pth, consolidated.01.pth ... without a gap."""
    files = sorted(folder.glob("consolidated.*.pth"))
    expected = [folder / f"consolidated.{i:02d}.pth" for i in range(len(files))]
    if not files or files != expected:
        missing = next((file.name for file in expected if file not in files), "consolidated.00.pth")
        raise WeightsError(
            f"{folder}: shard {missing} is missing, found {listed(f.name for f in files) or 'none'}; download it again"
        )
    return files


def _cuts(folder: Path, shards: list[TensorFile], dim: int) -> dict[str, int | None]:
    """Along which axis each parameter is cut over the shards; None: every shard has all of it. Rotary tables are dropped."""
    first = _weights(shards[0])
    cuts = {name: _cut(name, shape, dim) for name, shape in first.items()}
    for shard in shards[1:]:
        shapes = _weights(shard)
        differing = sorted(shapes.keys() ^ first.keys())
        differing += [name for name, shape in shapes.items() if name in first and not _joins(shape, first[name], cuts[name])]
        if differing:
            raise WeightsError(
                f"{folder}: shards don't belong together: {shard.path.name} and {shards[0].path.name} differ in "
                f"{listed(differing)}; download all shards of one model again"
            )
    return cuts


def _joins(a: Shape, b: Shape, cut: int | None) -> bool:
    """Whether pieces of these shapes can be joined along `cut` (the last piece may be shorter)."""
    return len(a) == len(b) and all(axis == cut or a[axis] == b[axis] for axis in range(len(a)))


def _weights(shard: TensorFile) -> dict[str, Shape]:
    shapes = {name: shape for name, shape in shard.shapes.items() if not name.endswith("rope.freqs")}
    if single := [name for name, shape in shapes.items() if not shape]:
        raise WeightsError(f"{shard.path}: {listed(single)}: single numbers, expected matrices; download it again")
    return shapes


def _cut(name: str, shape: Shape, dim: int) -> int | None:
    """LLaMA-1 and 2 cut the embedding along its width, LLaMA-3 along the vocabulary: then a shard has the full width."""
    part = name.split(".")[-2] if "." in name else name
    if part == "tok_embeddings":
        return 0 if shape[-1] == dim else 1
    return 0 if part in CUT_ROWS else 1 if part in CUT_COLUMNS else None


def _merged(name: str, cut: int | None, shards: list[TensorFile]) -> Shape:
    shape = list(shards[0].shapes[name])
    if cut is not None and cut < len(shape):
        shape[cut] = sum(shard.shapes[name][cut] for shard in shards)
    return tuple(shape)


def _config(folder: Path, params: dict, shapes: dict[str, Shape], n_shards: int) -> LlamaConfig:
    embedding, w1 = shapes.get("tok_embeddings.weight"), shapes.get("layers.0.feed_forward.w1.weight")
    if embedding is None or w1 is None:
        raise WeightsError(f"{folder}: no tok_embeddings or no feed-forward layer in the shards: these are not LLaMA weights")
    _check_count(folder, params["dim"], shapes, n_shards)
    if params.get("vocab_size", -1) not in (-1, embedding[0]):
        raise WeightsError(
            f"{folder}: params.json says vocab_size {params['vocab_size']}, the embedding has {embedding[0]} rows; "
            "params.json and shards are of different models"
        )
    return LlamaConfig(
        dim=params["dim"],
        n_layers=params["n_layers"],
        n_heads=params["n_heads"],
        n_kv_heads=params.get("n_kv_heads") or params["n_heads"],
        hidden_dim=w1[0],
        vocab_size=embedding[0],
        norm_eps=params["norm_eps"],
        rope_theta=float(params.get("rope_theta") or 10000.0),
        max_seq_len=params.get("max_seq_len") or 2048,  # Meta's files do not tell; LLaMA-1's is 2048
    )


def _check_count(folder: Path, dim: int, shapes: dict[str, Shape], n_shards: int) -> None:
    """The pieces must add up to the width of params.json: otherwise shards are missing, or of another model."""
    rows = shapes.get("layers.0.attention.wq.weight", (0,))[0]
    if 0 < rows < dim and dim % rows == 0:
        raise WeightsError(f"{folder}: shards are missing: found {n_shards} of {n_shards * dim // rows}; download the rest")
    if rows != dim:
        raise WeightsError(f"{folder}: params.json says width {dim}, the shards have {rows}; they are of different models")


def _check_same_model(shards: list[TensorFile], replicated: list[str]) -> None:
    """Norms are stored in every shard: if they differ, the shards are of different models (or training runs)."""
    for shard in shards[1:]:
        for name in replicated:
            if not torch.equal(shard.read(name), shards[0].read(name)):
                raise WeightsError(
                    f"{shard.path.parent}: shards don't belong together: {name} differs between {shards[0].path.name} and "
                    f"{shard.path.name}, and should be equal; download all shards of one model again"
                )
