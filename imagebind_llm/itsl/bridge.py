"""From ImageBind space (E) to the LLaMA width (D): a linear map and three gated residual blocks (ImageBind-LLM).

    x = proj(e);  three times: x = x + f2(silu(f1(norm x)) * f3(norm x))        (arXiv:2309.03905, section 3.2)
Parameter names are ImageBind-LLM's. `fusion` says what happens to several modalities: "average" mixes the embeddings
first, as ImageBind-LLM does, into one vector; "separate" carries each one over on its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebind_llm.config import BridgeConfig
from imagebind_llm.llama.decoder import RMSNorm

N_BLOCKS = 3
RMS_EPS = 1e-6  # whatever the decoder's own eps is


class Bridge(nn.Module):
    """Embeddings of the modalities -> vectors of the decoder's width."""

    def __init__(self, config: BridgeConfig, dim: int):
        super().__init__()
        if config.fusion not in ("average", "separate"):
            raise ValueError(f"fusion {config.fusion!r}: expected 'average' or 'separate'")
        self.fusion = config.fusion
        self.image_bind_proj = nn.Linear(config.embedding_width, dim)
        for i in range(1, N_BLOCKS + 1):
            norm = nn.LayerNorm(dim) if config.legacy else RMSNorm(dim, RMS_EPS)
            setattr(self, f"image_bind_norm_{i}", norm)
            setattr(self, f"image_bind_f1_{i}", nn.Linear(dim, config.hidden_dim, bias=config.legacy))
            setattr(self, f"image_bind_f2_{i}", nn.Linear(config.hidden_dim, dim, bias=config.legacy))
            setattr(self, f"image_bind_f3_{i}", nn.Linear(dim, config.hidden_dim, bias=config.legacy))

    def forward(self, embeddings: Tensor, weights: Tensor) -> Tensor:
        """(B,M,E) of any length, and how much each counts: (B,M), bool or >= 0, 0 for an absent one.

        Returns (B,1,D) if averaged (zeros for a row with nothing present), (B,M,D) if kept apart. What stands in an
        absent slot is never looked at, be it NaN.
        """
        present = (weights > 0)[..., None]  # (B,M,1)
        x = F.normalize(torch.where(present, embeddings, 0.0).float(), dim=-1)  # float32 until `carry`, whatever comes in
        if self.fusion == "separate":
            return self.carry(x)
        shares = weights.float() / (weights.float().sum(1, keepdim=True) + 1e-6)
        mean = (shares[..., None] * x).sum(1, keepdim=True)  # (B,1,E), ImageBind-LLM does not normalise it again
        return torch.where(present.any(1, keepdim=True), self.carry(mean), 0.0)  # (B,1,D)

    def carry(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., D)."""
        x = self.image_bind_proj(x.to(self.image_bind_proj.weight.dtype))
        for i in range(1, N_BLOCKS + 1):
            norm, f1, f2, f3 = (getattr(self, f"image_bind_{name}_{i}") for name in ("norm", "f1", "f2", "f3"))
            y = norm(x)
            x = x + f2(F.silu(f1(y)) * f3(y))
        return x
