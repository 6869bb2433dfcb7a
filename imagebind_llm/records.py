"""The types that cross module borders, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
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
    rationale: str | None = None  # why, in a sentence or two


@dataclass(frozen=True)
class Exchange:
    """What the model is asked, and what it should answer: `before + context + after` is the prompt.

    Only the context may be shortened to fit a sequence. `intent` is a class index.
    """

    key: str  # names it in messages; the clip's key in the embedding store if it is `embedded`
    before: str
    context: str
    after: str
    answer: str = ""
    intent: int | None = None
    embedded: bool = False
    rationale: str | None = None  # the reference, as it stands in the answer


@dataclass(frozen=True)
class Sequence:
    """An exchange as token ids: prompt and answer in one, the first `n_prompt` are the prompt; `cut` if context was lost.

    `caption`: a caption mixed into the second stage, whose loss has a weight of its own.
    `weights`: how much each token's likelihood counts in training; None: all alike.
    `other`: key of a clip with another intent, with whose sound and picture the answer is to be less likely (--w_contrast).
    """

    key: str
    ids: tuple[int, ...]
    n_prompt: int
    intent: int | None = None
    embedded: bool = False
    cut: bool = False
    rationale: str | None = None
    caption: bool = False
    weights: tuple[float, ...] | None = None
    other: str | None = None


@dataclass(frozen=True)
class Answer:
    """What an answer says: a label of the taxonomy or None, a rationale or None; `finished`: it ended by itself (EOS), not at
    the length limit."""

    intent: str | None
    rationale: str | None
    finished: bool = True


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
    embeddings: (B, M, E) as the store has them, at ImageBind's own scales, in the order text, audio, vision; the bridge brings
        them to unit length. None for text-only rows.
    present: (B, M) bool, which of them the row really has; what stands in an absent slot is never looked at.
    n_prompt: (B,) length of each prompt; the intent head reads its last position. None: no head is asked.
    intents: (B,) class indices, IGNORE where none is known.
    keys: what the rows are called in messages.
    below: (B, T, D) states that enter the lowest adapted layer, where they are known; else they are computed.
    captions: (B,) bool, which rows are captions mixed in; None if there are none.
    weights: (B, T) float32, how much each token's likelihood counts in training; None: all alike.
    contrasted: (C,) the rows whose answers are held against another clip; None if there are none.
    swapped, swapped_present: (C, M, E) and (C, M), as `embeddings` and `present`, with that clip's sound and picture.
    """

    tokens: Tensor
    targets: Tensor
    embeddings: Tensor | None = None
    present: Tensor | None = None
    n_prompt: Tensor | None = None
    intents: Tensor | None = None
    keys: tuple[str, ...] = ()
    below: Tensor | None = None
    captions: Tensor | None = None
    weights: Tensor | None = None
    contrasted: Tensor | None = None
    swapped: Tensor | None = None
    swapped_present: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; data loaders call it."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        fields_of: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: change(v) if isinstance(v, Tensor) else v for k, v in fields_of.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Output:
    """What one forward pass says about a Batch.

    logp: (B, T) float32, log p(targets[:, t] | everything before t), 0 where there is no target.
    mask: (B, T) bool, where there is one.
    intent_logits: (B, C) float32, of the intent head; None without a head or without `n_prompt`.
    """

    logp: Tensor
    mask: Tensor
    intent_logits: Tensor | None = None
