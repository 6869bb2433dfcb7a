"""The flags of every command: one frozen dataclass each, whose fields are the flags (config.parse).

What cannot be meant is refused in __post_init__, before anything is read.
"""

import re
from dataclasses import dataclass

from imagebind_llm.config import (
    ANSWER_ORDERS,
    BASELINES,
    BLIND,
    CREDITS,
    ENCODERS,
    FAITHFUL,
    LLAMA_PRESETS,
    METHODS,
    MODALITIES,
    NO_MODALITY,
    NO_SELECTION,
    PERTURBATIONS,
    REWARD_NORMS,
    REWARD_WEIGHTS,
    STAGES,
    TRAINABLE,
    TRUTH_ALONE,
    WINDOW_RULES,
)
from imagebind_llm.flags import flag


@dataclass(frozen=True)
class ExtractSettings:
    """The flags of avt_get_emb.py."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder, or a folder of clips with a CSV/TSV of path and text")
    output_dir: str = flag(help="the embedding store; an interrupted run continues when it is started again")
    splits: tuple[str, ...] = flag((), "which splits; all that are there if not given")
    encoder: str = flag("imagebind_huge", "huge: the public model; tiny: ours, for trying out", tuple(ENCODERS))
    encoder_weights: str = flag("", "weight file; if not given, checkpoints/ENCODER.safetensors or .pth")
    modalities: tuple[str, ...] = flag(MODALITIES, "any subset", MODALITIES)
    batch_size: int = flag(8, "clips a batch")
    num_workers: int = flag(2, "decoding processes a rank; 0 decodes in the main process")
    device: str = flag("auto", "auto is cuda where there is one", ("auto", "cpu", "cuda"))
    dtype: str = flag("float32", "of the encoder's weights; bfloat16 is faster and near, not exact", ("float32", "bfloat16"))
    window_rule: str = flag(
        "to_end", "to_end: the last window ends with the clip (public code today); before_end: pytorchvideo 0.1.5", WINDOW_RULES
    )
    clean_audio: bool = flag(False, "all channels, without the public code's in-place mean (other numbers than public)")
    overwrite: bool = flag(False, "throw the store away first")
    strict: bool = flag(False, "exit with 1 if any modality of any clip failed")
    export_pt: str = flag("", "also write the original's layout here: train_emb/0.pt ... = [text, vision, audio]")

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(f"--batch_size {self.batch_size} --num_workers {self.num_workers}: at least 1 and at least 0")
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"--modalities {' '.join(self.modalities)}: name each once")


@dataclass(frozen=True)
class DemoWorldSettings:
    """What `python -m imagebind_llm.demo_world` takes."""

    output_dir: str = flag("data/demo/clips", "where the world goes; a run that was interrupted continues")
    seed: int = flag(0, "everything in the world follows from it")
    train: int = flag(600, "clips of the train split")
    dev: int = flag(200, "clips of the dev split")
    test: int = flag(400, "clips of the test split")
    workers: int = flag(0, "processes that make clips; 0: one for each core")
    references: str = flag(
        FAITHFUL, "rationales of train and dev to write beside the faithful ones: blind (to the clip), or a share of them, N%%"
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"{FAITHFUL}|{BLIND}|[1-9]\d?%", self.references):
            raise ValueError(f"--references {self.references}: expected {FAITHFUL}, {BLIND} or a share from 1% to 99%")


@dataclass(frozen=True)
class TrainEncoderSettings:
    """What data/demo/train_encoder.py takes."""

    output_dir: str = flag("checkpoints", "imagebind_tiny.safetensors goes here")
    seed: int = flag(0, "of weights, drawn speakers and captions")
    text_steps: int = flag(200, "optimizer steps of the text tower")
    vision_steps: int = flag(3000, "of the vision tower")
    audio_steps: int = flag(700, "of the audio tower")
    batch_size: int = flag(32, "speakers seen or heard in a step")
    lr: float = flag(1e-3, "peak learning rate, after a warm-up, falling along a half cosine")
    num_workers: int = flag(1, "processes that draw and voice ahead of the training")
    evaluate: bool = flag(False, "train nothing: measure the weights that are there on --data_path")
    data_path: str = flag("data/demo/clips", "the demo world to measure on; made first if it is not there")
    emb_path: str = flag("runs/demo/emb", "the embedding store of that world; made first if it is not there")


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
    fusion: str = flag("separate", "a prompt for each modality, or one for their average", ("separate", "average"))
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


@dataclass(frozen=True)
class ExplainSettings:
    """The flags of explain.py."""

    checkpoint: str = flag(help="a checkpoint folder of engine_finetune.py, such as runs/demo/itsl/best")
    clip: str = flag("", "a video file; --text says what is said in it")
    text: str = flag("", "the words")
    data_path: str = flag("", "instead of --clip: a data set whose embeddings are in --emb_path")
    emb_path: str = flag("", "its embedding store")
    key: str = flag("", "one clip of it")
    batch: str = flag("", "all clips of --split: write their answers here, one JSON a line; continues if interrupted")
    split: str = flag("test", "for --batch")
    limit: int = flag(0, "for --batch: only the first clips of the split; 0: all")
    llama_model_path: str = flag("", "the LLaMA, if it is not where it was when the checkpoint was made")
    encoder_weights: str = flag("", "weights of the encoder for --clip; if not given, checkpoints/ENCODER.safetensors or .pth")
    max_new_tokens: int = flag(96, "longest rationale")
    best_of: int = flag(0, "rationales drawn besides the greedy one; the judge's favourite of all is given; 0: the greedy one")
    temperature: float = flag(0.6, "for --best_of: of the drawing")
    judge: str = flag("", "a checkpoint folder whose judge checks claims and serves --best_of; if not given, --checkpoint's")
    batch_size: int = flag(32, "clips that are answered side by side")
    device: str = flag("auto", "auto is cuda where there is one", ("auto", "cpu", "cuda"))
    dtype: str = flag("auto", "of frozen weights; auto: a GPU's bfloat16, else float32", ("auto", "float32", "bfloat16"))

    def __post_init__(self) -> None:
        if bool(self.clip or (self.text and not self.data_path)) == bool(self.data_path):
            raise ValueError(
                'say what to explain: --clip FILE --text "...", or --data_path and --emb_path with --key or --batch'
            )
        if self.data_path and bool(self.key) == bool(self.batch):
            raise ValueError("--data_path wants --key KEY for one clip, or --batch FILE for all of a split")
        if self.max_new_tokens < 1 or self.batch_size < 1 or self.limit < 0 or self.best_of < 0:
            raise ValueError("--max_new_tokens and --batch_size must be at least 1, --limit and --best_of at least 0")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"--temperature {self.temperature}: above 0, and finite")


@dataclass(frozen=True)
class WebSettings:
    """The flags of web_demo.py."""

    checkpoint: str = flag(help="a checkpoint folder of engine_finetune.py, such as runs/demo/itsl/best")
    data_path: str = flag("data/demo/clips", "a data set with clips: three of its test split are offered as examples")
    host: str = flag("127.0.0.1", "address to listen at; 0.0.0.0: also for other machines")
    port: int = flag(7860, "port to listen at; 0: any that is free")
    max_mb: float = flag(20.0, "largest file that is taken")
    max_seconds: float = flag(30.0, "longest clip that is taken")
    llama_model_path: str = flag("", "the LLaMA, if it is not where it was when the checkpoint was made")
    encoder_weights: str = flag("", "weights of the encoder; if not given, checkpoints/ENCODER.safetensors or .pth")
    judge: str = flag("", "a checkpoint folder whose judge checks claims; if not given, --checkpoint's")
    max_new_tokens: int = flag(96, "longest rationale")
    device: str = flag("auto", "auto is cuda where there is one", ("auto", "cpu", "cuda"))
    dtype: str = flag("auto", "of frozen weights; auto: a GPU's bfloat16, else float32", ("auto", "float32", "bfloat16"))

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.port < 2**16:
            raise ValueError(f"--max_new_tokens {self.max_new_tokens} --port {self.port}: at least 1, and 0 to 65535")
        for name in ("max_mb", "max_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} {getattr(self, name):g}: above 0, and finite")


@dataclass(frozen=True)
class RationaleSettings:
    """The flags of write_rationales.py. Sampling flags that are not given are not sent: the server's defaults hold."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder; clips are needed for --frames only")
    output: str = flag(help="JSONL of accepted rationales; a run that was interrupted continues it")
    model: str = flag(help="the model's name at the endpoint")
    base_url: str = flag("", "an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1; if not given, OpenAI's own")
    splits: tuple[str, ...] = flag(("train",), "which splits; test only for scoring", ("train", "dev", "test"))
    evidence: str = flag("", "what is seen and heard: a TSV with the columns key and text, or captions.json of the demo world")
    frames: int = flag(0, "frames of the clip to attach, for models that see")
    context: int = flag(3, "utterances of the dialogue before it to show (MIntRec2.0)")
    limit: int = flag(0, "only the first clips of each split; 0: all")
    concurrency: int = flag(8, "requests under way at a time")
    retries: int = flag(6, "more tries after too many requests, a server error or a time-out")
    timeout: float = flag(120.0, "seconds to wait for one answer")
    temperature: float | None = flag(None, "of sampling, if the endpoint is to be told one")
    max_tokens: int | None = flag(None, "longest answer, if the endpoint is to be told; give 200 to small local models")
    dry_run: bool = flag(False, "send nothing: print the first requests and how many tokens all would take")

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout <= 0 or min(self.retries, self.frames, self.context, self.limit) < 0:
            raise ValueError("--concurrency and --timeout must be above 0, --retries --frames --context --limit at least 0")
        if not self.model.strip():
            raise ValueError("--model is empty: give the model's name at the endpoint")
        if not self.output.endswith(".jsonl"):
            raise ValueError(f"--output {self.output}: the name must end in .jsonl; the review page goes beside it as .html")


@dataclass(frozen=True)
class ScoringSettings:
    """What `python -m imagebind_llm.explain.scoring` takes."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder with reference rationales")
    references: str = flag("", "JSONL of reference rationales; if not given, rationales.jsonl in the data folder")
    candidates: tuple[str, ...] = flag((), "JSONL files of rationales to score: key, intent (as predicted), rationale")
    split: str = flag("test", "whose clips are scored; the judges are fitted on train alone", ("dev", "test"))
    sentence_encoder: str = flag("", "folder of a local Hugging Face encoder, for the similarity of sentences")
    seed: int = flag(0, "of the shuffling")
    output: str = flag("", "also write the scores here, as JSON")


@dataclass(frozen=True)
class ClassifierSettings:
    """What classifier.py takes."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder, or clips with a CSV/TSV of path, text, split and label")
    emb_path: str = flag(help="the embedding store of avt_get_emb.py, or a folder of train_emb/0.pt ... in file order")
    output_dir: str = flag(help="results.json, predictions.tsv and report.html go here")
    method: str = flag("probe", "probe: MLP and logistic regression; zeroshot: label sentences; itsl: a checkpoint", METHODS)
    modalities: tuple[str, ...] = flag(MODALITIES, "any subset", MODALITIES)
    ablate: bool = flag(False, "all subsets of the modalities: trained without the others, and with them masked in test")
    seeds: tuple[int, ...] = flag((0, 1, 2, 3, 4), "of initial weights and order; MIntRec's protocol has 0 to 9")
    train_splits: tuple[str, ...] = flag(("train",), "what is trained on")
    select_split: str = flag("dev", f"what chooses the epoch, by macro F1; {NO_SELECTION}: the last epoch")
    report_split: str = flag("test", "what is reported: neither trained on nor selected on")
    split_by: str = flag("official", "episode: none in two splits (MIntRec's own splits share all)", ("official", "episode"))
    episode_fold: int = flag(0, "with --split_by episode: which fifth of the episodes is reported, 0 to 4")
    labels: str = flag("fine", "the intents, or express emotions or attitudes / achieve goals", ("fine", "coarse"))
    label_order: str = flag("official", "class order in all output; itsl: the original classifier's", ("official", "itsl"))
    hidden: tuple[int, ...] = flag((128,), "widths of the MLP's hidden layers")
    epochs: int = flag(100, "of the MLP")
    class_weights: bool = flag(False, "weigh classes by the inverse of their frequency")
    sentences: str = flag("names", "zeroshot compares with label names or with their definitions", ("names", "definitions"))
    encoder_weights: str = flag("", "zeroshot: the encoder's weight file; if not given, the one in checkpoints/")
    checkpoint: tuple[str, ...] = flag((), "itsl: checkpoint folders of engine_finetune.py, one for each of its seeds")
    llama_model_path: str = flag("", "itsl: the LLaMA, if it is not where it was when the checkpoint was made")
    device: str = flag("auto", "itsl: auto is cuda where there is one", ("auto", "cpu", "cuda"))
    batch_size: int = flag(32, "itsl: clips that are answered side by side")
    needed_modality: str = flag("", "a TSV with MIntRec's columns and Modality: what people need to see or hear, for slices")
    compare: str = flag("", "the output_dir of another run on the same rows: paired tests against it")

    def __post_init__(self) -> None:
        if self.method != "zeroshot":
            self._refuse_leaks()
        for name in ("modalities", "seeds", "train_splits"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"--{name} {' '.join(map(str, getattr(self, name)))}: name each once")
        if bool(self.checkpoint) != (self.method == "itsl"):
            raise ValueError("--method itsl needs --checkpoint FOLDER (of engine_finetune.py); no other method takes one")
        if min(self.epochs, self.batch_size, *self.hidden) < 1:
            numbers = f"--epochs {self.epochs} --batch_size {self.batch_size} --hidden {' '.join(map(str, self.hidden))}"
            raise ValueError(f"{numbers}: at least 1")
        if not 0 <= self.episode_fold < 5:
            raise ValueError(f"--episode_fold {self.episode_fold}: 0 to 4")

    def _refuse_leaks(self) -> None:
        if self.report_split in self.train_splits:
            raise ValueError(
                f"--report_split {self.report_split} is also in --train_splits: a score on rows that were trained on says what "
                f"was remembered, not what can be told of a new clip; take {self.report_split} out of --train_splits"
            )
        if self.report_split == self.select_split:
            raise ValueError(
                f"--report_split {self.report_split} is also --select_split: the best of {self.epochs} looks at a split is not "
                f"a result on it; choose on another split, or give --select_split {NO_SELECTION} (the last epoch)"
            )
        if self.select_split in self.train_splits:
            raise ValueError(
                f"--select_split {self.select_split} is also in --train_splits: every epoch looks good on rows that were "
                f"trained on; choose on another split, or give --select_split {NO_SELECTION} (the last epoch)"
            )


@dataclass(frozen=True)
class LeakSettings:
    """What data/demo/measure_leak.py takes."""

    data_path: str = flag("data/demo/clips", "the demo world")
    emb_path: str = flag("runs/demo/emb", "its embedding store")
    seeds: tuple[int, ...] = flag((0, 1, 2, 3, 4), "of initial weights and order")
    epochs: int = flag(100, "of the MLP")


@dataclass(frozen=True)
class FaithfulnessSettings:
    """What `python -m imagebind_llm.explain.faithfulness` takes."""

    checkpoint: str = flag(help="folder of a trained model, e.g. runs/demo/itsl/best")
    data_path: str = flag(help="the data set; where it has rationales.jsonl with cues, claims are held against them")
    emb_path: str = flag(help="its embedding store")
    llama_model_path: str = flag("", "the LLaMA it was trained with, if it is elsewhere now")
    split: str = flag("test", "whose clips", ("train", "dev", "test"))
    limit: int = flag(100, "the first clips of the split; 0: all")
    how: tuple[str, ...] = flag(PERTURBATIONS, "a modality is taken away, or another clip's put in its place", PERTURBATIONS)
    max_new_tokens: int = flag(96, "longest answer")
    batch_size: int = flag(32, "clips at a time")
    device: str = flag("auto", "auto is cuda where there is one", ("auto", "cpu", "cuda"))
    seed: int = flag(0, "of the swapping")
    output: str = flag("", "also write the numbers here, as JSON")
