"""Embeds a single clip in the same way as those that a checkpoint was trained on, for explain.py --clip and web_demo.py."""

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
    """The embeddings of a clip, on the CPU."""

    vectors: Tensor  # (1,M,E)
    present: Tensor  # (1,M)
    failures: list[Failure]
    # by modality, distinct windows (N,...) and their counts (records.Windows), for the web page, which can draw those of
    # clips.media; empty if the encoder has another preprocessing
    inputs: dict[str, tuple[Tensor, tuple[int, ...]]]


class ClipEncoder:
    """An encoder with the preprocessing settings of a store's identity."""

    def __init__(self, model: Encoder, recipe: ExtractSettings):
        self.model, self.recipe, self.spec = model, recipe, ENCODERS[recipe.encoder]

    @classmethod
    def load(cls, identity: Mapping, weights: str = "", device: torch.device | str = "cpu") -> "ClipEncoder":
        """Load the encoder, in float32 even if the store is in bfloat16.

        `identity`: as in checkpoint.json; `weights`: as --encoder_weights. Raises WeightsError if the weights are missing or
        not those of the identity.
        """
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
        """Embed those of `modalities` that the encoder's settings include and the example has.

        A modality that cannot be read is absent, and among the failures.
        """
        available = {name: bool(example.text.strip()) if name == "text" else example.clip is not None for name in modalities}
        names = tuple(name for name in self.recipe.modalities if available.get(name))
        batch = BatchReader([[example]], replace(self.recipe, modalities=names))[0]
        vectors, present, failures = embed(self.model, batch, self.spec.width)
        inputs = batch.inputs.items() if self.spec.load_clip is load_clip else ()
        return Encoded(vectors, present, failures, {name: (item.windows, item.counts[0]) for name, item in inputs})
