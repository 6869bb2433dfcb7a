"""Fusions: how the modalities of a clip become prompts. A new fusion is one class and one line in FUSIONS.

    average   prompts of layer j = learned_j (P,D)  +  bridge(weighted mean of the embeddings) (D)          ImageBind-LLM
    separate  prompts of layer j = learned_j (P,D)  beside  bridge(e_m) * (1 + scale_jm) + query_jm (M,D)   ours
With "separate" each modality has its own prompt vector in every prompted layer, so the attention heads can weigh face and voice
by content. All modalities share one bridge, so `query_jm` marks which modality a vector is of, and `scale_jm` selects features
of it for each layer (FiLM, arXiv:1709.07871). The vector of an absent modality is masked out of the softmax.
"""

import torch
from torch import Tensor, nn

from imagebind_llm.config import MODALITIES, PromptConfig
from imagebind_llm.itsl.bridge import Bridge
from imagebind_llm.llama.decoder import Prompts


class Fusion(nn.Module):
    """Base class: a clip's M embeddings become `n_slots` vectors of the decoder's width, and these become prompts."""

    n_slots: int

    def __init__(self, prompts: PromptConfig, dim: int):
        """`prompts`: shape of the prompts; `dim`: the decoder's width."""
        super().__init__()

    def carry(self, embeddings: Tensor, weights: Tensor, bridge: Bridge) -> Tensor:
        """Project embeddings (B,M,E), of unit length or zero where absent, to vectors (B,n_slots,D).

        weights: (B,M) weight of each modality, 0 where it is absent.
        """
        raise NotImplementedError

    def present_slots(self, present: Tensor) -> Tensor:
        """Which slots are not empty, (B,n_slots) bool, given which modalities are present, (B,M) bool."""
        raise NotImplementedError

    def prompts(self, learned: Tensor, carried: Tensor, present: Tensor) -> Prompts:
        """Prompts from learned vectors (1,A,P,D) and the result of `carry` (B,n_slots,D); `present` (B,M) bool."""
        raise NotImplementedError


class Average(Fusion):
    """One vector per clip, the weighted mean of its modalities, added to every learned prompt (ImageBind-LLM)."""

    n_slots = 1

    def carry(self, embeddings: Tensor, weights: Tensor, bridge: Bridge) -> Tensor:
        """(B,1,D), zeros for a row without any modality."""
        shares = weights.float() / (weights.float().sum(1, keepdim=True) + 1e-6)
        mean = (shares[..., None] * embeddings).sum(1, keepdim=True)  # (B,1,E), ImageBind-LLM does not normalise it again
        return torch.where(self.present_slots(weights > 0)[..., None], bridge(mean), 0.0)

    def present_slots(self, present: Tensor) -> Tensor:
        return present.any(1, keepdim=True)

    def prompts(self, learned: Tensor, carried: Tensor, present: Tensor) -> Prompts:
        return Prompts(learned + carried[:, None])  # (B,A,P,D)


class Separate(Fusion):
    """One prompt per modality, beside the learned prompts."""

    n_slots = len(MODALITIES)

    def __init__(self, prompts: PromptConfig, dim: int):
        super().__init__(prompts, dim)
        self.modality_query = learned_vectors(prompts.adapter_layer * self.n_slots, dim, prompts)
        self.modality_scale = nn.Embedding(prompts.adapter_layer * self.n_slots, dim)
        nn.init.zeros_(self.modality_scale.weight)

    def carry(self, embeddings: Tensor, weights: Tensor, bridge: Bridge) -> Tensor:
        """(B,M,D)."""
        return bridge(embeddings)

    def present_slots(self, present: Tensor) -> Tensor:
        return present

    def prompts(self, learned: Tensor, carried: Tensor, present: Tensor) -> Prompts:
        _, layers, length, _ = learned.shape
        query, scale = (e.weight.view(1, layers, self.n_slots, -1) for e in (self.modality_query, self.modality_scale))
        vectors = carried[:, None] * (1 + scale) + query  # (B,A,M,D)
        vectors = torch.cat([learned.expand(len(vectors), -1, -1, -1), vectors], dim=2)  # (B,A,P+M,D)
        return Prompts(vectors, torch.cat([present.new_ones(len(vectors), length), present], dim=1))


FUSIONS: dict[str, type[Fusion]] = {"separate": Separate, "average": Average}


def learned_vectors(rows: int, dim: int, prompts: PromptConfig) -> nn.Embedding:
    """Embedding (rows, dim), initialised to N(0, 0.02) if prompts are normalised, else to LLaMA-Adapter's N(0, 1).

    Not to zero, because a zero vector cannot be normalised.
    """
    vectors = nn.Embedding(rows, dim)
    nn.init.normal_(vectors.weight, std=0.02 if prompts.normalise_prefix else 1.0)
    return vectors
