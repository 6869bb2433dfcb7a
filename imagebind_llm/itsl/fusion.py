"""How several modalities of a clip reach the prompts. A new way is one class and one line in FUSIONS.

    average   prompts of layer j = learned_j (P,D)  +  carry(weighted mean of the embeddings) (D)          ImageBind-LLM
    separate  prompts of layer j = learned_j (P,D)  beside  carry(e_m) * (1 + scale_jm) + query_jm (M,D)   ours
`carry` is the bridge. Kept apart, each modality has a prompt vector of its own in every prompted layer, so the heads can read
face and voice separately and weigh them by content; one bridge carries them all, so `query_jm` tells a layer which modality it
is looking at, and `scale_jm` what of it this layer looks at (FiLM, arXiv:1709.07871). The vector of an absent modality is
masked out of the softmax, which leaves exactly what the others give.
"""

import torch
from torch import Tensor, nn

from imagebind_llm.config import MODALITIES, PromptConfig
from imagebind_llm.itsl.bridge import Bridge
from imagebind_llm.llama.decoder import Prompts


class Fusion(nn.Module):
    """A clip's modalities -> `n_slots` vectors of the decoder's width -> prompts. A subclass implements the three methods."""

    n_slots: int

    def __init__(self, prompts: PromptConfig, dim: int):
        """`prompts`: how many layers read prompts; `dim`: the decoder's width."""
        super().__init__()

    def carry(self, embeddings: Tensor, weights: Tensor, bridge: Bridge) -> Tensor:
        """Embeddings (B,M,E), of unit length or zero where absent, and how much each counts (B,M), 0 for an absent one ->
        vectors (B,n_slots,D)."""
        raise NotImplementedError

    def present_slots(self, present: Tensor) -> Tensor:
        """Which slots hold something, (B,n_slots) bool, given which modalities are there, (B,M) bool."""
        raise NotImplementedError

    def prompts(self, learned: Tensor, carried: Tensor, present: Tensor) -> Prompts:
        """Prompts of learned vectors (1,A,P,D) and a batch's carried ones (B,n_slots,D), `present` (B,M) bool."""
        raise NotImplementedError


class Average(Fusion):
    """One vector a clip, the weighted mean of its modalities, added to every learned prompt (ImageBind-LLM)."""

    n_slots = 1

    def carry(self, embeddings: Tensor, weights: Tensor, bridge: Bridge) -> Tensor:
        """(B,1,D), zeros for a row with nothing present."""
        shares = weights.float() / (weights.float().sum(1, keepdim=True) + 1e-6)
        mean = (shares[..., None] * embeddings).sum(1, keepdim=True)  # (B,1,E), ImageBind-LLM does not normalise it again
        return torch.where(self.present_slots(weights > 0)[..., None], bridge(mean), 0.0)

    def present_slots(self, present: Tensor) -> Tensor:
        return present.any(1, keepdim=True)

    def prompts(self, learned: Tensor, carried: Tensor, present: Tensor) -> Prompts:
        return Prompts(learned + carried[:, None])  # (B,A,P,D)


class Separate(Fusion):
    """A prompt of its own for each modality beside the learned ones."""

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
    """Small random vectors, next to the bridge's output, if prompts are normalised; else LLaMA-Adapter's N(0,1).

    Never zero: an exact zero has no direction for a normalisation to keep.
    """
    vectors = nn.Embedding(rows, dim)
    nn.init.normal_(vectors.weight, std=0.02 if prompts.normalise_prefix else 1.0)
    return vectors
