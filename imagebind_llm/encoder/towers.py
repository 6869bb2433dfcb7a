"""ImageBind: six frozen transformer towers into one embedding space, with the public checkpoint's parameter names.

Written from the description of its behaviour (ImageBind, CVPR 2023, arXiv:2305.05665; our own notes on layouts). What
differs from the public program is only how the same numbers are reached: attention goes through
scaled_dot_product_attention without a mask tensor, matrix products on the CPU through oneDNN, patches through one of
them (cuDNN would round their convolution to TF32), the text tower stops at the last position that matters, and equal
windows of a clip are encoded once (`encode_clips`, which equals `forward` on the full schedule up to rounding).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebind_llm.config import ImageBindConfig, TowerConfig
from imagebind_llm.encoder.interface import Encoder
from imagebind_llm.kernels.linear import linear

LN_EPS = 1e-6  # trunk and heads; the stems' LayerNorms keep torch's default 1e-5
MAX_SCALE = 100.0


class Attention(nn.Module):
    """Multi-head self-attention with packed q, k, v; optionally one learned extra key and value at the end (bias_kv)."""

    def __init__(self, width: int, n_heads: int, bias_kv: bool):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.bias_k = nn.Parameter(torch.zeros(1, 1, width)) if bias_kv else None
        self.bias_v = nn.Parameter(torch.zeros(1, 1, width)) if bias_kv else None
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """x (B,T,D) -> (B,T,D)."""
        q, k, v = linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), 1, -1)], dim=1)  # (B,T+1,D)
            v = torch.cat([v, self.bias_v.expand(len(v), 1, -1)], dim=1)  # (B,T+1,D)
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B,H,T,K)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (B,H,T,K)
        return linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)  # (B,T,D)


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(linear(x, self.fc1.weight, self.fc1.bias))  # (B,T,4D)
        return linear(hidden, self.fc2.weight, self.fc2.bias)  # (B,T,D)


class Block(nn.Module):
    """Pre-LN transformer block; `drop_path` is the chance that a sample skips a branch while training."""

    def __init__(self, tower: TowerConfig, drop_path: float):
        super().__init__()
        self.attn = Attention(tower.width, tower.n_heads, tower.bias_kv)
        self.norm_1 = nn.LayerNorm(tower.width, eps=LN_EPS)
        self.mlp = MLP(tower.width)
        self.norm_2 = nn.LayerNorm(tower.width, eps=LN_EPS)
        self.drop_path = drop_path

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self._keep(self.attn(self.norm_1(x), causal))
        return x + self._keep(self.mlp(self.norm_2(x)))

    def _keep(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class Trunk(nn.Module):
    def __init__(self, tower: TowerConfig):
        super().__init__()
        rates = [tower.drop_path * i / max(tower.n_blocks - 1, 1) for i in range(tower.n_blocks)]
        norms = [nn.LayerNorm(tower.width, eps=LN_EPS)] if tower.pre_norm else []
        self.pre_transformer_layer = nn.Sequential(*norms)
        self.blocks = nn.ModuleList(Block(tower, rate) for rate in rates)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = self.pre_transformer_layer(x)
        for block in self.blocks:
            x = block(x, causal)
        return x


# --- Stems: input -> tokens (B,T,D), cls first, positions added --------------------------------------------------------


class PositionTable(nn.Module):
    """Learned positions of cls and patches; a larger square picture gets them by bicubic interpolation."""

    def __init__(self, n_patches: int, width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + n_patches, width))

    def forward(self, n_patches: int) -> Tensor:
        """(1, 1 + n_patches, D). Raises ValueError for a larger picture that is not square."""
        n_learned = self.pos_embed.shape[1] - 1
        if n_patches == n_learned:
            return self.pos_embed
        side, new_side = math.isqrt(n_learned), math.isqrt(n_patches)
        if side**2 != n_learned or new_side**2 != n_patches:
            raise ValueError(f"positions of square pictures only: {n_learned} patches known, {n_patches} asked for")
        cls, patches = self.pos_embed.float().split([1, n_learned], dim=1)
        grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1,D,side,side)
        grid = F.interpolate(grid, scale_factor=math.sqrt(n_patches / n_learned), mode="bicubic")
        return torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1).to(self.pos_embed.dtype)  # (1,1+n,D)


class PatchProjection(nn.Module):
    """A convolution over patches without bias, and its LayerNorm; the projection's name differs between towers."""

    def __init__(self, projection: nn.Module, width: int | None):
        super().__init__()
        self.proj = projection
        if width is not None:
            self.norm_layer = nn.LayerNorm(width)


class PictureStem(nn.Module):
    """One-channel pictures (audio mel, depth, thermal): overlapping patches, row-major, projected, then LayerNorm."""

    def __init__(self, tower: TowerConfig, stem: str):
        super().__init__()
        (rows, columns), (down, across) = self.kernel, self.stride = tower.kernel, tower.stride
        grid = [(size - k) // s + 1 for size, k, s in zip(tower.input_size, tower.kernel, tower.stride, strict=True)]
        self.stem = stem
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, tower.width))
        convolution = nn.Conv2d(1, tower.width, (rows, columns), (down, across), bias=False)
        setattr(self, stem, PatchProjection(convolution, tower.width))
        self.pos_embedding_helper = PositionTable(math.prod(grid), tower.width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,1,rows,columns) -> (B,1+patches,D)."""
        patches = getattr(self, self.stem)
        cut = F.unfold(x, self.kernel, stride=self.stride).transpose(1, 2)  # (B,patches,rows*columns)
        tokens = patches.norm_layer(linear(cut, patches.proj.weight.flatten(1)))  # (B,patches,D)
        return _with_cls(self.cls_token, tokens) + self.pos_embedding_helper(tokens.shape[1])


class VisionStem(nn.Module):
    """Two RGB frames cut in space-time patches; a still picture counts as the same frame twice."""

    def __init__(self, tower: TowerConfig):
        super().__init__()
        frames, self.rows, self.columns = tower.kernel  # the stride is the same, so patches are cut, not overlapped
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, tower.width))
        convolution = nn.Conv3d(3, tower.width, (frames, self.rows, self.columns), bias=False)
        self.rgbt_stem = PatchProjection(nn.Sequential(nn.Identity(), convolution), None)
        n_patches = math.prod(size // k for size, k in zip(tower.input_size, tower.kernel, strict=True))
        self.pos_embedding_helper = PositionTable(n_patches, tower.width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,3,H,W) or (B,3,2,H,W) -> (B,1+patches,D)."""
        if x.ndim == 4:
            x = x.unsqueeze(2).expand(-1, -1, 2, -1, -1)  # (B,3,2,H,W)
        x = x.unflatten(4, (-1, self.columns)).unflatten(3, (-1, self.rows))  # (B,3,2,h,rows,w,columns)
        x = x.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)  # (B,h*w,3*2*rows*columns)
        tokens = linear(x, self.rgbt_stem.proj.get_parameter("1.weight").flatten(1))  # (B,h*w,D)
        return _with_cls(self.cls_token, tokens) + self.pos_embedding_helper(tokens.shape[1])


class TextStem(nn.Module):
    def __init__(self, tower: TowerConfig, vocab_size: int):
        super().__init__()
        (length,) = tower.input_size
        self.pos_embed = nn.Parameter(0.01 * torch.randn(1, length, tower.width))
        self.token_embedding = nn.Embedding(vocab_size, tower.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        # part of the public checkpoint; attention uses is_causal, which is the same mask
        self.register_buffer("mask", torch.full((length, length), -math.inf).triu(1))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B,T) -> (B,T,D), T up to the context length."""
        return self.token_embedding(ids) + self.pos_embed[:, : ids.shape[1]]


class IMUStem(nn.Module):
    def __init__(self, tower: TowerConfig):
        super().__init__()
        (self.window,) = tower.kernel
        channels, samples = tower.input_size
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + samples // self.window, tower.width))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, tower.width))
        self.imu_stem = PatchProjection(nn.Linear(channels * self.window, tower.width, bias=False), tower.width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,6,samples) -> (B,1+samples/8,D)."""
        windows = x.unfold(-1, self.window, self.window).transpose(1, 2).flatten(2)  # (B,samples/8,6*8)
        tokens = self.imu_stem.norm_layer(self.imu_stem.proj(windows))
        return _with_cls(self.cls_token, tokens) + self.pos_embed


def _with_cls(cls: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([cls.expand(len(tokens), 1, -1), tokens], dim=1)  # (B,1+patches,D)


# --- Heads and scales ---------------------------------------------------------------------------------------------------


class FirstToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]  # (B,D)


class TextHead(nn.Module):
    """Reads the end-of-text position, which holds the largest token id."""

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=LN_EPS), nn.Linear(width, out_width, bias=False))

    def forward(self, x: Tensor, end: Tensor) -> Tensor:
        return self.proj(x[torch.arange(len(x), device=x.device), end])  # (B,E)


class Scale(nn.Module):
    """min(exp(log_logit_scale), 100), trained for text and constant elsewhere."""

    def __init__(self, factor: float, learnable: bool):
        super().__init__()
        value = torch.tensor(math.log(factor))
        if learnable:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_logit_scale.float().exp().clamp(max=MAX_SCALE)


class Normalise(nn.Module):
    """L2 normalisation in float32, whatever the weights' type."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=-1)


def _stem(name: str, tower: TowerConfig, vocab_size: int) -> nn.Module:
    if name == "vision":
        return VisionStem(tower)
    if name == "text":
        return TextStem(tower, vocab_size)
    if name == "imu":
        return IMUStem(tower)
    return PictureStem(tower, "depth_stem" if name == "depth" else "rgbt_stem")


def _head(name: str, tower: TowerConfig, out_width: int) -> nn.Module:
    if name == "text":
        return TextHead(tower.width, out_width)
    dropout = [nn.Dropout(tower.head_dropout)] if tower.head_dropout else []
    projection = nn.Linear(tower.width, out_width, bias=False)
    return nn.Sequential(nn.LayerNorm(tower.width, eps=LN_EPS), FirstToken(), *dropout, projection)


class ImageBind(Encoder):
    """The towers named in the configuration; each maps its inputs to vectors of `out_width` (E).

    Outputs are float32, L2-normalised, times the modality's scale (text learned, audio 20, depth 5, thermal 10, imu 5,
    vision none): the public model's own output vector.
    """

    def __init__(self, config: ImageBindConfig):
        super().__init__()
        self.config = config
        towers = config.towers
        self.modality_preprocessors = nn.ModuleDict({n: _stem(n, t, config.vocab_size) for n, t in towers.items()})
        self.modality_trunks = nn.ModuleDict({n: Trunk(t) for n, t in towers.items()})
        self.modality_heads = nn.ModuleDict({n: _head(n, t, config.out_width) for n, t in towers.items()})
        self.modality_postprocessors = nn.ModuleDict(
            {
                n: nn.Sequential(Normalise(), *([Scale(t.logit_scale, t.learnable_scale)] if t.logit_scale else []))
                for n, t in towers.items()
            }
        )

    def encode(self, modality: str, x: Tensor) -> Tensor:
        """One vector per window: vision (n,3,2,224,224) or (n,3,224,224), audio (n,1,128,204), text ids (n,77) -> (n,E)."""
        x = x.to(self.device) if modality == "text" else x.to(self.device, self.dtype)
        if modality != "text":
            hidden = self.modality_trunks[modality](self.modality_preprocessors[modality](x), causal=False)
            return self.modality_postprocessors[modality](self.modality_heads[modality](hidden))
        end = x.argmax(dim=-1)  # (n,); causal: nothing after the last end can matter
        tokens = self.modality_preprocessors["text"](x[:, : int(end.max()) + 1])
        hidden = self.modality_trunks["text"](tokens, causal=True)
        return self.modality_postprocessors["text"](self.modality_heads["text"](hidden, end))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: (B,...)} or, with several windows a clip, {name: (B,N,...)} -> {name: (B,E)}.

        Five or more dimensions are read as (B,N,...), as the public model does; the N vectors are averaged and not
        normalised again. So stills are (B,3,H,W), clips (B,N,3,2,H,W), sounds (B,N,1,128,204).
        """
        outputs = {}
        for name, x in inputs.items():
            if x.ndim < 5:
                outputs[name] = self.encode(name, x)
            else:
                outputs[name] = self.encode(name, x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)  # (B,E)
        return outputs
