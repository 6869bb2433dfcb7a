"""Learning rate and optimizer: the schedule and the weight-decay groups are LLaMA-Adapter's."""

import math
from typing import Any

import torch
from torch import nn

from imagebind_llm.training.settings import TrainSettings

BETAS, EPS = (0.9, 0.95), 1e-8


def peak_lr(settings: TrainSettings, ranks: int) -> float:
    """Peak learning rate: --lr, or --blr scaled by the rows of a step, blr * batch * passes * ranks / 256."""
    if settings.lr is not None:
        return settings.lr
    return settings.blr * settings.batch_size * settings.accum_iter * ranks / 256


def lr_at(epoch: float, peak: float, settings: TrainSettings) -> float:
    """Learning rate at `epoch`, a fraction of epochs: linear warm-up, then half a cosine down to min_lr."""
    if epoch < settings.warmup_epochs:
        return peak * epoch / settings.warmup_epochs
    share = (epoch - settings.warmup_epochs) / (settings.epochs - settings.warmup_epochs)
    return settings.min_lr + (peak - settings.min_lr) / 2 * (1 + math.cos(math.pi * share))


def parameter_groups(model: nn.Module, weight_decay: float, gate_lr: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: vectors and biases without weight decay, all others (also gates and prompts) with it.

    A group's `lr_scale` multiplies the schedule's learning rate. The gates are a separate group with `gate_lr` if it is not 1.
    """
    not_decayed: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_vector = parameter.ndim == 1 or name.endswith(".bias")
            is_gate = gate_lr != 1 and name.endswith(".gate")
            (gates if is_gate else not_decayed if is_vector else decayed).append(parameter)
    groups = [(not_decayed, 0.0, 1.0), (decayed, weight_decay, 1.0), *([(gates, weight_decay, gate_lr)] if gates else [])]
    return [{"params": params, "weight_decay": decay, "lr_scale": scale} for params, decay, scale in groups]


def make_optimizer(model: nn.Module, weight_decay: float, gate_lr: float = 1.0) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, weight_decay, gate_lr), lr=0.0, betas=BETAS, eps=EPS, fused=True)
