"""Sampled answers with their rewards, and a judge's verdicts on them."""

from dataclasses import dataclass

from torch import Tensor

from imagebind_llm.critic.alternatives import Replacements
from imagebind_llm.critic.credit import Verdict
from imagebind_llm.records import Answer, Batch


@dataclass(frozen=True)
class SampledAnswers:
    """K answers to each of B clips, R = B*K in all, clip by clip."""

    batch: Batch  # R rows, prompt and answer
    parts: dict[str, Tensor]  # reward parts (B,K) by name
    greedy: dict[str, Tensor] | None  # reward parts (B,) of the greedy answers, if they are the baseline
    answers: list[Answer]
    texts: list[str]
    judged: "JudgedAnswers | None"
    owners: Tensor  # for each row of `scored`, the row of the step's batch that it answers
    replaced: Replacements | None = None  # rows that are scored instead, with --credit local or corrected

    @property
    def scored(self) -> Batch:
        """The rows whose log-probabilities the loss needs."""
        return self.batch if self.replaced is None else self.replaced.batch


@dataclass(frozen=True)
class JudgedAnswers:
    """A judge's verdicts on R sampled answers to B clips."""

    verdicts: list[list[Verdict]]  # on the claims of each answer
    label_spans: list[tuple[int, int]]  # tokens [first, last) of each answer's label
    greedy: list[list[Verdict]] | None  # on the B greedy answers, if they were generated
    watched_truths: list[float]  # truth of each answer by the watching judge; empty without one
