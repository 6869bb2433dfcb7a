"""What claims are worth, and the advantage of each token, against the definition written out."""

import itertools

import pytest
import torch

from imagebind_llm.critic.credit import (
    CAP,
    SPREAD,
    Verdict,
    best,
    claim_advantages,
    counting,
    floor,
    repeats,
    spread_over_tokens,
    truth,
)
from imagebind_llm.itsl.losses import self_critical


def answer(*values: float, repeated: tuple[int, ...] = ()) -> list[Verdict]:
    """Claims of two tokens each, one after the other."""
    counts = counting(values, [i in repeated for i in range(len(values))])
    return [Verdict(2 * i, 2 * i + 2, v, own) for i, (v, own) in enumerate(zip(values, counts, strict=True))]


def drawn(claims: int, answers: int, seed: int = 0) -> list[list[Verdict]]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(answers, claims, generator=generator) * 2 - 1
    return [[Verdict(2 * i, 2 * i + 2, v, True) for i, v in enumerate(row)] for row in values.tolist()]


def test_what_is_undecided_or_said_before_or_beyond_the_cap_does_not_count():
    assert counting([0.19, -0.19, 0.2, -0.2, 0.9], [False] * 4 + [True]) == [False, False, True, True, False]
    many = [0.3, 0.9, 0.5, 0.4, 0.8, 0.7, -0.5]
    assert [v for v, own in zip(many, counting(many, [False] * 7), strict=True) if own] == [0.9, 0.5, 0.8, 0.7, -0.5]


def test_a_clause_repeats_an_earlier_one_if_it_is_the_same_or_nearly_so():
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [0.7, 0.7]]), dim=1)
    assert repeats(["a b", "c d", "e f", "g h"], vectors) == [False, False, True, False]
    assert repeats(["a b", "a b"], torch.eye(2)) == [False, True]


def test_truth_is_the_capped_net_sum_and_misses_a_quarter_for_each_claim_too_few():
    assert truth([]) == -0.5
    assert truth(answer(0.8)) == pytest.approx(0.8 / 4 - 0.25)
    assert truth(answer(0.8, -0.6)) == pytest.approx(0.2 / 4)
    assert truth(answer(0.9, 0.8, 0.7, 0.6, 0.5, -0.4)) == pytest.approx((0.9 + 0.8 + 0.7 + 0.6 - 0.4) / 4)
    assert truth(answer(0.9, 0.9, repeated=(1,))) == pytest.approx(0.9 / 4 - 0.25)
    assert truth(answer(*[-1.0] * 9)) == -1 and truth(answer(*[1.0] * 9)) == 1
    for values in itertools.product((-1.0, -0.5, 0.1, 1.0), repeat=5):
        assert -1 <= truth(answer(*values)) <= 1


def test_saying_nothing_one_sure_thing_or_everything_is_worth_less_than_four_claims():
    reference = answer(0.8, 0.75, 0.8, 0.7)
    everything = answer(*([0.9] * 8 + [-0.9] * 21))  # 8 cues of 29 values in all: one of each is true
    assert max(truth(answer()), truth(answer(0.99)), truth(everything)) < truth(reference) < truth(answer(*[0.9] * 5))


def test_leave_one_out_is_the_value_less_the_mean_of_the_other_answers_claims():
    group = [answer(0.9, -0.5), answer(0.4, 0.1, 0.6), answer(), answer(-0.7)]
    claims, floors = claim_advantages(group, "loo")
    assert claims[0] == pytest.approx([(0.9 - (0.4 + 0.6 - 0.7) / 3) / SPREAD, (-0.5 - 0.3 / 3) / SPREAD])
    assert claims[1] == pytest.approx([(0.4 + 0.3 / 3) / SPREAD, 0, (0.6 + 0.3 / 3) / SPREAD]), "0.1 is no verdict"
    assert claims[2] == [] and claims[3] == pytest.approx([(-0.7 - (0.9 - 0.5 + 0.4 + 0.6) / 4) / SPREAD])
    assert [floor(one) for one in group] == [0, 0, -0.5, -0.25]
    assert floors == pytest.approx([0.25 / SPREAD, 0.25 / SPREAD, (-0.5 + 0.25 / 3) / SPREAD, (-0.25 + 0.5 / 3) / SPREAD])
    assert claim_advantages([answer(0.5), answer()], "loo")[0][0] == [0.5 / SPREAD], "no other claim: baseline 0"


def test_greedy_compares_with_the_claim_of_the_same_place_else_with_the_mean():
    greedy = answer(0.6, 0.1, -0.4)
    claims, floors = claim_advantages([answer(0.9, 0.9, 0.9, 0.9)], "greedy", greedy)
    assert claims[0] == pytest.approx([0.3 / SPREAD, 0.8 / SPREAD, 1.3 / SPREAD, 0.8 / SPREAD]) and floors == [0]
    with pytest.raises(ValueError, match="greedy"):
        claim_advantages([answer(0.9)], "greedy")


def test_group_divides_by_the_deviation_of_all_claims():
    claims, floors = claim_advantages([answer(0.9, 0.5), answer(-0.4)], "group")
    scale = torch.tensor([0.9, 0.5, -0.4]).std(correction=0).item()
    assert claims[0] == pytest.approx([(0.9 - 1 / 3) / scale, (0.5 - 1 / 3) / scale])
    assert floors == pytest.approx([0.125 / scale, -0.125 / scale])


@pytest.mark.parametrize("baseline", ["loo", "greedy", "group"])
def test_equal_claims_give_exactly_zero(baseline):
    group = [answer(0.3, 0.3, 0.3) for _ in range(4)]
    claims, floors = claim_advantages(group, baseline, answer(0.3, 0.3, 0.3))
    assert not any(map(any, claims)) and not any(floors)


@pytest.mark.parametrize("seed", range(3))
def test_with_as_many_claims_in_every_answer_claims_on_all_tokens_are_the_advantage_of_whole_answers(seed):
    group = drawn(CAP, 4, seed)
    claims, _ = claim_advantages(group, "loo")
    sums = torch.tensor([[v.value for v in one] for one in group]).sum(1) / CAP  # truth without cap, floor and dead zone
    whole = sums - (sums.sum() - sums) / 3
    torch.testing.assert_close(torch.tensor(claims).sum(1) * SPREAD / CAP, whole)
    uneven = [group[0], group[1][:2], *group[2:]]
    sums = torch.tensor([sum(v.value for v in one) for one in uneven]) / CAP
    found = torch.tensor([sum(one) for one in claim_advantages(uneven, "loo")[0]]) * SPREAD / CAP
    assert (found - (sums - (sums.sum() - sums) / 3)).abs().max() > 1e-2, "of unequal numbers the means are pooled"


def test_tokens_get_their_claims_advantage_and_the_last_one_the_floors():
    verdicts = [[Verdict(1, 3, 0.9, True), Verdict(4, 6, 0.5, True)], []]
    found = spread_over_tokens(verdicts, [[1.0, -2.0], []], [0.5, -0.5], [8, 2], 9)
    assert found.tolist() == [[0, 1, 1, 0, -2, -2, 0, 0.5, 0], [0, -0.5, 0, 0, 0, 0, 0, 0, 0]]
    to_go = spread_over_tokens(verdicts, [[1.0, -2.0], []], [0.5, -0.5], [8, 2], 9, to_go=True)
    assert to_go.tolist() == [[-0.5, -0.5, -0.5, -1.5, -1.5, -1.5, 0.5, 0.5, 0], [-0.5, -0.5, 0, 0, 0, 0, 0, 0, 0]]


def test_the_truest_of_equal_answers_the_first_is_learnt_and_of_answers_that_are_all_alike_none():
    truths = torch.tensor([[0.1, 0.7, 0.7], [-0.5, -0.5, -0.5], [-0.2, -0.9, -0.3]])
    assert best(truths).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_the_loss_takes_advantages_of_answers_and_of_tokens():
    generator = torch.Generator().manual_seed(0)
    logp = -torch.rand(3, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [2], [4]])
    whole, by_token = torch.randn(3, generator=generator), torch.randn(3, 5, generator=generator)
    alike = whole[:, None].expand(3, 5)
    torch.testing.assert_close(self_critical(logp, mask, whole, 48), self_critical(logp, mask, alike, 48))
    expected = -sum(float(by_token[r, t] * logp[r, t]) for r in range(3) for t in range(5) if mask[r, t]) / (3 * 48)
    assert float(self_critical(logp, mask, by_token, 48)) == pytest.approx(expected)
