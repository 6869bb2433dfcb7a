"""A tiny random model with open gates, for tests without golden numbers."""

import torch

from imagebind_llm.config import BridgeConfig, LlamaConfig, PromptConfig
from imagebind_llm.itsl.model import ITSL

TINY = LlamaConfig(32, 4, 4, 2, 48, 61)


def random_itsl(fusion: str | None, normalise: bool = True, lora_rank: int = 0) -> ITSL:
    """A tiny model with all gates open and its prompts of some size."""
    torch.manual_seed(3)
    bridge = BridgeConfig(24, 12, fusion) if fusion else None
    model = ITSL(TINY, PromptConfig(3, 2, normalise, lora_rank, bias=bool(lora_rank)), bridge)
    for name, parameter in model.named_parameters():
        if name.endswith("gate") or "query" in name:
            parameter.data = torch.randn_like(parameter)
    return model
