"""Running sums over sampled answers, for the log and the guard of the self-critical loss."""

from imagebind_llm.critic.rewards import REWARDS, TRUTH, column
from imagebind_llm.sums import RunningSums

COUNTS = (
    "answers",
    "clips",
    "skipped",  # clips whose answers have all the same reward
    "unfinished",  # answers that were cut at the length limit
    "tokens",
    "surprise",  # -log p of the sampled tokens; its mean estimates the entropy
    "divergence",  # log p - log p_ref, summed over an answer
    "distinct",  # distinct-2 of a step's answers, times their number
    "advantage",  # absolute value; the mean over an answer's tokens if each has its own
    "watched",  # truth of the answers by the watching judge
    "judged",  # answers with verdicts
    "claims",
    "undecided",  # claims whose |v| is below DEAD_ZONE
    "probability",  # P of the claims by the rewarding judge
)


class CriticSums(RunningSums):
    """Sums over answers or clips: COUNTS, and one for every part of the reward, under its name in the log."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*COUNTS, *(column(part) for part in REWARDS))

    def means(self) -> dict[str, float]:
        """Means per answer, per clip (skipped) or per token (entropy); empty without samples.

        Entropy and KL divergence are missing if the log-probabilities of the samples were not computed.
        """
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
