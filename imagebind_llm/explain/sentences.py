"""Vectors of sentences by an encoder on this machine, for the score of their similarity."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imagebind_llm.datasets.readers import DataError
from imagebind_llm.explain.explainer import batch_slices

Encode = Callable[[Sequence[str]], Tensor]  # n texts -> (n, width)


def sentence_encoder(folder: str) -> Encode:
    """Mean last states of a local Hugging Face encoder: n texts -> (n, width). Raises DataError if it cannot be loaded."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise DataError(f"--sentence_encoder {folder}: no local encoder can be loaded ({error})") from error

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        vectors = []
        for part in batch_slices(len(texts), 32):
            batch = tokenizer(list(texts[part]), padding=True, truncation=True, max_length=256, return_tensors="pt")
            states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            vectors.append((states * mask).sum(1) / mask.sum(1))  # (n,width)
        return torch.cat(vectors)

    return encode
