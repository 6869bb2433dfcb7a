"""What tells a writer that looks from one that knows the intent: each formula by hand, and what it says of the demo world."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from imagebind_llm import markdown
from imagebind_llm.demo_world import cues, phrases, references, write
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.explain.cue_table import follows
from imagebind_llm.explain.scoring import CUE_SCORES, Rationale, claim_rows, cue_scores, score_cells, skill

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "demo"))
measure_captions, measure_explanations = (importlib.import_module(f"measure_{name}") for name in ("captions", "explanations"))

PRAISE = cues.TYPICAL["Praise"]  # smile, viewer, upright, open palms; rising, loud, normal, clear


@pytest.fixture(scope="module")
def rows():
    return write.draw_world(0, {"train": 600, "dev": 200, "test": 400})


@pytest.fixture(scope="module")
def test_split(rows) -> list[Rationale]:
    test = [row for row in rows if row.split == "test"]
    return [Rationale(row.key, row.scene.intent, row.rationale, row.scene.cues, table=CUE_TABLE) for row in test]


def test_claims_are_counted_by_what_the_intent_usually_shows():
    truth = {cue: PRAISE[cue] for cue in cues.CUES} | {"gaze": "down", "pitch": "flat"}
    claims = {"expression": "smile", "head": "raised", "gaze": "down", "pitch": "rising"}  # true; false; both again, atypical
    assert CUE_TABLE.claim_counts(claims, truth, "Praise") == (4, 2, 2, 1)
    assert CUE_TABLE.claim_counts(claims, {}, "Praise") == (4, 0, 0, 0)
    assert CUE_TABLE.claim_counts(claims, truth, "no intent of the table") == (4, 2, 0, 0)


def test_skill_is_the_share_of_the_templates_errors_that_is_avoided():
    assert skill(0.82, 0.64) == pytest.approx(0.5)
    assert skill(0.64, 0.64) == 0 and skill(1.0, 0.64) == 1 and skill(0.46, 0.64) == -0.5
    assert skill(None, 0.6) is None and skill(1.0, 1.0) is None and skill(0.9, None) is None


def test_a_template_names_typical_cues_once_and_its_intent():
    for intent, shown in cues.TYPICAL.items():
        claims = CUE_TABLE.cues_in(CUE_TABLE.templates[intent])
        assert len(claims) == 4 and all(shown[cue] == value for cue, value in claims.items())
        assert CUE_TABLE.templates[intent].endswith(f"{intent.lower()}.")


def test_a_template_is_wrong_on_every_atypical_claim_and_references_are_right_on_all(test_split):
    gold = [row.intent for row in test_split]
    predicted = ["Joke", *gold[1:]]
    found = claim_rows([CUE_TABLE.templates[intent] for intent in gold], predicted, test_split)
    blind, best = found["template of the gold intent"], found["references"]
    assert found["model"] == blind
    assert blind["atypical_precision"] == blind["cue_skill"] == 0 and blind["atypical_claims"] > 500
    assert blind["cue_precision"] == pytest.approx(0.645, abs=0.03) and blind["claims"] == 4
    assert all(best[name] == 1 for name in ("cue_precision", "cue_recall", "cue_f1", "cue_skill", "atypical_precision"))
    assert found["template of the predicted intent"]["cue_precision"] < blind["cue_precision"]


def test_who_looks_is_as_right_on_atypical_claims_as_on_others(test_split):
    seen = cue_scores([phrases.caption(dict(row.cues)) for row in test_split], test_split)
    assert seen["atypical_precision"] == seen["cue_precision"] == 1 and seen["claims"] == 8
    assert seen["atypical_claims"] == pytest.approx(0.355 * 8 * len(test_split), rel=0.06)  # 1 - the mean reliability


def test_blind_references_are_as_blind_as_the_template(rows):
    taught = [row for row in rows if row.split != "test"]
    truth = [Rationale(row.key, row.scene.intent, row.rationale, row.scene.cues, table=CUE_TABLE) for row in taught]
    scores = cue_scores([references.blind_rationale(row, 0) for row in taught], truth)
    assert scores["cue_precision"] == pytest.approx(0.644, abs=0.03)
    assert scores["atypical_precision"] < 0.02 and abs(scores["cue_skill"]) < 0.05


def test_where_no_cues_are_known_a_dash_says_so():
    bare = [Rationale("a", "Praise", "We see a broad smile.")]
    assert claim_rows(["a broad smile"], ["Praise"], bare) == {}
    strange = [Rationale("a", "Warn", "We see a broad smile.", {"expression": "smile"}, table=CUE_TABLE)]
    assert claim_rows(["a broad smile"], ["Warn"], strange) == {}
    scores = cue_scores(["a broad smile"], strange)
    assert scores["cue_precision"] == 1 and scores["cue_skill"] is None and scores["atypical_claims"] is None
    table = markdown.table(*score_cells({"model": {"rouge_l": 0.5}}))
    assert table.splitlines()[2] == "| model | 0.500 |" + " – |" * len(CUE_SCORES)


def test_a_swap_is_followed_where_the_clips_differ():
    own, other = {"gaze": "down", "head": "tilted", "pitch": "flat"}, {"gaze": "aside", "head": "tilted", "pitch": "rising"}
    claims = {"gaze": "aside", "head": "tilted", "pitch": "flat", "expression": "smile"}
    assert follows(claims, own, other, cues.VISUAL) == [True]
    assert follows(claims, own, other, cues.VOCAL) == [False]
    assert follows({}, own, other, tuple(cues.CUES)) == []
    told = [Rationale("a", "Joke", "", own), Rationale("b", "Joke", "", other)]
    shown = measure_explanations.followed(
        ["eyes turned aside and a monotone", "eyes turned aside"], told, [1, 0], tuple(cues.CUES)
    )
    assert shown == f"{100 / 3:.1f} of 3"


def test_captions_are_right_where_they_name_the_true_value_of_a_cue(test_split):
    truth = dict(test_split[0].cues)
    other = next(value for value in cues.CUES["gaze"] if value != truth["gaze"])
    told = [phrases.caption(truth), phrases.caption(truth | {"gaze": other}), phrases.caption({"pitch": truth["pitch"]}), ""]
    right = measure_captions.captions_right(told, [truth] * 4)
    assert right.sum(1).tolist() == [8, 7, 1, 0]
    assert not right[1, list(cues.CUES).index("gaze")] and right[2, list(cues.CUES).index("pitch")]
    with pytest.raises(ValueError, match="a caption for each of 2 clips, got 1"):
        measure_captions.captions_right([""], [truth] * 2)
    found = measure_captions.accuracy(right[:2])
    assert found["all"] == 15 / 16 and found["gaze"] == 0.5 and found["head"] == 1
    assert measure_captions.cells(np.ones((3, 8), dtype=bool)) == ["100.0 [100.0, 100.0]", *["100.0"] * 8]


def test_typical_captions_are_as_right_as_the_cues_are_reliable(test_split):
    told = [phrases.caption({cue: cues.TYPICAL[row.intent][cue] for cue in cues.CUES}) for row in test_split]
    right = measure_captions.captions_right(told, [dict(row.cues) for row in test_split])
    expected = [cues.RELIABILITY[cue] for cue in cues.CUES]
    np.testing.assert_allclose(right.mean(0), expected, atol=4 * 0.5 / 400**0.5)
