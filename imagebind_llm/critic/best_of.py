"""Self-criticism at inference: of K sampled rationales and the greedy one, pick the one with the highest score by a judge.

It needs no training, improves also a model that was trained with the self-critical loss, and costs K more answers. The score of
a rationale is `credit.truth`: true claims up to a cap, minus all false ones, minus a penalty for too few claims.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from imagebind_llm.critic.claims import claims_of
from imagebind_llm.critic.credit import Verdict, counting, repeats, truth
from imagebind_llm.critic.judge import Judge
from imagebind_llm.encoder.store import Identity
from imagebind_llm.taxonomy import Taxonomy

Written = tuple[str, bool]  # a rationale, and whether it is finished, not cut at the length limit


class GivenClips:
    """Embeddings in memory with the interface of a store, from which the judge reads them."""

    def __init__(self, identity: Identity):
        self.identity = identity
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}
        self._numbers = itertools.count()

    def add(self, vectors: Tensor, present: Tensor) -> str:
        """Add one clip, vectors (M,E) and present (M,); returns its key."""
        key = str(next(self._numbers))
        self._rows[key] = vectors, present
        return key

    def remove(self, key: str) -> None:
        """Remove a clip; its key is not used again."""
        del self._rows[key]

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors (n,M,E) and presence (n,M)."""
        vectors, present = zip(*(self._rows[key] for key in keys), strict=True)
        return torch.stack(vectors), torch.stack(present)


class BestOf:
    """Picks the best of several rationales.

    `count` rationales are sampled at `temperature`; their random numbers depend on the prompt only.
    """

    def __init__(self, judge: Judge, clips: GivenClips, count: int, temperature: float):
        """`judge` must read its clips from `clips`."""
        self.judge, self.clips = judge, clips
        self.count, self.temperature = count, temperature

    def pick(
        self, candidates: Sequence[Sequence[Written]], vectors: Tensor, present: Tensor, taxonomy: Taxonomy
    ) -> list[Written]:
        """The candidate of each clip with the highest score, the first of equal ones; finished ones before unfinished ones.

        candidates: rationales of N clips; vectors (N,M,E), present (N,M).
        """
        best = []
        for rationales, clip, presence in zip(candidates, vectors, present, strict=True):
            key = self.clips.add(clip, presence)
            scores = [(finished, self.truth(text, key, taxonomy)) for text, finished in rationales]
            best.append(rationales[max(range(len(rationales)), key=scores.__getitem__)])
        return best

    def truth(self, rationale: str, key: str, taxonomy: Taxonomy) -> float:
        """Score in [-1, 1] of a rationale for the clip `key`."""
        clauses = [claim.text for claim in claims_of(rationale, taxonomy)]
        values = (2 * self.judge.score(clauses, key) - 1).tolist()
        counts = counting(values, repeats(clauses, self.judge.claim_vectors(clauses)) if clauses else [])
        return truth([Verdict(0, 0, value, counted) for value, counted in zip(values, counts, strict=True)])
