"""Reward parts by hand, and advantages against the definition written out one number at a time."""

import pytest
import torch

from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.rewards import (
    REWARD_WEIGHTS,
    REWARDS,
    Reward,
    advantage,
    column,
    consistency_rewards,
    format_reward,
    intent_reward,
    rationale_reward,
    reward_parts,
)
from imagebind_llm.critic.verifier import fit_verifier
from imagebind_llm.demo_world.write import draw_world
from imagebind_llm.records import Answer
from imagebind_llm.taxonomy import DEMO, MINTREC2
from imagebind_llm.text_metrics import CiderD, rouge_l
from imagebind_llm.training.settings import TrainSettings

GOOD = "There is a raised head and booming speech while the words report news, so the aim is to flaunt."


@pytest.fixture(scope="module")
def world():
    return draw_world(0, {"train": 120, "dev": 40, "test": 1})[:160]


@pytest.fixture(scope="module")
def judges(world):
    train = [row for row in world if row.split == "train"]
    texts = [row.rationale for row in train]
    return CiderD(texts), fit_verifier(texts, [row.scene.intent for row in train], DEMO)


def drawn(*shape: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name in REWARD_WEIGHTS}


def test_intent_part_is_one_a_quarter_or_nothing():
    of = lambda label: Answer(label, "a b", True)  # noqa: E731
    assert intent_reward(of("Joke"), "Joke", DEMO) == 1
    assert intent_reward(of("Taunt"), "Joke", DEMO) == 0.25
    assert intent_reward(of("Leave"), "Joke", DEMO) == intent_reward(of(None), "Joke", DEMO) == 0
    assert intent_reward(of("UNK"), "UNK", MINTREC2) == 1
    assert intent_reward(of("UNK"), "Inform", MINTREC2) == intent_reward(of("Inform"), "UNK", MINTREC2) == 0


def test_rationale_part_is_one_for_the_reference_and_nothing_without_a_text(judges, world):
    cider, _ = judges
    reference, other = world[0].rationale, world[1].rationale
    assert rationale_reward(Answer("Joke", reference, True), reference, cider) == pytest.approx(1)
    assert 0 < rationale_reward(Answer("Joke", other, True), reference, cider) < 0.8
    assert rationale_reward(Answer("Joke", None, True), reference, cider) == 0
    assert rationale_reward(Answer("Joke", reference, True), None, cider) == 0


def test_rationale_part_is_half_cider_and_half_rouge(judges, world):
    cider, _ = judges
    for ours, theirs in zip(world[:20], world[20:40], strict=True):
        halves = (cider.score(ours.rationale, theirs.rationale) / 10, rouge_l(ours.rationale, theirs.rationale))
        found = rationale_reward(Answer("Joke", ours.rationale, True), theirs.rationale, cider)
        assert found == pytest.approx(sum(halves) / 2) and halves[0] != halves[1]


def test_consistency_part_reads_the_gold_label_and_not_the_named_one(judges, world):
    _, verifier = judges
    some = world[:40]
    honest = consistency_rewards([Answer(None, r.rationale, True) for r in some], [r.scene.intent for r in some], verifier)
    labels = ["Joke" if r.scene.intent != "Joke" else "Leave" for r in some]
    wrong = consistency_rewards([Answer(None, r.rationale, True) for r in some], labels, verifier)
    assert sum(honest) / 40 > 0.4 and sum(wrong) / 40 < 0.1
    renamed = [Answer("Leave", r.rationale.replace(r.scene.intent.lower(), "leave"), True) for r in some]
    assert consistency_rewards(renamed, [r.scene.intent for r in some], verifier) == pytest.approx(honest, abs=1e-6)
    assert consistency_rewards([Answer("Joke", None, True)], ["Joke"], verifier) == [0]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        (Answer("Flaunt", GOOD, True), 1),
        (Answer("Flaunt", GOOD, False), 0.75),  # cut at the limit: not finished, though a full stop happens to be last
        (Answer("Flaunt", GOOD.rstrip("."), True), 0.75),
        (Answer("Flaunt", GOOD + " To flaunt is the aim.", True), 0.75),
        (Answer("Flaunt", "To flaunt.", True), 0.75),
        (Answer("Flaunt", "it goes on and on " * 3 + ".", True), 0.75),
        (Answer("Flaunt", "on and on " * 40, False), 0.25),
        (Answer("Flaunt", None, True), 0),
        (Answer(None, GOOD, True), 0),
    ],
)
def test_format_part_is_the_share_of_conditions_that_hold(answer, reward):
    assert format_reward(answer) == reward


def test_all_parts_of_many_answers_lie_between_zero_and_one(judges, world):
    cider, verifier = judges
    texts = [row.rationale for row in world[:20]] + ["", None, "x" * 500, GOOD * 9, "Ünïcode 你好"]
    answers = [Answer(DEMO.labels[i % 20] if i % 7 else None, text, bool(i % 3)) for i, text in enumerate(texts)]
    parts = reward_parts(answers, ["Joke"] * len(texts), [GOOD] * len(texts), cider, verifier)
    assert list(parts) == [name for name in REWARD_WEIGHTS if name != "truth"]  # that one needs a judge
    for part in parts.values():
        assert part.shape == (25,) and part.min() >= 0 and part.max() <= 1


def test_a_reward_that_is_registered_is_computed_logged_and_summed(monkeypatch, judges):
    brevity = Reward(0.0, lambda inputs: [0.25 if answer.rationale else 1.0 for answer in inputs.answers])
    monkeypatch.setitem(REWARDS, "brevity", brevity)
    answers = [Answer("Joke", GOOD, True), Answer(None, None, True)]
    part = reward_parts(answers, ["Joke"] * 2, [GOOD] * 2, *judges)["brevity"]
    assert part.tolist() == [0.25, 1.0]
    sums = CriticSums({"answers": 2.0, "clips": 1.0})
    sums[column("brevity")] += float(part.sum())
    assert sums.means()["reward_brevity"] == 0.625
    assert TrainSettings("data", reward_weights="brevity=2").critic.rewards() == {"brevity": 2.0}


def by_definition(parts, baseline, greedy, penalty) -> list[list[float]]:
    """spec: z per part over the group, weighted and summed; then the baseline. Python floats, one clip at a time."""

    def z(values: list[float]) -> list[float]:
        mean = sum(values) / len(values)
        deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        return [(v - mean) / (deviation + 1e-6) for v in values]

    result = []
    for b in range(len(penalty)):
        group = {n: [*part[b].tolist(), *([greedy[n][b].item()] if greedy else [])] for n, part in parts.items()}
        size = len(next(iter(group.values())))
        group = {name: z(values) for name, values in group.items()}
        score = [sum(REWARD_WEIGHTS[name] * values[i] for name, values in group.items()) for i in range(size)]
        own = [score[k] - penalty[b][k].item() for k in range(penalty.shape[1])]
        means = {
            "greedy": [score[-1]] * len(own),
            "loo": [(sum(own) - x) / (len(own) - 1) for x in own],
            "group": [0.0] * len(own),
        }
        result.append([x - m for x, m in zip(own, means[baseline], strict=True)])
    return result


@pytest.mark.parametrize("baseline", ["greedy", "loo", "group"])
@pytest.mark.parametrize("with_greedy", [True, False])
def test_advantage_is_the_definition(baseline, with_greedy):
    if baseline == "greedy" and not with_greedy:
        pytest.skip("the greedy baseline needs the greedy answer")
    parts, penalty = drawn(3, 4), 0.05 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    greedy = drawn(3, seed=2) if with_greedy else None
    found = advantage(parts, baseline, REWARD_WEIGHTS, greedy, penalty)
    torch.testing.assert_close(found.value, torch.tensor(by_definition(parts, baseline, greedy, penalty)))
    assert not found.skipped.any()


def test_leave_one_out_is_k_over_k_minus_one_times_the_distance_to_the_mean():
    parts = drawn(5, 4)
    loo = advantage(parts, "loo", REWARD_WEIGHTS).value
    score = advantage(parts, "group", REWARD_WEIGHTS).value
    torch.testing.assert_close(loo, 4 / 3 * (score - score.mean(1, keepdim=True)))


def test_a_group_that_is_alike_is_skipped_with_its_penalty():
    parts = {name: torch.full((2, 3), 0.1) for name in REWARD_WEIGHTS}
    parts["rationale"][1, 0] = 0.3
    for baseline in ("loo", "group"):
        found = advantage(parts, baseline, REWARD_WEIGHTS, penalty=torch.rand(2, 3))
        assert found.skipped.tolist() == [True, False]
        assert found.value[0].tolist() == [0, 0, 0] and (found.value[1] != 0).all()


def test_a_part_without_weight_is_no_spread():
    parts = {name: torch.full((1, 3), 0.1) for name in REWARD_WEIGHTS} | {"consistency": torch.tensor([[0.1, 0.5, 0.9]])}
    assert advantage(parts, "loo", REWARD_WEIGHTS | {"consistency": 0.0}).skipped.tolist() == [True]
    assert advantage(parts, "loo", REWARD_WEIGHTS).skipped.tolist() == [False]


def test_samples_alike_but_better_than_the_greedy_answer_are_a_real_advantage():
    parts, greedy = {"intent": torch.ones(1, 4)}, {"intent": torch.zeros(1)}
    found = advantage(parts, "greedy", {"intent": 1.0}, greedy)
    assert not found.skipped.any()
    torch.testing.assert_close(found.value, torch.full((1, 4), 2.5))  # z of (1,1,1,1,0): 0.5 against -2
    assert advantage(parts, "loo", {"intent": 1.0}, greedy).value.tolist() == [[0, 0, 0, 0]]


def test_normalising_first_keeps_a_small_part_from_being_swallowed():
    parts = {"intent": torch.tensor([[0.0, 1.0, 0.0, 1.0]]), "rationale": torch.tensor([[0.30, 0.30, 0.31, 0.31]])}
    equal = {"intent": 1.0, "rationale": 1.0}
    normalised = advantage(parts, "loo", equal).value[0]
    torch.testing.assert_close(normalised[1], normalised[2], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "best"}, "--baseline best: expected one of greedy loo group"),
        ({"baseline": "greedy"}, "needs the greedy answer"),
        ({"baseline": "loo", "parts": drawn(2, 1)}, "--samples 1 must be at least 2"),
        ({"baseline": "loo", "weights": {"intnt": 1.0}}, "names intnt; expected some of: intent, rationale"),
        ({"baseline": "loo", "weights": {"intent": 0.0}}, "nothing is left to reward"),
    ],
)
def test_what_cannot_be_compared_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        advantage(**({"parts": drawn(2, 3), "weights": REWARD_WEIGHTS} | settings))
