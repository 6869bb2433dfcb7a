"""What a file or folder of weights is: its sizes, which preset it fits, what is missing, and what to do with it next.

Only headers are read (and, of LLaMA shards, the norms, which tell whether they belong together).
"""

import math
from collections import Counter
from pathlib import Path

import torch

from imagebind_llm.check.datasets import Report
from imagebind_llm.config import IMAGEBIND_PRESETS, LLAMA_PRESETS, LlamaConfig
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.encoder.weights import IGNORED_PREFIXES
from imagebind_llm.itsl.adapter import Adapter, is_adapter, open_adapter
from imagebind_llm.llama.checkpoint_files import LlamaCheckpoint, expected_shapes, same_sizes
from imagebind_llm.llama.load import open_llama
from imagebind_llm.llama.tokenizers import TokenizerError, check_vocabulary, find_tokenizer, load_tokenizer
from imagebind_llm.weight_files import Shape, TensorFile, WeightsError, check_tensors, container, listed

IMAGEBIND_PREFIXES = ("modality_trunks.", "modality_preprocessors.", "modality_heads.")


def check(path: Path) -> Report:
    """Recognise what is at `path`. Never raises for a bad file: the report says what is wrong with it."""
    try:
        if path.is_dir() or (path.is_file() and container(path) == "gguf"):
            return _llama(path, open_llama(path))
        return _file(path)
    except WeightsError as problem:
        return _report({"path": str(path), "what": "not recognised, or incomplete"}, (str(problem),))


def _report(facts: dict[str, str], problems: tuple[str, ...] = (), next_step: str = "") -> Report:
    """A next step is named where there are no problems."""
    report = Report(facts, next_step="" if problems else next_step)
    for problem in problems:
        report.add("problem", problem)
    return report


def _file(path: Path) -> Report:
    file = TensorFile(path)
    if any(name.startswith(IMAGEBIND_PREFIXES) for name in file.shapes):
        return _imagebind(file)
    if is_adapter(file.shapes):
        return _adapter(file, open_adapter(path))
    if "params.json" in {other.name for other in path.parent.iterdir()}:
        raise WeightsError(f"{path}: a shard of a LLaMA; check its folder: python -m imagebind_llm.check {path.parent}")
    raise WeightsError(
        f"{path}: {len(file.shapes)} tensors ({listed(file.shapes, most=1)}): neither ImageBind, an adapter nor a LLaMA folder"
    )


def _llama(path: Path, checkpoint: LlamaCheckpoint) -> Report:
    config = checkpoint.config
    tokenizer, problems = _tokenizer(path, config)
    kv = f" ({config.n_kv_heads} for keys and values)" if config.n_kv_heads != config.n_heads else ""
    preset = next((name for name, sizes in LLAMA_PRESETS.items() if same_sizes(config, sizes)), None)
    facts = {
        "path": str(path),
        "what": f"{_family(config)}, {checkpoint.format} format, {_count(len(checkpoint.files), 'file')}",
        "sizes": f"{config.n_layers} layers, width {config.dim}, {config.n_heads} heads{kv}, feed-forward {config.hidden_dim}, "
        f"vocabulary {config.vocab_size}{', tied output' if config.tied else ''}",
        "details": f"norm eps {config.norm_eps:g}, rotary theta {config.rope_theta:g}, context {config.max_seq_len}",
        "parameters": _amount(expected_shapes(config), checkpoint.dtypes, checkpoint.files),
        "tokenizer": tokenizer,
        "fits": preset or f"taken with its own sizes (they are not those of {', '.join(LLAMA_PRESETS)})",
    }
    return _report(facts, problems, f"python -m imagebind_llm.ask --llama_model_path {path} --instruction 'Who are you?'")


def _tokenizer(path: Path, config: LlamaConfig) -> tuple[str, tuple[str, ...]]:
    """(what was found, problems with it)."""
    file = find_tokenizer(path)
    try:
        tokenizer = load_tokenizer(path)
        check_vocabulary(tokenizer, config.vocab_size)
    except TokenizerError as problem:
        return (f"{file} does not fit" if file else "missing"), (str(problem),)
    inside = " (inside)" if file == path else ""
    return f"{file}{inside}, {tokenizer.n_words} words", ()


def _imagebind(file: TensorFile) -> Report:
    shapes = {name: shape for name, shape in file.shapes.items() if not name.startswith(IGNORED_PREFIXES)}
    point = len(shapes) < len(file.shapes)
    wanted = {name: _encoder_shapes(name) for name in IMAGEBIND_PRESETS}
    preset = max(wanted, key=lambda name: len(wanted[name].items() & shapes.items()))
    facts = {
        "path": str(file.path),
        "what": "ImageBind" + (", ImageBind-LLM's variant with a point-cloud tower (ignored)" if point else ""),
        "sizes": ", ".join(_towers(shapes)),
        "parameters": _amount(file.shapes, Counter(file.dtypes.values()), (file.path,)),
    }
    try:
        check_tensors(file.path, shapes, wanted[preset], what=preset)
    except WeightsError as problem:
        return _report(facts | {"fits": f"no preset (nearest: {preset})"}, (str(problem),))
    facts["fits"] = f"--encoder {preset}"
    return _report(
        facts, (), f"python avt_get_emb.py --encoder {preset} --encoder_weights {file.path} --data_path DATA --output_dir STORE"
    )


def _encoder_shapes(preset: str) -> dict[str, Shape]:
    with torch.device("meta"):
        model = ImageBind(IMAGEBIND_PRESETS[preset]())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _towers(shapes: dict[str, Shape]) -> list[str]:
    """One phrase a tower: name, blocks x width."""
    depth: dict[str, int] = {}
    width: dict[str, int] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        if parts[0] == "modality_trunks" and parts[2:3] == ["blocks"] and parts[3:4] and parts[3].isdecimal():
            depth[parts[1]] = max(depth.get(parts[1], 0), int(parts[3]) + 1)
            width[parts[1]] = sum(shape) if name.endswith("norm_1.weight") else width.get(parts[1], 0)
    return [f"{tower} {depth[tower]} x {width[tower]}" for tower in depth]


def _adapter(file: TensorFile, adapter: Adapter) -> Report:
    prompts, bridge = adapter.prompts, adapter.bridge
    extras = [f"LoRA rank {prompts.lora_rank}"] if prompts.lora_rank else []
    extras += ["biases"] if prompts.bias else []
    extras += [f"bridge {bridge.embedding_width} -> {adapter.dim}{', legacy form' if bridge.legacy else ''}"] if bridge else []
    fits = [name for name, llama in LLAMA_PRESETS.items() if (llama.n_layers, llama.dim) == (adapter.n_layers, adapter.dim)]
    facts = {
        "path": str(file.path),
        "what": adapter.format,
        "sizes": f"{prompts.adapter_layer} layers x {prompts.adapter_len} prompts, width {adapter.dim}, "
        f"for a LLaMA of {adapter.n_layers} layers" + "".join(f", {extra}" for extra in extras),
        "parameters": _amount(file.shapes, Counter(file.dtypes.values()), (file.path,)),
        "fits": ", ".join(fits) or "no preset; a LLaMA of this width and depth",
    }
    command = f"python engine_finetune.py --pretrained_path {file.path} --llama_model_path LLAMA --data_path DATA"
    return _report(facts, (), command)


def _amount(shapes: dict[str, Shape], dtypes: Counter[str], files: tuple[Path, ...]) -> str:
    stored = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common()) if len(dtypes) > 1 else "".join(dtypes)
    size = sum(file.stat().st_size for file in files) / 1e9
    return f"{sum(math.prod(shape) for shape in shapes.values()):,} ({stored}; {size:.3g} GB on disk)"


def _family(config: LlamaConfig) -> str:
    return "LLaMA" if config.architecture == "llama" else f"{config.architecture}, of LLaMA's family"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
