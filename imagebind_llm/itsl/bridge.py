"""From the encoder's space (E) to the LLaMA width (D): a linear map and three gated residual blocks (ImageBind-LLM).

    x = proj(e);  three times: x = x + f2(silu(f1(norm x)) * f3(norm x))        (arXiv:2309.03905, section 3.2)
Parameter names are ImageBind-LLM's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebind_llm.config import BridgeConfig
from imagebind_llm.llama.decoder import RMSNorm

N_BLOCKS = 3
RMS_EPS = 1e-6  # independent of the decoder's norm_eps


class Bridge(nn.Module):
    """Projects vectors from the encoder's width E to the decoder's width D = `dim`."""

    def __init__(self, config: BridgeConfig, dim: int):
        super().__init__()
        self.image_bind_proj = nn.Linear(config.embedding_width, dim)
        for i in range(1, N_BLOCKS + 1):
            norm = nn.LayerNorm(dim) if config.legacy else RMSNorm(dim, RMS_EPS)
            setattr(self, f"image_bind_norm_{i}", norm)
            setattr(self, f"image_bind_f1_{i}", nn.Linear(dim, config.hidden_dim, bias=config.legacy))
            setattr(self, f"image_bind_f2_{i}", nn.Linear(config.hidden_dim, dim, bias=config.legacy))
            setattr(self, f"image_bind_f3_{i}", nn.Linear(dim, config.hidden_dim, bias=config.legacy))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., E) -> (..., D)."""
        x = self.image_bind_proj(x.to(self.image_bind_proj.weight.dtype))
        for i in range(1, N_BLOCKS + 1):
            norm, f1, f2, f3 = (getattr(self, f"image_bind_{name}_{i}") for name in ("norm", "f1", "f2", "f3"))
            y = norm(x)
            x = x + f2(F.silu(f1(y)) * f3(y))
        return x


def unit_length(embeddings: Tensor, present: Tensor) -> Tensor:
    """Embeddings (B,M,E) in float32, scaled to norm 1; zeros where `present` (B,M) is false, even if the input is NaN there."""
    return F.normalize(torch.where(present[..., None], embeddings, 0.0).float(), dim=-1)
