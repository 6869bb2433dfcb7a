"""The golden cases of the language side as models and batches of ours; origin in golden/README.md."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from imagebind_llm.config import BridgeConfig, LlamaConfig, PromptConfig
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.itsl.names import parameter_name
from imagebind_llm.records import IGNORE, Batch

FOLDER = Path(__file__).parent / "golden" / "llama"
CASES = json.loads((FOLDER / "cases.json").read_text())
IMAGEBIND_LLM = ("b_ib_finetune", "c_ib_pretrain", "d_ib_legacy")


def tensors(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """{"weights": {...}, "io": {...}, "grads": {...}} of a golden file."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(FOLDER / f"{name}.safetensors").items():
        group, rest = key.split(".", 1)
        found.setdefault(group, {})[rest] = value
    return found


def our_name(name: str) -> str:
    """The public name of a parameter -> ours."""
    name = parameter_name(name)
    if name.startswith(("llama.", "prefix_query.")):
        return name
    if name.startswith("image_bind"):
        return f"bridge.{name}"
    return "prefix_query.weight" if name == "adapter_query.weight" else f"llama.{name}"


def model(name: str) -> ITSL:
    """The model of a golden case, with its weights, frozen."""
    sizes = CASES[name]
    v1 = name == "a_v1"
    hidden = tensors(name)["weights"]["layers.0.feed_forward.w1.weight" if v1 else "llama.layers.0.feed_forward.w1.weight"]
    llama = LlamaConfig(
        dim=sizes["dim"],
        n_layers=sizes["n_layers"],
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_heads"],
        hidden_dim=len(hidden),
        vocab_size=sizes["vocab_size"],
        norm_eps=sizes["norm_eps"],
        max_seq_len=sizes["max_seq_len"],
    )
    if v1:
        prompts = PromptConfig(sizes["adapter_layer"], sizes["adapter_len"], normalise_prefix=False)
        itsl = ITSL(llama, prompts)
    else:
        rank = sizes["lora_rank"] if sizes["w_lora"] else 0
        prompts = PromptConfig(sizes["query_layer"], sizes["query_len"], False, rank, sizes["w_bias"])
        bridge = BridgeConfig(sizes["bridge_hidden"], sizes["visual_dim"], "average", sizes["legacy_bridge"])
        itsl = ITSL(llama, prompts, bridge)
    itsl.load_state_dict({our_name(key): value for key, value in tensors(name)["weights"].items()})
    return itsl


def batch(name: str) -> Batch:
    """The inputs of a golden case; ImageBind-LLM's have one embedding a row, of weight 1."""
    io = tensors(name)["io"]
    targets = io["labels"].masked_fill(io["labels"] == 0, IGNORE)
    if "embedding" not in io:
        return Batch(io["tokens"], targets)
    return Batch(io["tokens"], targets, io["embedding"][:, None], torch.ones(len(targets), 1))
