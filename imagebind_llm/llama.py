"""LLaMA decoder with gated prompt attention: rotary on adjacent pairs, SwiGLU, RMSNorm, grouped queries, tied or not.

Parameter names are Meta's, so that a consolidated checkpoint loads without renaming; gate, biases and LoRA have
LLaMA-Adapter's and ImageBind-LLM's names. The decoder knows nothing of modalities: it is handed prompt vectors.

In each of the top A layers (LLaMA-Adapter, arXiv:2303.16199, section 3):
    out = softmax(q k^T / sqrt K) v + tanh(gate) * softmax(q k_p^T / sqrt K) v_p
Two separate softmaxes, a gate per head that starts at 0; k_p and v_p come from the prompts through the layer's frozen
wk and wv, without rotary, and are seen from every position.

Frozen weights need no gradient, so autograd itself keeps nothing for the layers below the lowest trained one.
Trained parameters may be float32 above bf16 weights: they are cast where they meet the activations.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebind_llm.attention import causal_attention, gated_attention, masked_attention
from imagebind_llm.config import LlamaConfig, PromptConfig, RopeScaling
from imagebind_llm.fused import rms_norm, swiglu

PREFIX_EPS = 1e-6
Device = torch.device | str | None


class ContextError(ValueError):
    """More positions than the model's context has."""


@dataclass(frozen=True)
class Prompts:
    """Prompt vectors of the top A layers: `vectors` (B or 1, A, P, D); `present` (B, P) bool, None if all are there."""

    vectors: Tensor
    present: Tensor | None = None


def check_context(length: int, config: LlamaConfig) -> None:
    """Raises ContextError if `length` positions do not fit."""
    if length > config.max_seq_len:
        raise ContextError(
            f"{length} positions, but the context of this LLaMA is {config.max_seq_len}; "
            "shorten the prompt or ask for fewer new tokens"
        )


class KVCache:
    """Keys and values of up to `capacity` columns, allocated once; the caller makes it, owns it and passes it in.

    `used` columns are filled. `prompt` holds each layer's prompt keys and values, computed once in the first pass.
    """

    def __init__(self, config: LlamaConfig, batch: int, capacity: int, like: Tensor):
        shape = (batch, config.n_kv_heads, capacity, config.dim // config.n_heads)
        self.keys = [like.new_empty(shape) for _ in range(config.n_layers)]
        self.values = [like.new_empty(shape) for _ in range(config.n_layers)]
        self.prompt: list[PromptKV | None] = [None] * config.n_layers
        self.used = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B,KV,T,K) to a layer; returns views of all its columns so far. `used` is moved by the decoder."""
        end = self.used + keys.shape[2]
        self.keys[layer][:, :, self.used : end] = keys
        self.values[layer][:, :, self.used : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def take(self, rows: Tensor) -> None:
        """Keep these rows, in this order (a row may be named several times): drops finished rows, repeats for samples."""
        for i in range(len(self.keys)):
            self.keys[i], self.values[i] = self._taken(self.keys[i], rows), self._taken(self.values[i], rows)
            kv = self.prompt[i]
            self.prompt[i] = kv and kv.take(rows)

    def _taken(self, columns: Tensor, rows: Tensor) -> Tensor:
        taken = columns.new_empty((len(rows), *columns.shape[1:]))
        taken[:, :, : self.used] = columns[rows, :, : self.used]
        return taken


@dataclass(frozen=True)
class PromptKV:
    """Keys and values (B or 1, KV, P, K) of one layer's prompts; keys None for a lone prompt, whose softmax is 1."""

    keys: Tensor | None
    values: Tensor
    present: Tensor | None

    def take(self, rows: Tensor) -> "PromptKV":
        """These rows; a single one serves every row and stays as it is."""
        if self.values.shape[0] == 1:
            return self
        keys, present = (part if part is None else part[rows] for part in (self.keys, self.present))
        return PromptKV(keys, self.values[rows], present)


class Adapted(nn.Module):
    """Frozen linear maps with ImageBind-LLM's optional bias and low-rank term, under its names."""

    def __init__(self, device: Device = None):
        super().__init__()
        self._made_on = device

    def add(self, name: str, n_in: int, n_out: int, lora_rank: int, bias: bool = False) -> None:
        """A map `name` (n_in -> n_out); its LoRA pair starts as the zero map."""
        frozen = nn.Linear(n_in, n_out, bias=False, device=self._made_on)
        if bias:
            frozen.bias = nn.Parameter(torch.zeros(n_out))
        setattr(self, name, frozen)
        if lora_rank:
            setattr(self, f"lora_{name}_l1", nn.Linear(n_in, lora_rank, bias=False))
            setattr(self, f"lora_{name}_l2", nn.Linear(lora_rank, n_out, bias=False))
            nn.init.zeros_(getattr(self, f"lora_{name}_l2").weight)

    def project(self, name: str, x: Tensor) -> Tensor:
        """x through the frozen map, plus its bias, plus l2(l1(x)) (no scaling factor, no dropout)."""
        frozen: nn.Linear = getattr(self, name)
        out = F.linear(x, frozen.weight, None if frozen.bias is None else frozen.bias.to(x.dtype))
        down: nn.Linear | None = getattr(self, f"lora_{name}_l1", None)
        if down is not None:
            up: nn.Linear = getattr(self, f"lora_{name}_l2")
            out = out + F.linear(F.linear(x, down.weight.to(x.dtype)), up.weight.to(x.dtype))
        return out


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, times the weight."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(Adapted):
    """Causal self-attention plus the gated attention to the prompts."""

    wk: nn.Linear
    wv: nn.Linear

    def __init__(self, config: LlamaConfig, prompts: PromptConfig | None, device: Device = None):
        super().__init__(device)
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.dim // config.n_heads
        rank, bias = (prompts.lora_rank, prompts.bias) if prompts else (0, False)
        kv_dim = self.n_kv_heads * self.head_dim
        self.add("wq", config.dim, config.dim, rank, bias)
        self.add("wk", config.dim, kv_dim, rank)
        self.add("wv", config.dim, kv_dim, rank)
        self.add("wo", config.dim, config.dim, rank, bias)
        self.normalise_prefix = bool(prompts and prompts.normalise_prefix)
        if prompts:
            self.gate = nn.Parameter(torch.zeros(1, config.n_heads, 1, 1))

    def prompt_kv(self, prefix: Tensor, present: Tensor | None) -> PromptKV:
        """Keys and values of prompt vectors (B or 1, P, D), by the frozen wk and wv alone."""
        if self.normalise_prefix:
            prefix = F.rms_norm(prefix.float(), prefix.shape[-1:], eps=PREFIX_EPS)
        prefix = prefix.to(self.wk.weight.dtype)
        shape = (*prefix.shape[:2], self.n_kv_heads, self.head_dim)
        values = F.linear(prefix, self.wv.weight).view(shape).transpose(1, 2)  # (B,KV,P,K)
        if prefix.shape[1] == 1 and present is None:
            return PromptKV(None, values, None)
        return PromptKV(F.linear(prefix, self.wk.weight).view(shape).transpose(1, 2), values, present)

    def from_prompts(self, q: Tensor, kv: PromptKV) -> Tensor:
        """What q (B,H,T,K) reads from the prompts, times the gate; (B,H,1,K) if it is the same for every position."""
        if kv.keys is None:
            values = kv.values.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)  # (B,H,1,K)
            return torch.tanh(self.gate).to(q.dtype) * values
        return gated_attention(q, kv.keys, kv.values, self.gate, kv.present)

    def forward(self, x: Tensor, rope: Tensor, prompt_kv: PromptKV | None, past, mask: Tensor | None) -> Tensor:
        """x (B,T,D) normed -> (B,T,D) before wo. `past(k, v)` stores new keys and values and returns all of them."""
        b, t, _ = x.shape
        q = rotate(self.project("wq", x).view(b, t, self.n_heads, self.head_dim), rope)
        k = rotate(self.project("wk", x).view(b, t, self.n_kv_heads, self.head_dim), rope)
        v = self.project("wv", x).view(b, t, self.n_kv_heads, self.head_dim)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B,H,T,K), (B,KV,T,K)
        k, v = past(k, v)
        alone = mask is None and t == k.shape[2]
        out = causal_attention(q, k, v) if alone else self.to_past(q, k, v, mask)  # (B,H,T,K)
        if prompt_kv is not None:
            out = out + self.from_prompts(q, prompt_kv)
        return out.transpose(1, 2).reshape(b, t, -1)  # (B,T,D)

    def to_past(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention to S cached columns; `mask` (B,1,T,S) bool says which, None: all. The group of a key shares its read."""
        b, h, t, width = q.shape
        groups = h // self.n_kv_heads
        q = q.reshape(b, self.n_kv_heads, groups * t, width)  # (B,KV,G*T,K)
        if mask is not None and mask.shape[2] > 1:
            mask = mask.repeat(1, 1, groups, 1)  # (B,1,G*T,S)
        return masked_attention(q, k, v, mask).view(b, h, t, width)  # (B,H,T,K)


class FeedForward(Adapted):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: LlamaConfig, prompts: PromptConfig | None, device: Device = None):
        super().__init__(device)
        rank, bias = (prompts.lora_rank, prompts.bias) if prompts else (0, False)
        self.add("w1", config.dim, config.hidden_dim, rank, bias)
        self.add("w2", config.hidden_dim, config.dim, rank, bias)
        self.add("w3", config.dim, config.hidden_dim, rank, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.project("w2", swiglu(self.project("w1", x), self.project("w3", x)))


class Block(nn.Module):
    """One decoder layer: h = x + attention(norm x); h + feed_forward(norm h)."""

    def __init__(self, config: LlamaConfig, prompts: PromptConfig | None, device: Device = None):
        super().__init__()
        self.attention = Attention(config, prompts, device)
        self.feed_forward = FeedForward(config, prompts, device)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rope, prompt_kv, past, mask, keep: Tensor | None) -> Tensor:
        """`keep` (N,) flat positions b*T+t: only these go through the rest of the block, which returns (N,D)."""
        out = self.attention(self.attention_norm(x), rope, prompt_kv, past, mask)
        if keep is not None:
            x, out = x.flatten(0, 1)[keep], out.flatten(0, 1)[keep]  # (N,D)
        x = x + self.attention.project("wo", out)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """The decoder. With `prompts`, every layer has a gate and the top `adapter_layer` of them read prompt vectors."""

    def __init__(self, config: LlamaConfig, prompts: PromptConfig | None = None, device: Device = None):
        """`device`: where the frozen matrices are made, "meta" if a checkpoint's will be assigned (weights.assign)."""
        super().__init__()
        if prompts and not 0 < prompts.adapter_layer <= config.n_layers:
            raise ValueError(
                f"adapter_layer {prompts.adapter_layer}: this LLaMA has {config.n_layers} layers; "
                f"pass --adapter_layer 1 to {config.n_layers}"
            )
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim, device=device)
        self.layers = nn.ModuleList(Block(config, prompts, device) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied:
            self.output = nn.Linear(config.dim, config.vocab_size, bias=False, device=device)

    @property
    def output_weight(self) -> Tensor:
        """(V, D), the matrix of the head."""
        return self.tok_embeddings.weight if self.config.tied else self.output.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits (..., V) of normed hidden states (..., D)."""
        return F.linear(hidden, self.output_weight).float()

    def forward(
        self,
        tokens: Tensor,
        prompts: Prompts | None = None,
        *,
        keep: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Normed hidden states (B,T,D) of tokens (B,T), or (N,D) at the flat positions `keep` (b*T+t).

        Without `positions` and `mask`: causal, from position 0; rows are padded on the right. After columns that a cache
        already holds, give each token's `positions` (B,T) and the `mask` (B,1,T,S) bool of the columns it may see (None:
        all, for T = 1). Prompts are read in the first pass into a cache and come from the cache afterwards.
        """
        if positions is None:
            check_context(tokens.shape[1], self.config)
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1,T)
        rope = rope_table(positions, self.config)
        x = self.tok_embeddings(tokens)
        for i, layer in enumerate(self.layers):
            past = _no_past if cache is None else _Past(cache, i)
            kv = self._prompt_kv(i, prompts, cache)
            x = layer(x, rope, kv, past, mask, keep if i == self.config.n_layers - 1 else None)
        if cache is not None:
            cache.used += tokens.shape[1]
        return self.norm(x)

    def _prompt_kv(self, i: int, prompts: Prompts | None, cache: KVCache | None) -> PromptKV | None:
        if cache is not None and cache.used:
            return cache.prompt[i]
        if prompts is None or i < self.config.n_layers - prompts.vectors.shape[1]:
            return None
        slot = i - (self.config.n_layers - prompts.vectors.shape[1])
        attention: Attention = self.layers[i].attention  # type: ignore[assignment, union-attr]
        kv = attention.prompt_kv(prompts.vectors[:, slot], prompts.present)
        if cache is not None:
            cache.prompt[i] = kv
        return kv


def _no_past(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return keys, values


class _Past:
    """One layer's view of the cache."""

    def __init__(self, cache: KVCache, layer: int):
        self.cache, self.layer = cache, layer

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.write(self.layer, keys, values)


def rope_table(positions: Tensor, config: LlamaConfig) -> Tensor:
    """e^(i * position * frequency), complex64 (B or 1, T, 1, K/2); frequency j is theta^(-2j/K), stretched if so set."""
    width = config.dim // config.n_heads
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    frequencies = config.rope_theta**-exponents  # (K/2,)
    if config.rope_scaling:
        frequencies = _stretched(frequencies, config.rope_scaling)
    angles = positions[..., None, None].float() * frequencies  # (B,T,1,K/2)
    return torch.polar(torch.ones_like(angles), angles)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """LLaMA-3.1's rule: slow frequencies are divided by `factor`, fast ones kept, those in between mixed linearly."""
    turns = scaling.original_max_seq_len * frequencies / (2 * torch.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn the adjacent pairs (2i, 2i+1) of x (B,T,H,K) by the table's angles, in float32, cast back."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B,T,H,K/2)
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)  # (B,T,H,K)
