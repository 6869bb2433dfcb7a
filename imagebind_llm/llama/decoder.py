"""LLaMA decoder with gated prompt attention: rotary embeddings on adjacent pairs, SwiGLU, RMSNorm, grouped-query attention.

Parameter names are Meta's, so that a consolidated checkpoint loads without renaming; gates and biases have LLaMA-Adapter's and
ImageBind-LLM's names, and so have LoRA matrices in files. The decoder does not depend on modalities: it takes prompt vectors.

In each of the top A layers (LLaMA-Adapter, arXiv:2303.16199, section 3):
    out = softmax(q k^T / sqrt K) v + tanh(gate) * softmax(q k_p^T / sqrt K) v_p
Two separate softmaxes, and a gate per head that starts at 0; k_p and v_p are the prompts times the layer's frozen wk and wv,
without rotary embeddings; every position attends to them.

Frozen weights need no gradient, so autograd keeps no activations for the layers below the lowest trained one.
Trained parameters may be float32 while the frozen weights are bfloat16: they are cast to the dtype of the activations.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as compute_again

from imagebind_llm.config import LlamaConfig, PromptConfig
from imagebind_llm.kernels.attention import other_segments
from imagebind_llm.kernels.fused import rms_norm, swiglu
from imagebind_llm.kernels.linear import linear
from imagebind_llm.llama.cache import KVCache, Past, PromptKV
from imagebind_llm.llama.rotary import Rope, rope_table, rotate

PREFIX_EPS = 1e-6
Device = torch.device | str | None


class ContextError(ValueError):
    """More positions than the model's context has."""


@dataclass(frozen=True)
class Prompts:
    """Prompt vectors of the top A layers: `vectors` (B or 1, A, P, D); `present` (B, P) bool, None if all are present."""

    vectors: Tensor
    present: Tensor | None = None


def check_context(length: int, config: LlamaConfig) -> None:
    """Raise ContextError if `length` positions are more than the model's context has."""
    if length > config.max_seq_len:
        raise ContextError(
            f"{length} positions, but the context of this LLaMA is {config.max_seq_len}; "
            "shorten the prompt or ask for fewer new tokens"
        )


def lowest_adapted(config: LlamaConfig, prompts: PromptConfig | None) -> int:
    """Index of the lowest layer that has LoRA and biases, if `prompts` has any."""
    return config.n_layers - prompts.lora_layers if prompts and prompts.lora_layers is not None else 0


class LoRALinear(nn.Linear):
    """A frozen linear map with an optional trained bias and an optional low-rank term: x W^T + bias + up(down(x)).

    LoRA (arXiv:2106.09685) as in ImageBind-LLM: no scaling factor, no dropout; `lora_up` is initialised to zero. `rank` 0: no
    low-rank term.
    """

    def __init__(self, n_in: int, n_out: int, rank: int = 0, bias: bool = False, device: Device = None):
        super().__init__(n_in, n_out, bias=False, device=device)
        if bias:
            self.bias = nn.Parameter(torch.zeros(n_out))
        self.lora_down = nn.Linear(n_in, rank, bias=False) if rank else None
        self.lora_up = nn.Linear(rank, n_out, bias=False) if rank else None
        if self.lora_up is not None:
            nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        out = linear(x, self.weight, None if self.bias is None else self.bias.to(x.dtype))
        if self.lora_down is None or self.lora_up is None:
            return out
        return out + F.linear(F.linear(x, self.lora_down.weight.to(x.dtype)), self.lora_up.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) in float32, cast back, times the weight."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention plus the gated attention to the prompts."""

    def __init__(self, config: LlamaConfig, prompts: PromptConfig | None, device: Device = None):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.dim // config.n_heads
        rank, bias = (prompts.lora_rank, prompts.bias) if prompts else (0, False)
        kv_dim = self.n_kv_heads * self.head_dim
        self.wq = LoRALinear(config.dim, config.dim, rank, bias, device)
        self.wk = LoRALinear(config.dim, kv_dim, rank, device=device)
        self.wv = LoRALinear(config.dim, kv_dim, rank, device=device)
        self.wo = LoRALinear(config.dim, config.dim, rank, bias, device)
        self.normalise_prefix = bool(prompts and prompts.normalise_prefix)
        if prompts:
            self.gate = nn.Parameter(torch.zeros(1, config.n_heads, 1, 1))

    def prompt_kv(self, prefix: Tensor, present: Tensor | None) -> PromptKV:
        """Keys and values of prompt vectors `prefix` (B or 1, P, D), by the frozen wk and wv without LoRA."""
        if self.normalise_prefix:
            prefix = F.rms_norm(prefix.float(), prefix.shape[-1:], eps=PREFIX_EPS)
        prefix = prefix.to(self.wk.weight.dtype)
        shape = (*prefix.shape[:2], self.n_kv_heads, self.head_dim)
        values = linear(prefix, self.wv.weight).view(shape).transpose(1, 2)  # (B,KV,P,K)
        gate = torch.tanh(self.gate).to(prefix.dtype)
        if prefix.shape[1] == 1 and present is None:
            return PromptKV(None, values.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1), gate, None)
        keys = linear(prefix, self.wk.weight).view(shape).transpose(1, 2)  # (B,KV,P,K)
        return PromptKV(keys, values, gate, None if present is None else ~present)

    def forward(self, x: Tensor, rope: "Rope", prompt_kv: PromptKV | None, past: "Past") -> Tensor:
        """Normed x (B,T,D) -> (B,T,D), to which the caller applies wo."""
        b, t, _ = x.shape
        q = rotate(self.wq(x).view(b, t, self.n_heads, self.head_dim), rope.q)
        k = rotate(self.wk(x).view(b, t, self.n_kv_heads, self.head_dim), rope.k)
        v = self.wv(x).view(b, t, self.n_kv_heads, self.head_dim)
        out = past.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B,H,T,K)
        if prompt_kv is not None:
            out = out + prompt_kv.read(q.transpose(1, 2))
        return out.transpose(1, 2).reshape(b, t, -1)  # (B,T,D)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: LlamaConfig, prompts: PromptConfig | None, device: Device = None):
        super().__init__()
        rank, bias = (prompts.lora_rank, prompts.bias) if prompts else (0, False)
        self.w1 = LoRALinear(config.dim, config.hidden_dim, rank, bias, device)
        self.w2 = LoRALinear(config.hidden_dim, config.dim, rank, bias, device)
        self.w3 = LoRALinear(config.dim, config.hidden_dim, rank, bias, device)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(swiglu(self.w1(x), self.w3(x)))


class Block(nn.Module):
    """One decoder layer: h = x + attention(norm x); h + feed_forward(norm h)."""

    def __init__(self, config: LlamaConfig, prompts: PromptConfig | None, device: Device = None):
        super().__init__()
        self.attention = Attention(config, prompts, device)
        self.feed_forward = FeedForward(config, prompts, device)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rope: "Rope", prompt_kv: PromptKV | None, past: "Past", keep: Tensor | None) -> Tensor:
        """x (B,T,D) -> (B,T,D); with `keep` (N,), flat positions b*T+t, only these rows after attention, (N,D)."""
        out = self.attention(self.attention_norm(x), rope, prompt_kv, past)
        if keep is not None:
            x, out = x.flatten(0, 1)[keep], out.flatten(0, 1)[keep]  # (N,D)
        x = x + self.attention.wo(out)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """The decoder. With `prompts`, every layer has a gate and the top `adapter_layer` of them read prompt vectors.

    A decoder that differs within a layer is a subclass with another `block`, and a line in registry.py.
    """

    block: type[Block] = Block
    huggingface = "LlamaForCausalLM"  # its class in transformers, as config.json names it

    @staticmethod
    def more_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        """What the files have of each layer beyond LLaMA's weights: parameter, such as "attention.wq.bias" -> shape."""
        return {}

    def __init__(self, config: LlamaConfig, prompts: PromptConfig | None = None, device: Device = None):
        """`device`: where the frozen matrices are allocated; "meta" if they will be assigned from a checkpoint."""
        super().__init__()
        if prompts and not 0 < prompts.adapter_layer <= config.n_layers:
            raise ValueError(
                f"adapter_layer {prompts.adapter_layer}: this LLaMA has {config.n_layers} layers; "
                f"pass --adapter_layer 1 to {config.n_layers}"
            )
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim, device=device)
        plain = prompts and replace(prompts, lora_rank=0, bias=False)
        lowest = lowest_adapted(config, prompts)
        self.lowest = min(lowest, config.n_layers - prompts.adapter_layer) if prompts else 0  # layers below are never trained
        self.layers = nn.ModuleList(
            self.block(config, prompts if i >= lowest else plain, device) for i in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied:
            self.output = nn.Linear(config.dim, config.vocab_size, bias=False, device=device)

    @property
    def output_weight(self) -> Tensor:
        """The output matrix (V, D)."""
        return self.tok_embeddings.weight if self.config.tied else self.output.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits (..., V) of normed hidden states (..., D)."""
        return linear(hidden, self.output_weight).float()

    def forward(
        self,
        tokens: Tensor,
        prompts: Prompts | None = None,
        *,
        keep: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        checkpoint: bool = False,
        below: Tensor | None = None,
    ) -> Tensor:
        """Normed hidden states (B,T,D) of tokens (B,T), or (N,D) at the positions `keep`.

        By default attention is causal from position 0, and rows are padded on the right.

        Args:
            prompts: prompt vectors of the top layers. With a cache they are read in its first pass only.
            keep: (N,) flat positions b*T+t whose states are returned.
            cache: keys and values of earlier columns, to which this call appends; once it holds some, give `positions`.
            positions: (B,T) position of each token.
            mask: (B,1,T,S) bool, the columns that each token attends to; None: all up to its own.
            segments: (B,T) a token attends to earlier tokens of segment 0 and of its own; with `positions`, without a cache.
            checkpoint: keep only the layers' inputs, and recompute the rest in the backward pass.
            below: (B,T,D) the result of `lower` for these tokens, so that only the layers above are computed.
        """
        rope, hidden = self._rope_and_hidden(tokens, positions, segments)
        x = self.tok_embeddings(tokens) if below is None else below
        bias = cache.bias(tokens.shape[1], mask, like=x) if cache is not None and cache.used else None
        for i in range(0 if below is None else self.lowest, self.config.n_layers):
            layer, kv = self.layers[i], self._prompt_kv(i, prompts, cache)
            inputs = (x, rope, kv, Past(cache, i, bias, hidden), keep if i == self.config.n_layers - 1 else None)
            x = compute_again(layer, *inputs, use_reentrant=False) if checkpoint else layer(*inputs)
        if cache is not None:
            cache.used += tokens.shape[1]
        return self.norm(x)

    def lower(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Input (B,T,D) of the lowest layer that has prompts, LoRA or biases. It does not change in training.

        tokens, positions, segments: as in `forward`.
        """
        rope, hidden = self._rope_and_hidden(tokens, positions, segments)
        x = self.tok_embeddings(tokens)
        for i in range(self.lowest):
            x = self.layers[i](x, rope, None, Past(None, i, None, hidden), None)
        return x

    def _rope_and_hidden(self, tokens: Tensor, positions: Tensor | None, segments: Tensor | None) -> tuple[Rope, Tensor | None]:
        """The rotary tables of a pass, and what its tokens do not see of each other (B,T,T), None if just what follows."""
        if positions is None:
            check_context(tokens.shape[1], self.config)
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1,T)
        table = rope_table(positions, self.config)
        rope = Rope(table * (self.config.dim // self.config.n_heads) ** -0.5, table)
        return rope, None if segments is None else other_segments(segments)

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
