"""Intents without training: a clip is as near to a label as its embeddings are to a sentence for that label.

The original's rule: softmax(vision . text^T) + softmax(audio . text^T) on ImageBind's public outputs, whose scales (audio
20, text 14.3, vision 1) make the temperatures. The sum is divided by the number of its terms, so that it is a probability;
an absent modality is no term. The utterance itself can be a third one.
"""

import torch
from torch import Tensor

from imagebind_llm.config import MODALITIES
from imagebind_llm.taxonomy import ACHIEVE, DEFINITIONS, EXPRESS

COARSE_DEFINITIONS = {
    EXPRESS: "The speaker shows what they feel about someone or something, or what they think of it.",
    ACHIEVE: "The speaker wants to get something done or known, by themselves or by others.",
}


def label_sentences(classes: tuple[str, ...], kind: str) -> list[str]:
    """One sentence a class: its name as the original has it, or our definition. Raises ValueError if there is none."""
    if kind == "names":
        return list(classes)
    definitions = DEFINITIONS | COARSE_DEFINITIONS
    if unknown := [name for name in classes if name not in definitions]:
        raise ValueError(f"no definition of the label {', '.join(unknown)}; use --sentences names")
    return [definitions[name] for name in classes]


def nearest_label(vectors: Tensor, present: Tensor, sentences: Tensor, modalities: tuple[str, ...]) -> Tensor:
    """Probabilities (N,C) from public vectors (N,M,E), presence (N,M) and sentence vectors (C,E); uniform if all is absent."""
    columns = [MODALITIES.index(name) for name in modalities]
    each = (vectors[:, columns] @ sentences.T).softmax(-1)  # (N,m,C)
    weights = present[:, columns, None].float()
    n = weights.sum(1)  # (N,1)
    return torch.where(n > 0, (each * weights).sum(1) / n.clamp_min(1), 1 / len(sentences))
