"""Released adapters: ImageBind-LLM's (prompts, gates, bridge, biases, LoRA) and LLaMA-Adapter v1's (prompts, gates).

An adapter brings its own prompt shape. What it holds decides the settings; what those settings need and the file lacks,
or the other way round, is an error. Both were trained on prompts that are not normalised before wk and wv.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from imagebind_llm.config import BridgeConfig, PromptConfig
from imagebind_llm.weights.files import TensorFile, WeightsError, listed

BRIDGE = "image_bind_"
GATE = re.compile(r"llama\.layers\.(\d+)\.attention\.gate")
LORA = {f"attention.lora_w{part}" for part in "qkvo"} | {f"feed_forward.lora_w{part}" for part in "123"}
BIASES = ("attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
DROPPED = "prefix_projector_norm."  # left over from an older ImageBind-LLM, unused there too


@dataclass(frozen=True)
class Adapter:
    """The settings of a released adapter and its parameters under the names of ITSL (model.py)."""

    format: str  # "ImageBind-LLM adapter" or "LLaMA-Adapter v1"
    n_layers: int  # of the LLaMA it was made for
    dim: int
    prompts: PromptConfig
    bridge: BridgeConfig | None
    tensors: dict[str, Tensor]


def is_adapter(names) -> bool:
    """Whether these tensor names are those of an adapter."""
    return bool({"prefix_query.weight", "adapter_query.weight"} & set(names))


def read_adapter(path: str | Path, adapter_layer: int | None = None) -> Adapter:
    """Read an adapter file, strictly. Raises WeightsError.

    `adapter_layer` says in how many layers a v1 adapter has prompts; only needed where its gates don't show it.
    """
    file = TensorFile(path)
    if not is_adapter(file.shapes):
        raise WeightsError(
            f"{path}: expected prefix_query.weight or adapter_query.weight, got {listed(file.shapes)}; not an adapter"
        )
    tensors = {_our_name(name): file.read(name).clone() for name in file.shapes if not name.startswith(DROPPED)}
    n_layers = _n_layers(file.path, tensors)
    rows, dim = tensors["prefix_query.weight"].shape
    is_v1 = "adapter_query.weight" in file.shapes
    if is_v1:
        adapter_layer = adapter_layer or _prompted_layers(file.path, tensors, n_layers)
        if rows % adapter_layer:
            raise WeightsError(
                f"{path}: {rows} prompts don't divide over {adapter_layer} layers; pass the right --adapter_layer"
            )
        prompts = PromptConfig(adapter_layer, rows // adapter_layer, normalise_prefix=False)
        bridge = None
    else:
        prompts = PromptConfig(rows, 1, False, _lora_rank(tensors), "llama.layers.0.attention.wq.bias" in tensors)
        bridge = _bridge(file.path, tensors)
    _check_names(file.path, set(tensors), n_layers, prompts, bridge)
    return Adapter("LLaMA-Adapter v1" if is_v1 else "ImageBind-LLM adapter", n_layers, dim, prompts, bridge, tensors)


def _our_name(name: str) -> str:
    name = name.replace("llma", "llama")
    if name.startswith(BRIDGE):
        return f"bridge.{name}"
    if name == "adapter_query.weight":
        return "prefix_query.weight"
    return f"llama.{name}" if name.startswith("layers.") else name


def _n_layers(path: Path, tensors: dict[str, Tensor]) -> int:
    layers = [int(found[1]) for name in tensors if (found := GATE.fullmatch(name))]
    if not layers:
        raise WeightsError(f"{path}: an adapter without gates has no effect; the file is incomplete: download it again")
    return max(layers) + 1


def _prompted_layers(path: Path, tensors: dict[str, Tensor], n_layers: int) -> int:
    """A layer without prompts keeps its gate at exactly 0."""
    opened = [i for i in range(n_layers) if f"llama.layers.{i}.attention.gate" in tensors and _gate(tensors, i).any()]
    if not opened:
        raise WeightsError(f"{path}: all gates are 0, so the prompted layers can't be counted; pass --adapter_layer (30 in v1)")
    return n_layers - min(opened)


def _gate(tensors: dict[str, Tensor], layer: int) -> Tensor:
    return tensors[f"llama.layers.{layer}.attention.gate"]


def _lora_rank(tensors: dict[str, Tensor]) -> int:
    first = tensors.get("llama.layers.0.attention.lora_wq_l1.weight")
    return 0 if first is None else first.shape[0]


def _bridge(path: Path, tensors: dict[str, Tensor]) -> BridgeConfig:
    projection, first = tensors.get("bridge.image_bind_proj.weight"), tensors.get("bridge.image_bind_f1_1.weight")
    if projection is None or first is None:
        raise WeightsError(f"{path}: lacks image_bind_proj or image_bind_f1_1; the adapter is incomplete: download it again")
    legacy = "bridge.image_bind_norm_1.bias" in tensors
    return BridgeConfig(first.shape[0], projection.shape[1], fusion="average", legacy=legacy)


def _check_names(path: Path, found: set[str], n_layers: int, prompts: PromptConfig, bridge: BridgeConfig | None) -> None:
    """Every parameter that the settings call for, and no other; norms of the decoder may come along."""
    wanted = {"prefix_query.weight"} | {f"llama.layers.{i}.attention.gate" for i in range(n_layers)}
    for i in range(n_layers):
        if prompts.lora_rank:
            wanted |= {f"llama.layers.{i}.{part}_l{half}.weight" for part in LORA for half in (1, 2)}
        if prompts.bias:
            wanted |= {f"llama.layers.{i}.{part}.bias" for part in BIASES}
    if bridge:
        wanted |= _bridge_names(bridge.legacy)
    norms = {f"llama.layers.{i}.{norm}.weight" for i in range(n_layers) for norm in ("attention_norm", "ffn_norm")}
    norms |= {"llama.norm.weight"}
    missing, unknown = sorted(wanted - found), sorted(found - wanted - norms)
    if found & norms and not norms <= found:
        missing += sorted(norms - found)
    if missing or unknown:
        what = f"lacks {listed(missing)}" if missing else f"has unknown tensors {listed(unknown)}"
        raise WeightsError(f"{path}: {what}; the adapter is incomplete or of another kind: download it again")


def _bridge_names(legacy: bool) -> set[str]:
    endings = ("weight", "bias") if legacy else ("weight",)
    parts = [f"image_bind_{part}_{i}.{end}" for part in ("norm", "f1", "f2", "f3") for i in (1, 2, 3) for end in endings]
    return {f"bridge.{part}" for part in [*parts, "image_bind_proj.weight", "image_bind_proj.bias"]}
