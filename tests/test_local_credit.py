"""Rows that stand for sampled answers. The exact local expectation: its gradient against the enumerated policy gradient, a
policy that learns by it. It and corrections: the rows and the loss of a step against their definition."""

from dataclasses import replace

import pytest
import torch
from test_alternatives import Believer
from test_critic import LAMBDA, SAMPLES, World, given, said, world  # noqa: F401 (fixtures)

from imagebind_llm.critic import self_critical
from imagebind_llm.critic.alternatives import CORRECTED, MOST, Clip, Replacements
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.rewards import REWARD_WEIGHTS
from imagebind_llm.critic.sampled_answers import SampledAnswers
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.itsl.generate import uniform
from imagebind_llm.itsl.losses import local_expectation
from imagebind_llm.records import Answer, Batch
from imagebind_llm.training.settings import TrainSettings

VALUES = torch.tensor([0.9, -0.7, 0.2])


def gradient(loss, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def test_with_all_that_could_be_said_its_gradient_is_the_enumerated_policy_gradient():
    logits = torch.tensor([0.3, 1.1, -0.8], requires_grad=True)
    expected = -gradient((logits.softmax(0) * VALUES).sum(), logits)
    loss = local_expectation(logits.log_softmax(0), VALUES)
    torch.testing.assert_close(gradient(loss, logits), expected)
    torch.testing.assert_close(loss.detach(), -(logits.detach().softmax(0) * VALUES).sum())
    assert expected.abs().max() > 0.1


def test_with_two_of_three_the_missing_one_is_worth_the_mean_of_those_present():
    logits = torch.tensor([0.3, 1.1, -0.8], requires_grad=True)
    p = logits.detach().softmax(0)
    mean = (p[:2] * VALUES[:2]).sum() / p[:2].sum()
    filled = torch.stack([VALUES[0], VALUES[1], mean])
    expected = -gradient((logits.softmax(0) * filled).sum(), logits)
    found = gradient(local_expectation(logits.log_softmax(0)[:2], VALUES[:2]), logits)
    torch.testing.assert_close(found, expected)
    assert expected[:2].abs().min() > 0.01 and abs(float(expected[2])) < 1e-6


def test_no_gradient_flows_into_the_values_or_the_share():
    logits, values = torch.tensor([0.3, 1.1], requires_grad=True), VALUES[:2].clone().requires_grad_()
    local_expectation(logits - 3, values).backward()
    share = (logits.detach() - 3).exp().sum()
    s = logits.detach().softmax(0)
    torch.testing.assert_close(logits.grad, -share * s * (VALUES[:2] - (s * VALUES[:2]).sum()))
    assert values.grad is None


def test_a_policy_learns_by_it_what_is_true():
    """Five things to say, three of them compared in each step, as if the others had not been thought of."""
    values, generator = torch.tensor([-0.9, 0.2, 0.9, -0.3, 0.5]), torch.Generator().manual_seed(0)
    logits = torch.tensor([2.0, 0.0, 0.0, 0.0, 1.0], requires_grad=True)
    for _ in range(300):
        kept = torch.randperm(5, generator=generator)[:3]
        step = gradient(local_expectation(logits.log_softmax(0)[kept], values[kept]), logits)
        logits = (logits.detach() - 2 * step).requires_grad_()
    assert float(logits.detach().softmax(0)[2]) > 0.9


# --- inside the critic ---

COLUMNS = 6
COOLED = 50  # a random model's answers are so unlikely, some thirty tokens each, that their gradient would be 0


def critic(**flags) -> Critic:
    """With settings alone: what its loss reads."""
    made = object.__new__(Critic)
    made.settings = TrainSettings(data_path="data", w_critic=1, samples=2, **{"credit": "local", "kl": 0.0} | flags).critic
    made.weights, made.max_new = made.settings.rewards(), 48
    return made


def sampled(values: tuple[float, ...], clips: list[int]) -> SampledAnswers:
    """Three clips with two answers of four tokens each, and rows that replace them."""
    tokens = torch.zeros(6, 5, dtype=torch.long)
    targets = torch.tensor([-100, 1, 1, 1, 1]).expand(6, -1)
    own = Batch(torch.zeros(len(clips), COLUMNS), torch.zeros(len(clips), COLUMNS))
    parts = {name: torch.zeros(3, 2) for name in REWARD_WEIGHTS}
    replaced = Replacements(own, torch.tensor(values), clips)
    owners = torch.zeros(6, dtype=torch.long)
    return SampledAnswers(Batch(tokens, targets), parts, None, [Answer(None, "a b")] * 6, ["a b c"] * 6, None, owners, replaced)


def test_a_step_is_the_mean_over_clips_with_the_divergence_off_the_values():
    some = sampled((0.9, -0.5, 0.0, 0.8, -0.8), [0, 0, 0, 2, 2])
    logp = -torch.rand(5, COLUMNS, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(COLUMNS) >= torch.tensor([[2], [2], [2], [4], [4]])
    reference = logp - torch.linspace(-9, 9, 5 * COLUMNS).view(5, COLUMNS)
    sums = CriticSums()
    loss = critic(kl=0.1, reward_weights="truth=2").loss(some, logp, mask, reference, sums)
    own = (logp * mask).sum(1)
    worth = 2 * some.replaced.values - 0.1 * ((logp - reference).clamp(-5, 5) * mask).sum(1)
    expected = (local_expectation(own[:3], worth[:3]) + local_expectation(own[3:], worth[3:])) / 3
    torch.testing.assert_close(loss, expected)
    means = sums.means()
    assert means["skipped"] == pytest.approx(1 / 3) and means["length"] == 4 and "kl" not in means and "entropy" not in means
    shares = [own[:3].softmax(0), own[3:].softmax(0)]
    sizes = [(s * (v - (s * v).sum()).abs()).sum() for s, v in zip(shares, (worth[:3], worth[3:]), strict=True)]
    assert means["advantage"] == pytest.approx(float(sum(sizes)) / 3)


def test_nothing_to_compare_gives_exactly_zero_gradient_also_with_the_divergence_on():
    logits = torch.randn(1, COLUMNS, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logp, mask, sums = logits.log_softmax(-1)[..., 0], torch.ones(1, COLUMNS, dtype=torch.bool), CriticSums()
    critic(kl=0.5).loss(sampled((0.0,), [0]), logp, mask, torch.zeros(1, COLUMNS), sums).backward()
    assert logits.grad.abs().max() == 0 and sums["skipped"] == 3


def test_corrections_are_learnt_as_references_are_over_the_clips_and_without_a_divergence():
    logp = -torch.rand(2, COLUMNS, generator=torch.Generator().manual_seed(0))
    mask, sums = torch.arange(COLUMNS) >= torch.tensor([[2], [4]]), CriticSums()
    made = critic(credit="corrected", kl=0.5, reward_weights="truth=2")
    loss = made.loss(sampled((1.0, 1.0), [0, 2]), logp, mask, torch.zeros(2, COLUMNS), sums)
    assert float(loss) == pytest.approx(-2 * float((logp * mask).sum()) / (3 * 48))
    assert sums.means()["skipped"] == pytest.approx(1 / 3)
    assert float(made.loss(sampled((0.0,), [0]), logp[:1], mask[:1], torch.zeros(1, COLUMNS), sums)) == 0


class Doubter(Believer):
    """Believes in hands more than in what else the toy's answers say."""

    def word(self, claim):
        return {"broad": "smile", "frown": "frown", "waving": "palm"}.get(
            next((word for word in ("broad", "frown", "waving") if word in claim), "")
        )

    def claim_vectors(self, claims):
        words = [self.word(claim) for claim in claims]
        return torch.stack([torch.eye(8)[[None, "smile", "frown", "palm"].index(word)] for word in words])


def of(world: World, **flags) -> Critic:  # noqa: F811
    settings = replace(world.settings, **{"credit": "local", "w_critic": 1.0} | flags).critic
    return Critic(
        settings, world.tokenizer, world.taxonomy, world.train, world.verifier, world.start, judge=Doubter(), watch=Doubter()
    )


def places(world: World, critic: Critic, sampled: SampledAnswers):  # noqa: F811
    """What should be compared, clip by clip: drawn with numbers of the seed, the key and the prompt."""
    for i, row in enumerate(row for row in world.rows if row.intent is not None):
        texts = sampled.texts[i * SAMPLES : (i + 1) * SAMPLES]
        rows = range(i * SAMPLES, (i + 1) * SAMPLES)
        ids = [[t for t in sampled.batch.targets[r].tolist() if t >= 0 and t != world.tokenizer.eos_id] for r in rows]
        draw = uniform((torch.Generator().initial_seed(), row.key, list(row.ids[: row.n_prompt]), "claim"), (1,))
        clip = Clip(world.collate([row]), 0, ids, texts)
        yield row, critic.alternatives.compared(world.model.eval(), clip, draw)


def test_a_steps_gradient_is_the_definition_however_it_is_split_into_passes(world, given, monkeypatch):  # noqa: F811
    critic = of(world)
    monkeypatch.setattr(self_critical, "local_expectation", lambda logp, v: local_expectation(logp / COOLED, v))
    drawn = critic.sample(world.model, world.collate(world.rows), torch.Generator())
    total, compared = torch.zeros(()), 0
    for row, rows in places(world, critic, drawn):
        batch, logp, worth = world.collate([row]), [], []
        for one in rows:
            ids = torch.tensor([[*one.prefix, *one.alternative.ids]])
            hidden = world.model.llama(ids, world.model.prompts(batch.embeddings, batch.present))
            every = world.model.llama.logits(hidden)[0, len(one.prefix) - 1 : -1].log_softmax(-1)
            logp.append(every[range(len(one.alternative.ids)), list(one.alternative.ids)].sum())
            worth.append(one.alternative.value)
        if rows:
            compared += 1
            total = total + local_expectation(torch.stack(logp) / COOLED, torch.tensor(worth)) / 4  # clips with an intent
    assert compared >= 2
    found = torch.autograd.grad(LAMBDA * total, world.trained.values(), allow_unused=True)
    wanted = {name: grad for name, grad in zip(world.trained, found, strict=True) if grad is not None}
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3
    for sizes in ((5,), (1, 1, 3)):
        seen = world.gradient(of(world, kl=0.0), sizes)
        for name, grad in wanted.items():
            torch.testing.assert_close(seen[name], grad, atol=1e-6, rtol=1e-3)


def test_a_steps_corrections_are_those_of_the_greedy_answer_however_it_is_split_into_passes(world, given):  # noqa: F811
    critic = of(world, credit="corrected")
    total, corrected = torch.zeros(()), 0
    for row in (row for row in world.rows if row.intent is not None):
        batch, prompt = world.collate([row]), list(row.ids[: row.n_prompt])
        greedy, *drawn = (said(world.tokenizer, prompt, number, critic.max_new) for number in (9, *range(SAMPLES)))
        texts = ["Intent:" + world.tokenizer.decode(ids) for ids in (greedy, *drawn)]
        for one in critic.alternatives.corrections(world.model.eval(), Clip(batch, 0, [greedy], texts[:1], texts[1:])):
            ids = torch.tensor([[*one.prefix, *one.alternative.ids]])
            hidden = world.model.llama(ids, world.model.prompts(batch.embeddings, batch.present))
            every = world.model.llama.logits(hidden)[0, len(one.prefix) - 1 : -1].log_softmax(-1)
            total = total - every[range(len(one.alternative.ids)), list(one.alternative.ids)].sum() / (4 * critic.max_new)
            corrected += 1
    assert corrected >= 2
    found = torch.autograd.grad(LAMBDA * total, world.trained.values(), allow_unused=True)
    wanted = {name: grad for name, grad in zip(world.trained, found, strict=True) if grad is not None}
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3
    for sizes in ((5,), (1, 1, 3)):
        seen = world.gradient(critic, sizes)
        for name, grad in wanted.items():
            torch.testing.assert_close(seen[name], grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("credit", "rows"), [("local", MOST), ("corrected", CORRECTED)])
def test_no_answer_is_longer_and_no_clip_has_more_rows_when_memory_is_tried(world, credit, rows):  # noqa: F811
    critic = of(world, credit=credit)
    critic.eos = None
    tried = critic.sample(world.model, world.collate(world.rows), torch.Generator())
    scored = tried.scored
    assert len(scored.tokens) == 4 * rows and (scored.targets >= 0).sum(1).tolist() == [critic.max_new] * 4 * rows
    assert tried.replaced.values.abs().min() == 1
