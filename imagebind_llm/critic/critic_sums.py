"""Running sums of what the self-critical loss samples and finds: its log, and what its guards look at."""

from dataclasses import dataclass


@dataclass
class CriticSums:
    """Running sums of one rank, over answers or clips; what the guards of the method look at."""

    answers: float = 0.0
    clips: float = 0.0
    intent: float = 0.0
    rationale: float = 0.0
    consistency: float = 0.0
    format: float = 0.0
    skipped: float = 0.0  # clips whose answers were all worth the same
    unfinished: float = 0.0
    tokens: float = 0.0
    surprise: float = 0.0  # -log p of the sampled tokens: their mean is the entropy
    divergence: float = 0.0  # log p - log p_ref, summed over an answer
    distinct: float = 0.0  # distinct-2 of a step's answers, times their number
    advantage: float = 0.0  # its absolute value; a mean over an answer's tokens where they have one each
    truth: float = 0.0  # of the claims, as the paying judge sees it
    watched: float = 0.0  # and as the watching one does
    judged: float = 0.0  # answers whose claims were judged
    claims: float = 0.0
    undecided: float = 0.0  # claims without a verdict
    probability: float = 0.0  # of the claims, by the paying judge

    def means(self) -> dict[str, float]:
        """By answer, by clip (skipped) and by token (entropy); empty if nothing was sampled. Entropy and divergence are left
        out where the sampled answers were not scored."""
        if not self.answers:
            return {}
        n = self.answers
        names = ("intent", "rationale", "consistency", "format", "unfinished", "advantage")
        found = {f"reward_{name}" if name in names[:4] else name: getattr(self, name) / n for name in names}
        if self.judged:
            found |= {
                "reward_truth": self.truth / self.judged,
                "watched_truth": self.watched / self.judged,
                "claims": self.claims / self.judged,
                "undecided": self.undecided / max(self.claims, 1.0),
                "claim_p": self.probability / max(self.claims, 1.0),
            }
        if self.surprise:
            found |= {"entropy": self.surprise / max(self.tokens, 1.0), "kl": self.divergence / n}
        return found | {"skipped": self.skipped / self.clips, "length": self.tokens / n, "distinct_2": self.distinct / n}
