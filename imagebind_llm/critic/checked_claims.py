"""The claims of a rationale, each with a judge's verdict on whether it is true of the clip.

    check = ClaimCheck.load(Path("runs/demo/itsl/best"), identity, taxonomy)
    for claim in check("We see a broad smile.", vectors, present): print(claim.text, claim.p, claim.verdict)

This works for any clip with embeddings and any rationale, without true cues. The judge (judge.py) was fitted on train clips by
training with --w_critic and is stored in the checkpoint folder.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm.config import MODALITIES
from imagebind_llm.critic.best_of import GivenClips
from imagebind_llm.critic.claims import claims_of
from imagebind_llm.critic.credit import DEAD_ZONE
from imagebind_llm.critic.judge import ClauseVectors, Judge
from imagebind_llm.encoder.store import Identity
from imagebind_llm.itsl.checkpoint import resolve
from imagebind_llm.taxonomy import Taxonomy

HOLDS, FAILS, OPEN = "true", "false", "open"
SIGNS = {HOLDS: "✓", FAILS: "✗", OPEN: "?"}


@dataclass(frozen=True)
class CheckedClaim:
    """A clause of a rationale: its text without label words, its characters [start, end) in the rationale, and the probability
    `p` that it is true of the clip, 0.5 without a verdict."""

    text: str
    start: int
    end: int
    p: float

    @property
    def verdict(self) -> str:
        """true, false, or open: p is too near to 0.5 (credit.DEAD_ZONE)."""
        value = 2 * self.p - 1
        return OPEN if abs(value) < DEAD_ZONE else HOLDS if value > 0 else FAILS


def has_judge(folder: Path) -> bool:
    """Whether a checkpoint folder holds a judge."""
    return (resolve(folder) / "judge.json").is_file()


class ClaimCheck:
    """Checks the claims of rationales. It keeps nothing of the clips."""

    def __init__(self, judge: Judge, clips: GivenClips, taxonomy: Taxonomy):
        """`judge` must read its clips from `clips`; label words of `taxonomy` are removed from claims."""
        self.judge, self.clips, self.taxonomy = judge, clips, taxonomy

    @classmethod
    def load(
        cls,
        folder: Path,
        identity: Identity,
        taxonomy: Taxonomy,
        encoder_weights: str = "",
        device: torch.device | str = "cpu",
    ) -> "ClaimCheck":
        """Load the judge of a checkpoint folder. `identity`: identity of the clips' embeddings.

        Raises JudgeError if there is no judge or it was fitted on embeddings of another encoder, WeightsError if the encoder's
        weights are missing.
        """
        clips = GivenClips(identity)
        judge = Judge.load(resolve(folder), clips, ClauseVectors.load(identity, encoder_weights, device))
        return cls(judge, clips, taxonomy)

    def __call__(self, rationale: str, vectors: Tensor, present: Tensor) -> list[CheckedClaim]:
        """The checked claims of a rationale in order, for a clip with embeddings (M,E) and presence (M,)."""
        claims = claims_of(rationale, self.taxonomy)
        key = self.clips.add(vectors.cpu(), present.cpu())
        try:
            p = self.judge.score([claim.text for claim in claims], key).tolist()
        finally:
            self.judge.forget(key)
            self.clips.remove(key)
        return [CheckedClaim(c.text, c.start, c.end, round(value, 4)) for c, value in zip(claims, p, strict=True)]

    def missing(self, present: Iterable[bool]) -> list[str]:
        """The modalities that the judge uses and a clip with this presence (M,) lacks."""
        presence = dict(zip(MODALITIES, present, strict=True))
        return [name for name in self.judge.modalities if not presence[name]]


def in_words(claims: Sequence[CheckedClaim]) -> str:
    """The claims with sign and probability in one line."""
    return "; ".join(f"{claim.text} {SIGNS[claim.verdict]} {claim.p:.2f}" for claim in claims)
