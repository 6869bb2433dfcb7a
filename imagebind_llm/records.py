"""The types that several modules share."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # target of a token position that carries no loss (torch's own convention)


@dataclass(frozen=True)
class Example:
    """One clip of a data set: its file, its words and, if they are known, its intent and rationale."""

    key: str  # unique in the data set, e.g. S05_E16_329
    split: str  # train, dev, test, or "all" for a plain folder
    clip: Path | None  # None: the data set names no clip for this row
    text: str
    intent: str | None = None  # canonical label of the taxonomy
    speaker: str | None = None
    rationale: str | None = None  # reason for the intent, in a sentence or two


@dataclass(frozen=True)
class Exchange:
    """A prompt, `before + context + after`, and its answer. Only the context may be shortened. `intent` is a class index."""

    key: str  # name in messages; if `embedded`, the clip's key in the embedding store
    before: str
    context: str
    after: str
    answer: str = ""
    intent: int | None = None
    embedded: bool = False
    rationale: str | None = None  # the reference rationale, which is a part of the answer


@dataclass(frozen=True)
class Sequence:
    """An exchange as token ids: the first `n_prompt` of `ids` are the prompt, the others the answer."""

    key: str
    ids: tuple[int, ...]
    n_prompt: int
    intent: int | None = None
    embedded: bool = False
    cut: bool = False  # the prompt was shortened
    rationale: str | None = None
    caption: bool = False  # a caption mixed into --stage finetune, weighted by --w_caption
    weights: tuple[float, ...] | None = None  # weight of each token in the loss; None: all 1
    other: str | None = None  # key of the other clip in the contrastive loss (--w_contrast)


@dataclass(frozen=True)
class Answer:
    """The parts of an answer."""

    intent: str | None  # a label of the taxonomy
    rationale: str | None
    finished: bool = True  # it ended with EOS, not at the length limit


@dataclass(frozen=True)
class Windows:
    """The distinct encoder inputs of one clip and modality, and how often each occurs in the public schedule.

    `inputs`: (N, 3, 2, 224, 224) for vision, (N, 1, 128, 204) for audio, (1, 77) token ids for text.
    `counts`: N integers; their sum is 15 for vision (5 windows x 3 crops), 3 for audio, 1 for text.
    The clip's embedding is the mean over windows weighted by `counts`, so equal windows are encoded once.
    """

    inputs: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Rows of token ids, and the clip embeddings that belong to them.

    tokens: (B, T) prompt and answer, padded on the right with any valid id.
    targets: (B, T) the answer's tokens at their own columns, IGNORE elsewhere: position t-1 predicts targets[:, t].
    embeddings: (B, M, E) as the store has them, in the order text, audio, vision, not normalised. None for text-only rows.
    present: (B, M) bool, which embeddings the row has; the values of absent ones are not used.
    n_prompt: (B,) length of each prompt; the intent head reads its last position. None: no intent logits are computed.
    intents: (B,) class indices, IGNORE where unknown.
    keys: names of the rows in messages.
    below: (B, T, D) cached states that enter the lowest adapted layer; None: they are computed.
    captions: (B,) bool, which rows are captions mixed in; None if there are none.
    weights: (B, T) float32, weight of each token in the loss; None: all 1.
    positions, segments: (B, T) for rows with several answers to one prompt (packing.py): each token's position, and 0 for the
        prompt, else the number of its answer, since answers do not attend to each other. None: one answer per row.
    contrasted: (C,) the rows whose answers are compared with another clip; None if there are none.
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
    positions: Tensor | None = None
    segments: Tensor | None = None
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
    """The result of a forward pass on a Batch.

    logp: (B, T) float32, log p(targets[:, t] | everything before t), 0 where there is no target.
    mask: (B, T) bool, where there is a target.
    intent_logits: (B, C) float32, of the intent head; None without a head or without `n_prompt`.
    """

    logp: Tensor
    mask: Tensor
    intent_logits: Tensor | None = None
