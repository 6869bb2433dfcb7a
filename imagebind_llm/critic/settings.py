"""Settings of the self-critical loss."""

from dataclasses import dataclass

from imagebind_llm.critic.rewards import REWARD_WEIGHTS, REWARDS, TRUTH


@dataclass(frozen=True)
class CriticSettings:
    """The flags of engine_finetune.py that decide how answers are sampled, rewarded and compared."""

    w_critic: float
    samples: int
    baseline: str
    kl: float
    credit: str
    reward_weights: str
    trust_references: str
    answer_order: str

    @property
    def judges(self) -> bool:
        """Whether a judge of claims is needed."""
        pays = self.credit != "answer" or self.rewards().get(TRUTH)
        return bool(self.w_critic and pays) or self.trust_references == "no"

    def rewards(self) -> dict[str, float]:
        """Weights of the reward parts by name. Raises ValueError for an unknown part or a weight that is not a number >= 0."""
        default = REWARD_WEIGHTS if self.credit == "answer" else {TRUTH: 1.0}
        weights = self._weights() if self.reward_weights else dict(default)
        return weights | {"rationale": 0.0} if self.trust_references == "no" else weights

    def _weights(self) -> dict[str, float]:
        weights: dict[str, float] = {}
        for item in self.reward_weights.split(","):
            name, _, weight = item.partition("=")
            try:
                weights[name.strip()] = float(weight)
            except ValueError:
                raise ValueError(f"--reward_weights {self.reward_weights}: expected NAME=NUMBER, got {item!r}") from None
        if wrong := [f"{n}={w:g}" for n, w in weights.items() if n not in REWARDS or not 0 <= w < float("inf")]:
            raise ValueError(f"--reward_weights: {', '.join(wrong)}; expected weights >= 0 of {', '.join(REWARDS)}")
        return weights
