"""A clip of one's own -> embeddings, made as those that a checkpoint was trained on: explain.py --clip, web_demo.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imagebind_llm.datasets.readers import DataError
from imagebind_llm.encoder.extraction import BatchReader, ExtractSettings, embed
from imagebind_llm.encoder.store import Failure
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.encoder.weights import file_sha256, find_imagebind, load_imagebind
from imagebind_llm.records import Example


@dataclass(frozen=True)
class Encoded:
    """A clip in ImageBind space: vectors (1,M,E) and presence (1,M) on the CPU, and what of it failed.

    `inputs`: what the towers were given, by modality: the distinct windows (N,...) and how often each counts (records.Windows).
    """

    vectors: Tensor
    present: Tensor
    failures: list[Failure]
    inputs: dict[str, tuple[Tensor, tuple[int, ...]]]


class ClipEncoder:
    """The encoder and the front end's settings that a store's identity names."""

    def __init__(self, model: ImageBind, recipe: ExtractSettings):
        self.model, self.recipe = model, recipe

    @classmethod
    def load(cls, identity: Mapping, weights: str = "", device: torch.device | str = "cpu") -> "ClipEncoder":
        """`identity` as a checkpoint keeps it; `weights` as --encoder_weights. Computes in float32, also where the store is of
        bfloat16: the two differ by its rounding. Raises DataError for other weights than its own, WeightsError where there
        are none."""
        recipe = ExtractSettings(
            data_path="",
            output_dir="",
            encoder=identity["encoder"],
            modalities=tuple(identity["modalities"]),
            window_rule=identity["window_rule"],
            clean_audio=identity["clean_audio"],
        )
        path = find_imagebind(recipe.encoder, weights)
        if file_sha256(path) != identity["weights_sha256"]:
            raise DataError(
                f"{path}: not the weights whose embeddings the model was trained on; pass those as --encoder_weights"
            )
        return cls(load_imagebind(path, recipe.encoder, torch.float32, device, recipe.modalities), recipe)

    def encode(self, example: Example, modalities: Sequence[str]) -> Encoded:
        """Embed those of `modalities` that the recipe has and the example may have: no words, no text; no file, text alone.

        What cannot be read of it is absent, and among the failures.
        """
        there = {"text": bool(example.text.strip()), "audio": example.clip is not None, "vision": example.clip is not None}
        wanted = tuple(name for name in self.recipe.modalities if name in modalities and there[name])
        batch = BatchReader([[example]], replace(self.recipe, modalities=wanted))[0]
        vectors, present, failures = embed(self.model, batch)
        return Encoded(
            vectors, present, failures, {name: (item.windows, item.counts[0]) for name, item in batch.inputs.items()}
        )
