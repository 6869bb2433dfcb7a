"""The claim-wise advantage inside the critic: which tokens get what, and what gives no gradient at all."""

from dataclasses import replace

import pytest
import torch
from toy_training import TOKENIZER

from imagebind_llm.corpus.batches import Collator
from imagebind_llm.critic.credit import SPREAD, Verdict
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.judge import SHARED, ClauseVectors, Judge
from imagebind_llm.critic.rewards import REWARD_WEIGHTS, advantage
from imagebind_llm.critic.sampled_answers import JudgedAnswers, SampledAnswers
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.critic.trust import weighed
from imagebind_llm.itsl.instructions import LEAD
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.records import Answer, Batch, Sequence
from imagebind_llm.taxonomy import DEMO
from imagebind_llm.training.settings import TrainSettings

PROMPTS, LENGTHS, COLUMNS = (3, 3, 2, 2), (7, 5, 7, 6), 11  # two clips, two answers each


def critic(**flags) -> Critic:
    """With settings alone: what its loss reads."""
    made = object.__new__(Critic)
    made.settings = TrainSettings(data_path="data", w_critic=1, samples=2, **{"credit": "claim", "kl": 0.0} | flags).critic
    made.weights, made.max_new = made.settings.rewards(), 48
    return made


def sampled(values, intent=(0.0, 0.0, 0.0, 0.0)) -> SampledAnswers:
    """Two claims an answer at its tokens 2-3 and 4; the label at 0-1."""
    verdicts = [[Verdict(2, 4, a, True), Verdict(4, 5, b, True)] for a, b in values]
    n_prompt = torch.tensor(PROMPTS)
    parts = {name: torch.zeros(2, 2) for name in REWARD_WEIGHTS} | {"intent": torch.tensor(intent).view(2, 2)}
    batch = Batch(torch.zeros(4, COLUMNS, dtype=torch.long), torch.zeros(4, COLUMNS, dtype=torch.long), n_prompt=n_prompt)
    judged = JudgedAnswers(verdicts, [(0, 2)] * 4, None, [0.5] * 4)
    owners = torch.zeros(4, dtype=torch.long)
    return SampledAnswers(batch, parts, None, [Answer(None, "a b")] * 4, ["a b c"] * 4, judged, owners)


def mask() -> torch.Tensor:
    columns, first = torch.arange(COLUMNS), torch.tensor(PROMPTS)[:, None]
    return (columns >= first) & (columns < first + torch.tensor(LENGTHS)[:, None])


DIFFERENT = ((0.9, 0.5), (-0.3, 0.5), (0.4, 0.4), (0.4, 0.4))


def test_a_claims_tokens_get_its_advantage_behind_the_prompt_and_others_none():
    found = critic().by_token(sampled(DIFFERENT), mask())
    expected = torch.zeros(4, COLUMNS)
    expected[0, 5:7], expected[0, 7] = (0.9 - 0.1) / SPREAD, (0.5 - 0.1) / SPREAD
    expected[1, 5:7], expected[1, 7] = (-0.3 - 0.7) / SPREAD, (0.5 - 0.7) / SPREAD
    torch.testing.assert_close(found, expected)


def test_the_intent_part_goes_to_the_label_and_the_others_to_all_tokens():
    some = sampled(DIFFERENT, intent=(1.0, 0.0, 0.0, 0.0))
    some.parts["format"][1] = torch.tensor([1.0, 0.5])
    plain = critic().by_token(some, mask())
    found = critic(reward_weights="truth=1,intent=2,format=3").by_token(some, mask()) - plain
    label = advantage({"intent": some.parts["intent"]}, "loo", {"intent": 2.0}).value.flatten()
    whole = advantage({"format": some.parts["format"]}, "loo", {"format": 3.0}).value.flatten()
    expected = whole[:, None] * mask()
    for row, start in enumerate(PROMPTS):
        expected[row, start : start + 2] += label[row]
    torch.testing.assert_close(found, expected)
    assert label[0] > 0 > label[1] and whole[2] > 0 and label[2] == 0


def test_truth_weighs_the_claims():
    one, eight = (critic(reward_weights=f"truth={w}").by_token(sampled(DIFFERENT), mask()) for w in (1, 8))
    torch.testing.assert_close(8 * one, eight)


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(4, COLUMNS, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return drawn, drawn.log_softmax(-1)[..., 0]


def test_equal_claims_give_exactly_zero_gradient_also_with_the_divergence_on():
    drawn, logp = logits()
    sums = CriticSums()
    alike = sampled(((0.7, 0.7),) * 4)
    critic(kl=0.5).loss(alike, logp, mask(), torch.zeros(4, COLUMNS), sums).backward()
    assert drawn.grad.abs().max() == 0 and sums["skipped"] == 2 and sums["divergence"] != 0


def test_the_divergence_is_taken_off_token_by_token_and_within_bounds():
    _, logp = logits()
    reference = logp.detach() - torch.linspace(-9, 9, COLUMNS)
    without, with_it = (
        critic(kl=kl).loss(sampled(DIFFERENT), logp, mask(), reference, CriticSums()).detach() for kl in (0.0, 0.5)
    )
    ratio = torch.linspace(-9, 9, COLUMNS).clamp(-5, 5)
    expected = (0.5 * ratio * logp.detach() * mask())[:2].sum() / (4 * 48)  # the second clip's answers are all alike
    torch.testing.assert_close(with_it - without, expected)


def test_the_best_answer_is_learnt_whole_without_a_divergence_and_clips_of_equal_answers_are_skipped():
    some, (_, logp) = sampled(DIFFERENT), logits()
    some.parts["truth"] = torch.tensor([[-0.2, 0.1], [0.3, 0.3]])
    sums = CriticSums()
    loss = critic(credit="best", kl=0.5, reward_weights="truth=2").loss(some, logp, mask(), torch.zeros(4, COLUMNS), sums)
    logp, loss = logp.detach(), loss.detach()
    assert float(loss) == pytest.approx(-2 * float((logp * mask())[1].sum()) / (4 * 48)) and sums["skipped"] == 1


def test_a_step_says_what_the_judges_said():
    sums = CriticSums()
    some = sampled(((0.9, 0.1), (-0.3, 0.5), (0.4, 0.4), (0.4, 0.4)))
    some.parts["truth"] = torch.tensor([[0.5, 0.1], [0.0, 0.2]])
    critic().loss(some, logits()[1], mask(), torch.zeros(4, COLUMNS), sums)
    means = sums.means()
    assert means["reward_truth"] == pytest.approx(0.2) and means["watched_truth"] == 0.5
    assert means["claims"] == 2 and means["undecided"] == 1 / 8 and means["claim_p"] == pytest.approx(0.675)
    unjudged = CriticSums()
    answers = critic(credit="answer")
    answers.loss(replace(some, judged=None), logits()[1], mask(), torch.zeros(4, COLUMNS), unjudged)
    assert "watched_truth" not in unjudged.means(), "without a judge nothing is said of claims"


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_policy_learns_to_make_the_true_claim_and_not_what_a_deaf_judge_says(start):
    """Two claims, three ways to say each: with the judge's verdicts the true one wins; dealt at random, nothing is learnt."""
    values = torch.tensor([[0.9, -0.5, -0.8], [-0.8, 0.9, -0.5]])  # claim, way

    def trained(deaf: bool) -> float:
        generator = torch.Generator().manual_seed(0)
        table = (torch.tensor([[0.0, 1, 0], [1.0, 0, 0]]) * start).requires_grad_()
        optimizer = torch.optim.SGD([table], lr=30.0)
        for _ in range(150):
            ways = torch.multinomial(table.detach().softmax(1), 4, replacement=True, generator=generator).T  # (4,2)
            told = values[torch.arange(2), ways]
            if deaf:
                told = values.flatten()[torch.randint(6, (4, 2), generator=generator)]
            group = sampled(tuple(map(tuple, told.tolist())))
            logp = torch.zeros(4, COLUMNS)
            for row, first in enumerate(PROMPTS):
                logp[row, first + 2], logp[row, first + 4] = table.log_softmax(1)[torch.arange(2), ways[row]]
            one = replace(group.judged, verdicts=group.judged.verdicts)
            loss = critic().loss(replace(group, judged=one), logp, mask(), logp.detach(), CriticSums())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        p = table.detach().softmax(1)
        return float((p[0, 0] + p[1, 1]) / 2)

    before = float(torch.tensor([0.0, start, 0]).softmax(0)[0])
    assert trained(deaf=False) > 0.9 and trained(deaf=True) < before + 0.35


def test_tokens_of_a_claim_weigh_what_the_judge_believes_and_all_others_one():
    tokenizer = load_tokenizer(TOKENIZER)
    prompt, answer = (
        tokenizer.encode("Why? Intent:"),
        tokenizer.encode("Praise. Rationale: We see a smile, and hear a sob.", eos=True),
    )
    row = Sequence("k", (*prompt, *answer), len(prompt), rationale="We see a smile, and hear a sob.")
    believed = {"We see a smile": 0.8, "hear a sob": 0.02}

    class Believes(Judge):
        def score(self, claims, key):
            return torch.tensor([believed[claim] for claim in claims])

    judge = Believes(ClauseVectors(lambda texts: torch.ones(len(texts), 1)), None, SHARED, {}, ())
    found = weighed(row, judge, tokenizer, DEMO, LEAD["label"])
    said = {
        w: tokenizer.decode([t for t, own in zip(found.ids, found.weights, strict=True) if own == w])
        for w in sorted(set(found.weights))
    }
    assert [round(w, 3) for w in said] == [0.1, 0.8, 1.0] and found.ids == row.ids and found.rationale == row.rationale
    assert [text.strip() for text in said.values()][:2] == ["hear a sob", "We see a smile"]
    assert "Praise. Rationale:" in list(said.values())[2] and found.weights[-1] == 1
    batch = Collator(None, ())([found, row])
    assert torch.equal(batch.weights[0], torch.tensor(found.weights)) and (batch.weights[1] == 1).all()
    assert Collator(None, ())([row]).weights is None
