"""The result of every LLaMA reader: the model's sizes, and a function that copies one parameter into allocated memory.

The parameter names are those of Meta's files; `expected_shapes` lists them all, so that each reader can say what is
missing, unknown or of another shape before a single weight is read.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from imagebind_llm.config import LLAMA_PRESETS, LlamaConfig
from imagebind_llm.llama.registry import DECODERS
from imagebind_llm.weight_files import Shape, WeightsError

MOST_LAYERS = 10_000  # every parameter gets a line in a table before it is looked for; LLaMA-3.1 405B has 126


@dataclass(frozen=True)
class LlamaCheckpoint:
    """A LLaMA on disk, recognised and checked but not read. `copy_into(name, out)` fills `out` with one parameter."""

    format: str  # for people: "Meta", "Hugging Face", "GGUF"
    files: tuple[Path, ...]
    config: LlamaConfig
    dtypes: Counter[str]  # how many tensors of which stored type
    copy_into: Callable[[str, Tensor], object]


def expected_shapes(config: LlamaConfig) -> dict[str, Shape]:
    """Every parameter of the decoder: name -> shape, Meta's names, in the order of the forward pass."""
    width, hidden = config.dim, config.hidden_dim
    kv_width = width // config.n_heads * config.n_kv_heads
    more = DECODERS[config.architecture].more_shapes(config)
    shapes: dict[str, Shape] = {"tok_embeddings.weight": (config.vocab_size, width)}
    for i in range(config.n_layers):
        block = {
            "attention_norm": (width,),
            "attention.wq": (width, width),
            "attention.wk": (kv_width, width),
            "attention.wv": (kv_width, width),
            "attention.wo": (width, width),
            "ffn_norm": (width,),
            "feed_forward.w1": (hidden, width),
            "feed_forward.w2": (width, hidden),
            "feed_forward.w3": (hidden, width),
        }
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in block.items()}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in more.items()}
    shapes["norm.weight"] = (width,)
    return shapes if config.tied else shapes | {"output.weight": (config.vocab_size, width)}


def renamed(name: str, outside: Mapping[str, str], inside: Mapping[str, str], layers: str) -> str:
    """Meta's parameter name -> that of another form, by the names of what stands outside the layers and inside each."""
    stem, kind = name.rsplit(".", 1)  # kind: weight, or bias in a decoder that has some
    if stem in outside:
        return f"{outside[stem]}.{kind}"
    _, layer, part = stem.split(".", 2)
    return f"{layers}.{layer}.{inside[part]}.{kind}"


def same_sizes(first: LlamaConfig, second: LlamaConfig) -> bool:
    """Whether weights of the one fit the other (eps and rotary base may differ: LLaMA-1 and 2 do)."""
    return expected_shapes(first) == expected_shapes(second) and first.n_heads == second.n_heads


def check_preset(where: Path, config: LlamaConfig, model: str) -> None:
    """Raise WeightsError unless there are as many layers as the model's name stands for; "auto" stands for any.

    Not the width: a tiny LLaMA of 7B's depth tries the published command out.
    """
    if model == "auto":
        return
    if model not in LLAMA_PRESETS:
        raise WeightsError(f"unknown model {model}: expected {', '.join(LLAMA_PRESETS)} or auto")
    preset = LLAMA_PRESETS[model]
    if config.n_layers != preset.n_layers:
        want, got = (f"{c.n_layers} layers, width {c.dim}, vocabulary {c.vocab_size}" for c in (preset, config))
        raise WeightsError(f"{where}: {model} has {want}; these weights have {got}: pass model auto, or other weights")


def check_numbers(where: Path, raw: Mapping, counts: Iterable[str] = (), amounts: Iterable[str] = ()) -> None:
    """Raise WeightsError unless these entries of `raw`, where they are present, have valid values.

    `counts` are positive integers, `amounts` positive finite numbers. An absent key, or null, is not checked.
    """
    for kind, keys in (("a positive integer", counts), ("a positive number", amounts)):
        for key in keys:
            value = raw.get(key)
            types = (int,) if keys is counts else (int, float)
            if value is not None and (type(value) not in types or not 0 < value < 2**63):
                raise WeightsError(f"{where}: {key} must be {kind}, got {value!r}; the file is damaged: download it again")


def check_sizes(where: Path, config: LlamaConfig) -> None:
    """Raise WeightsError for sizes that no decoder can have."""
    if config.n_layers > MOST_LAYERS:
        raise WeightsError(f"{where}: {config.n_layers} layers, expected at most {MOST_LAYERS}; download the file again")
    if config.dim % config.n_heads or config.n_heads % config.n_kv_heads:
        raise WeightsError(
            f"{where}: width {config.dim}, {config.n_heads} heads and {config.n_kv_heads} key/value heads do not divide; "
            "compare the sizes with the model card"
        )
