"""ITSL: a bridge, prompts and a frozen LLaMA; and which of its parameters train.

A clip's embeddings go over the bridge and, by one of FUSIONS, become prompts beside or in the learned ones (fusion.py).
The intent head reads the last prompt position, which no answer can leak into, and the carried embeddings beside it: the
decoder reaches them only through gates that start at zero, the head reaches them at once.

Names: `llama.*` as Meta and LLaMA-Adapter have them, `prefix_query.weight` (A*P, D) holds the learned prompts, layer by layer
(LLaMA-Adapter's `adapter_query.weight`, ImageBind-LLM's `prefix_query.weight`), `bridge.image_bind_*` the bridge (ImageBind-LLM
has no `bridge.` in front), `fusion.*` what a fusion has to learn. In files some have other names (names.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebind_llm.config import TRAINABLE, BridgeConfig, LlamaConfig, PromptConfig
from imagebind_llm.itsl.bridge import Bridge, unit_length
from imagebind_llm.itsl.fusion import FUSIONS, learned_vectors
from imagebind_llm.kernels.logp import token_logp
from imagebind_llm.llama.decoder import Device, Prompts, lowest_adapted
from imagebind_llm.llama.registry import DECODERS
from imagebind_llm.records import IGNORE, Batch, Output

HEAD = "intent_head."


class IntentHead(nn.Module):
    """Intent logits, a linear map of the hidden state and the carried embeddings, each brought to unit RMS; starts at zero."""

    def __init__(self, dim: int, slots: int, n_intents: int):
        super().__init__()
        self.linear = nn.Linear(dim * (1 + slots), n_intents)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, carried: Tensor | None) -> Tensor:
        """hidden (B,D), carried (B,slots,D) with zeros where there is nothing, None if all are absent -> (B,C)."""
        parts = hidden.float()[:, None]  # (B,1,D)
        slots = self.linear.in_features // hidden.shape[1] - 1
        if slots:
            carried = parts.new_zeros(len(parts), slots, parts.shape[2]) if carried is None else carried.float()
            parts = torch.cat([parts, carried], dim=1)
        return self.linear(F.rms_norm(parts, parts.shape[-1:], eps=1e-6).flatten(1))


class ITSL(nn.Module):
    """The whole model; all parameters are frozen until `train_only` says otherwise. Without a bridge: text only."""

    def __init__(
        self,
        llama: LlamaConfig,
        prompts: PromptConfig,
        bridge: BridgeConfig | None = None,
        device: Device = None,
        n_intents: int = 0,
    ):
        """`device`: where the frozen matrices of the LLaMA are made, "meta" if a checkpoint's will be assigned.

        `n_intents` 0: without an intent head.
        """
        super().__init__()
        if prompts.adapter_len < 1:
            raise ValueError(f"adapter_len {prompts.adapter_len}: at least 1 prompt per layer is needed")
        self.prompt_config = prompts
        self.llama = DECODERS[llama.architecture](llama, prompts, device)
        if bridge and bridge.fusion not in FUSIONS:
            raise ValueError(f"fusion {bridge.fusion!r}: expected one of {', '.join(FUSIONS)}")
        self.prefix_query = learned_vectors(prompts.adapter_layer * prompts.adapter_len, llama.dim, prompts)
        self.bridge = Bridge(bridge, llama.dim) if bridge else None
        self.fusion = FUSIONS[bridge.fusion](prompts, llama.dim) if bridge else None
        self.intent_head = IntentHead(llama.dim, self.fusion.n_slots if self.fusion else 0, n_intents) if n_intents else None
        self.requires_grad_(False)

    def prompts(self, embeddings: Tensor | None = None, present: Tensor | None = None) -> Prompts:
        """Prompt vectors for embeddings (B,M,E) of which `present` (B,M) are there; for every row alike without them.

        `present` may also hold weights >= 0; they count in the average.
        """
        return self._prompts(self.carried(embeddings, present), present)

    def carried(self, embeddings: Tensor | None, present: Tensor | None) -> Tensor | None:
        """Embeddings in the space of the LLaMA, (B,n_slots,D); None if there are none."""
        if self.bridge is None or self.fusion is None or embeddings is None:
            return None
        assert present is not None, "say which modalities are present"
        return self.fusion.carry(unit_length(embeddings, present > 0), present, self.bridge)

    def _prompts(self, carried: Tensor | None, present: Tensor | None) -> Prompts:
        layers, length = self.prompt_config.adapter_layer, self.prompt_config.adapter_len
        learned = self.prefix_query.weight.view(1, layers, length, -1)  # (1,A,P,D)
        if self.fusion is None or carried is None or present is None:
            return Prompts(learned)
        return self.fusion.prompts(learned, carried, present > 0)

    def intent_logits(self, hidden: Tensor, carried: Tensor | None, present: Tensor | None) -> Tensor:
        """(B,C) float32 of the normed hidden state (B,D) at the last prompt position and the carried embeddings."""
        assert self.intent_head is not None, "this model has no intent head"
        if carried is not None and self.fusion is not None and present is not None:
            carried = carried.masked_fill(~self.fusion.present_slots(present > 0)[..., None], 0.0)
        return self.intent_head(hidden, carried)

    def forward(self, batch: Batch, checkpoint: bool = False) -> Output:
        """Log-probabilities of the batch's targets, and intent logits. Only the positions that these need reach the end.

        `checkpoint`: keep a layer's input only and compute it again in the backward pass.
        """
        mask = batch.targets != IGNORE
        mask[:, 0] = False  # nothing precedes it
        keep = mask.flatten().nonzero().squeeze(1) - 1  # (N,), the position before each target
        n = len(keep)
        asked = batch.n_prompt if self.intent_head is not None else None
        if asked is not None:
            rows = torch.arange(len(mask), device=mask.device) * mask.shape[1]
            keep = torch.cat([keep, rows + asked - 1])  # (N+B,)
        carried = self.carried(batch.embeddings, batch.present)
        prompts = self._prompts(carried, batch.present)
        hidden = self.llama(
            batch.tokens,
            prompts,
            keep=keep,
            positions=batch.positions,
            segments=batch.segments,
            checkpoint=checkpoint,
            below=batch.below,
        )  # (N or N+B, D)
        answer_logp = token_logp(hidden[:n], self.llama.output_weight, batch.targets[mask])
        logp = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, answer_logp)  # (B,T)
        return Output(logp, mask, self.intent_logits(hidden[n:], carried, batch.present) if asked is not None else None)

    def trainable_parameters(self, which: str) -> dict[str, nn.Parameter]:
        """Parameters by name. "prompts": prompts, gates of the prompted layers, bridge (ImageBind-LLM's first stage).

        "lora": norms, biases and LoRA of the decoder (its second stage). "all": both. The intent head always trains.
        """
        if which not in TRAINABLE:
            raise ValueError(f"trainable {which!r}: expected one of {', '.join(TRAINABLE)}")
        groups = {"prompts": self._is_prompt, "lora": self._is_lora}
        chosen = groups.values() if which == "all" else [groups[which]]
        return {name: p for name, p in self.named_parameters() if name.startswith(HEAD) or any(test(name) for test in chosen)}

    def train_only(self, which: str) -> None:
        """Let these parameters train, in float32, and no others."""
        self.requires_grad_(False)
        for parameter in self.trainable_parameters(which).values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_()

    def _is_prompt(self, name: str) -> bool:
        if not name.startswith("llama."):
            return not name.startswith(HEAD)
        lowest = self.llama.config.n_layers - self.prompt_config.adapter_layer
        return name.endswith(".gate") and _layer(name) >= lowest

    def _is_lora(self, name: str) -> bool:
        if not name.startswith("llama.") or not any(part in name for part in ("norm", "bias", "lora")):
            return False
        return _layer(name) >= lowest_adapted(self.llama.config, self.prompt_config)


def _layer(name: str) -> int:
    """The layer of a decoder's parameter; the last norm counts as above all."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else 10**9
