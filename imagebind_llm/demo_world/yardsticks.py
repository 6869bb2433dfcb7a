"""Does a text speak of this clip, or of what its intent usually shows? Counts of claims by the demo world's published table.

*Typical value*: what an intent shows most often. *Atypical claim*: a claim about a cue whose true value in this clip is not its
intent's typical one. Whoever knows the intent and never looks says the typical value, and is wrong on every atypical claim by
construction; who looks is as right on them as on the others. The clip-blind template (`template`) says nothing else.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from imagebind_llm.demo_world.cues import CUES, TYPICAL, Scene
from imagebind_llm.demo_world.phrases import cues_in, rationale

Cues = Mapping[str, str]  # cue -> value


@cache
def template(intent: str) -> str:
    """The clip-blind rationale of an intent: one fixed sentence, in which all that is seen, heard and said is typical. Raises
    KeyError for an intent that the table does not have."""
    shown = dict(TYPICAL[intent])
    return rationale(Scene(intent, shown.pop("family"), shown), np.random.default_rng(0))


def claim_counts(claims: Cues, truth: Cues, intent: str) -> tuple[int, int, int, int]:
    """How many claims are made, are true, are atypical, are atypical and true. A claim about a cue that `truth` does not name
    is not true; nothing is atypical of an intent that the table does not have."""
    right = {cue for cue, value in claims.items() if truth.get(cue) == value}
    usual = TYPICAL.get(intent, truth)
    atypical = {cue for cue in claims if cue in truth and truth[cue] != usual.get(cue)}
    return len(claims), len(right), len(atypical), len(atypical & right)


def skill(precision: float | None, of_template: float | None) -> float | None:
    """The share of the clip-blind template's errors that is avoided: 0 as the template, 1 all true, below 0 worse than it."""
    if precision is None or of_template is None or of_template == 1:
        return None
    return (precision - of_template) / (1 - of_template)


def follows(claims: Cues, own: Cues, other: Cues, group: Sequence[str]) -> list[bool]:
    """After something was swapped with another clip's: of the claims about cues of `group` in which the two clips are known to
    differ, which state the other clip's value."""
    known = [cue for cue in group if cue in claims and cue in own and cue in other]
    return [claims[cue] == other[cue] for cue in known if own[cue] != other[cue]]


def captions_right(captions: Sequence[str], truths: Sequence[Cues]) -> np.ndarray:
    """(N,8) bool, in the order of CUES: is the cue named, and truly? One that a caption leaves out is not."""
    if len(captions) != len(truths):
        raise ValueError(f"expected a caption for each of {len(truths)} clips, got {len(captions)}")
    said = [cues_in(text) for text in captions]
    rows = [[claims.get(cue) == truth[cue] for cue in CUES] for claims, truth in zip(said, truths, strict=True)]
    return np.array(rows, dtype=bool).reshape(-1, len(CUES))
