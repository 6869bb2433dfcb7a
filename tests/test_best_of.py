"""Of several rationales the one that a judge believes most, in whatever batch; the greedy one where nothing is better."""

from dataclasses import dataclass, field

import pytest
import torch

from imagebind_llm.critic.best_of import BestOf, GivenClips
from imagebind_llm.taxonomy import MINTREC

VECTORS = torch.zeros(2, 3, 4)
PRESENT = torch.ones(2, 3, dtype=torch.bool)


@dataclass
class Believer:
    """Believes in smiles of the first clip it is asked about and in frowns of the second."""

    asked: list[str] = field(default_factory=list)

    def score(self, claims, key):
        self.asked.append(key)
        liked = {"0": "smile", "1": "frown"}[key]
        return torch.tensor([0.95 if liked in claim else 0.05 for claim in claims])

    def claim_vectors(self, claims):
        return torch.eye(len(claims))


@pytest.fixture
def best_of() -> BestOf:
    return BestOf(Believer(), GivenClips(None), count=2, temperature=0.6)


SMILE, FROWN = ("We see a broad smile and a real smile.", True), ("We see a deep frown and a real frown.", True)


def test_each_clip_gets_what_the_judge_believes_of_it(best_of):
    assert best_of.pick([[FROWN, SMILE], [FROWN, SMILE]], VECTORS, PRESENT, MINTREC) == [SMILE, FROWN]
    assert best_of.judge.asked == ["0", "0", "1", "1"]


def test_of_equally_good_ones_the_first_is_kept_and_the_greedy_one_comes_first(best_of):
    other = ("We hear a broad smile and a real smile.", True)
    assert best_of.pick([[other, SMILE]], VECTORS[:1], PRESENT[:1], MINTREC) == [other]


def test_one_that_came_to_its_end_is_preferred_to_a_truer_one_that_did_not(best_of):
    assert best_of.pick([[(SMILE[0], False), FROWN]], VECTORS[:1], PRESENT[:1], MINTREC) == [FROWN]


def test_a_judge_sees_the_clip_it_is_asked_about():
    clips = GivenClips(None)
    keys = [clips.add(torch.full((3, 4), float(i)), torch.tensor([True, i > 0, True])) for i in range(3)]
    vectors, present = clips.read([keys[2], keys[0]])
    assert vectors[:, 0, 0].tolist() == [2.0, 0.0] and present[:, 1].tolist() == [True, False]
