"""Third-party weights in: LLaMA as Meta, Hugging Face or GGUF files, ImageBind, and released adapters.

`load_llama(path, dtype)` recognises the form, checks names and shapes before it reads anything, and returns the sizes and
a complete state dict with Meta's names. Whatever is wrong is a WeightsError; nothing is ever loaded by halves.
`python -m imagebind_llm.weights check PATH` says what a file or folder is (check.py).
"""

from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm.config import LlamaConfig
from imagebind_llm.weights.adapter import open_adapter
from imagebind_llm.weights.files import WeightsError
from imagebind_llm.weights.gguf import open_gguf, smollm2_path
from imagebind_llm.weights.huggingface import is_huggingface_folder, open_huggingface
from imagebind_llm.weights.llama_checkpoint import LlamaCheckpoint, expected_shapes
from imagebind_llm.weights.meta import is_meta_folder, open_meta

__all__ = ["WeightsError", "load_llama", "open_adapter", "open_llama", "smollm2_path"]


def open_llama(path: str | Path, size: str | None = None) -> LlamaCheckpoint:
    """Recognise a LLaMA on disk without reading its weights. `size`: the subfolder ("7B") where a folder holds several."""
    path = Path(path).expanduser()
    if path.is_file():
        return open_gguf(path)
    if is_huggingface_folder(path):
        return open_huggingface(path)
    if is_meta_folder(path):
        return open_meta(path, size)
    raise WeightsError(
        f"{path}: expected a LLaMA model, got {'a folder without one' if path.is_dir() else 'no such file or folder'}; "
        "pass a folder with params.json and consolidated.*.pth (or its parent), or with config.json and safetensors, or a .gguf"
    )


def load_llama(
    path: str | Path, dtype: torch.dtype, device: torch.device | str = "cpu", size: str | None = None
) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Read a LLaMA: (its sizes, its parameters in `dtype` on `device`, Meta's names). Peak memory: one copy and 256 MB."""
    checkpoint = open_llama(path, size)
    state = {}
    for name, shape in expected_shapes(checkpoint.config).items():
        state[name] = torch.empty(shape, dtype=dtype, device=device)
        checkpoint.copy_into(name, state[name])
    return checkpoint.config, state
