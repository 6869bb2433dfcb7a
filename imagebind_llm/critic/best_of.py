"""Self-criticism at inference: of K sampled rationales and the greedy one, pick the one that a judge believes most.

It needs no training, adds to the gain of the self-critical loss, and takes the time of K more answers. A rationale's score is
`credit.truth`: true claims up to a cap, minus all false ones, minus a penalty for too few claims.
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

Written = tuple[str, bool]  # a rationale, and whether it came to its end


class GivenClips:
    """Clips whose vectors are at hand, read like a store: the judge looks them up by a number."""

    def __init__(self, identity: Identity):
        self.identity = identity
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}
        self._numbers = itertools.count()

    def add(self, vectors: Tensor, present: Tensor) -> str:
        """Remember one clip, (M,E) and (M,); returns the key to ask for it by."""
        key = str(next(self._numbers))
        self._rows[key] = vectors, present
        return key

    def remove(self, key: str) -> None:
        """Forget a clip; its number is not given to another."""
        del self._rows[key]

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(n,M,E) and (n,M)."""
        vectors, present = zip(*(self._rows[key] for key in keys), strict=True)
        return torch.stack(vectors), torch.stack(present)


class BestOf:
    """Picks rationales. `count` are drawn at `temperature`, with random numbers that follow from the prompt."""

    def __init__(self, judge: Judge, clips: GivenClips, count: int, temperature: float):
        """`judge` looks clips up in `clips`."""
        self.judge, self.clips = judge, clips
        self.count, self.temperature = count, temperature

    def pick(
        self, candidates: Sequence[Sequence[Written]], vectors: Tensor, present: Tensor, taxonomy: Taxonomy
    ) -> list[Written]:
        """The best candidate of each clip, vectors (N,M,E) and present (N,M); of equally good ones the first. One that came to
        its end is preferred to all that did not."""
        best = []
        for rationales, clip, presence in zip(candidates, vectors, present, strict=True):
            key = self.clips.add(clip, presence)
            scores = [(finished, self.truth(text, key, taxonomy)) for text, finished in rationales]
            best.append(rationales[max(range(len(rationales)), key=scores.__getitem__)])
        return best

    def truth(self, rationale: str, key: str, taxonomy: Taxonomy) -> float:
        """The score of a rationale about a clip, in [-1, 1]."""
        clauses = [claim.text for claim in claims_of(rationale, taxonomy)]
        values = (2 * self.judge.score(clauses, key) - 1).tolist()
        counts = counting(values, repeats(clauses, self.judge.claim_vectors(clauses)) if clauses else [])
        return truth([Verdict(0, 0, value, counted) for value, counted in zip(values, counts, strict=True)])
