"""The classifier on cached embeddings: a small MLP, many seeds of it in one tensor program, and logistic regression beside it.

The MLP is the original classifier's: concatenated embeddings -> hidden -> C, LeakyReLU, label smoothing, Adam. Its defects
are removed: no softmax before the cross-entropy, training rows reshuffled every epoch, the epoch chosen on a split of its
own, no epoch at learning rate zero (epochs count from 1). Inputs are brought to one scale (`Scaling`).

S seeds, N rows, D inputs, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from imagebind_llm.config import ProbeConfig
from imagebind_llm.metrics import macro_f1

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)  # C of the logistic regression: the larger, the less regularised
UNSELECTED_STRENGTH = 0.01
WARM_UP = 5  # epochs
DECAY = 0.95  # an epoch, counted from the first


@dataclass(frozen=True)
class Scaling:
    """Embeddings as the probe sees them: unit length, the training mean taken away, one factor a modality.

    Without it the modality with the longest public vectors would drown the others (text 14, audio 20, vision 1), and unit
    vectors of 1024 numbers are too small for Adam at 1e-3. An absent modality becomes zero: the mean of what was seen.
    """

    mean: Tensor  # (M,E)
    factor: Tensor  # (M,1)

    @classmethod
    def of(cls, vectors: Tensor, present: Tensor) -> "Scaling":
        """Fitted to the training rows: vectors (N,M,E), present (N,M)."""
        n = present.sum(0).clamp_min(1)[:, None]  # (M,1)
        unit = F.normalize(vectors, dim=-1) * present[..., None]
        mean = unit.sum(0) / n
        spread = ((unit - mean) * present[..., None]).square().sum((0, 2)) / (n[:, 0] * vectors.shape[-1])
        return cls(mean, spread.sqrt().clamp_min(1e-6).reciprocal()[:, None])

    def apply(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(N, M*E)."""
        scaled = (F.normalize(vectors, dim=-1) - self.mean) * self.factor
        return (scaled * present[..., None]).flatten(1)


@dataclass(frozen=True)
class Probes:
    """Trained MLPs, one a seed: weights (S,in,out) and biases (S,1,out) of each layer, and the epoch that each stopped at."""

    layers: list[tuple[Tensor, Tensor]]
    epochs: list[int]

    @torch.no_grad()
    def probabilities(self, inputs: Tensor) -> np.ndarray:
        """(S,N,C) from inputs (N,D)."""
        return logits(self.layers, inputs.expand(len(self.epochs), -1, -1)).softmax(-1).numpy()


def lr_factor(epoch: int) -> float:
    """What the learning rate is multiplied by in an epoch, counted from 1: up to 1 over five epochs, then 0.95^epoch.

    The decay has run since the first epoch, so the factor falls from 1 to 0.735 (0.95^6) at epoch 6, then by 5 % an epoch. That
    is the original's schedule; its program counts from 0 and so loses an epoch to a rate of zero.
    """
    return epoch / WARM_UP if epoch <= WARM_UP else DECAY**epoch


def logits(layers: list[tuple[Tensor, Tensor]], hidden: Tensor) -> Tensor:
    """(S,N,C) from (S,N,D): the same layers for every seed, each with its own weights."""
    for i, (weight, bias) in enumerate(layers):
        hidden = torch.baddbmm(bias, F.leaky_relu(hidden) if i else hidden, weight)  # (S,N,out)
    return hidden


def class_weights(classes: Tensor, n_classes: int, balanced: bool) -> Tensor:
    """(C,): ones, or the inverse of how often a class occurs, 1 on average over rows."""
    counts = torch.bincount(classes, minlength=n_classes).clamp_min(1)
    return len(classes) / (n_classes * counts.float()) if balanced else torch.ones(n_classes)


def train_probes(
    inputs: Tensor,
    classes: Tensor,
    selection: tuple[Tensor, Tensor] | None,
    n_classes: int,
    config: ProbeConfig,
    seeds: tuple[int, ...],
    tick: Callable[[], object] = lambda: None,
) -> Probes:
    """Train one MLP a seed on inputs (N,D) and classes (N,), all seeds at once; `tick` is called after every epoch.

    `selection` (inputs, classes) chooses each seed's epoch by macro F1, the first of equals; None keeps the last epoch.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    layers = _initial_layers((inputs.shape[1], *config.hidden, n_classes), seeds)
    weights = class_weights(classes, n_classes, config.class_weights)
    optimizer = torch.optim.Adam(
        [tensor for layer in layers for tensor in layer], config.lr, weight_decay=config.weight_decay, fused=True
    )
    best = [(-1.0, 0)] * len(seeds)
    kept = [(weight.detach().clone(), bias.detach().clone()) for weight, bias in layers]
    for epoch in range(1, config.epochs + 1):
        optimizer.param_groups[0]["lr"] = config.lr * lr_factor(epoch)
        order = torch.stack([torch.randperm(len(inputs), generator=generator) for generator in generators])  # (S,N)
        for rows in order.split(config.batch_size, dim=1):  # (S,B)
            optimizer.zero_grad()
            _loss(logits(layers, inputs[rows]), classes[rows], weights, config.label_smoothing).backward()
            optimizer.step()
        scores = _selection_scores(layers, *selection) if selection else [float(epoch)] * len(seeds)
        for s, score in enumerate(scores):
            if score > best[s][0]:
                best[s] = (score, epoch)
                _keep(kept, layers, s)
        tick()
    return Probes(kept, [epoch for _, epoch in best])


def _initial_layers(widths: tuple[int, ...], seeds: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """torch's own initial weights of nn.Linear, drawn layer by layer after `manual_seed(seed)`, seeds stacked."""
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            drawn.append([nn.Linear(wide, narrow) for wide, narrow in pairwise(widths)])
    return [
        (
            torch.stack([layer.weight.detach().T for layer in same]).contiguous().requires_grad_(),  # (S,in,out)
            torch.stack([layer.bias.detach()[None] for layer in same]).requires_grad_(),  # (S,1,out)
        )
        for same in zip(*drawn, strict=True)
    ]


def _loss(logits: Tensor, classes: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """The sum over seeds of each one's weighted mean cross-entropy, so that seeds do not touch each other's gradient."""
    each = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weights, reduction="none", label_smoothing=smoothing)
    return (each.view_as(classes).sum(1) / weights[classes].sum(1)).sum()


@torch.no_grad()
def _selection_scores(layers: list[tuple[Tensor, Tensor]], inputs: Tensor, classes: Tensor) -> list[float]:
    predicted = logits(layers, inputs.expand(len(layers[0][0]), -1, -1)).argmax(-1)  # (S,N)
    return macro_f1(classes.numpy(), predicted.numpy()).tolist()


@torch.no_grad()
def _keep(kept: list, layers: list, seed: int) -> None:
    for ours, theirs in zip(kept, layers, strict=True):
        for mine, now in zip(ours, theirs, strict=True):
            mine[seed] = now[seed]


def fit_logistic(
    inputs: Tensor,
    classes: Tensor,
    selection: tuple[Tensor, Tensor] | None,
    n_classes: int,
    balanced: bool = False,
) -> Callable[[Tensor], np.ndarray]:
    """Logistic regression, its strength chosen by macro F1 on `selection`; returns inputs (N,D) -> probabilities (N,C)."""
    strengths = STRENGTHS if selection else (UNSELECTED_STRENGTH,)
    models = [
        LogisticRegression(C=strength, max_iter=1000, class_weight="balanced" if balanced else None) for strength in strengths
    ]
    with threadpool_limits(1):  # these products are too small for more: two threads took three times as long
        fitted = [model.fit(inputs.numpy(), classes.numpy()) for model in models]
    best = fitted[0]
    if selection:
        x, y = (part.numpy() for part in selection)
        best = max(fitted, key=lambda candidate: macro_f1(y, candidate.predict(x)[None])[0])

    def probabilities(inputs: Tensor) -> np.ndarray:
        shares = np.zeros((len(inputs), n_classes))
        shares[:, best.classes_] = best.predict_proba(inputs.numpy())
        return shares

    return probabilities
