"""Makes imagebind_tiny: small text, audio and vision towers, trained as ImageBind was, by contrast with what goes together.

    python data/demo/train_encoder.py --output_dir checkpoints       # train, then measure
    python data/demo/train_encoder.py --evaluate                     # measure only

As ImageBind starts from a trained text tower and binds the other modalities to it, frozen, so here: first the text tower
learns what means the same (sentences of the train split's pool that do the same kind of thing, wordings of one cue, a caption
and the cues in it), then drawn speakers and synthetic voices with random combinations of cues meet captions of their cues.
The loss is InfoNCE with several positives (arXiv:2004.11362). Intent labels are never used, nor a clip of the demo world
(other seeds), nor a sentence that dev or test may draw. What is seen in random combinations says nothing about what is
heard, so vision and audio are bound through text alone.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure_encoder import measure
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from imagebind_llm import config
from imagebind_llm.clips.crops import crop_offsets, spatial_crops
from imagebind_llm.clips.mel import SAMPLE_RATE, log_mel
from imagebind_llm.demo_world import cues, face, phrases, texts, voice
from imagebind_llm.demo_world.write import SIZES
from imagebind_llm.encoder.bpe import ClipBPE
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.encoder.weights import SCALE
from imagebind_llm.files import write_atomic
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.itsl.checkpoint import code_commit

PRESET = "imagebind_tiny"
FRESH = 3  # the demo's clips are drawn with 0, 1, 2 (its splits) in this place of the seed
GROUPS = {"audio": cues.VOCAL, "vision": cues.VISUAL}
SENTENCES_PER_FAMILY, CAPTIONS = 6, 32
PHRASES = [(cue, value, phrase) for cue, table in phrases.PHRASES.items() for value, said in table.items() for phrase in said]


# --- What is said, seen and heard: batch i is a function of (seed, i) alone -----------------------------------------------


@dataclass(frozen=True)
class TrainEncoderSettings:
    """What data/demo/train_encoder.py takes."""

    output_dir: str = flag("checkpoints", "folder for imagebind_tiny.safetensors")
    seed: int = flag(0, "seed of weights, speakers and captions")
    text_steps: int = flag(200, "optimizer steps of the text tower")
    vision_steps: int = flag(3000, "optimizer steps of the vision tower")
    audio_steps: int = flag(700, "optimizer steps of the audio tower")
    batch_size: int = flag(32, "speakers per step")
    lr: float = flag(1e-3, "peak learning rate; warm-up, then half a cosine")
    num_workers: int = flag(1, "processes that make training clips")
    evaluate: bool = flag(False, "do not train, but evaluate the existing weights on --data_path")
    data_path: str = flag("data/demo/clips", "folder of the demo world to evaluate on; made if it does not exist")
    emb_path: str = flag("runs/demo/emb", "embedding store of --data_path; made if it does not exist")


class TextBatches(Dataset):
    """Batches for the text tower: (ids (S,77), family (S,)) of sentences, (ids (C,77), values (C,8)) of captions."""

    def __init__(self, seed: int, n: int):
        self.seed, self.n, self.tokens = seed, n, ClipBPE()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, FRESH, i, 0])
        said = [(sentence, row) for row, name in enumerate(cues.FAMILIES) for sentence in _sentences(name, rng)]
        shown = [_random_cues(rng) for _ in range(CAPTIONS)]
        ids = self.tokens.encode([sentence for sentence, _ in said])
        captions = self.tokens.encode([phrases.caption(one, rng) for one in shown])
        return ids, torch.tensor([family for _, family in said]), captions, torch.stack([_indices(one) for one in shown])


class Speakers(Dataset):
    """Batches of new speakers: windows, (B,3,2,224,224) seen or (B,1,128,204) heard, and (B,8) the values of their cues."""

    def __init__(self, modality: str, seed: int, batch_size: int, n: int):
        self.make = {"vision": picture, "audio": sound}[modality]
        self.stream, self.batch_size, self.n = [seed, FRESH], batch_size, n
        self.kind = 1 + list(GROUPS).index(modality)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([*self.stream, i, self.kind])
        shown = [_random_cues(rng) for _ in range(self.batch_size // 2)]
        windows = torch.cat([self.make(one, rng) for one in shown])  # two of each speaker
        return windows, torch.stack([_indices(one) for one in shown]).repeat_interleave(2, 0)


def _random_cues(rng: np.random.Generator) -> dict[str, str]:
    return {cue: values[rng.integers(len(values))] for cue, values in cues.CUES.items()}


def _indices(shown: dict[str, str]) -> Tensor:
    return torch.tensor([values.index(shown[cue]) for cue, values in cues.CUES.items()])  # (8,)


def _sentences(family: str, rng: np.random.Generator) -> list[str]:
    """Utterances of the family and a description of what they do."""
    drawn = [texts.draw_text(family, "train", rng) for _ in range(SENTENCES_PER_FAMILY)]
    return [*drawn, f"the words {rng.choice(phrases.GISTS[family])}"]


def picture(shown: dict[str, str], rng: np.random.Generator) -> Tensor:
    """First and last frame of a window on a new face: the centre crop, and one of the three, (2,3,2,224,224) bfloat16."""
    look, size = face.draw_look(rng), SIZES[rng.integers(len(SIZES))]
    first, centre, last = crop_offsets(size[1], size[0])
    offsets, frames = [centre, (first, centre, last)[rng.integers(3)]], []
    for phase in rng.integers(face.PHASES, size=2):
        drawn = torch.from_numpy(np.array(face.frame(shown, look, size, int(phase)))).permute(2, 0, 1)
        frames.append(spatial_crops(drawn, offsets))
    return torch.stack(frames, dim=2).bfloat16()


def sound(shown: dict[str, str], rng: np.random.Generator) -> Tensor:
    """Two windows of at most 2 s from a new voice, as log-mel (2,1,128,204)."""
    duration_s = float(np.clip(2.1 * np.exp(0.5 * rng.standard_normal()), 0.8, 3.0))
    voiced = torch.from_numpy(voice.speak(shown, duration_s, rng))
    starts = rng.integers(max(len(voiced) - 2 * SAMPLE_RATE, 0) + 1, size=2)
    windows = [voiced[start : start + 2 * SAMPLE_RATE] for start in starts]
    return torch.stack([log_mel(window - window.mean())[None] for window in windows])


# --- Contrast -----------------------------------------------------------------------------------------------------------


def towards(logits: Tensor, match: Tensor) -> Tensor:
    """InfoNCE with several positives: minus the mean log-probability, along a row, of what matches.

    logits and match (n,m); rows without a match do not count. The mean is over the rows that have one.
    """
    some = match.any(1)
    log_p = logits[some].log_softmax(1)
    return -((log_p * match[some]).sum(1) / match[some].sum(1)).mean()


def contrast(a: Tensor, b: Tensor, match: Tensor, scale: Tensor) -> Tensor:
    """The same in both directions, for a (n,E) and b (m,E) of unit length, match (n,m) bool."""
    logits = scale * a @ b.T  # (n,m)
    return (towards(logits, match) + towards(logits.T, match.T)) / 2


def cue_losses(x: Tensor, values: Tensor, names: Tensor, scale: Tensor, group: tuple[str, ...]) -> dict[str, Tensor]:
    """Contrast of x (B,E) with the phrases that name each cue of the group; names (all PHRASES, E), values (B,8)."""
    losses = {}
    for cue in group:
        rows = [row for row, (owner, _, _) in enumerate(PHRASES) if owner == cue]
        owned = torch.tensor([cues.CUES[cue].index(PHRASES[row][1]) for row in rows])
        match = values[:, list(cues.CUES).index(cue)][:, None] == owned[None]  # (B, phrases of the cue)
        losses[cue] = contrast(x, names[rows], match, scale)
    return losses


def paraphrase_loss(x: Tensor, meaning: Tensor, scale: Tensor) -> Tensor:
    """Contrast of sentences x (n,E) among themselves: the same meaning (n,) attracts."""
    itself = torch.eye(len(x), dtype=torch.bool)
    return towards((scale * x @ x.T).masked_fill(itself, -1e4), (meaning[:, None] == meaning[None]) & ~itself)


# --- Training -----------------------------------------------------------------------------------------------------------


def text_scale(model: ImageBind) -> Tensor:
    return model.get_parameter("modality_postprocessors.text.1.log_logit_scale").exp().clamp(max=100)


def unit(model: ImageBind, modality: str, x: Tensor) -> Tensor:
    return F.normalize(model.encode(modality, x), dim=1)  # (B,E)


def train_text(model: ImageBind, settings: TrainEncoderSettings) -> None:
    """Teach the text tower what means the same."""
    tokens = ClipBPE().encode([phrase for _, _, phrase in PHRASES])
    meaning = torch.tensor([list(cues.CUES).index(cue) * 10 + cues.CUES[cue].index(value) for cue, value, _ in PHRASES])

    def losses(batch) -> dict[str, Tensor]:
        sentences, families, captions, values = batch
        encoded = unit(model, "text", torch.cat([tokens, sentences, captions]))
        names, said, told = encoded.split([len(tokens), len(sentences), len(captions)])
        scale = text_scale(model)
        parts = {"sentences": paraphrase_loss(said, families, scale), "phrases": paraphrase_loss(names, meaning, scale)}
        return parts | cue_losses(told, values, names, scale, tuple(cues.CUES))

    optimize(model, "text", TextBatches(settings.seed, settings.text_steps), losses, settings)


def train_tower(model: ImageBind, modality: str, settings: TrainEncoderSettings) -> None:
    """Bind vision or audio to the text tower, which stays as it is."""
    with torch.no_grad():
        names = unit(model, "text", ClipBPE().encode([phrase for _, _, phrase in PHRASES]))
        scale = text_scale(model)

    def losses(batch) -> dict[str, Tensor]:
        windows, values = batch
        return cue_losses(unit(model, modality, windows), values, names, scale, GROUPS[modality])

    data = Speakers(modality, settings.seed, settings.batch_size, getattr(settings, f"{modality}_steps"))
    start_stem(model, modality, torch.cat([data[len(data) + i][0] for i in range(4)]))
    optimize(model, modality, data, losses, settings)


def start_stem(model: ImageBind, modality: str, windows: Tensor) -> None:
    """Set the patch projection to the whitened principal components of patches (not centred: it has no bias).

    From a random start, a patch's mean colour or level drowns what tells faces apart. The factor brings the components to
    the size of the position table, so that a token says what and where alike.
    """
    tower = model.config.towers[modality]
    weight = next(p for name, p in model.named_parameters() if _is_projection(name, modality))
    if modality == "vision":
        side = tower.kernel[1]
        patches = windows.float().unfold(3, side, side).unfold(4, side, side)  # (B,3,2,h,w,rows,columns)
        patches = patches.permute(0, 3, 4, 1, 2, 5, 6).flatten(3).flatten(0, 2)  # (B*h*w,3*2*rows*columns)
    else:
        patches = F.unfold(windows, tower.kernel, stride=tower.stride).transpose(1, 2).flatten(0, 1)  # (B*patches,rows*columns)
    _, values, components = torch.pca_lowrank(patches, len(weight), center=False)
    with torch.no_grad():
        weight.copy_((0.03 * components * len(patches) ** 0.5 / values).T.view_as(weight))


def _is_projection(name: str, modality: str) -> bool:
    return name.startswith(f"modality_preprocessors.{modality}.rgbt_stem.proj")


def optimize(model: ImageBind, modality: str, data: TextBatches | Speakers, losses, settings: TrainEncoderSettings) -> None:
    """AdamW on one tower over all batches of `data`; the losses that `losses(batch)` names are added.

    The patch projection stays as it is: a step's worth of noise in it changes every token at once (arXiv:2104.02057 freezes
    it too). One run each of 400 steps: the loss of gesture went from 3.12 to 2.28, and to 3.14 with the projection trained.
    """
    own = [(name, p) for name, p in model.named_parameters() if name.split(".")[1] == modality]
    parameters = [p for name, p in own if not _is_projection(name, modality)]
    decayed, rest = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups: list[dict] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    loader = DataLoader(data, batch_size=None, num_workers=settings.num_workers)
    for step, batch in enumerate(bar := tqdm(loader, desc=modality, unit="step")):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, len(data), settings.lr)
        with torch.autocast("cpu", torch.bfloat16):
            parts = losses(batch)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == len(data) - 1:
            bar.write(f"{modality} {step}: " + " ".join(f"{name} {value.item():.2f}" for name, value in parts.items()))


def lr_at(step: int, n_steps: int, peak: float) -> float:
    """Linear warm-up over the first 5 %, then half a cosine to zero."""
    warmup = n_steps // 20 + 1
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


def train(settings: TrainEncoderSettings) -> ImageBind:
    """New towers: text first, then the others bound to it."""
    torch.manual_seed(settings.seed)
    model = ImageBind(config.IMAGEBIND_PRESETS[PRESET]()).train()
    train_text(model, settings)
    for modality in GROUPS:
        train_tower(model, modality, settings)
    return model.eval()


def save(model: ImageBind, settings: TrainEncoderSettings) -> Path:
    """Write the towers in float16 (their scales in float32) under their public names, atomically."""
    path = Path(settings.output_dir, f"{PRESET}.safetensors")
    shaping = ("seed", "text_steps", "audio_steps", "vision_steps", "batch_size", "lr")
    flags = " ".join(f"--{name} {getattr(settings, name)}" for name in shaping)
    made_by = {"command": f"python data/demo/train_encoder.py {flags}", "commit": code_commit(), "licence": "MIT"}
    state = {n: (t if n.endswith(SCALE) else t.half()).contiguous() for n, t in model.state_dict().items()}
    write_atomic(path, save_tensors(state, metadata=made_by))
    return path


def main(argv: list[str] | None = None) -> int:
    settings = parse(TrainEncoderSettings, argv, "Make imagebind_tiny, and measure it on the demo world.")
    return exit_code("train_encoder.py", lambda: run(settings))


def run(settings: TrainEncoderSettings) -> None:
    """Train and save the towers, then measure what linear probes and captions read off them."""
    if not settings.evaluate:
        path = save(train(settings), settings)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    weights = Path(settings.output_dir, f"{PRESET}.safetensors")
    measure(PRESET, weights, settings.data_path, settings.emb_path, overwrite=not settings.evaluate)


if __name__ == "__main__":
    sys.exit(main())
