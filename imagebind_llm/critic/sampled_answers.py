"""Sampled answers with their rewards, and what a judge says of them."""

from dataclasses import dataclass

from torch import Tensor

from imagebind_llm.critic.alternatives import Replacements
from imagebind_llm.critic.credit import Verdict
from imagebind_llm.records import Answer, Batch


@dataclass(frozen=True)
class SampledAnswers:
    """K answers to each of B clips: a batch of their R = B*K rows, reward parts (B,K) each, those of the greedy answers (B,)
    where they were drawn, and the texts. owners: the row of the step's batch that each of the `scored` rows answers."""

    batch: Batch
    parts: dict[str, Tensor]
    greedy: dict[str, Tensor] | None
    answers: list[Answer]
    texts: list[str]
    judged: "JudgedAnswers | None"
    owners: Tensor
    replaced: Replacements | None = None

    @property
    def scored(self) -> Batch:
        """The rows that the loss is of."""
        return self.batch if self.replaced is None else self.replaced.batch


@dataclass(frozen=True)
class JudgedAnswers:
    """What a judge says of R answers: the verdicts on their claims, the tokens [first, last) of their labels, the verdicts on
    the B greedy answers where those were drawn, and what the watching judge says each answer is worth (none: no such judge)."""

    verdicts: list[list[Verdict]]
    labels: list[tuple[int, int]]
    greedy: list[list[Verdict]] | None
    watched: list[float]
