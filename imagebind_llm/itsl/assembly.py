"""Builds the model: a LLaMA from its files; bridge, prompts, LoRA and intent head newly initialised or from files."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagebind_llm import distributed
from imagebind_llm.config import LLAMA_PRESETS, BridgeConfig, LlamaConfig, ModelConfig, PromptConfig
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.adapter import Adapter, open_adapter
from imagebind_llm.itsl.checkpoint import CheckpointError
from imagebind_llm.itsl.model import HEAD, ITSL
from imagebind_llm.itsl.names import stored_name
from imagebind_llm.llama.checkpoint_files import expected_shapes
from imagebind_llm.llama.gguf import smollm2_path
from imagebind_llm.llama.load import assign, load_llama, open_llama
from imagebind_llm.llama.tokenizers import LlamaTokenizer, check_vocabulary, load_tokenizer
from imagebind_llm.taxonomy import Taxonomy
from imagebind_llm.weight_files import WeightsError

DEFAULT_LAYERS, DEFAULT_PROMPTS = 30, 10  # LLaMA-Adapter's
FINGERPRINT_ROWS = 8  # of every matrix: 20 MB of LLaMA-7B


@dataclass
class Assembled:
    """A model and what it was built from."""

    model: ITSL
    config: ModelConfig
    adapter_names: frozenset[str]  # parameters that are not simply those of the LLaMA's files
    llama: str  # fingerprint of the LLaMA
    start: str = ""  # digest of the tensors that training starts from

    def adapter(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds: all parameters that are not in the LLaMA's files."""
        return {name: p.detach().cpu().contiguous() for name, p in self.model.named_parameters() if name in self.adapter_names}


@dataclass(frozen=True)
class BuildSettings:
    """The flags of engine_finetune.py that decide how the model is built."""

    llama_model_path: str
    model: str
    dtype: str
    pretrained_path: str
    emb_path: str
    trainable: str
    adapter_layer: int | None
    adapter_len: int | None
    lora_rank: int | None
    bridge_width: float
    fusion: str
    seed: int
    output_dir: str
    resume: str


@dataclass(frozen=True)
class Start:
    """What --pretrained_path gives: shapes and tensors; all None without it."""

    prompts: PromptConfig | None = None
    bridge: BridgeConfig | None = None
    tensors: dict[str, Tensor] | None = None
    llama: str | None = None  # fingerprint of its LLaMA; None for a released adapter, which has none
    adapter: Adapter | None = None  # a released adapter


class SharedLlama:
    """Reads a LLaMA once for several models, which share its tensors and must not change them in place."""

    def __init__(self) -> None:
        self._key: tuple[Path, torch.dtype, torch.device] | None = None
        self._llama: tuple[LlamaConfig, dict[str, Tensor]] | None = None

    def read(self, path: str | Path, dtype: torch.dtype, device: torch.device) -> tuple[LlamaConfig, dict[str, Tensor]]:
        """As `load_llama`, but the last LLaMA that was read is kept."""
        key = (Path(path).expanduser().resolve(), dtype, device)
        if self._llama is None or self._key != key:
            self._llama = None  # before the next one is read: there may be no room for two
            self._key, self._llama = key, load_llama(path, dtype, device)
        return self._llama


def open_language(path: str, model: str = "auto") -> tuple[LlamaConfig, LlamaTokenizer]:
    """Sizes and tokenizer of a LLaMA, without reading its weights; "" is SmolLM2. Raises WeightsError, TokenizerError."""
    path = path or str(smollm2_path())
    config = open_llama(path, model).config
    tokenizer = load_tokenizer(path)
    check_vocabulary(tokenizer, config.vocab_size)
    return config, tokenizer


def build(settings: BuildSettings, taxonomy: Taxonomy | None, embedding_width: int | None, device: torch.device) -> Assembled:
    """The model that a run trains, with requires_grad set on the parameters that --trainable names.

    Without a taxonomy it has no intent head; the head of --pretrained_path is used if its taxonomy is the same.
    `embedding_width` None: no clip has embeddings. Raises ValueError, CheckpointError or WeightsError if the settings, the
    start and the LLaMA do not fit together.
    """
    start = _start(settings, taxonomy)
    path = settings.llama_model_path or smollm2_path()
    llama, state = load_llama(path, frozen_dtype(settings.dtype, device), device, settings.model)
    if start.llama is not None and start.llama != llama_fingerprint(state):
        raise CheckpointError(f"{settings.pretrained_path}: trained on another LLaMA than {path}; pass its own")
    if start.adapter is not None:
        start.adapter.check_fits(llama)
    prompts = _prompts(settings, start, llama, embedding_width is None)
    config = ModelConfig(
        llama, prompts, _bridge(settings, start, llama, embedding_width), len(taxonomy.labels) if taxonomy else 0
    )
    torch.manual_seed(settings.seed)
    assembled = _assemble(config, state, start.tensors or {}, device)
    assembled.model.train_only(settings.trainable)
    if embedding_width is None:  # they get no input
        for name, parameter in assembled.model.named_parameters():
            if name.startswith(("bridge.", "fusion.")):
                parameter.requires_grad_(False)
    trained = {name for name, p in assembled.model.named_parameters() if p.requires_grad}
    assembled.adapter_names = assembled.adapter_names | trained
    assembled.start = digest(start.tensors) if start.tensors else ""
    return assembled


def restore(
    folder: Path, llama_model_path: str, device: torch.device, dtype: torch.dtype, shared: SharedLlama | None = None
) -> tuple[Assembled, dict[str, Any]]:
    """The model of a checkpoint, frozen, and the checkpoint's JSON.

    `llama_model_path` "": the path that the checkpoint names. `shared`: a LLaMA that may have been read already. Raises
    CheckpointError if the checkpoint is damaged or the LLaMA is not the one that it was trained with.
    """
    info = checkpoint.read_info(folder)
    config = checkpoint.config_from_json(info["model"])
    path = llama_model_path or info["settings"]["llama_model_path"] or smollm2_path()
    llama, state = (shared or SharedLlama()).read(path, dtype, device)
    if llama != config.llama:
        raise CheckpointError(f"{folder}: trained on a LLaMA of other sizes than {path}; pass its own as --llama_model_path")
    if info["llama"] != llama_fingerprint(state):
        raise CheckpointError(
            f"{folder}: trained on another LLaMA of the same sizes than {path}; pass its own as --llama_model_path"
        )
    return _assemble(config, state, checkpoint.read_tensors(folder), device), info


def _assemble(config: ModelConfig, state: dict[str, Tensor], tensors: dict[str, Tensor], device: torch.device) -> Assembled:
    """ITSL with a LLaMA's parameters `state`; `tensors` replace initial values. Raises WeightsError for unknown tensors."""
    model = ITSL(config.llama, config.prompts, config.bridge, "meta", config.n_intents)
    llama = llama_fingerprint(state)  # before an adapter's norms or training change it
    assign(model.llama, {name: tensor for name, tensor in state.items()})
    parameters = dict(model.named_parameters())
    unknown = sorted(set(tensors) - set(parameters))
    if unknown:
        raise WeightsError(f"the adapter has {len(unknown)} tensors that the model does not have, {unknown[0]} for one")
    assign(model, tensors)
    base = {f"llama.{name}" for name in expected_shapes(config.llama)}
    names = frozenset(name for name in parameters if name not in base or name in tensors)
    return Assembled(model.to(device), config, names, llama)


def frozen_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that --dtype names. "auto": bfloat16 on a GPU that supports it, else float32 (with a warning on a GPU).

    Not float16: activations of a LLaMA trained in bfloat16 can overflow it, and gradients would need loss scaling.
    """
    if name != "auto":
        distributed.warn_of_emulation(name, device)
        return getattr(torch, name)
    if card := distributed.card_without_bfloat16(device):
        distributed.warn(f"{card} has no bfloat16: frozen weights are float32, which takes twice the memory")
    return torch.bfloat16 if device.type == "cuda" and not card else torch.float32


def llama_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Fingerprint of a LLaMA's weights, the same for any dtype that they are loaded in.

    It is "2-", a digest of some rows of every matrix, "-", and a digest of the first embeddings, which a variant with merged
    adapters shares with its base. Norms are not included, because training changes them.
    """
    hashed = hashlib.sha256()
    for name in sorted(name for name, tensor in state.items() if tensor.ndim == 2):
        hashed.update(name.encode() + _bits(state[name][:: -(-len(state[name]) // FINGERPRINT_ROWS)]))
    embeddings = _bits(state["tok_embeddings.weight"][:256])
    return f"2-{hashed.hexdigest()[:16]}-{hashlib.sha256(embeddings).hexdigest()[:16]}"


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of the names, as files have them, and of all bits of some tensors."""
    hashed = hashlib.sha256()
    for name, tensor in sorted((stored_name(name), tensor) for name, tensor in tensors.items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


# --- where training starts --------------------------------------------------------------------------------------------


def _start(settings: BuildSettings, taxonomy: Taxonomy | None) -> Start:
    if not settings.pretrained_path:
        return Start()
    path = checkpoint.resolve(Path(settings.pretrained_path))
    if path.is_dir():
        info = checkpoint.read_info(path)
        config = checkpoint.config_from_json(info["model"])
        tensors = checkpoint.read_tensors(path)
        if (taxonomy.described() if taxonomy else None) != info["taxonomy"]:  # the head has other classes
            tensors = {name: t for name, t in tensors.items() if not name.startswith(HEAD)}
        return Start(config.prompts, config.bridge, tensors, info["llama"])
    adapter = open_adapter(path, settings.adapter_layer)
    return Start(adapter.prompts, adapter.bridge, adapter.read(), adapter=adapter)


def _prompts(settings: BuildSettings, start: Start, llama: LlamaConfig, text_only: bool) -> PromptConfig:
    """Shape of prompts and LoRA: from the start, if there is one, else from the flags. Raises ValueError if both disagree."""
    start_prompts = start.prompts
    trains_lora = settings.trainable != "prompts"
    rank = settings.lora_rank
    if start_prompts is None:
        if trains_lora and not rank:
            raise ValueError(
                f"--trainable {settings.trainable}: there is no LoRA to train; pass --lora_rank 8 or a --pretrained_path"
            )
        layers = min(DEFAULT_LAYERS, llama.n_layers) if settings.adapter_layer is None else settings.adapter_layer
        prompts = DEFAULT_PROMPTS if settings.adapter_len is None else settings.adapter_len
        normalise = _normalises(settings, text_only)
        return PromptConfig(layers, prompts, normalise, lora_rank=rank or 0, bias=bool(rank), lora_layers=layers)
    for name in ("adapter_layer", "adapter_len"):
        flag, start_value = getattr(settings, name), getattr(start_prompts, name)
        if flag is not None and flag != start_value:
            raise ValueError(
                f"--{name} {flag}, but {settings.pretrained_path} has {start_value}: "
                f"pass --{name} {start_value} or leave it out"
            )
    start_rank = start_prompts.lora_rank
    if start_rank and rank not in (None, start_rank):
        raise ValueError(f"--lora_rank {rank}, but {settings.pretrained_path} has {start_rank}: pass that or leave it out")
    if trains_lora and not (rank or start_rank):
        raise ValueError(
            f"--trainable {settings.trainable}: {settings.pretrained_path} has no LoRA; pass --lora_rank 16 to add one"
        )
    if start_rank or not rank:
        return start_prompts
    return replace(start_prompts, lora_rank=rank, bias=True, lora_layers=start_prompts.adapter_layer)


def _normalises(settings: BuildSettings, text_only: bool) -> bool:
    """Whether new prompts start as N(0, 0.02) and are scaled to unit RMS before wk and wv, or as N(0, 1) without scaling.

    The latter is LLaMA-Adapter v1 (arXiv:2303.16199, its public code), so that --blr means the same as there: AdamW changes
    every number by about the learning rate in each step, which turns a normalised vector of N(0, 0.02) 50 times as far as one
    of N(0, 1). It is used for text alone with a --model that v1 names and without LoRA. A continued run keeps its own form.
    """
    last, form = checkpoint.resolve(Path(settings.output_dir) / "last"), None
    if distributed.is_main() and settings.resume == "auto" and last.is_dir():
        form = checkpoint.config_from_json(checkpoint.read_info(last)["model"]).prompts.normalise_prefix
    if (form := distributed.from_main(form)) is not None:  # machines may see the folder at different times
        return form
    return not (text_only and settings.model in LLAMA_PRESETS and not settings.lora_rank)


def _bridge(settings: BuildSettings, start: Start, llama: LlamaConfig, embedding_width: int | None) -> BridgeConfig | None:
    if start.bridge is not None:
        if embedding_width not in (None, start.bridge.embedding_width):
            raise ValueError(
                f"{settings.pretrained_path} takes embeddings of width {start.bridge.embedding_width}, "
                f"{settings.emb_path} holds {embedding_width}; make them with the encoder that it was trained with"
            )
        return start.bridge
    if embedding_width is None:
        return None
    return BridgeConfig(round(settings.bridge_width * llama.dim), embedding_width, settings.fusion)
