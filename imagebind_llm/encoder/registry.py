"""The encoders by name (--encoder), and loading the encoder that made given embeddings."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from imagebind_llm.clips.media import load_clip
from imagebind_llm.config import IMAGEBIND_PRESETS
from imagebind_llm.encoder.bpe import ClipBPE
from imagebind_llm.encoder.interface import Encoder, EncoderSpec
from imagebind_llm.encoder.store import Identity
from imagebind_llm.encoder.weights import file_sha256, find_weights, load_imagebind
from imagebind_llm.weight_files import WeightsError


def _imagebind(preset: str) -> EncoderSpec:
    width = IMAGEBIND_PRESETS[preset]().out_width
    return EncoderSpec(width, partial(load_imagebind, preset=preset), ClipBPE, load_clip, version="1")


ENCODERS: dict[str, EncoderSpec] = {
    "imagebind_huge": _imagebind("imagebind_huge"),
    "imagebind_tiny": _imagebind("imagebind_tiny"),
}


def load_again(identity: Identity, weights: str, towers: Sequence[str], device: torch.device | str = "cpu") -> Encoder:
    """Load the encoder that made embeddings of this identity, in float32. `weights`: its file, if it is not in checkpoints/.

    Raises WeightsError if the encoder is unknown or has another width, or if its weights are missing or not those that made the
    embeddings.
    """
    spec = ENCODERS.get(identity.encoder)
    if spec is None or spec.width != identity.width:
        names = ", ".join(f"{name} (width {other.width})" for name, other in ENCODERS.items())
        raise WeightsError(
            f"embeddings made by {identity.encoder}, width {identity.width}: their encoder is needed, expected one of {names}; "
            "embed the clips again with one of these"
        )
    path = find_weights(identity.encoder, weights)
    if identity.weights_sha256 and file_sha256(path) != identity.weights_sha256:
        raise WeightsError(
            f"{path}: not the weights that made the embeddings (sha256 {identity.weights_sha256[:12]}...); pass those as "
            "--encoder_weights, or embed the clips again with these"
        )
    return spec.load(path, dtype=torch.float32, device=device, towers=towers)


def load_text_tower(
    identity: Identity, weights: str = "", device: torch.device | str = "cpu"
) -> Callable[[Sequence[str]], Tensor]:
    """A function from n texts to vectors (n,E) on the CPU, by the text tower of the encoder that made embeddings.

    No other tower is loaded. Arguments and errors are those of `load_again`.
    """
    encoder = load_again(identity, weights, ("text",), device)
    tokenizer = ENCODERS[identity.encoder].tokenizer()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        return encoder.encode("text", tokenizer.encode(list(texts))).cpu()

    return encode
