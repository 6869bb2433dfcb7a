"""Claims of a rationale, checked against a clip and coloured: false ones as false, undecided ones as neither, all escaped."""

from types import SimpleNamespace

import pytest
import torch

from imagebind_llm.critic.best_of import GivenClips
from imagebind_llm.critic.checked_claims import CheckedClaim, ClaimCheck, in_words
from imagebind_llm.critic.judge import FITTED, SHARED, Figures
from imagebind_llm.explain.coloured_claims import LEGEND, coloured, judged_by, unchecked
from imagebind_llm.taxonomy import MINTREC
from imagebind_llm.web import view

RATIONALE = "We see a broad smile and <b>open palms</b>, so the aim must be to praise."
VECTORS, PRESENT = torch.zeros(3, 4), torch.tensor([True, False, True])


class Believer:
    """Believes in smiles, not in palms, and has nothing to say of anything else."""

    modalities = ("audio", "vision")

    def __init__(self):
        self.forgotten = []

    def score(self, claims, key):
        return torch.tensor([0.97 if "smile" in c else 0.02 if "palms" in c else 0.5 for c in claims])

    def forget(self, key):
        self.forgotten.append(key)


@pytest.fixture
def check() -> ClaimCheck:
    return ClaimCheck(Believer(), GivenClips(None), MINTREC)


def marks(page: str) -> list[str]:
    """The verdicts in which claims are coloured, in order."""
    return [part.split('"')[0] for part in page.split('<mark class="judged ')[1:]]


def test_a_claim_says_where_it_stands_and_knows_no_label(check):
    claims = check(RATIONALE, VECTORS, PRESENT)
    assert [claim.verdict for claim in claims] == ["true", "false", "open"]
    assert RATIONALE[claims[0].start : claims[0].end] == "We see a broad smile"
    assert claims[2].text == "the aim must be to"
    assert in_words(claims[:1]) == "We see a broad smile ✓ 0.97"


def test_nothing_is_kept_of_a_clip_and_no_two_share_a_number(check):
    for _ in range(2):
        check(RATIONALE, VECTORS, PRESENT)
    with pytest.raises(KeyError):
        check.clips.read(["0"])
    assert check.judge.forgotten == ["0", "1"]


@pytest.mark.parametrize(("p", "verdict"), [(0.39, "false"), (0.41, "open"), (0.59, "open"), (0.61, "true")])
def test_what_the_self_critical_loss_calls_undecided_is_open(p, verdict):
    assert CheckedClaim("a smile", 0, 7, p).verdict == verdict


def test_a_false_claim_is_coloured_false_and_one_without_a_verdict_is_neither(check):
    page = coloured(RATIONALE, check(RATIONALE, VECTORS, PRESENT))
    assert marks(page) == ["true", "false", "open"]
    false = page.split('<mark class="judged false"')[1].split("</mark>")[0]
    assert 'title="the judge: does not hold of this clip, P 0.02"' in false and ">✗</sup>" in false, "no colour stands alone"
    assert marks(LEGEND) == ["true", "false", "open"]


def test_what_a_model_writes_is_no_html(check):
    page = coloured(RATIONALE, check(RATIONALE, VECTORS, PRESENT))
    assert "<b>" not in page and "&lt;b&gt;" in page and "open palms" in page
    assert coloured("<i>x</i>", []) == "&lt;i&gt;x&lt;/i&gt;"


def test_who_checked_and_how_far_to_trust_it_is_said_in_words():
    dev = Figures(90, 0.9651, 0.9471, {}, ["audio", "vision"], 0.9, 0.1, 1.0)
    said = judged_by(FITTED, "captions", ("audio", "vision"), dev)
    assert said.startswith("Checked against picture and sound by a judge fitted on captions of train clips.")
    assert "0.965, from those of clips with the same intent with 0.947" in said
    assert "against sound by a judge of the encoder's own space; how good" in judged_by(SHARED, "captions", ("audio",), None)


def test_what_could_not_be_checked_is_said(check):
    claims = check(RATIONALE, VECTORS, PRESENT)
    assert check.missing(PRESENT.tolist()) == ["audio"]
    assert unchecked(claims, ["audio"]) == ["Nothing is known of this clip's sound: claims that hang on it have no verdict."]
    assert not unchecked(claims, [])
    assert "No claim of this rationale could be judged" in unchecked(claims[2:], [])[0]


def test_the_page_says_who_checked_and_that_the_judge_is_off_without_one(check):
    check.judge = SimpleNamespace(kind=FITTED, source="captions", modalities=("audio", "vision"), figures=None)
    seen = SimpleNamespace(present=PRESENT[None])
    page = view.judge_block(seen, [CheckedClaim("a smile", 0, 7, 0.9)], check)
    assert "Checked against picture and sound" in page and "this clip&#x27;s sound" in page
    off = view.judge_block(seen, [], None)
    assert "The judge is off" in off and "--judge FOLDER" in off and "--credit claim" in off
