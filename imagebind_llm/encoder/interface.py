"""The interface of an encoder: a module with `encode`, and a spec of its width, tokenizer and preprocessing.

To add an encoder, write a file in this folder with a subclass of Encoder, its tokenizer and its preprocessing, and add a line
to ENCODERS in registry.py. Code outside this folder does not depend on the width of the vectors or the shape of the inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from imagebind_llm.clips.container import MediaError
from imagebind_llm.records import Windows

WINDOWS_PER_PASS = 24  # limits activation memory; constant, because the last bits of a matrix product depend on the batch size


class Encoder(nn.Module):
    """Base class: frozen towers that map each modality into one space. A subclass implements `encode`."""

    def encode(self, modality: str, inputs: Tensor) -> Tensor:
        """Vectors (n,E) float32 of n windows; inputs (n, ...) as the spec's tokenizer or `load_clip` returns them."""
        raise NotImplementedError

    def encode_clips(self, modality: str, windows: Tensor, counts: Sequence[tuple[int, ...]]) -> Tensor:
        """Vectors (B,E) of B clips: every distinct window is encoded once, then averaged with its count as weight.

        windows: the distinct windows of all clips, concatenated; counts: one tuple per clip (records.Windows).
        """
        vectors = torch.cat([self.encode(modality, part) for part in windows.split(WINDOWS_PER_PASS)])  # (sum N,E)
        means = []
        for rows, clip in zip(vectors.split([len(clip) for clip in counts]), counts, strict=True):
            weights = torch.tensor(clip, dtype=torch.float32, device=rows.device)
            means.append((weights / weights.sum()) @ rows)
        return torch.stack(means)  # (B,E)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class Tokenizer(Protocol):
    """Turns texts into the inputs of the text tower."""

    context_length: int

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids (n, ...), cut to `context_length` positions."""
        ...

    def n_tokens(self, text: str) -> int:
        """Number of positions of the whole text; if it is larger than `context_length`, `encode` cuts the text."""
        ...


class LoadEncoder(Protocol):
    """Reads an encoder from its weight file: frozen, in evaluation mode. Raises WeightsError."""

    def __call__(self, path: Path, *, dtype: torch.dtype, device: torch.device | str, towers: Sequence[str]) -> Encoder: ...


@dataclass(frozen=True)
class EncoderSpec:
    """Specification of an encoder.

    `load_clip` takes (file, modalities, window rule, clean audio), as clips.media.load_clip, and returns for each modality its
    windows or the error why there are none. `version` is part of a store's identity: change it whenever preprocessing,
    tokenizer or towers give other vectors. `modalities`: those that it embeds.
    """

    width: int  # E
    load: LoadEncoder
    tokenizer: Callable[[], Tokenizer]
    load_clip: Callable[[Path, Sequence[str], str, bool], dict[str, Windows | MediaError]]
    version: str
    modalities: tuple[str, ...] = ("text", "audio", "vision")
