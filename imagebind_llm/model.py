"""ITSL: a bridge, prompts and a frozen LLaMA; and which of its parameters train.

    prompts of layer j = learned_j (P,D)  +  bridge(clip) (D)                    fusion "average" (ImageBind-LLM)
                       = learned_j (P,D)  beside  bridge(e_m) + query_jm (M,D)   fusion "separate" (ours)
Kept apart, each modality has a prompt vector of its own in every prompted layer, so the heads can read face and voice
separately and weigh them by content; `query_jm` tells a layer which modality it is looking at, since one bridge carries
them all. The vector of an absent modality is masked out of the softmax, which leaves exactly what the others give.

Names: `llama.*` as Meta and LLaMA-Adapter have them, `prefix_query.weight` (A*P, D) holds the learned prompts, layer by
layer (LLaMA-Adapter's `adapter_query.weight`, ImageBind-LLM's `prefix_query.weight`), `bridge.image_bind_*` the bridge
(ImageBind-LLM has no `bridge.` in front), `modality_query.weight` (A*M, D) is ours.
"""

import torch
from torch import Tensor, nn

from imagebind_llm.bridge import Bridge
from imagebind_llm.config import MODALITIES, BridgeConfig, LlamaConfig, PromptConfig
from imagebind_llm.llama import Device, Llama, Prompts
from imagebind_llm.losses import token_logp
from imagebind_llm.records import IGNORE, Batch, Output

TRAINABLE = ("prompts", "lora", "all")


class ITSL(nn.Module):
    """The whole model; all parameters are frozen until `train_only` says otherwise. Without a bridge: text only."""

    def __init__(self, llama: LlamaConfig, prompts: PromptConfig, bridge: BridgeConfig | None = None, device: Device = None):
        """`device`: where the frozen matrices of the LLaMA are made, "meta" if a checkpoint's will be assigned."""
        super().__init__()
        if prompts.adapter_len < 1:
            raise ValueError(f"adapter_len {prompts.adapter_len}: at least 1 prompt per layer is needed")
        self.prompt_config = prompts
        self.llama = Llama(llama, prompts, device)
        std = 0.02 if prompts.normalise_prefix else 1.0
        self.prefix_query = _queries(prompts.adapter_layer * prompts.adapter_len, llama.dim, std)
        self.bridge = Bridge(bridge, llama.dim) if bridge else None
        if bridge and bridge.fusion == "separate":
            self.modality_query = _queries(prompts.adapter_layer * len(MODALITIES), llama.dim, std)
        self.requires_grad_(False)

    def prompts(self, embeddings: Tensor | None = None, present: Tensor | None = None) -> Prompts:
        """Prompt vectors for embeddings (B,M,E) of which `present` (B,M) are there; for every row alike without them.

        `present` may also hold weights >= 0; they count in the average.
        """
        layers, length = self.prompt_config.adapter_layer, self.prompt_config.adapter_len
        learned = self.prefix_query.weight.view(1, layers, length, -1)  # (1,A,P,D)
        if self.bridge is None or embeddings is None:
            return Prompts(learned)
        assert present is not None, "say which modalities are present"
        carried = self.bridge(embeddings, present)[:, None]  # (B,1,1 or M,D)
        if self.bridge.fusion == "average":
            return Prompts(learned + carried)  # (B,A,P,D)
        own = carried + self.modality_query.weight.view(1, layers, len(MODALITIES), -1)  # (B,A,M,D)
        vectors = torch.cat([learned.expand(len(own), -1, -1, -1), own], dim=2)  # (B,A,P+M,D)
        return Prompts(vectors, torch.cat([present.new_ones(len(own), length).bool(), present > 0], dim=1))

    def forward(self, batch: Batch) -> Output:
        """Log-probabilities of the batch's targets. The head, and the last layer's feed-forward, see only these positions."""
        mask = batch.targets != IGNORE
        mask[:, 0] = False  # nothing precedes it
        keep = mask.flatten().nonzero().squeeze(1) - 1  # (N,), the position before each target
        hidden = self.llama(batch.tokens, self.prompts(batch.embeddings, batch.present), keep=keep)  # (N,D)
        found = token_logp(hidden, self.llama.output_weight, batch.targets[mask])
        logp = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, found)  # (B,T)
        return Output(logp, mask)

    def trainable_parameters(self, which: str) -> dict[str, nn.Parameter]:
        """Parameters by name. "prompts": prompts, gates of the prompted layers, bridge (ImageBind-LLM's first stage).

        "lora": norms, biases and LoRA of the decoder (its second stage). "all": both.
        """
        if which not in TRAINABLE:
            raise ValueError(f"trainable {which!r}: expected one of {', '.join(TRAINABLE)}")
        groups = {"prompts": self._is_prompt, "lora": _is_lora}
        chosen = groups.values() if which == "all" else [groups[which]]
        return {name: p for name, p in self.named_parameters() if any(test(name) for test in chosen)}

    def train_only(self, which: str) -> None:
        """Let these parameters train, in float32, and no others."""
        self.requires_grad_(False)
        for parameter in self.trainable_parameters(which).values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_()

    def _is_prompt(self, name: str) -> bool:
        if not name.startswith("llama."):
            return True
        lowest = self.llama.config.n_layers - self.prompt_config.adapter_layer
        return name.endswith(".gate") and int(name.split(".")[2]) >= lowest


def _queries(rows: int, dim: int, std: float) -> nn.Embedding:
    """Learned vectors, small and random: next to the bridge's output if they are normalised, else LLaMA-Adapter's N(0,1).

    Never zero: an exact zero has no direction for a normalisation to keep.
    """
    queries = nn.Embedding(rows, dim)
    nn.init.normal_(queries.weight, std=std)
    return queries


def _is_lora(name: str) -> bool:
    return name.startswith("llama.") and any(part in name for part in ("norm", "bias", "lora"))
