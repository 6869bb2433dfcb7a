"""The longest step of a run, taken once before the first one: too little memory shows at once and not after hours.

Everything that takes memory is included: the longest rows of the corpus in as many passes as matter, the moments and,
with the self-critical loss, answers that are sampled and scored up to their limit beside a frozen copy of what trains.
Nothing is changed: weights, moments, sums, random numbers.
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
    """Holds as much memory as AdamW's moments of the parameters that `optimizer` has none of yet, and changes no parameter."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        super().__init__([{"params": group["params"]} for group in optimizer.param_groups], {})
        new = [p for group in self.param_groups for p in group["params"] if p not in optimizer.state]
        self.moments = [torch.empty_like(p) for p in new for _ in range(2)]

    def step(self, closure=None):
        pass


def is_worth_it(device: torch.device) -> bool:
    """Whether running out of memory raises an error there. A process that takes too much of a CPU's is killed instead."""
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
    """Take the longest step without changing anything; says what it was. `critic` is used up: its answers do not end.

    Two passes at most, since the second finds the gradients of the first and is as large as all that follow. Collective.
    Raises torch.OutOfMemoryError, and whatever else a step raises.
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
    """Tokens before the answers that are sampled to a row; -1: none are."""
    return -1 if row.intent is None else row.n_prompt
