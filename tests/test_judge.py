"""The judge tells true claims from false ones of a small world whose clips are known, and is the same after saving."""

import json

import pytest
import torch
from toy_intents import write_store

from imagebind_llm.config import MODALITIES
from imagebind_llm.critic import judge_fit
from imagebind_llm.critic.judge import FITTED, SHARED, ClauseVectors, Judge, JudgeError
from imagebind_llm.critic.judge_fit import Clauses, Trial, area, calibrate, figures, fit_judges, fit_map, sentence, shared_space
from imagebind_llm.encoder.store import Store

WIDTH = 24
SEEN = ("a broad smile", "a deep frown", "wide open eyes")
HEARD = ("a loud voice", "a soft voice", "a shaky voice")
N = {"train": 120, "dev": 40}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_fit, "STEPS", 100)
        patch.setattr(judge_fit, "PAIRS", 64)
        yield


def encode(texts) -> torch.Tensor:
    """A text tower: a vector for each word, in a random order that every text shares, and their mean."""
    words = {}
    for text in texts:
        for word in text.split():
            seed = int.from_bytes(word.encode()[:6], "big")
            words[word] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return torch.stack([torch.stack([words[word] for word in text.split()]).mean(0) for text in texts])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Store, texts {split: {key: captions}}, what each clip shows {key: (seen, heard)}, intents."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 3, WIDTH, generator=generator)
    keys, vectors, told, truth = [], [], {"train": {}, "dev": {}}, {}
    for split, count in N.items():
        for i in range(count):
            key = f"{split}_{i}"
            seen, heard = torch.randint(3, (2,), generator=generator).tolist()
            noise = 0.3 * torch.randn(len(MODALITIES), WIDTH, generator=generator)
            clip = torch.stack([torch.randn(WIDTH, generator=generator), centres[0, heard], centres[1, seen]]) + noise
            told[split][key] = [f"Face: {SEEN[seen]}. Voice: {HEARD[heard]}.", f"We see {SEEN[seen]} and hear {HEARD[heard]}."]
            keys, vectors, truth[key] = [*keys, key], [*vectors, clip], (SEEN[seen], HEARD[heard])
    store = Store(write_store(tmp_path_factory.mktemp("judge") / "emb", keys, torch.stack(vectors)))
    return store, told, truth, {key: i % 4 for i, key in enumerate(keys)}


@pytest.fixture(scope="module")
def vectors() -> ClauseVectors:
    return ClauseVectors(encode)


@pytest.fixture(scope="module")
def judges(world, vectors):
    store, told, _, intents = world
    return fit_judges(told, "captions", store, vectors, MODALITIES, None, intents)


def test_true_claims_are_likely_and_false_ones_are_not(world, judges):
    _, told, truth, _ = world
    for judge in judges:
        assert judge.kind == FITTED and judge.figures.any_clip > 0.95 and judge.figures.same_intent > 0.95
        p = torch.stack([judge.score([*SEEN, *HEARD], key) for key in told["dev"]])
        true = torch.tensor([[text in truth[key] for text in (*SEEN, *HEARD)] for key in told["dev"]])
        assert p[true].mean() > 0.85 and p[~true].mean() < 0.15 and p.min() >= 0 and p.max() <= 1


def test_a_modality_that_tells_nothing_is_switched_off_and_that_is_said(judges):
    assert judges[0].modalities == ("audio", "vision")
    assert "text 0.500 (switched off)" in sentence(judges[0]) and "WARNING" not in sentence(judges[0])


def test_a_claim_that_hangs_on_a_modality_that_is_off_is_undecided(world, vectors):
    store, told, _, intents = world
    judge, _ = fit_judges(told, "captions", store, vectors, ("audio", "vision"), None, intents)
    assert judge.hangs_on([*SEEN, *HEARD]) == ["vision"] * 3 + ["audio"] * 3
    judge.modalities = ("audio",)
    assert judge.score(SEEN, "dev_0").tolist() == [0.5] * 3 and (judge.score(HEARD, "dev_0") != 0.5).all()


def test_pay_and_watch_come_from_different_halves(judges):
    pays, watches = judges
    assert not torch.equal(pays.tensors["clip_mean"], watches.tensors["clip_mean"])
    assert not torch.equal(pays.tensors["clip_map"], watches.tensors["clip_map"])


def test_a_claim_is_read_as_the_ending_that_the_judge_knows(judges):
    judge = judges[0]
    assert judge.read("we notice that there is a broad smile") == ("a broad smile", True)
    assert torch.equal(judge.score(["one can make out a soft voice"], "dev_0"), judge.score(["a soft voice"], "dev_0"))
    assert not judge.read("the words bring news")[1]
    assert judge.score(["the words bring news"], "dev_0").tolist() == [0.5], "what it cannot judge is undecided"


def test_without_a_modality_it_looks_at_a_claim_is_undecided(world, vectors, tmp_path):
    store, told, _, _ = world
    keys = list(told["train"])[:8]
    rows, present = store.read(keys)
    present[0, 1:] = False
    other = Store(write_store(tmp_path / "emb", keys, rows, present))
    judge = shared_space(Clauses.of({key: told["train"][key] for key in keys}, None), vectors, other, ("audio", "vision"))
    assert judge.score(list(SEEN), keys[0]).tolist() == [0.5] * 3 and (judge.score(list(SEEN), keys[1]) != 0.5).any()


def test_no_other_modality_speaks_for_one_that_the_clip_has_not(world, vectors, tmp_path):
    store, told, _, intents = world
    keys = list(told["dev"])
    rows, present = store.read(keys)
    present[:, 1] = False
    rows[:, 1] = 0
    silent = Store(write_store(tmp_path / "emb", keys, rows, present))
    judge, _ = fit_judges(told, "captions", store, vectors, ("audio", "vision"), None, intents)
    judge.store = silent
    judge.forget(keys[0])  # as it was with sound, on which the judge was calibrated
    assert judge.score(HEARD, keys[0]).tolist() == [0.5] * 3, "of a clip without sound"
    assert (judge.score(SEEN, keys[0]) != 0.5).all()


def test_texts_are_forgotten_in_time_and_clips_on_demand(world, judges, monkeypatch):
    monkeypatch.setattr("imagebind_llm.critic.judge.LARGEST_CACHE", 2)
    some = ClauseVectors(encode)
    for text in (*SEEN, *HEARD):
        assert torch.equal(some([text, SEEN[0]])[1], some([SEEN[0]])[0])
        assert len(some._vectors) <= 4
    judge = judges[0]
    judge.score(SEEN, "dev_2")
    judge.forget("dev_2")
    assert "dev_2" not in judge._clips


def test_the_same_texts_and_seed_fit_the_same_judge(world, vectors, judges):
    store, told, _, intents = world
    again = fit_judges(told, "captions", store, vectors, MODALITIES, None, intents)
    other = fit_judges(told, "captions", store, vectors, MODALITIES, None, intents, seed=1)
    for name, tensor in judges[0].tensors.items():
        assert torch.equal(again[0].tensors[name], tensor)
    assert not torch.equal(other[0].tensors["clip_map"], judges[0].tensors["clip_map"])


def test_a_saved_judge_says_the_same(world, vectors, judges, tmp_path):
    store = world[0]
    judges[0].save(tmp_path)
    loaded = Judge.load(tmp_path, store, vectors)
    torch.testing.assert_close(loaded.score([*SEEN, *HEARD], "dev_1"), judges[0].score([*SEEN, *HEARD], "dev_1"))
    assert loaded.hangs_on([*SEEN, *HEARD]) == judges[0].hangs_on([*SEEN, *HEARD])
    assert loaded.figures == judges[0].figures and loaded.modalities == judges[0].modalities and loaded.source == "captions"
    state = json.loads((tmp_path / "judge.json").read_text())
    state["store"]["weights_sha256"] = "another"
    (tmp_path / "judge.json").write_text(json.dumps(state))
    with pytest.raises(JudgeError, match="pass the store that it was fitted on"):
        Judge.load(tmp_path, store, vectors)
    (tmp_path / "judge.safetensors").write_bytes(b"cut")
    with pytest.raises(JudgeError, match="no judge can be read"):
        Judge.load(tmp_path, store, vectors)


def test_a_constant_added_to_a_texts_similarities_changes_nothing_in_the_shared_space(world, vectors):
    """A text whose cosine with every clip is larger by the same amount is no likelier of any of them."""
    store, told, _, _ = world
    keys = list(told["train"])[:8]
    judge = shared_space(Clauses.of({key: told["train"][key] for key in keys}, None), vectors, store, ("vision",))
    clips = torch.nn.functional.normalize(store.read(keys)[0][:, 2], dim=1)
    shift = torch.linalg.pinv(clips) @ torch.full((8,), 0.5)  # adds 0.5 to the cosine with each of these clips
    text = vectors([SEEN[0]])[0]
    before = judge.similarity([SEEN[0]] * 8, keys)
    judge.vectors = ClauseVectors(encode)
    judge.vectors._vectors |= {SEEN[0]: text + shift, "broad smile": vectors(["broad smile"])[0]}
    torch.testing.assert_close(clips @ (text + shift), clips @ text + 0.5)
    torch.testing.assert_close(judge.similarity([SEEN[0]] * 8, keys), before, atol=1e-4, rtol=0)


def test_rationales_are_named_as_the_poorer_source(world, vectors):
    store, told, _, intents = world
    judge, _ = fit_judges(told, "rationales", store, vectors, ("audio", "vision"), None, intents)
    assert sentence(judge).startswith("WARNING: ") and "captions of the clips would make it better" in sentence(judge)


def test_without_dev_texts_some_train_clips_are_kept_for_calibration(world, vectors):
    store, told, _, intents = world
    judge, _ = fit_judges({"train": told["train"]}, "captions", store, vectors, ("vision",), None, intents)
    assert judge.figures.n <= 4 * 24 and judge.figures.any_clip > 0.75


def test_what_can_tell_nothing_is_refused(world, vectors):
    store, told, _, intents = world
    with pytest.raises(JudgeError, match="cannot tell clips of the same intent apart by text"):
        fit_judges(told, "captions", store, vectors, ("text",), None, intents)
    with pytest.raises(JudgeError, match="at least 2 train clips"):
        fit_map(Clauses.of({"train_0": told["train"]["train_0"]}, None), vectors, store, MODALITIES, 0)


def test_the_area_under_the_curve_counts_ties_as_half():
    assert area(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])) == 0.875
    assert area(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan])) == 0.5


def test_calibration_is_the_share_of_own_clauses_where_the_kinds_overlap(world, vectors):
    """Scores of two overlapping kinds: P of the fitted map is the logistic regression that scikit-learn finds."""
    from sklearn.linear_model import LogisticRegression

    store, told, _, intents = world
    judge = shared_space(Clauses.of(told["train"], None), vectors, store, ("vision",))
    trial = Trial.of(Clauses.of(told["dev"], None), vectors, intents)
    calibrate(judge, trial)
    own, dealt = (judge.similarity(*zip(*pairs, strict=True)) for pairs in (trial.own, trial.any_clip))
    s, y = torch.cat([own, dealt]), torch.tensor([1] * len(own) + [0] * len(dealt))
    weight = torch.tensor([0.5 / len(own)] * len(own) + [0.5 / len(dealt)] * len(dealt))
    reference = LogisticRegression(C=1e8).fit(s[:, None].numpy(), y, weight.numpy() * 1e3)
    expected = torch.from_numpy(reference.predict_proba(s[:, None].numpy())[:, 1]).float()
    assert judge.kind == SHARED and figures(judge, trial).own > figures(judge, trial).dealt
    torch.testing.assert_close(judge.probability(s), expected, atol=0.02, rtol=0)
