"""A test of memory: the longest step of a run, computed once before the first, to fail at once and not after hours.

It includes all that takes memory: the longest rows of the corpus, the optimizer's moments and, with the self-critical loss,
sampled answers of the largest length and a frozen copy of the trained tensors. It does not change weights, moments, sums or
random numbers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import CriticStep, Sums, counts_of, train_step


class StillOptimizer(torch.optim.Optimizer):
    """Optimizer that changes no parameter, but allocates AdamW's moments for the parameters that have none in `optimizer`."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        super().__init__([{"params": group["params"]} for group in optimizer.param_groups], {})
        new = [p for group in self.param_groups for p in group["params"] if p not in optimizer.state]
        self.moments = [torch.empty_like(p) for p in new for _ in range(2)]

    def step(self, closure=None):
        pass


def is_worth_it(device: torch.device) -> bool:
    """Whether running out of memory raises an error on the device. On a CPU the process would be killed instead."""
    return device.type != "cpu"


def rehearse(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sequences: Sequence[Ids],
    collate: Collator,
    settings: TrainSettings,
    device: torch.device,
    critic: Critic | None = None,
) -> str:
    """Compute the longest step without an update; returns a description of it. Collective.

    `critic` cannot be used afterwards, because its answers no longer end with EOS. There are two passes at most: the second,
    with the gradients of the first in memory, is as large as all later ones. Raises torch.OutOfMemoryError, and all that
    `train_step` raises.
    """
    ranks = distributed.world_size()
    size = -(-min(len(sequences), settings.batch_size * settings.accum_iter * ranks) // (settings.accum_iter * ranks))
    rows = sorted(sequences, key=lambda row: (_sampled_width(row) if critic else 0, len(row.ids)))[-size:]
    if settings.w_contrast:  # as long a pass as with another clip's key
        rows = [replace(row, other=row.key) if row.embedded else row for row in rows]
    passes = [collate(rows).to(device) for _ in range(min(settings.accum_iter, 2))]
    step = None
    if critic is not None:
        critic.eos = None
        step = CriticStep(critic, 1.0, torch.Generator(), CriticSums())
    train_step(model, StillOptimizer(optimizer), passes, counts_of(rows * len(passes) * ranks), settings, Sums(), step)
    what = f"{size} rows a pass, up to {max(len(row.ids) for row in rows)} tokens"
    return what if critic is None else f"{what}, {settings.samples} answers of {critic.max_new} tokens to each"


def _sampled_width(row: Ids) -> int:
    """Number of prompt tokens of a row for which answers are sampled; -1 if none are."""
    return -1 if row.intent is None else row.n_prompt
