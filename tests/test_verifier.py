"""The verifier reads the argument and never the label; it is the same after saving; it falls where rationales are wrong."""

import json

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from imagebind_llm.critic.verifier import MASK, Verifier, VerifierError, fit_verifier, label_mentions, mask_labels
from imagebind_llm.critic.verifier import _terms as terms
from imagebind_llm.demo_world.write import draw_world
from imagebind_llm.taxonomy import DEMO, MINTREC, MINTREC2

NAMED = """complain complains complained complaining complaint complaints praise praised praising praiseworthy apologise
apologize apologised apology apologies apologetic thank thanks thanked thankful thanking criticize criticise criticism critical
agree agrees agreed agreeing agreement disagree disagreement taunt taunting taunted flaunt flaunts joke jokes joked joking
jokingly joker oppose opposed opposing opposition comfort comforting comforted uncomfortable care cares cared caring careful
inform informs informed informing information advise advice advised advising adviser arrange arranged arrangement introduce
introduced introduction leave leaves leaving left prevent prevented prevention greet greets greeting ask asked asks asking
help helps helping helpful"""
NAMED_IN_30 = """acknowledge acknowledging acknowledgement opinion opinions confirm confirmation doubt doubtful doubted
emphasize emphasise emphasis emphasizing explain explanation explained invite invited inviting invitation plan planned planning
plans refuse refusal refused warn warning warned"""
OTHER = "car scare scary plant planet explore empty a speaker smiles uniform greater command the for hello task likely"


@pytest.fixture(scope="module")
def world():
    made = draw_world(0, {"train": 300, "dev": 100, "test": 1})
    of = {split: [row for row in made if row.split == split] for split in ("train", "dev")}
    return {split: ([row.rationale for row in some], [row.scene.intent for row in some]) for split, some in of.items()}


@pytest.fixture(scope="module")
def verifier(world) -> Verifier:
    return fit_verifier(*world["train"], DEMO, dev=world["dev"])


def test_every_form_of_a_label_is_masked_and_other_words_stay():
    for word in NAMED.split():
        assert mask_labels(f"They {word.capitalize()}, so.", MINTREC) == f"They {MASK}, so.", word
    for word in NAMED_IN_30.split():
        assert mask_labels(word, MINTREC2) == MASK, word
    assert mask_labels("asks her friend for help, taunting", MINTREC) == f"{MASK}, {MASK}"
    for word in OTHER.split():
        assert mask_labels(word, MINTREC2) == word, word


def test_every_label_names_itself_once_and_several_words_must_stand_together():
    for taxonomy in (MINTREC, MINTREC2):
        for label in taxonomy.labels:
            assert label_mentions(f"The intent is to {label.lower()}, it seems.", label) == 1, label
    assert label_mentions("She asks her friend for help with the box.", "Ask for help") == 1
    assert label_mentions("She asks a question. Nobody comes, and in the end there is help.", "Ask for help") == 0
    assert label_mentions("praise and praising", "Praise") == 2


def test_probabilities_are_those_of_scikit_learn(world, verifier):
    texts, intents = world["train"]
    masked = [mask_labels(text, DEMO) for text in texts]
    vectors = TfidfVectorizer(analyzer=terms, sublinear_tf=True, min_df=2)
    peer = make_pipeline(vectors, LogisticRegression(C=10.0, max_iter=5000, tol=1e-7)).fit(masked, intents)
    dev = [mask_labels(text, DEMO) for text in world["dev"][0]]
    ours = verifier.predict_proba(world["dev"][0])[:, [DEMO.index(name) for name in peer.classes_]]
    np.testing.assert_allclose(ours.numpy(), peer.predict_proba(dev), atol=5e-3)  # another solver, other class order
    assert (ours.argmax(1).numpy() == peer.predict_proba(dev).argmax(1)).mean() > 0.99


def test_label_words_do_not_move_it(verifier):
    text = "A raised head and booming speech while the words report what happened; so the aim is to {}."
    q = verifier.predict_proba([text.format(label.lower()) for label in DEMO.labels])
    assert torch.equal(q, q[:1].expand_as(q))
    assert q.sum(1).allclose(torch.ones(len(q)))


def test_it_peaks_on_references_and_falls_on_shuffled_and_swapped(verifier, world):
    dev = verifier.dev
    assert dev.n == 100 and dev.accuracy > 0.7 and dev.accuracy_shuffled < 0.25
    assert dev.gold > 0.4 and dev.gold_shuffled < 0.15 and dev.gold_swapped < 0.1
    assert dev.peaks and dev.sentence().startswith("verifier on 100 rationales")
    assert verifier.check(*world["dev"]) == dev


def test_it_says_so_where_rationales_carry_nothing(world):
    intents = world["train"][1]
    empty = fit_verifier(["The speaker means what is said."] * len(intents), intents, DEMO)
    found = empty.check(["The speaker means what is said."] * 100, world["dev"][1])
    assert not found.peaks and found.sentence().startswith("WARNING") and "consistency=0" in found.sentence()


def test_saved_and_loaded_it_is_the_same(verifier, world, tmp_path):
    verifier.save(tmp_path)
    again = Verifier.load(tmp_path)
    assert torch.equal(again.predict_proba(world["dev"][0]), verifier.predict_proba(world["dev"][0]))
    assert (again.taxonomy, again.dev, again.classes) == (DEMO, verifier.dev, verifier.classes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["verifier.json", "verifier.safetensors"]


def test_intents_without_train_rationales_get_probability_zero():
    texts = ["soft and sad", "soft, so sad", "loud and glad", "so loud and glad"]
    two = fit_verifier(texts, ["Comfort", "Comfort", "Flaunt", "Flaunt"], DEMO)
    q = two.predict_proba(["very sad and soft", "glad and loud"])
    assert q[0, DEMO.index("Comfort")] > 0.5 and q[1, DEMO.index("Flaunt")] > 0.5
    assert q.sum(1).allclose(torch.ones(2)) and int((q > 0).sum()) == 4


def test_what_cannot_be_fitted_or_read_is_refused(tmp_path, verifier):
    with pytest.raises(VerifierError, match=r"at least 2 intents, got 2 of 1; write more with: python write_rationales\.py"):
        fit_verifier(["a b", "a c"], ["Joke", "Joke"], DEMO)
    with pytest.raises(VerifierError, match="no word is left of 2 train rationales when labels are masked"):
        fit_verifier(["Praise.", "Complaints."], ["Praise", "Complain"], MINTREC)
    with pytest.raises(VerifierError, match="no verifier can be read"):
        Verifier.load(tmp_path)
    verifier.save(tmp_path)
    state = json.loads((tmp_path / "verifier.json").read_text())
    (tmp_path / "verifier.json").write_text(json.dumps(state | {"format": 0}))
    with pytest.raises(VerifierError, match=r"expected format and sizes \(1, 20, "):
        Verifier.load(tmp_path)
