"""LLaMA-family models as Hugging Face stores them: config.json and one or several safetensors (or .bin) files.

Two things differ from Meta's form. The rows of q and k are ordered for a rotary embedding that pairs feature i with
feature i + K/2; ours pairs neighbours (2i, 2i+1), so the rows are put back while they are copied. And config.json can ask
for variants (biases, scaled rotary, other activations) that our decoders do not have: each is an error that names it.
"""

from collections import Counter
from pathlib import Path

from torch import Tensor

from imagebind_llm.config import LlamaConfig, RopeScaling
from imagebind_llm.llama.checkpoint_files import LlamaCheckpoint, check_numbers, check_sizes, expected_shapes, renamed
from imagebind_llm.llama.registry import DECODERS
from imagebind_llm.weight_files import WeightsError, check_tensors, listed, open_shards, read_json

OUTSIDE = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
INSIDE = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
OTHER_SIZES = ("num_key_value_heads", "max_position_embeddings", "head_dim")
ROPE_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def is_huggingface_folder(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").is_file()


def huggingface_name(name: str) -> str:
    """Meta's parameter name -> Hugging Face's."""
    return renamed(name, OUTSIDE, INSIDE, "model.layers")


def open_huggingface(folder: Path) -> LlamaCheckpoint:
    """Recognise and check a Hugging Face folder. Raises WeightsError for another architecture or a tensor too few or many."""
    config = read_config(folder / "config.json")
    files = open_shards(_weight_files(folder))
    home = {name: file for file in files for name in file.shapes}
    shapes = {huggingface_name(name): shape for name, shape in expected_shapes(config).items()}
    ignored = [name for name in home if name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")]
    check_tensors(folder, {name: file.shapes[name] for name, file in home.items()}, shapes, ignored)

    def copy_into(name: str, out: Tensor) -> None:
        stored = home[huggingface_name(name)].read(huggingface_name(name))
        heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])
        out.copy_(adjacent_pairs(stored, heads) if heads else stored)

    dtypes = Counter(home[name].dtypes[name] for name in shapes)
    return LlamaCheckpoint("Hugging Face", tuple(file.path for file in files), config, dtypes, copy_into)


def adjacent_pairs(rows: Tensor, n_heads: int) -> Tensor:
    """Rows of q or k, (H*K, D) or a bias (H*K,): from the order (i, i + K/2) of Hugging Face to (2i, 2i + 1) of Meta."""
    halves = rows.reshape(n_heads, 2, len(rows) // n_heads // 2, -1)  # (H,2,K/2,D)
    return halves.transpose(1, 2).reshape(rows.shape)


def read_config(file: Path) -> LlamaConfig:
    """The sizes in config.json (transformers 4 and 5 write the rotary base in different places)."""
    raw = read_json(file)
    architectures = raw.get("architectures") or []
    kind = [raw.get("model_type"), *(architectures if isinstance(architectures, list) else [architectures])]
    decoder = DECODERS.get(str(kind[0]))
    if decoder is None or any(name != decoder.huggingface for name in kind[1:]):
        ours = " or ".join(f"{name} ({known.huggingface})" for name, known in DECODERS.items())
        raise WeightsError(f"{file}: expected model_type {ours}, got {listed(kind)}; use a LLaMA, TinyLlama or SmolLM2")
    if missing := [key for key in SIZES if raw.get(key) is None]:
        raise WeightsError(f"{file}: no {listed(missing)}; it is incomplete: download it again")
    rope = _rope(file, raw)
    check_numbers(file, raw, (*SIZES, *OTHER_SIZES), ("rms_norm_eps", "rope_theta"))
    check_numbers(file, rope, ROPE_SCALING[3:], ("rope_theta", *ROPE_SCALING[:3]))
    _refuse_variants(file, raw, rope)
    config = LlamaConfig(
        dim=raw["hidden_size"],
        n_layers=raw["num_hidden_layers"],
        n_heads=raw["num_attention_heads"],
        n_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        hidden_dim=raw["intermediate_size"],
        vocab_size=raw["vocab_size"],
        norm_eps=raw.get("rms_norm_eps") or 1e-6,
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        max_seq_len=raw.get("max_position_embeddings") or 2048,
        tied=bool(raw.get("tie_word_embeddings")),
        rope_scaling=_rope_scaling(file, rope),
        architecture=kind[0],
    )
    check_sizes(file, config)
    return config


def _rope(file: Path, raw: dict) -> dict:
    """The rotary settings: rope_parameters (transformers 5), rope_scaling (4), or nothing (plain)."""
    for key in ("rope_parameters", "rope_scaling"):
        if raw.get(key) is not None and not isinstance(raw[key], dict):
            raise WeightsError(
                f"{file}: {key} must be an object or null, got {raw[key]!r}; the file is damaged: download it again"
            )
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _rope_scaling(file: Path, rope: dict) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3" or (missing := [key for key in ROPE_SCALING if rope.get(key) is None]):
        got = f"{kind} without {listed(missing)}" if kind == "llama3" else kind
        raise WeightsError(
            f"{file}: expected rope_type default or llama3 with {listed(ROPE_SCALING)}, got {got}; use another model"
        )
    return RopeScaling(*(rope[key] for key in ROPE_SCALING))


def _refuse_variants(file: Path, raw: dict, rope: dict) -> None:
    head_width = raw["hidden_size"] // raw["num_attention_heads"]
    plain = {
        "attention_bias": (raw.get("attention_bias") or False, False),
        "mlp_bias": (raw.get("mlp_bias") or False, False),
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "use_sliding_window": (raw.get("use_sliding_window") or False, False),
        "head_dim": (raw.get("head_dim") or head_width, head_width),
        "partial_rotary_factor": (rope.get("partial_rotary_factor") or 1.0, 1.0),
        "quantization_config": (raw.get("quantization_config"), None),
    }
    for key, (got, want) in plain.items():
        if got != want:
            raise WeightsError(f"{file}: {key} must be {want}, got {got}: a variant of LLaMA that this decoder does not have")


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors (else .bin) files of the folder; every file that the index names must be there."""
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (folder / index).is_file():
            shards = read_json(folder / index).get("weight_map")
            names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
            if not names:
                raise WeightsError(
                    f"{folder / index}: expected a weight_map that names the shards, got none; download it again"
                )
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise WeightsError(f"{folder}: {index} names {listed(missing)}, which is missing; download it")
            return [folder / name for name in names]
        if (folder / single).is_file():
            return [folder / single]
    raise WeightsError(
        f"{folder}: config.json is there, but no {SINGLE_FILES[0]} (or its shards and index); download the weights"
    )
