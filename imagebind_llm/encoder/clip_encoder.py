"""A clip of one's own -> embeddings, made as those that a checkpoint was trained on: explain.py --clip, web_demo.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imagebind_llm.clips.media import load_clip
from imagebind_llm.encoder.extraction import BatchReader, ExtractSettings, embed
from imagebind_llm.encoder.interface import Encoder
from imagebind_llm.encoder.registry import ENCODERS, load_again
from imagebind_llm.encoder.store import Failure, identity_of
from imagebind_llm.records import Example


@dataclass(frozen=True)
class Encoded:
    """A clip in the encoder's space: vectors (1,M,E) and presence (1,M) on the CPU, and what of it failed.

    `inputs`: what the towers were given, by modality: the distinct windows (N,...) and how often each counts (records.Windows);
    empty where the encoder has another preprocessing than clips.media, which is all that the page can draw.
    """

    vectors: Tensor
    present: Tensor
    failures: list[Failure]
    inputs: dict[str, tuple[Tensor, tuple[int, ...]]]


class ClipEncoder:
    """The encoder and the front end's settings that a store's identity names."""

    def __init__(self, model: Encoder, recipe: ExtractSettings):
        self.model, self.recipe, self.spec = model, recipe, ENCODERS[recipe.encoder]

    @classmethod
    def load(cls, identity: Mapping, weights: str = "", device: torch.device | str = "cpu") -> "ClipEncoder":
        """`identity` as a checkpoint keeps it; `weights` as --encoder_weights. Computes in float32, also where the store is of
        bfloat16: the two differ by its rounding. Raises WeightsError for other weights than its own, and where there are
        none."""
        recipe = ExtractSettings(
            data_path="",
            output_dir="",
            encoder=identity["encoder"],
            modalities=tuple(identity["modalities"]),
            window_rule=identity["window_rule"],
            clean_audio=identity["clean_audio"],
        )
        return cls(load_again(identity_of(dict(identity)), weights, recipe.modalities, device), recipe)

    def encode(self, example: Example, modalities: Sequence[str]) -> Encoded:
        """Embed those of `modalities` that the recipe has and the example may have: no words, no text; no file, text alone.

        What cannot be read of it is absent, and among the failures.
        """
        available = {name: bool(example.text.strip()) if name == "text" else example.clip is not None for name in modalities}
        wanted = tuple(name for name in self.recipe.modalities if available.get(name))
        batch = BatchReader([[example]], replace(self.recipe, modalities=wanted))[0]
        vectors, present, failures = embed(self.model, batch, self.spec.width)
        drawn = batch.inputs.items() if self.spec.load_clip is load_clip else ()
        return Encoded(vectors, present, failures, {name: (item.windows, item.counts[0]) for name, item in drawn})
