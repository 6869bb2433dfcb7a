"""ITSL: a bridge, prompts and a frozen LLaMA; and which of its parameters train.

The bridge projects a clip's embeddings to the width of the LLaMA; a fusion (one of FUSIONS, fusion.py) turns them into prompts,
beside the learned prompts or added to them. The intent head reads the hidden state at the last prompt position, which no answer
token can influence, and the projected embeddings directly: the decoder reads these only through gates that start at zero.

Parameter names: `llama.*` as Meta and LLaMA-Adapter have them; `prefix_query.weight` (A*P, D) holds the learned prompts, layer
by layer (LLaMA-Adapter's `adapter_query.weight`, ImageBind-LLM's `prefix_query.weight`); `bridge.image_bind_*` is the bridge
(ImageBind-LLM has no `bridge.` in front); `fusion.*` are a fusion's parameters. Some names differ in files (names.py).
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
    """Linear classifier on the hidden state and the projected embeddings, each scaled to unit RMS. Initialised to zero."""

    def __init__(self, dim: int, slots: int, n_intents: int):
        super().__init__()
        self.linear = nn.Linear(dim * (1 + slots), n_intents)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, carried: Tensor | None) -> Tensor:
        """Logits (B,C) of hidden (B,D) and carried (B,slots,D): zeros in absent slots, None if all slots are absent."""
        parts = hidden.float()[:, None]  # (B,1,D)
        slots = self.linear.in_features // hidden.shape[1] - 1
        if slots:
            carried = parts.new_zeros(len(parts), slots, parts.shape[2]) if carried is None else carried.float()
            parts = torch.cat([parts, carried], dim=1)
        return self.linear(F.rms_norm(parts, parts.shape[-1:], eps=1e-6).flatten(1))


class ITSL(nn.Module):
    """The whole model. All parameters are frozen until `train_only` is called. Without a bridge it reads text only."""

    def __init__(
        self,
        llama: LlamaConfig,
        prompts: PromptConfig,
        bridge: BridgeConfig | None = None,
        device: Device = None,
        n_intents: int = 0,
    ):
        """`device`: where the frozen matrices of the LLaMA are allocated; "meta" if they will be assigned from a checkpoint.

        `n_intents`: classes of the intent head; 0 for no head. Raises ValueError for no prompts or an unknown fusion.
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
        """Prompt vectors for embeddings (B,M,E); without embeddings, the learned prompts, the same for every row.

        `present` (B,M) marks the modalities that each row has. It may hold weights >= 0 instead, which the fusion "average"
        uses.
        """
        return self._prompts(self.carried(embeddings, present), present)

    def carried(self, embeddings: Tensor | None, present: Tensor | None) -> Tensor | None:
        """Embeddings projected to the width of the LLaMA, (B,n_slots,D); None without embeddings or without a bridge."""
        if self.bridge is None or self.fusion is None or embeddings is None:
            return None
        assert present is not None, "embeddings need `present`"
        return self.fusion.carry(unit_length(embeddings, present > 0), present, self.bridge)

    def _prompts(self, carried: Tensor | None, present: Tensor | None) -> Prompts:
        layers, length = self.prompt_config.adapter_layer, self.prompt_config.adapter_len
        learned = self.prefix_query.weight.view(1, layers, length, -1)  # (1,A,P,D)
        if self.fusion is None or carried is None or present is None:
            return Prompts(learned)
        return self.fusion.prompts(learned, carried, present > 0)

    def intent_logits(self, hidden: Tensor, carried: Tensor | None, present: Tensor | None) -> Tensor:
        """Logits (B,C) float32 of the intent head, from the normed hidden state (B,D) at the last prompt position and from what
        `carried` returned for these rows."""
        assert self.intent_head is not None, "this model has no intent head"
        if carried is not None and self.fusion is not None and present is not None:
            carried = carried.masked_fill(~self.fusion.present_slots(present > 0)[..., None], 0.0)
        return self.intent_head(hidden, carried)

    def forward(self, batch: Batch, checkpoint: bool = False) -> Output:
        """Log-probabilities of the batch's targets, and intent logits.

        The last layer's feed-forward and the output matrix are computed only at the positions that these need.
        With `checkpoint`, only the layers' inputs are kept and the rest is recomputed in the backward pass.
        """
        mask = batch.targets != IGNORE
        mask[:, 0] = False  # no position precedes the first token
        keep = mask.flatten().nonzero().squeeze(1) - 1  # (N,), the position before each target
        n = len(keep)
        n_prompt = batch.n_prompt if self.intent_head is not None else None
        if n_prompt is not None:
            rows = torch.arange(len(mask), device=mask.device) * mask.shape[1]
            keep = torch.cat([keep, rows + n_prompt - 1])  # (N+B,)
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
        return Output(logp, mask, self.intent_logits(hidden[n:], carried, batch.present) if n_prompt is not None else None)

    def trainable_parameters(self, which: str) -> dict[str, nn.Parameter]:
        """The parameters that --trainable `which` trains, by name. The intent head is always among them.

        "prompts": prompts, gates of the prompted layers and bridge (ImageBind-LLM's first stage). "lora": norms, biases and
        LoRA of the decoder (its second stage). "all": both. Raises ValueError for any other value.
        """
        if which not in TRAINABLE:
            raise ValueError(f"trainable {which!r}: expected one of {', '.join(TRAINABLE)}")
        groups = {"prompts": self._is_prompt, "lora": self._is_lora}
        tests = groups.values() if which == "all" else [groups[which]]
        return {name: p for name, p in self.named_parameters() if name.startswith(HEAD) or any(test(name) for test in tests)}

    def train_only(self, which: str) -> None:
        """Set requires_grad on the parameters of `trainable_parameters(which)`, as float32, and on no others."""
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
    """The layer index of a decoder's parameter; larger than any index for the last norm."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else 10**9
