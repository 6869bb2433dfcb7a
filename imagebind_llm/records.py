"""The types that cross module borders, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

IGNORE = -100  # target of a token position that carries no loss (torch's own convention)


@dataclass(frozen=True)
class Example:
    """One clip of a data set: where it is, what is said, and (where it is known) what was meant."""

    key: str  # unique in the data set, e.g. S05_E16_329
    split: str  # train, dev, test, or "all" for a plain folder
    clip: Path | None  # None: the data set names no clip for this row
    text: str
    intent: str | None = None  # canonical label of the taxonomy
    speaker: str | None = None  # where the data set names one


@dataclass(frozen=True)
class Windows:
    """The distinct encoder inputs of one clip and modality, and how often each occurs in the public schedule.

    `inputs`: (N, 3, 2, 224, 224) for vision, (N, 1, 128, 204) for audio, (1, 77) token ids for text.
    `counts`: N integers; their sum is 15 for vision (5 windows x 3 crops), 3 for audio, 1 for text.
    The clip's embedding is the mean over windows with these weights, so equal windows are encoded once.
    """

    inputs: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Rows of token ids, and the clip embeddings that belong to them.

    tokens: (B, T) prompt and answer, padded on the right with any valid id.
    targets: (B, T) the answer's own tokens in place, IGNORE elsewhere: position t-1 is what predicts targets[:, t].
    embeddings: (B, M, E) L2-normalised embeddings in the order text, audio, vision; None for text-only rows.
    present: (B, M) bool, which of them the row really has; what stands in an absent slot is never looked at.
    """

    tokens: Tensor
    targets: Tensor
    embeddings: Tensor | None = None
    present: Tensor | None = None


@dataclass(frozen=True)
class Output:
    """What one forward pass says about a Batch.

    logp: (B, T) float32, log p(targets[:, t] | everything before t), 0 where there is no target.
    mask: (B, T) bool, where there is one.
    """

    logp: Tensor
    mask: Tensor
