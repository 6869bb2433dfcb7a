"""Small GGUF files, written with the `gguf` package, for the tests."""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import quantize

from imagebind_llm.config import LlamaConfig
from imagebind_llm.llama.decoder import Llama
from imagebind_llm.llama.gguf import gguf_name

CONFIG = LlamaConfig(64, 2, 4, 2, 96, 40, norm_eps=1e-6, rope_theta=500.0, max_seq_len=128)
KEYS = {
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.feed_forward_length": 96,
    "llama.context_length": 128,
    "llama.rope.freq_base": 500.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
}


def random_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(tensor) for name, tensor in Llama(CONFIG).state_dict().items()}


def write_gguf(
    path: Path,
    weights: dict[str, torch.Tensor],
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
    keys: dict | None = None,
    tokenizer: dict | None = None,
    architecture: str = "llama",
    more: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Weights under our names, stored as `types` says (F32 otherwise), and `more` tensors under GGUF's own names.

    `keys` changes or (None) drops metadata; `tokenizer` adds its own.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (KEYS | (keys or {})).items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key, value)
    for key, value in (tokenizer or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}[type(value)]
        add(f"tokenizer.{key}", value)
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor.numpy())
    for name, tensor in weights.items():
        kind = (types or {}).get(name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(gguf_name(name), *stored(tensor.numpy(), kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> tuple:
    """The arguments (data, raw_shape, raw_dtype) of add_tensor."""
    if kind == gguf.GGMLQuantizationType.F32:
        return (values,)
    if kind == gguf.GGMLQuantizationType.Q8_1:  # a type that the package knows by name but cannot convert
        shape = gguf.quant_shape_to_byte_shape(values.shape, kind)
        return np.zeros(shape, np.uint8), shape, kind
    data = quantize(values, kind)
    return data, data.shape, kind
