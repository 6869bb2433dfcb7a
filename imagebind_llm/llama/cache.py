"""Key-value cache: keys and values of earlier positions and of prompts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imagebind_llm.config import LlamaConfig
from imagebind_llm.kernels.attention import cached_attention, causal_attention, gated_attention


class KVCache:
    """Keys and values of at least `capacity` columns, allocated once. The caller creates it and passes it to the decoder.

    `used` columns are filled. `prompt` holds each layer's prompt keys and values, computed in the first pass. Reads have a
    multiple of SPAN columns, the additional ones masked and zero, because a CPU kernel is compiled for every new shape.
    """

    SPAN = 32

    def __init__(self, config: LlamaConfig, batch: int, capacity: int, like: Tensor):
        shape = (batch, config.n_kv_heads, self._span(capacity), config.dim // config.n_heads)
        self.keys = [like.new_zeros(shape) for _ in range(config.n_layers)]
        self.values = [like.new_zeros(shape) for _ in range(config.n_layers)]
        self.prompt: list[PromptKV | None] = [None] * config.n_layers
        self.used = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B,KV,T,K) to a layer; returns views of all its columns, for use with `bias`. The decoder
        increases `used`."""
        end = self.used + keys.shape[2]
        self.keys[layer][:, :, self.used : end] = keys
        self.values[layer][:, :, self.used : end] = values
        return self.keys[layer][:, :, : self._span(end)], self.values[layer][:, :, : self._span(end)]

    def bias(self, new: int, mask: Tensor | None, like: Tensor) -> Tensor:
        """(B or 1,1,1,T,S) to add to the scores of T = `new` positions: 0 where `mask` (B,1,T,used+T) is true, else -inf.

        Without a mask each new position sees all columns up to its own.
        """
        if mask is None:
            mask = torch.ones(1, 1, new, self.used + new, dtype=torch.bool, device=like.device).tril(self.used)
        bias = like.new_full((len(mask), 1, 1, new, self._span(self.used + new)), -torch.inf)
        bias[..., : mask.shape[-1]].masked_fill_(mask[:, :, None], 0.0)
        return bias

    def take(self, rows: Tensor) -> None:
        """Keep these rows, in this order (a row may be named several times): drops finished rows, repeats for samples."""
        for i in range(len(self.keys)):
            self.keys[i], self.values[i] = self.keys[i][rows], self.values[i][rows]
            kv = self.prompt[i]
            self.prompt[i] = kv and kv.take(rows)

    def _span(self, columns: int) -> int:
        return -(-columns // self.SPAN) * self.SPAN


@dataclass(frozen=True)
class PromptKV:
    """One layer's prompts as keys and values (B or 1,KV,P,K), the gate (1,H,1,1), and which are absent (B,P) or None.

    A lone prompt has no keys, since a softmax over one key is 1; its values are (B or 1,H,1,K).
    """

    keys: Tensor | None
    values: Tensor
    gate: Tensor
    absent: Tensor | None

    def take(self, rows: Tensor) -> "PromptKV":
        """These rows; a single one serves every row and stays as it is."""
        if self.values.shape[0] == 1:
            return self
        keys, absent = (part if part is None else part[rows] for part in (self.keys, self.absent))
        return PromptKV(keys, self.values[rows], self.gate, absent)

    def read(self, q: Tensor) -> Tensor:
        """What q (B,H,T,K) reads from the prompts, times the gate; (B,H,1,K) if it is the same for every position."""
        if self.keys is None:
            return self.gate * self.values
        return gated_attention(q, self.keys, self.values, self.gate, self.absent)


@dataclass(frozen=True)
class Past:
    """What the new positions of one layer attend to: each other, except what is `hidden` (B,T,T), or with a bias all columns of
    the cache."""

    cache: KVCache | None
    layer: int
    bias: Tensor | None
    hidden: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B,H,T,K), new k and v (B,KV,T,K), which go into the cache; returns (B,H,T,K)."""
        keys, values = (k, v) if self.cache is None else self.cache.write(self.layer, k, v)
        return causal_attention(q, k, v, self.hidden) if self.bias is None else cached_attention(q, keys, values, self.bias)
