"""Calibration: mixes head, decoder and verifier into probabilities, with weights chosen on dev.

    p(y | clip) = softmax over y of (share * log p_head(y) + (1 - share) * log p_decoder("Intent: y")) / temperature
`share` and `temperature` maximise the likelihood of the gold intents of dev.

The rationale is checked too: p(y | clip) * q(y | rationale)^alpha, where q is the verifier's prediction from the rationale with
every label word masked, and alpha is chosen on dev. If this changes the likeliest intent, the answer is called inconsistent.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm.files import write_json

CALIBRATION = "calibration.json"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
SMALLEST = 1e-6  # lower bound of q before it is raised to a power
TEMPERATURES = tuple(float(f"{2 ** (i / 4):.4g}") for i in range(-8, 17))  # a quarter to sixteen


@dataclass(frozen=True)
class Calibration:
    """The parameters of the mixture."""

    share: float = 0.5  # of the head
    temperature: float = 1.0
    alpha: float = 0.0  # exponent of the verifier's q; 0 without a verifier

    def probabilities(self, head: Tensor, decoder: Tensor) -> Tensor:
        """Probabilities (N,C) from the log-probabilities (N,C) of head and decoder."""
        return ((self.share * head + (1 - self.share) * decoder) / self.temperature).softmax(1)

    def criticised(self, p: Tensor, q: Tensor) -> Tensor:
        """Probabilities (N,C) proportional to p * q^alpha; p and q (N,C)."""
        scores = p * q.clamp(min=SMALLEST) ** self.alpha
        return scores / scores.sum(1, keepdim=True)

    def save(self, folder: Path) -> None:
        """Write calibration.json into a checkpoint folder."""
        write_json(folder / CALIBRATION, asdict(self), indent=None)

    @classmethod
    def load(cls, folder: Path) -> "Calibration | None":
        """Read calibration.json of a checkpoint folder; None if there is none."""
        path = folder / CALIBRATION
        return cls(**json.loads(path.read_text())) if path.is_file() else None


def calibrate(head: Tensor, decoder: Tensor, gold: Tensor) -> Calibration:
    """Choose share and temperature by the likelihood of the gold intents (N,) of dev; head and decoder (N,C)."""
    rows = torch.arange(len(gold))
    best = max(
        (Calibration(share, temperature) for share in SHARES for temperature in TEMPERATURES),
        key=lambda c: float(c.probabilities(head, decoder)[rows, gold].clamp(min=1e-30).log().mean()),
    )
    return best


def choose_alpha(p: Tensor, q: Tensor, gold: Tensor) -> float:
    """Choose alpha by the likelihood of the gold intents (N,) of dev; p and q (N,C)."""
    rows = torch.arange(len(gold))

    def likelihood(alpha: float) -> float:
        return float(Calibration(alpha=alpha).criticised(p, q)[rows, gold].clamp(min=1e-30).log().mean())

    return max(ALPHAS, key=likelihood)
