"""Reads released adapters: ImageBind-LLM's (prompts, gates, bridge, biases, LoRA) and LLaMA-Adapter v1's (prompts, gates).

The tensors of the file decide the model's settings; a tensor that these settings need and the file lacks, or one that they do
not need, is an error. Both kinds were trained with prompts that are not normalised before wk and wv.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm.config import BridgeConfig, LlamaConfig, PromptConfig
from imagebind_llm.itsl.names import parameter_name
from imagebind_llm.weight_files import Shape, TensorFile, WeightsError, listed

BRIDGE = "image_bind_"
GATE = re.compile(r"llama\.layers\.(\d+)\.attention\.gate")
LORA = {f"attention.lora_w{part}" for part in "qkvo"} | {f"feed_forward.lora_w{part}" for part in "123"}
BIASES = ("attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
DROPPED = "prefix_projector_norm."  # of an older ImageBind-LLM, and unused there too


@dataclass(frozen=True)
class Adapter:
    """A released adapter whose names are checked and whose tensors are not read yet."""

    format: str  # "ImageBind-LLM adapter" or "LLaMA-Adapter v1"
    n_layers: int  # of the LLaMA it was made for
    dim: int
    prompts: PromptConfig
    bridge: BridgeConfig | None
    file: TensorFile
    names: dict[str, str]  # from ImageBind-LLM's name (with `bridge.` in front of the bridge's) to the name in the file

    def check_fits(self, llama: LlamaConfig) -> None:
        """Raise WeightsError if it was made for a LLaMA of another depth or width."""
        if (llama.n_layers, llama.dim) != (self.n_layers, self.dim):
            raise WeightsError(
                f"{self.file.path}: made for a LLaMA of {self.n_layers} layers and width {self.dim}, this one has "
                f"{llama.n_layers} and {llama.dim}; use the LLaMA that the adapter was trained on"
            )

    def read(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The tensors by ITSL's parameter names, with the decoder's norms if the adapter has trained them."""
        return {parameter_name(name): self.file.read(stored).to(dtype, copy=True) for name, stored in self.names.items()}


def is_adapter(names: Iterable[str]) -> bool:
    """Whether these tensor names are those of an adapter."""
    return bool({"prefix_query.weight", "adapter_query.weight"} & set(names))


def open_adapter(path: str | Path, adapter_layer: int | None = None) -> Adapter:
    """Open an adapter file and check its tensor names strictly.

    `adapter_layer`: number of layers in which a v1 adapter has prompts; only needed where its gates do not show it. Raises
    WeightsError if the file is no adapter, or lacks tensors, or has unknown ones.
    """
    file = TensorFile(path)
    if not is_adapter(file.shapes):
        raise WeightsError(f"{path}: not an adapter: expected prefix_query or adapter_query, got {listed(file.shapes)}")
    names = {_our_name(name): name for name in file.shapes if not name.startswith(DROPPED)}
    shapes = {ours: file.shapes[theirs] for ours, theirs in names.items()}
    matrices = [name for name in shapes if name.endswith(".weight") and "norm" not in name]
    if flat := [f"{name} {shapes[name]}" for name in matrices if len(shapes[name]) != 2]:
        raise WeightsError(f"{path}: expected matrices, got {listed(flat)}; the adapter is damaged: download it again")
    n_layers = _n_layers(file.path, names)
    rows, dim = shapes["prefix_query.weight"]
    if "adapter_query.weight" in file.shapes:
        layers = adapter_layer or _prompted_layers(file, names, n_layers)
        if rows % layers:
            raise WeightsError(f"{path}: {rows} prompts do not divide over {layers} layers; pass the right --adapter_layer")
        kind, prompts, bridge = "LLaMA-Adapter v1", PromptConfig(layers, rows // layers, normalise_prefix=False), None
    else:
        rank = shapes.get("llama.layers.0.attention.lora_wq_l1.weight", (0,))[0]
        kind, bridge = "ImageBind-LLM adapter", _bridge(file.path, shapes)
        prompts = PromptConfig(rows, 1, False, rank, "llama.layers.0.attention.wq.bias" in names)
    _check_names(file.path, set(names), n_layers, prompts, bridge)
    return Adapter(kind, n_layers, dim, prompts, bridge, file, names)


def _our_name(name: str) -> str:
    name = name.replace("llma", "llama")
    if name.startswith(BRIDGE):
        return f"bridge.{name}"
    if name == "adapter_query.weight":
        return "prefix_query.weight"
    return f"llama.{name}" if name.startswith("layers.") else name


def _n_layers(path: Path, names: Iterable[str]) -> int:
    layers = {int(match[1]) for name in names if (match := GATE.fullmatch(name))}
    if not layers:
        raise WeightsError(f"{path}: an adapter without gates has no effect; the file is incomplete: download it again")
    missing = next(i for i in range(len(layers) + 1) if i not in layers)
    if missing < max(layers):
        raise WeightsError(f"{path}: lacks llama.layers.{missing}.attention.gate; the adapter is incomplete: download it again")
    return max(layers) + 1


def _prompted_layers(file: TensorFile, names: dict[str, str], n_layers: int) -> int:
    """The number of top layers with prompts: the gates of all others are exactly 0."""
    prompted = [i for i in range(n_layers) if file.read(names[f"llama.layers.{i}.attention.gate"]).any()]
    if not prompted:
        raise WeightsError(
            f"{file.path}: all gates are 0, so the number of layers with prompts is unknown; pass --adapter_layer (v1: 30)"
        )
    return n_layers - min(prompted)


def _bridge(path: Path, shapes: dict[str, Shape]) -> BridgeConfig:
    projection, first = shapes.get("bridge.image_bind_proj.weight"), shapes.get("bridge.image_bind_f1_1.weight")
    if projection is None or first is None:
        raise WeightsError(f"{path}: lacks image_bind_proj or image_bind_f1_1; the adapter is incomplete: download it again")
    return BridgeConfig(first[0], projection[1], fusion="average", legacy="bridge.image_bind_norm_1.bias" in shapes)


def _check_names(path: Path, names: set[str], n_layers: int, prompts: PromptConfig, bridge: BridgeConfig | None) -> None:
    """Raise WeightsError unless the file has every parameter that the settings need, and no other but the decoder's norms."""
    expected = {"prefix_query.weight"} | {f"llama.layers.{i}.attention.gate" for i in range(n_layers)}
    for i in range(n_layers):
        if prompts.lora_rank:
            expected |= {f"llama.layers.{i}.{part}_l{half}.weight" for part in LORA for half in (1, 2)}
        if prompts.bias:
            expected |= {f"llama.layers.{i}.{part}.bias" for part in BIASES}
    if bridge:
        expected |= _bridge_names(bridge.legacy)
    norms = {f"llama.layers.{i}.{norm}.weight" for i in range(n_layers) for norm in ("attention_norm", "ffn_norm")}
    norms |= {"llama.norm.weight"}
    missing, unknown = sorted(expected - names), sorted(names - expected - norms)
    if names & norms and not norms <= names:
        missing += sorted(norms - names)
    if missing or unknown:
        what = f"lacks {listed(missing)}" if missing else f"has unknown tensors {listed(unknown)}"
        raise WeightsError(f"{path}: {what}; the adapter is incomplete or of another kind: download it again")


def _bridge_names(legacy: bool) -> set[str]:
    endings = ("weight", "bias") if legacy else ("weight",)
    parts = [f"image_bind_{part}_{i}.{end}" for part in ("norm", "f1", "f2", "f3") for i in (1, 2, 3) for end in endings]
    return {f"bridge.{part}" for part in [*parts, "image_bind_proj.weight", "image_bind_proj.bias"]}
