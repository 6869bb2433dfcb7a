"""What an encoder is to the rest of the package: a module with `encode`, and a spec of all that must be known of it before.

To add one, write a file in this folder with a subclass of Encoder, its tokenizer and its preprocessing, and add a line to
ENCODERS in registry.py. Nothing outside this folder knows the width of the vectors or the shape of the inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from imagebind_llm.clips.container import MediaError
from imagebind_llm.records import Windows

WINDOWS_PER_PASS = 24  # bounds activation memory; fixed, because batch shape decides the last bits of a matrix product


class Encoder(nn.Module):
    """Frozen towers, one for each modality, into one space. A subclass implements `encode`."""

    def encode(self, modality: str, inputs: Tensor) -> Tensor:
        """One float32 vector per window: (n, ...) as the spec's tokenizer or `load_clip` makes it -> (n,E)."""
        raise NotImplementedError

    def encode_clips(self, modality: str, windows: Tensor, counts: Sequence[tuple[int, ...]]) -> Tensor:
        """One vector per clip (B,E): every distinct window encoded once, then the mean weighted by how often it counts.

        `windows` holds the distinct windows of all clips in a row, `counts` one tuple a clip (records.Windows); so clips of
        different lengths share batches, WINDOWS_PER_PASS at a time.
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
    """Texts to what the text tower reads."""

    context_length: int

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids (n, ...); what does not fit into `context_length` positions is cut."""
        ...

    def n_tokens(self, text: str) -> int:
        """Positions that the whole text takes: more than `context_length` means that it is cut."""
        ...


class LoadEncoder(Protocol):
    """Reads an encoder from its weight file: frozen, in evaluation mode. Raises WeightsError."""

    def __call__(self, path: Path, *, dtype: torch.dtype, device: torch.device | str, towers: Sequence[str]) -> Encoder: ...


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder that a store can be made with. Its name and all of this decide the numbers, so a store's identity has it.

    `load_clip` takes (file, modalities, window rule, clean audio), as clips.media.load_clip, and returns for each modality its
    windows or the reason why there are none. `version`: raised whenever a change of preprocessing, tokenizer or towers changes
    a vector. `modalities`: those that it embeds.
    """

    width: int
    load: LoadEncoder
    tokenizer: Callable[[], Tokenizer]
    load_clip: Callable[[Path, Sequence[str], str, bool], dict[str, Windows | MediaError]]
    version: str
    modalities: tuple[str, ...] = ("text", "audio", "vision")
