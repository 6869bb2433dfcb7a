"""Sizes and presets of the models, as frozen dataclasses."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

# The modalities in the order of a store's columns, and what people call them. Another is added at the end: stores that were
# made before are read as lacking it.
SENSES = {"text": "words", "audio": "sound", "vision": "picture"}
MODALITIES = tuple(SENSES)


def modality_subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """The non-empty subsets of the modalities, small ones first."""
    return [subset for size in range(1, len(modalities) + 1) for subset in itertools.combinations(modalities, size)]


# --- ImageBind towers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TowerConfig:
    """One ImageBind tower: a pre-LN transformer over the tokens of a stem.

    kernel and stride are the stem's, in its own axes (vision: frames, height, width; audio and the other pictures: both
    picture axes; imu: samples per window). `logit_scale` is the factor of the L2-normalised output: None for vision.
    """

    width: int
    n_blocks: int
    n_heads: int
    input_size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    bias_kv: bool = False
    pre_norm: bool = False
    drop_path: float = 0.0
    head_dropout: float = 0.0
    logit_scale: float | None = None
    learnable_scale: bool = False


@dataclass(frozen=True)
class ImageBindConfig:
    """The towers by name; `vocab_size` is the text tower's."""

    towers: dict[str, TowerConfig]
    out_width: int = 1024
    vocab_size: int = 49408


def imagebind_huge() -> ImageBindConfig:
    """The public checkpoint: 1,200,781,057 parameters in six towers (ImageBind, CVPR 2023)."""
    picture = (16, 16)
    return ImageBindConfig(
        towers={
            "vision": TowerConfig(1280, 32, 16, (2, 224, 224), (2, 14, 14), (2, 14, 14), pre_norm=True),
            "text": TowerConfig(1024, 24, 16, (77,), logit_scale=1 / 0.07, learnable_scale=True),
            "audio": TowerConfig(768, 12, 12, (128, 204), picture, (10, 10), bias_kv=True, drop_path=0.1, logit_scale=20.0),
            "depth": TowerConfig(384, 12, 8, (224, 224), picture, picture, bias_kv=True, logit_scale=5.0),
            "thermal": TowerConfig(768, 12, 12, (224, 224), picture, picture, bias_kv=True, logit_scale=10.0),
            "imu": TowerConfig(512, 6, 8, (6, 2000), (8,), (8,), True, drop_path=0.7, head_dropout=0.5, logit_scale=5.0),
        }
    )


def imagebind_tiny() -> ImageBindConfig:
    """Our own small towers for the demo and the tests; weights in checkpoints/, made by data/demo/train_encoder.py."""
    return ImageBindConfig(
        towers={
            "vision": TowerConfig(128, 4, 4, (2, 224, 224), (2, 28, 28), (2, 28, 28), pre_norm=True),
            "text": TowerConfig(48, 3, 4, (77,), logit_scale=1 / 0.07, learnable_scale=True),
            "audio": TowerConfig(96, 4, 4, (128, 204), (64, 8), (64, 8), bias_kv=True, logit_scale=20.0),
        }
    )


IMAGEBIND_PRESETS = {"imagebind_huge": imagebind_huge, "imagebind_tiny": imagebind_tiny}


# --- The demo world -----------------------------------------------------------------------------------------------------

CEILINGS = "ceilings.json"  # in a data folder: the best reachable accuracy by subset of modalities, "text+audio": 0.79
FAITHFUL, BLIND = "faithful", "blind"  # kinds of reference rationales; a third is a share of the faithful ones, "10%"


# --- Extraction (avt_get_emb.py) --------------------------------------------------------------------------------------

WINDOW_RULES = ("to_end", "before_end")


# --- The LLaMA family -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a LLaMA-family decoder as its checkpoint has them (LLaMA-1/2/3, TinyLlama, SmolLM2).

    `architecture`: a name of llama.registry.DECODERS.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int  # width of the SwiGLU, read from w1
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_seq_len: int = 2048
    tied: bool = False  # the output matrix is the embedding matrix
    rope_scaling: "RopeScaling | None" = None  # LLaMA-3.1 and later
    architecture: str = "llama"


@dataclass(frozen=True)
class RopeScaling:
    """LLaMA-3.1's stretching of the slow rotary frequencies (`use_scaled_rope`; Hugging Face rope_type "llama3").

    The defaults are LLaMA-3.1's. A frequency with fewer than `low_freq_factor` turns in `original_max_seq_len`
    positions is divided by `factor`, one with more than `high_freq_factor` stays, in between the two are mixed.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192


@dataclass(frozen=True)
class PromptConfig:
    """What is trained in and around the frozen decoder.

    LLaMA-Adapter v1: 10 prompts in the top 30 layers. ImageBind-LLM: 1 in each of 32, later with biases and LoRA 16.
    Both feed the prompts to wk and wv as they are (`normalise_prefix` off). A checkpoint that does not say has them normalised.
    """

    adapter_layer: int = 30  # the top layers that see prompts (A)
    adapter_len: int = 10  # learned prompts per layer (P)
    normalise_prefix: bool = True  # bring every prompt vector to unit RMS before wk and wv
    lora_rank: int = 0  # 0: no LoRA
    bias: bool = False  # ImageBind-LLM's biases on wq, wo, w1, w2, w3
    lora_layers: int | None = None  # the top layers with LoRA and biases, whose norms may train; None: all (ImageBind-LLM)


@dataclass(frozen=True)
class BridgeConfig:
    """The encoder's space -> LLaMA space; `fusion`: a name of itsl.fusion.FUSIONS."""

    hidden_dim: int  # width of the gated blocks; ImageBind-LLM has 4 x the LLaMA width
    embedding_width: int
    fusion: str = "separate"
    legacy: bool = False  # ImageBind-LLM's first release: LayerNorm and biases


@dataclass(frozen=True)
class ModelConfig:
    """Everything that builds an ITSL around a LLaMA; a checkpoint's JSON holds it."""

    llama: LlamaConfig
    prompts: PromptConfig
    bridge: BridgeConfig | None = None  # None: text only
    n_intents: int = 0  # 0: no intent head


# The names that --model takes, by the sizes they stand for; "auto" takes any LLaMA with the sizes of its own files.
LLAMA_PRESETS = {"Llama7B_adapter": LlamaConfig(4096, 32, 32, 32, 11008, 32000)}


# --- Training (engine_finetune.py) ------------------------------------------------------------------------------------

STAGES = ("finetune", "pretrain")
TRAINABLE = ("prompts", "lora", "all")
NO_MODALITY = "none"
BASELINES = ("greedy", "loo", "group")
CREDITS = ("answer", "claim", "to_go", "best", "local", "corrected")
TRUTH_ALONE = ("best", "local", "corrected")  # of these, the ones that have no use for other parts of the reward
ANSWER_ORDERS = ("label", "rationale")
PERTURBATIONS = ("drop", "swap")  # of a modality, to see what a rationale depends on (faithfulness.py)


# --- The classifier (classifier.py) -----------------------------------------------------------------------------------

NO_SELECTION = "none"


@dataclass(frozen=True)
class ProbeConfig:
    """The classifier on cached embeddings; the defaults are the original's, its defects removed."""

    hidden: tuple[int, ...] = (128,)
    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-5
    label_smoothing: float = 0.1
    class_weights: bool = False
