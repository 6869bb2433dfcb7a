"""How head, decoder and verifier are mixed into probabilities, and how dev chooses the mixture.

    p(y | clip) = softmax over y of (share * log p_head(y) + (1 - share) * log p_decoder("Intent: y")) / temperature
The head and the decoder both know the intent; `share` and `temperature` are chosen on dev, by likelihood.

The model criticises its own answer (spec: p(y | clip) * q(y | rationale)^alpha, alpha from dev): q is the verifier's reading of
the rationale with every label word masked. Where that would change the intent, the answer is flagged as inconsistent.
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
SMALLEST = 1e-6  # of a probability that is to be raised to a power
TEMPERATURES = tuple(float(f"{2 ** (i / 4):.4g}") for i in range(-8, 17))  # a quarter to sixteen


@dataclass(frozen=True)
class Calibration:
    """How head and decoder are mixed and how sure they are together; chosen on dev by likelihood."""

    share: float = 0.5  # of the head
    temperature: float = 1.0
    alpha: float = 0.0  # weight of the verifier's reading of the rationale; 0 also without a verifier

    def probabilities(self, head: Tensor, decoder: Tensor) -> Tensor:
        """(N,C) from the log-probabilities of both, (N,C) each."""
        return ((self.share * head + (1 - self.share) * decoder) / self.temperature).softmax(1)

    def criticised(self, p: Tensor, q: Tensor) -> Tensor:
        """p * q^alpha, normalised: (N,C) each."""
        scores = p * q.clamp(min=SMALLEST) ** self.alpha
        return scores / scores.sum(1, keepdim=True)

    def save(self, folder: Path) -> None:
        """Write calibration.json into a checkpoint folder."""
        write_json(folder / CALIBRATION, asdict(self), indent=None)

    @classmethod
    def load(cls, folder: Path) -> "Calibration | None":
        """That of a checkpoint folder; None if it has none."""
        path = folder / CALIBRATION
        return cls(**json.loads(path.read_text())) if path.is_file() else None


def calibrate(head: Tensor, decoder: Tensor, gold: Tensor) -> Calibration:
    """The share and temperature under which the gold intents (N,) of a dev split are likeliest. head, decoder (N,C)."""
    rows = torch.arange(len(gold))
    best = max(
        (Calibration(share, temperature) for share in SHARES for temperature in TEMPERATURES),
        key=lambda c: float(c.probabilities(head, decoder)[rows, gold].clamp(min=1e-30).log().mean()),
    )
    return best


def choose_alpha(p: Tensor, q: Tensor, gold: Tensor) -> float:
    """How much the rationale should count: the alpha under which the gold intents (N,) of dev are likeliest. p, q (N,C)."""
    rows = torch.arange(len(gold))

    def likelihood(alpha: float) -> float:
        return float(Calibration(alpha=alpha).criticised(p, q)[rows, gold].clamp(min=1e-30).log().mean())

    return max(ALPHAS, key=likelihood)
