"""Loads a LLaMA from disk: a folder of Meta or Hugging Face files, or a GGUF file.

`load_llama(path, dtype)` recognises the form, checks names and shapes before it reads anything, and returns the sizes and
a complete state dict with Meta's names. Whatever is wrong is a WeightsError; nothing is ever loaded by halves.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from imagebind_llm.config import LlamaConfig
from imagebind_llm.llama.checkpoint_files import LlamaCheckpoint, check_preset, expected_shapes
from imagebind_llm.llama.decoder import Llama
from imagebind_llm.llama.gguf import open_gguf
from imagebind_llm.llama.huggingface import is_huggingface_folder, open_huggingface
from imagebind_llm.llama.meta import is_meta_folder, open_meta
from imagebind_llm.llama.registry import DECODERS
from imagebind_llm.weight_files import WeightsError, listed


def open_llama(path: str | Path, model: str = "auto") -> LlamaCheckpoint:
    """Recognise a LLaMA on disk without reading its weights.

    `model`: a name of LLAMA_PRESETS, whose sizes it must have (and which picks 7B/ where a folder holds several), or "auto".
    """
    path = Path(path).expanduser()
    checkpoint = _open(path, model)
    check_preset(path, checkpoint.config, model)
    return checkpoint


def _open(path: Path, model: str) -> LlamaCheckpoint:
    if path.is_file():
        return open_gguf(path)
    if is_huggingface_folder(path):
        return open_huggingface(path)
    if is_meta_folder(path):
        return open_meta(path, model)
    raise WeightsError(
        f"{path}: expected a LLaMA model, got {'a folder without one' if path.is_dir() else 'no such file or folder'}; "
        "pass a folder with params.json and consolidated.*.pth (or its parent), or with config.json and safetensors, or a .gguf"
    )


def load_llama(
    path: str | Path, dtype: torch.dtype, device: torch.device | str = "cpu", model: str = "auto"
) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Read a LLaMA: (its sizes, its parameters in `dtype` on `device`, Meta's names). Peak memory: one copy and 256 MB."""
    checkpoint = open_llama(path, model)
    state = {}
    for name, shape in expected_shapes(checkpoint.config).items():
        state[name] = torch.empty(shape, dtype=dtype, device=device)
        checkpoint.copy_into(name, state[name])
    return checkpoint.config, state


def load_decoder(path: str | Path, dtype: torch.dtype) -> Llama:
    """Read a LLaMA into a decoder without prompts, frozen."""
    config, state = load_llama(path, dtype)
    llama = DECODERS[config.architecture](config, device="meta")
    assign(llama, state)
    return llama.requires_grad_(False)


def assign(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Make `tensors` the parameters of `module` without copying them: load_llama's of its `llama`, an adapter's of ITSL.

    Every name must be one of the module's, of the same shape, and none of its parameters may be left without a value.
    Otherwise WeightsError, and the module is as it was.
    """
    parameters = dict(module.named_parameters())
    unknown = [name for name in tensors if name not in parameters]
    other = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(parameters[name].shape)}"
        for name, tensor in tensors.items()
        if name in parameters and parameters[name].shape != tensor.shape
    ]
    empty = [name for name, parameter in parameters.items() if parameter.is_meta and name not in tensors]
    for problem, names in (("are unknown to it", unknown), ("have another shape", other), ("are missing", empty)):
        if names:
            raise WeightsError(
                f"weights do not fit the model: {len(names)} {problem}: {listed(names)}; build the model with the sizes that "
                "come with the weights"
            )
    # not strict: what `tensors` leaves out has its value already, as was checked above
    module.load_state_dict(tensors, strict=False, assign=True)
