"""Running sums of what the self-critical loss samples and how it is judged: its log, and what its guards look at."""

from imagebind_llm.critic.rewards import REWARDS, TRUTH, column
from imagebind_llm.sums import RunningSums

COUNTS = (
    "answers",
    "clips",
    "skipped",  # clips whose answers were all worth the same
    "unfinished",  # answers
    "tokens",
    "surprise",  # -log p of the sampled tokens: their mean is the entropy
    "divergence",  # log p - log p_ref, summed over an answer
    "distinct",  # distinct-2 of a step's answers, times their number
    "advantage",  # its absolute value; a mean over an answer's tokens where they have one each
    "watched",  # truth of the claims, as the watching judge sees it
    "judged",  # answers whose claims were judged
    "claims",
    "undecided",  # claims without a verdict
    "probability",  # of the claims, by the paying judge
)


class CriticSums(RunningSums):
    """Sums over answers or clips; every part of the reward has one, under the name that it has in the log."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*COUNTS, *(column(part) for part in REWARDS))

    def means(self) -> dict[str, float]:
        """By answer, by clip (skipped) and by token (entropy); empty if nothing was sampled. Entropy and divergence are left
        out where the sampled answers were not scored."""
        n = self["answers"]
        if not n:
            return {}
        by_answer = (*(column(part) for part in REWARDS if part != TRUTH), "unfinished", "advantage")
        means = {name: self[name] / n for name in by_answer}
        if self["judged"]:
            means |= {
                column(TRUTH): self[column(TRUTH)] / self["judged"],
                "watched_truth": self["watched"] / self["judged"],
                "claims": self["claims"] / self["judged"],
                "undecided": self["undecided"] / max(self["claims"], 1.0),
                "claim_p": self["probability"] / max(self["claims"], 1.0),
            }
        if self["surprise"]:
            means |= {"entropy": self["surprise"] / max(self["tokens"], 1.0), "kl": self["divergence"] / n}
        return means | {
            "skipped": self["skipped"] / self["clips"],
            "length": self["tokens"] / n,
            "distinct_2": self["distinct"] / n,
        }
