"""The self-critical loss against a loop over tokens, a gradient in closed form, and a bandit that learns."""

import pytest
import torch

from imagebind_llm.critic.rewards import advantage
from imagebind_llm.itsl.losses import self_critical


def answers(rows: int = 6, tokens: int = 5, seed: int = 0):
    """logp (R,T), a mask of answers that end (EOS included) at different places, advantages (R,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tokens, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    chosen = torch.randint(7, (rows, tokens), generator=generator)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    mask = torch.arange(tokens) < lengths[:, None]
    return logits, chosen, mask, torch.randn(rows, generator=generator, dtype=torch.float64)


def logp_of(logits, chosen):
    return logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]


def test_it_is_the_sum_over_tokens_divided_by_a_constant():
    logits, chosen, mask, advantages = answers()
    logp = logp_of(logits, chosen).detach()
    total = 0.0
    for row in range(6):
        for token in range(5):
            if mask[row, token]:
                total += float(advantages[row] * logp[row, token])
    torch.testing.assert_close(float(self_critical(logp, mask, advantages, 48)), -total / (6 * 48))


def test_gradient_is_advantage_times_probability_minus_choice():
    logits, chosen, mask, advantages = answers()
    self_critical(logp_of(logits, chosen), mask, advantages, 48).backward()
    slope = logits.softmax(-1) - torch.nn.functional.one_hot(chosen, 7)  # of -log p
    torch.testing.assert_close(logits.grad, advantages[:, None, None] * mask[..., None] * slope / (6 * 48))


def test_tokens_after_the_end_do_not_matter_even_if_they_are_impossible():
    logits, chosen, mask, advantages = answers()
    logp = logp_of(logits, chosen)
    broken = logp.masked_fill(~mask, -torch.inf)
    assert torch.equal(self_critical(broken, mask, advantages, 48), self_critical(logp, mask, advantages, 48))


def test_the_token_that_ends_an_answer_counts():
    logits, chosen, mask, advantages = answers()
    self_critical(logp_of(logits, chosen), mask, advantages, 48).backward()
    last = mask.sum(1) - 1
    assert (logits.grad[torch.arange(6), last].abs().amax(1) > 0).all()


def test_zero_advantage_gives_exactly_zero_gradient():
    logits, chosen, mask, _ = answers()
    alike = {"intent": torch.full((2, 3), 0.7), "format": torch.full((2, 3), 1 / 3)}
    worth = advantage(alike, "loo", {"intent": 1.0, "format": 0.1}, penalty=torch.rand(2, 3))
    self_critical(logp_of(logits, chosen), mask, worth.value.flatten(), 48).backward()
    assert worth.skipped.all() and logits.grad.abs().max() == 0


def test_no_gradient_flows_into_the_advantage():
    logits, chosen, mask, advantages = answers()
    advantages.requires_grad_()
    self_critical(logp_of(logits, chosen), mask, advantages, 48).backward()
    assert advantages.grad is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_better_answer_becomes_likelier_and_a_worse_one_rarer(sign):
    logits, chosen, mask, _ = answers(rows=1)
    before = float((logp_of(logits, chosen) * mask).sum().detach())
    self_critical(logp_of(logits, chosen), mask, torch.tensor([sign], dtype=torch.float64), 48).backward()
    with torch.no_grad():
        after = (logp_of(logits - logits.grad, chosen) * mask).sum()
    assert sign * (float(after) - before) > 0


@pytest.mark.parametrize("baseline", ["greedy", "loo", "group"])
def test_a_two_armed_bandit_finds_the_better_arm(baseline):
    generator = torch.Generator().manual_seed(0)
    preference = torch.tensor([1.0, 0.0], requires_grad=True)  # starts on the worse arm
    optimizer = torch.optim.SGD([preference], lr=1.0)
    for _ in range(200):
        arms = torch.multinomial(preference.detach().softmax(0), 4, replacement=True, generator=generator)
        greedy = {"intent": preference.detach().argmax()[None].float()}
        worth = advantage({"intent": arms[None].float()}, baseline, {"intent": 1.0}, greedy)
        logp = preference.log_softmax(0)[arms][:, None]
        optimizer.zero_grad()
        self_critical(logp, torch.ones(4, 1, dtype=torch.bool), worth.value[0], 1).backward()
        optimizer.step()
    assert preference.softmax(0)[1] > 0.95
