"""The flags of every command: one frozen dataclass each, whose fields are the flags (config.parse).

What cannot be meant is refused in __post_init__, before anything is read.
"""

from dataclasses import dataclass

from imagebind_llm.config import (
    ANSWER_ORDERS,
    BASELINES,
    CREDITS,
    LLAMA_PRESETS,
    MODALITIES,
    NO_MODALITY,
    REWARD_NORMS,
    REWARD_WEIGHTS,
    STAGES,
    TRAINABLE,
    TRUTH_ALONE,
)
from imagebind_llm.flags import flag
from imagebind_llm.itsl.fusion import FUSIONS


@dataclass(frozen=True)
class TrainSettings:
    """The flags of engine_finetune.py."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder, or a JSON list of {instruction, input, output} or {key, caption}")
    output_dir: str = flag("./output_dir", "checkpoints and logs")
    emb_path: str = flag("", "embedding store of the clips, made by avt_get_emb.py")
    llama_model_path: str = flag("", "a LLaMA: Meta or Hugging Face folder or .gguf; if not given, SmolLM2 from `make setup`")
    model: str = flag(
        "auto",
        "a name: the LLaMA must have as many layers, and training on text alone has LLaMA-Adapter v1's prompts; auto: any",
        ("auto", *LLAMA_PRESETS),
    )
    stage: str = flag("finetune", "pretrain: captions, finetune: intent and rationale, or instructions", STAGES)
    pretrained_path: str = flag("", "start from this checkpoint folder of ours or adapter of ImageBind-LLM")
    trainable: str = flag("prompts", "prompts, gates and bridge; lora: LoRA, biases and norms; all: both", TRAINABLE)
    modalities: tuple[str, ...] = flag(MODALITIES, "what is known of a clip; none: its words alone", (*MODALITIES, NO_MODALITY))
    rationales: str = flag("", "JSONL of {key, rationale}; if not given, DATA_PATH/rationales.jsonl where there is one")
    limit: int = flag(0, "train on so many rows of train only, evenly spread; 0: all")
    adapter_layer: int | None = flag(None, "top layers with prompts and LoRA; if not given, 30 or what --pretrained_path has")
    adapter_len: int | None = flag(None, "prompts per layer; if not given, 10 or what --pretrained_path has")
    lora_rank: int | None = flag(None, "of LoRA; if not given, what --pretrained_path has, or none")
    bridge_width: float = flag(1.0, "hidden width of the bridge in LLaMA widths; ImageBind-LLM: 4")
    fusion: str = flag("separate", "a prompt for each modality, or one for their average", tuple(FUSIONS))
    max_seq_len: int = flag(512, "tokens of prompt and answer; longer ones lose context, never answer")
    batch_size: int = flag(64, "rows a rank and forward pass")
    accum_iter: int = flag(1, "forward passes a step")
    epochs: int = flag(400, "at most")
    warmup_epochs: float = flag(40.0, "epochs in which the learning rate rises")
    lr: float | None = flag(None, "peak learning rate; if not given, BLR * rows a step / 256")
    blr: float = flag(1e-3, "learning rate for 256 rows a step")
    gate_lr: float = flag(1.0, "of the gates, times the others': they start shut and move by about a learning rate a step")
    min_lr: float = flag(0.0, "the half cosine ends here")
    weight_decay: float = flag(0.05, "of matrices, prompts and gates; never of biases and norms")
    clip_grad: float = flag(1.0, "largest norm of the gradient; 0: unlimited")
    w_intent: float = flag(1.0, "weight of the intent head's cross-entropy")
    w_rationale: float = flag(1.0, "weight of the answer's negative log-likelihood")
    w_caption: float = flag(0.0, "weight of --captions in --stage finetune: a caption beside every two rows, so sight stays")
    w_contrast: float = flag(0.0, "weight of a contrast: an answer is to be likelier than with a clip of another intent")
    patience: int = flag(8, "epochs without a better dev score after which it stops, or begins --w_critic; 0: never")
    seed: int = flag(0, "of initial weights and of the order of the rows")
    save_steps: int = flag(500, "steps between checkpoints inside an epoch; one is written at its end anyway")
    log_steps: int = flag(10, "steps between lines on the console")
    resume: str = flag("auto", "auto: continue what is in --output_dir; no: start over", ("auto", "no"))
    num_workers: int = flag(0, "processes that read embeddings ahead")
    device: str = flag("auto", "auto is cuda where there is one", ("auto", "cpu", "cuda"))
    dtype: str = flag("auto", "of frozen weights; auto: a GPU's bfloat16, else float32", ("auto", "float32", "bfloat16"))
    w_critic: float = flag(0.0, "weight of the self-critical loss, reached an epoch after its start; 0: supervised only")
    samples: int = flag(4, "answers sampled for each clip")
    baseline: str = flag("loo", "what an answer is compared with: the greedy one, the other samples, the group", BASELINES)
    critic_start: int = flag(0, "epochs before the self-critical loss begins, from the best of them; --patience ends them")
    kl: float = flag(0.03, "weight of the divergence from the model that the self-critical loss began with, off the reward")
    reward_weights: str = flag(
        "",
        f"parts of the reward, others are 0; if not given, {','.join(f'{n}={w:g}' for n, w in REWARD_WEIGHTS.items())}, "
        "and truth=1 alone unless --credit is answer",
    )
    credit: str = flag(
        "answer",
        "answer: one advantage for all its tokens; claim: a claim's own tokens; to_go: those before it too; best: learn the "
        "truest of a clip's answers; local: one claim against what else could be said there, by their probabilities; "
        "corrected: learn true claims in place of the greedy answer's false ones",
        CREDITS,
    )
    captions: str = flag("", "JSON of captions of the same clips: what the judge is fitted on, and --w_caption mixes in")
    trust_references: str = flag(
        "yes", "no: being near them pays nothing, and their claims are learnt as far as the judge believes them", ("yes", "no")
    )
    encoder_weights: str = flag("", "the encoder's, for the judge; if not given, checkpoints/ENCODER.safetensors or .pth")
    reward_norm: str = flag("group", "group: normalise each part among a clip's answers; none: sum them raw", REWARD_NORMS)
    answer_order: str = flag("label", "what an answer begins with", ANSWER_ORDERS)
    cache_gb: float = flag(4.0, "disk for states below the adapted layers, which are computed once a row if they fit; 0: none")
    checkpoint_activations: bool = flag(False, "compute layers again in the backward pass: less memory, more time")

    def __post_init__(self) -> None:
        for name in ("max_seq_len", "batch_size", "accum_iter", "epochs", "save_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: at least 1")
        rates = ("warmup_epochs", "blr", "gate_lr", "min_lr", "weight_decay", "clip_grad", "w_contrast")
        for name in (*rates, "limit", "w_intent", "w_rationale", "w_caption", "patience", "w_critic", "critic_start", "kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} {getattr(self, name)}: at least 0, and finite")
        if self.samples < (1 if self.baseline == "greedy" else 2):
            least = "1" if self.baseline == "greedy" else "2: it compares samples with each other"
            raise ValueError(f"--samples {self.samples}: --baseline {self.baseline} needs at least {least}")
        if self.w_critic and self.critic_start >= self.epochs:
            raise ValueError(f"--critic_start {self.critic_start} --epochs {self.epochs}: the self-critical loss never begins")
        if not any(self.rewards().values()):
            raise ValueError(f"--reward_weights {self.reward_weights}: every part weighs 0, nothing is left to reward")
        if self.w_caption and (self.stage == "pretrain" or not self.captions):
            raise ValueError("--w_caption mixes --captions FILE into --stage finetune; --stage pretrain has nothing else")
        if self.w_contrast and (self.stage == "pretrain" or not {"audio", "vision"} & set(self.modalities)):
            raise ValueError(
                f"--w_contrast swaps sounds and pictures in --stage finetune, got --stage {self.stage} --modalities "
                f"{' '.join(self.modalities)}; name audio or vision, or take it away"
            )
        if self.credit != "answer" and not self.rewards().get("truth"):
            raise ValueError(f"--credit {self.credit} --reward_weights {self.reward_weights}: truth must weigh more than 0")
        if self.credit in TRUTH_ALONE and any(w for part, w in self.rewards().items() if part != "truth"):
            raise ValueError(f"--credit {self.credit} --reward_weights {self.reward_weights}: it goes by truth alone")
        if self.credit == "best" and self.samples < 2:
            raise ValueError(f"--credit best --samples {self.samples}: at least 2, of which the truest is learnt")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup_epochs {self.warmup_epochs:g} --epochs {self.epochs}: the warm-up must end before the last"
            )
        if len(self.modalities) > 1 and (NO_MODALITY in self.modalities or len(set(self.modalities)) < len(self.modalities)):
            raise ValueError(f"--modalities {' '.join(self.modalities)}: name each once, and none alone")

    @property
    def judges(self) -> bool:
        """Whether anything depends on what a judge says of claims."""
        pays = self.credit != "answer" or self.rewards().get("truth")
        return bool(self.w_critic and pays) or self.trust_references == "no"

    def rewards(self) -> dict[str, float]:
        """--reward_weights as {part: weight}. Raises ValueError for a part that there is not, or a weight that is none."""
        found: dict[str, float] = {}
        if not self.reward_weights:
            found = dict(REWARD_WEIGHTS) if self.credit == "answer" else {"truth": 1.0}
            return found | {"rationale": 0.0} if self.trust_references == "no" else found
        for item in self.reward_weights.split(","):
            name, _, weight = item.partition("=")
            try:
                found[name.strip()] = float(weight)
            except ValueError:
                raise ValueError(f"--reward_weights {self.reward_weights}: expected NAME=NUMBER, got {item!r}") from None
        if wrong := [f"{n}={w:g}" for n, w in found.items() if n not in REWARD_WEIGHTS or not 0 <= w < float("inf")]:
            raise ValueError(f"--reward_weights: {', '.join(wrong)}; expected weights >= 0 of {', '.join(REWARD_WEIGHTS)}")
        return found | {"rationale": 0.0} if self.trust_references == "no" else found
