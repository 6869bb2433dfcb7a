"""What a wrong judge does: the gain falls with the share of flipped verdicts, and the guard stops a run that games its judge.

A toy policy is trained by the critic's own loss: an answer makes two claims, each said in one of three ways.
"""

import itertools
from collections.abc import Callable

import torch
from test_claim_credit import COLUMNS, PROMPTS, critic, mask, sampled
from torch import Tensor

from imagebind_llm.critic.credit import CAP
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.training.choice import Guard

CLAIMS = torch.arange(2)
EPOCH, ANSWERS = 20, 32  # steps of an epoch, and answers of a step that the judges are asked about


class Policy:
    """Logits (2,3) of the ways to say each claim, the third with a start of its own."""

    def __init__(self, seed: int, third: float = 0.0):
        self.table = torch.tensor([[0.0, 0.0, third]] * 2, requires_grad=True)
        self.generator = torch.Generator().manual_seed(seed)

    def chances(self) -> Tensor:
        return self.table.detach().softmax(1)

    def answers(self, count: int) -> Tensor:
        """(count,2) ways."""
        return torch.multinomial(self.chances(), count, replacement=True, generator=self.generator).T

    def step(self, judge: Callable[[Tensor], Tensor], rate: float) -> None:
        """Learn from what the judge makes (4,2) of four answers."""
        ways, logp = self.answers(4), torch.zeros(4, COLUMNS)
        for row, first in enumerate(PROMPTS):
            logp[row, first + 2], logp[row, first + 4] = self.table.log_softmax(1)[CLAIMS, ways[row]]
        group = sampled(tuple(map(tuple, judge(ways).tolist())))
        critic().loss(group, logp, mask(), logp.detach(), CriticSums()).backward()
        with torch.no_grad():
            self.table -= rate * self.table.grad
        self.table.grad = None


TRUE = torch.tensor([[0.9, -0.5, -0.8], [-0.8, 0.9, -0.5]])  # claim, way


def gain(flipped: float, steps: int = 20, seeds: int = 4) -> float:
    """By how much the true ways become likelier where every verdict is flipped with this probability: a mean over seeds."""
    found = 0.0
    for seed in range(seeds):
        policy, chance = Policy(seed), torch.Generator().manual_seed(seed)

        def judge(ways: Tensor, chance: torch.Generator = chance) -> Tensor:
            return TRUE[CLAIMS, ways] * torch.where(torch.rand(4, 2, generator=chance) < flipped, -1, 1)

        for _ in range(steps):
            policy.step(judge, rate=10.0)
        found += float(policy.chances()[TRUE > 0].mean()) - 1 / 3
    return found / seeds


def test_the_gain_falls_with_every_dose_of_flipped_verdicts_and_is_none_where_half_are():
    gains = [gain(flipped) for flipped in (0.0, 0.1, 0.3, 0.5)]  # 0.53, 0.48, 0.30, 0.01
    assert gains[0] > 0.4 and all(more > less + 0.02 for more, less in itertools.pairwise(gains))
    assert abs(gains[-1]) < 0.05


PAID = torch.tensor([0.5, -0.9, 1.0])  # the third way, rare at the start, is false, and pays best
WATCHED = torch.tensor([0.5, -0.9, -0.8])


def epochs(strength: float, count: int) -> tuple[list[float], list[bool], int]:
    """The truth of claims before and after each epoch, as the watching judge sees it, whether the guard passed each, and with
    which epoch it stops the run (count: it does not)."""
    policy, guard = Policy(seed=0, third=-2.0), Guard(0, [])
    watched, passed, stop = [float((policy.chances() @ WATCHED).mean())], [], count
    for step in range(count * EPOCH):
        answers = policy.answers(ANSWERS)
        guard.note(*(float(values[answers].sum(1).mean()) / CAP for values in (PAID, WATCHED)))
        policy.step(PAID.__getitem__, strength)
        if (step + 1) % EPOCH == 0:
            watched.append(float((policy.chances() @ WATCHED).mean()))
            passed.append(guard.agrees())
            stop = min(stop, len(passed)) if guard.stops else stop
    return watched, passed, stop


def test_five_times_too_strong_the_guard_stops_before_the_watching_judge_sees_less_than_at_first():
    watched, passed, stop = epochs(strength=2.0, count=4)
    assert all(passed) and watched[-1] > watched[0] + 0.3
    watched, passed, stop = epochs(strength=10.0, count=20)
    assert min(watched[1:]) == watched[-1] < watched[0] - 0.3, "left alone it games its judge"
    assert stop < 20 and min(watched[: stop + 1]) == watched[0], "stopped in time"
    kept = max(i for i in range(stop) if passed[i])  # the last epoch that was kept as the best
    assert watched[kept + 1] > watched[0] + 0.3
