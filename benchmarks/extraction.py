"""The encoder against the public schedule: imagebind_huge with random weights, one clip at a time.

The peer is our own towers run as the public program runs them: every one of 15 crops and 3 sounds, all 77 text
positions, and oneDNN switched off, so that linear layers are torch's own F.linear as the public ones are. (The public
implementation itself took 76.8 CPU-seconds and 60.6 s for such a clip on 2 threads.)
"""

from collections.abc import Callable

import torch

from imagebind_llm.config import imagebind_huge
from imagebind_llm.encoder.bpe import ClipBPE
from imagebind_llm.encoder.towers import ImageBind

from .runner import Case

TEXT = "how can you even say that about her"


def _towers(dtype: str) -> ImageBind:
    torch.manual_seed(0)
    model = ImageBind(imagebind_huge()).eval().requires_grad_(False)
    for name in ("depth", "thermal", "imu"):
        for parts in (model.modality_preprocessors, model.modality_trunks, model.modality_heads):
            del parts[name]
    return model.to(getattr(torch, dtype))


def _clip(n_vision: int, n_audio: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "vision": torch.randn(n_vision, 3, 2, 224, 224, generator=generator),
        "audio": torch.randn(n_audio, 1, 128, 204, generator=generator),
        "text": ClipBPE().encode([TEXT]),
    }


def ours(distinct_vision: int, distinct_audio: int, dtype: str = "float32") -> Callable[[], float]:
    """One clip: every distinct window once, text up to its end."""
    model, clip = _towers(dtype), _clip(distinct_vision, distinct_audio)
    counts = {
        "vision": (15 // distinct_vision,) * distinct_vision,
        "audio": (3 // distinct_audio,) * distinct_audio,
        "text": (1,),
    }

    @torch.inference_mode()
    def run() -> float:
        for modality, windows in clip.items():
            model.encode_clips(modality, windows, [counts[modality]])
        return 1

    return run


def public_schedule(distinct_vision: int, distinct_audio: int) -> Callable[[], float]:
    """One clip as the public program does it: 15 crops, 3 sounds, 77 text positions, torch's own F.linear."""
    model, clip = _towers("float32"), _clip(distinct_vision, distinct_audio)
    clip["vision"] = clip["vision"].repeat(15 // distinct_vision, 1, 1, 1, 1)[None]  # (1,15,3,2,224,224)
    clip["audio"] = clip["audio"].repeat(3 // distinct_audio, 1, 1, 1)[None]  # (1,3,1,128,204)
    text = clip.pop("text")

    @torch.inference_mode()
    def run() -> float:
        with torch.backends.mkldnn.flags(enabled=False):
            model(clip)
            tokens = model.modality_preprocessors["text"](text)  # (1,77,D)
            hidden = model.modality_trunks["text"](tokens, causal=True)
            model.modality_postprocessors["text"](model.modality_heads["text"](hidden, text.argmax(-1)))
        return 1

    return run


@torch.inference_mode()
def bfloat16_agreement() -> str:
    """How near the bfloat16 embeddings of one clip are to the float32 ones (random weights)."""
    clip = {name: windows[:3] for name, windows in _clip(3, 3).items()}
    model = _towers("float32")
    exact = {name: model.encode(name, x) for name, x in clip.items()}
    model.bfloat16()
    low = {name: model.encode(name, x) for name, x in clip.items()}
    cosines = {name: torch.cosine_similarity(low[name], exact[name]).min().item() for name in clip}
    return "cosine of bf16 with fp32, smallest: " + ", ".join(f"{name} {value:.5f}" for name, value in cosines.items())


OURS, PEER = "benchmarks.extraction:ours", "benchmarks.extraction:public_schedule"
SHORT = {"distinct_vision": 3, "distinct_audio": 1}
LONG = {"distinct_vision": 15, "distinct_audio": 3}

CASES = [
    Case("imagebind_huge, 16:9 clip of at most 2 s, fp32", "clip", OURS, PEER, "CPU-seconds at most 0.25", SHORT),
    Case("imagebind_huge, clip whose windows differ, fp32", "clip", OURS, PEER, "wall at most 1.0", LONG),
    Case(
        "imagebind_huge, clip whose windows differ, bf16",
        "clip",
        OURS,
        PEER,
        "wall at most 0.5 (avx512_bf16)",
        LONG,
        ours_options={"dtype": "bfloat16"},
        note="benchmarks.extraction:bfloat16_agreement",
    ),
    Case(
        "imagebind_huge, clip whose windows differ, bf16 against our fp32",
        "clip",
        OURS,
        OURS,
        "",
        LONG,
        ours_options={"dtype": "bfloat16"},
    ),
]
