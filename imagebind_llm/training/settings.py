"""The flags of engine_finetune.py. Other rooms get only those that they use: `corpus`, `build` and `critic`.

Invalid combinations raise ValueError in __post_init__, before any file is read.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from imagebind_llm.config import (
    ANSWER_ORDERS,
    BASELINES,
    CREDITS,
    LLAMA_PRESETS,
    MODALITIES,
    NO_MODALITY,
    STAGES,
    TRAINABLE,
    TRUTH_ALONE,
)
from imagebind_llm.corpus.sequences import CorpusSettings
from imagebind_llm.critic.rewards import REWARD_WEIGHTS, TRUTH
from imagebind_llm.critic.settings import CriticSettings
from imagebind_llm.flags import flag
from imagebind_llm.itsl.assembly import BuildSettings
from imagebind_llm.itsl.fusion import FUSIONS

Part = TypeVar("Part", CorpusSettings, BuildSettings, CriticSettings)


@dataclass(frozen=True)
class TrainSettings:
    """The flags of engine_finetune.py."""

    data_path: str = flag(help="MIntRec folder, table of clips, or JSON list of {instruction, input, output} or {key, caption}")
    output_dir: str = flag("./output_dir", "folder for checkpoints, logs and results")
    emb_path: str = flag("", "embedding store of the clips, made by avt_get_emb.py")
    llama_model_path: str = flag("", "LLaMA: a Meta or Hugging Face folder or .gguf file; if not given, `make setup`'s SmolLM2")
    model: str = flag("auto", "size of the LLaMA; if not auto, text only trains as LLaMA-Adapter v1", ("auto", *LLAMA_PRESETS))
    stage: str = flag("finetune", "pretrain: captions; finetune: intents and rationales, or instructions", STAGES)
    pretrained_path: str = flag("", "checkpoint folder, or ImageBind-LLM adapter file, to start from")
    trainable: str = flag("prompts", "prompts: prompts, gates and bridge; lora: LoRA, biases and norms; all: both", TRAINABLE)
    modalities: tuple[str, ...] = flag(MODALITIES, "inputs of the model; none: no embeddings", (*MODALITIES, NO_MODALITY))
    rationales: str = flag("", "JSONL file of {key, rationale}; if not given, DATA_PATH/rationales.jsonl if it exists")
    limit: int = flag(0, "number of train rows to train on, evenly spaced; 0: all")
    adapter_layer: int | None = flag(None, "top layers with prompts and LoRA; if not given, that of --pretrained_path, or 30")
    adapter_len: int | None = flag(None, "learned prompts per layer; if not given, that of --pretrained_path, or 10")
    lora_rank: int | None = flag(None, "LoRA rank; if not given, that of --pretrained_path, or no LoRA")
    bridge_width: float = flag(1.0, "hidden width of the bridge, as a multiple of the LLaMA width; ImageBind-LLM uses 4")
    fusion: str = flag("separate", "separate: one prompt per modality; average: one for their mean", tuple(FUSIONS))
    max_seq_len: int = flag(512, "largest number of tokens of prompt and answer; longer prompts are shortened, answers never")
    batch_size: int = flag(64, "rows per rank and forward pass")
    accum_iter: int = flag(1, "forward passes per optimizer step")
    epochs: int = flag(400, "largest number of epochs")
    warmup_epochs: float = flag(40.0, "epochs of linear learning-rate warm-up")
    lr: float | None = flag(None, "peak learning rate; if not given, BLR * rows per step / 256")
    blr: float = flag(1e-3, "peak learning rate for 256 rows per step")
    gate_lr: float = flag(1.0, "learning rate of the gates, as a multiple of that of the other parameters")
    min_lr: float = flag(0.0, "learning rate at the end of the cosine decay")
    weight_decay: float = flag(0.05, "weight decay of matrices, prompts and gates; biases and norms have none")
    clip_grad: float = flag(1.0, "largest gradient norm; 0: no clipping")
    w_intent: float = flag(1.0, "weight of the intent head's cross-entropy")
    w_rationale: float = flag(1.0, "weight of the negative log-likelihood of the answer")
    w_caption: float = flag(0.0, "with --stage finetune: weight of --captions, one caption mixed in for every two rows")
    w_contrast: float = flag(0.0, "weight of the contrastive loss: an answer should be likelier with its own clip")
    patience: int = flag(8, "epochs without a better dev score before training stops or --w_critic begins; 0: never")
    seed: int = flag(0, "seed of initial weights, row order and sampled answers")
    save_steps: int = flag(500, "steps between checkpoints within an epoch; every epoch ends with one")
    log_steps: int = flag(10, "steps between log lines")
    resume: str = flag("auto", "auto: continue the run in --output_dir; no: start over", ("auto", "no"))
    num_workers: int = flag(0, "data-loading processes")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    dtype: str = flag("auto", "dtype of frozen weights; auto: bfloat16 on a GPU, else float32", ("auto", "float32", "bfloat16"))
    w_critic: float = flag(0.0, "weight of the self-critical loss, reached one epoch after it begins; 0: supervised only")
    samples: int = flag(4, "answers sampled per clip")
    baseline: str = flag("loo", "baseline of a sampled answer: the greedy answer, the mean of the others, the group", BASELINES)
    critic_start: int = flag(0, "epochs before the self-critical loss begins, from the best checkpoint; fewer by --patience")
    kl: float = flag(0.03, "weight of the KL penalty towards the model at the start of the self-critical loss")
    reward_weights: str = flag(
        "",
        f"weights of the reward parts, parts not named are 0; if not given, "
        f"{','.join(f'{n}={w:g}' for n, w in REWARD_WEIGHTS.items())} with --credit answer, else truth=1",
    )
    credit: str = flag(
        "answer",
        "which tokens a reward goes to. answer: one advantage for all tokens; claim: the tokens of each claim; to_go: also the "
        "tokens before it; best: supervise on the sampled answer with the truest claims; local: compare one claim with "
        "alternatives by their probabilities; corrected: supervise on true claims in place of the greedy answer's false ones",
        CREDITS,
    )
    captions: str = flag("", "JSON list of {key, caption} for the same clips: fits the judge, and is mixed in by --w_caption")
    trust_references: str = flag("yes", "no: they earn no reward, and the judge weights their claims", ("yes", "no"))
    encoder_weights: str = flag("", "encoder weights for the judge; if not given, checkpoints/ENCODER.safetensors or .pth")
    answer_order: str = flag("label", "what an answer begins with", ANSWER_ORDERS)
    cache_gb: float = flag(4.0, "disk space for cached hidden states below the adapted layers, in GB; 0: no cache")
    checkpoint_activations: bool = flag(False, "recompute layers in the backward pass: less memory, more time")

    @classmethod
    def saved(cls, values: dict[str, Any]) -> "TrainSettings":
        """The settings from a checkpoint's JSON, without flags that no longer exist."""
        names = {field.name for field in fields(cls)}
        current: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in names}
        return cls(**current)

    @property
    def corpus(self) -> CorpusSettings:
        return self._part(CorpusSettings)

    @property
    def build(self) -> BuildSettings:
        return self._part(BuildSettings)

    @property
    def critic(self) -> CriticSettings:
        return self._part(CriticSettings)

    def _part(self, kind: type[Part]) -> Part:
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})

    def __post_init__(self) -> None:
        self._refuse_numbers()
        self._refuse_losses()
        self._refuse_criticism()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup_epochs {self.warmup_epochs:g} --epochs {self.epochs}: the warm-up must end before the last"
            )
        if len(self.modalities) > 1 and (NO_MODALITY in self.modalities or len(set(self.modalities)) < len(self.modalities)):
            raise ValueError(f"--modalities {' '.join(self.modalities)}: name each once, and none alone")

    def _refuse_numbers(self) -> None:
        for name in ("max_seq_len", "batch_size", "accum_iter", "epochs", "save_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: at least 1")
        rates = ("warmup_epochs", "blr", "gate_lr", "min_lr", "weight_decay", "clip_grad", "w_contrast")
        for name in (*rates, "limit", "w_intent", "w_rationale", "w_caption", "patience", "w_critic", "critic_start", "kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} {getattr(self, name)}: at least 0, and finite")

    def _refuse_losses(self) -> None:
        if self.w_caption and (self.stage == "pretrain" or not self.captions):
            raise ValueError("--w_caption mixes captions into --stage finetune: pass --captions FILE, and not --stage pretrain")
        if self.w_contrast and (self.stage == "pretrain" or not {"audio", "vision"} & set(self.modalities)):
            raise ValueError(
                f"--w_contrast swaps sounds and pictures in --stage finetune, got --stage {self.stage} --modalities "
                f"{' '.join(self.modalities)}; name audio or vision, or leave it out"
            )

    def _refuse_criticism(self) -> None:
        if self.samples < (1 if self.baseline == "greedy" else 2):
            least = "1" if self.baseline == "greedy" else "2: it compares samples with each other"
            raise ValueError(f"--samples {self.samples}: --baseline {self.baseline} needs at least {least}")
        if self.credit == "best" and self.samples < 2:
            raise ValueError(f"--credit best --samples {self.samples}: at least 2, of which the best is supervised on")
        if self.w_critic and self.critic_start >= self.epochs:
            raise ValueError(f"--critic_start {self.critic_start} --epochs {self.epochs}: the self-critical loss never begins")
        weights = self.critic.rewards()
        if not any(weights.values()):
            raise ValueError(f"--reward_weights {self.reward_weights}: every weight is 0; give at least one part more")
        if self.credit != "answer" and not weights.get(TRUTH):
            raise ValueError(f"--credit {self.credit} --reward_weights {self.reward_weights}: truth must weigh more than 0")
        if self.credit in TRUTH_ALONE and any(w for part, w in weights.items() if part != TRUTH):
            raise ValueError(f"--credit {self.credit} --reward_weights {self.reward_weights}: it uses truth only")
