"""The critic of a training step against its definition, written out answer by answer; what it draws, and when it begins.

The answers are given (a random LLaMA says nothing that parses) and hang on the prompt alone, so that a step has the same ones
however its rows are split into passes; their rewards are the real ones.
"""

import copy
import zlib
from dataclasses import replace

import pytest
import torch
from toy_training import write_intents, write_llama, write_store

from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import load_corpus
from imagebind_llm.critic import self_critical
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.rewards import consistency_rewards, format_reward, intent_reward, rationale_reward
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.critic.verifier import fit_verifier
from imagebind_llm.itsl.assembly import build, open_language
from imagebind_llm.itsl.generate import Sampling, generate, uniform
from imagebind_llm.itsl.instructions import parse_answer
from imagebind_llm.records import Answer, Sequence
from imagebind_llm.training.epoch import Position, _draws
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import CriticStep, Sums, counts_of, train_step

CPU = torch.device("cpu")
LAMBDA, SAMPLES = 0.7, 3
SAID = (
    " Praise.",
    " Praise. Rationale: We see a broad smile.",
    " Complain. Rationale: We see a deep frown and a waving hand.",
    " So",
)


class World:
    """A model with open gates, some rows of train, one without its intent, and a critic that remembers another model."""

    def __init__(self, root):
        paths = {"data_path": write_intents(root / "MIntRec"), "emb_path": write_store(root / "emb")}
        paths |= {"llama_model_path": write_llama(root / "LLAMA", 3)}
        self.settings = TrainSettings(
            **{name: str(path) for name, path in paths.items()},
            **{"trainable": "all", "adapter_layer": 2, "adapter_len": 3, "lora_rank": 2, "samples": SAMPLES, "kl": 0.3},
            **{"clip_grad": 0.0, "w_intent": 0.0, "w_rationale": 0.0, "device": "cpu"},
        )
        _, self.tokenizer = open_language(self.settings.llama_model_path)
        corpus = load_corpus(self.settings.corpus, self.tokenizer, 512)
        self.taxonomy, self.train = corpus.taxonomy, corpus.splits["train"]
        self.rows = [replace(row, intent=None) if i == 1 else row for i, row in enumerate(self.train[:5])]
        self.collate = Collator(corpus.store, corpus.modalities)
        self.model = build(self.settings.build, corpus.taxonomy, corpus.store.identity.width, CPU).model
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        torch.manual_seed(2)
        for name, parameter in self.trained.items():
            torch.nn.init.normal_(parameter, 0.5 if name.endswith("gate") else 1.0 if "norm" in name else 0.0, 0.1)
        self.start = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in self.trained.items()}
        told = [row.rationale for row in self.train], [corpus.taxonomy.labels[row.intent] for row in self.train]
        self.verifier = fit_verifier(*told, corpus.taxonomy)

    def critic(self, start: int = 0, **changed: object) -> Critic:
        settings = replace(self.settings, **changed)
        return Critic(settings.critic, self.tokenizer, self.taxonomy, self.train, self.verifier, self.start, start)

    def gradient(self, critic: Critic, sizes: tuple[int, ...], **changed: object) -> dict[str, torch.Tensor]:
        """What the optimizer sees of a step whose rows are dealt into passes of these sizes."""
        seen: dict[str, torch.Tensor] = {}

        class Watching(torch.optim.SGD):
            def step(watching, closure=None):
                seen.update({name: p.grad.clone() for name, p in self.trained.items() if p.grad is not None})

        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        passes = [self.collate(self.rows[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
        step = CriticStep(critic, LAMBDA, torch.Generator(), CriticSums())
        optimizer = Watching(self.trained.values(), lr=0.0)
        train_step(self.model, optimizer, passes, counts_of(self.rows), replace(self.settings, **changed), Sums(), step)
        return seen


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def said(tokenizer, prompt: list[int], number: int, limit: int) -> list[int]:
    """One of the answers to a prompt: the first runs into the limit, the others were ended by the model."""
    chance = zlib.crc32(repr((prompt, number)).encode())
    ids = [*tokenizer.encode(SAID[chance % len(SAID)]), 3 + chance % 290]
    return (ids * limit)[:limit] if number == 0 else ids[: limit - 1]


@pytest.fixture
def given(world, monkeypatch):
    """Answers are those of `said`; the greedy one is number 9."""

    def instead(model, prompts, max_new, eos, *, sampling, n_samples, **_):
        numbers = range(n_samples) if sampling.temperature else (9,)
        return [[said(world.tokenizer, list(prompt), number, max_new) for number in numbers] for prompt in prompts]

    monkeypatch.setattr(self_critical, "generate", instead)


def by_definition(world: World, critic: Critic) -> dict[str, torch.Tensor]:
    """- lambda / (clips K max_new) * sum of advantage * log p(answer and its end), and the gradient of that. One at a time."""
    reference = copy.deepcopy(world.model)
    reference.load_state_dict(world.start, strict=False)
    weights, baseline, limit = critic.settings.rewards(), critic.settings.baseline, critic.max_new
    rows = [row for row in world.rows if row.intent is not None]
    total = torch.zeros(())

    def logp(model, row, ids: list[int]) -> torch.Tensor:
        batch = world.collate([row])
        prompt, answer = list(row.ids[: row.n_prompt]), ids + [world.tokenizer.eos_id] * (len(ids) < limit)
        hidden = model.llama(torch.tensor([prompt + answer]), model.prompts(batch.embeddings, batch.present))
        every = model.llama.logits(hidden)[0, len(prompt) - 1 : -1].log_softmax(-1)
        return every[range(len(answer)), answer].sum()

    def parts(row, ids: list[int]) -> dict[str, float]:
        found = parse_answer("Intent:" + world.tokenizer.decode(ids), world.taxonomy)
        answer, gold = Answer(found.intent, found.rationale, len(ids) < limit), world.taxonomy.labels[row.intent]
        return {
            "intent": intent_reward(answer, gold, world.taxonomy),
            "rationale": rationale_reward(answer, row.rationale, critic.cider),
            "consistency": consistency_rewards([answer], [gold], world.verifier)[0],
            "format": format_reward(answer),
        }

    for row in rows:
        prompt = list(row.ids[: row.n_prompt])
        answers = [said(world.tokenizer, prompt, number, limit) for number in range(SAMPLES)]
        group = [parts(row, ids) for ids in answers]
        group += [parts(row, said(world.tokenizer, prompt, 9, limit))] if baseline == "greedy" else []
        score = [0.0] * len(group)
        for name, weight in ((name, weight) for name, weight in weights.items() if weight):
            values = [one[name] for one in group]
            mean = sum(values) / len(values)
            deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
            score = [s + weight * (value - mean) / (deviation + 1e-6) for s, value in zip(score, values, strict=True)]
        for k, ids in enumerate(answers):
            gap = float(logp(world.model, row, ids).detach() - logp(reference, row, ids).detach())
            score[k] -= critic.settings.kl * gap
        for k, ids in enumerate(answers):
            others = [s for j, s in enumerate(score) if j != k]
            compared = {"loo": sum(others) / len(others), "greedy": score[-1], "group": 0.0}[baseline]
            total = total - LAMBDA * (score[k] - compared) * logp(world.model, row, ids) / (len(rows) * SAMPLES * limit)
    found = torch.autograd.grad(total, world.trained.values(), allow_unused=True)
    return {name: grad for name, grad in zip(world.trained, found, strict=True) if grad is not None}


@pytest.mark.parametrize("baseline", ["loo", "greedy", "group"])
def test_a_steps_gradient_is_the_definition_however_it_is_split_into_passes(world, given, baseline):
    critic = world.critic(baseline=baseline)
    wanted = by_definition(world, critic)
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3
    for sizes in ((5,), (2, 3), (1, 1, 3)):
        found = world.gradient(critic, sizes)
        for name, grad in wanted.items():
            torch.testing.assert_close(found[name], grad, atol=1e-6, rtol=1e-3, msg=lambda m, n=name, s=sizes: f"{n}, {s}: {m}")


def drawn(sampled, row: int) -> list[int]:
    targets = sampled.batch.targets[row]
    return targets[targets >= 0].tolist()


def test_answers_are_drawn_at_temperature_one_from_all_tokens(world):
    def numbers(seed: int, row: Sequence) -> torch.Tensor:
        """(K, longest): what a row's answers are drawn with hangs on the seed, its key and its prompt, in whatever batch."""
        return uniform((seed, row.key, list(row.ids[: row.n_prompt])), (SAMPLES, critic.max_new))

    critic, batch = world.critic(), world.collate(world.rows)
    sampled = critic.sample(world.model, batch, torch.Generator().manual_seed(7))
    known = [0, 2, 3, 4]
    answers = generate(
        world.model.eval(),
        [list(world.rows[i].ids[: world.rows[i].n_prompt]) for i in known],
        critic.max_new,
        world.tokenizer.eos_id,
        embeddings=batch.embeddings[known],
        present=batch.present[known],
        sampling=Sampling(temperature=1.0, top_p=1.0),
        n_samples=SAMPLES,
        draws=torch.cat([numbers(7, world.rows[i]) for i in known]),
    )
    ended = [[*ids, *[world.tokenizer.eos_id] * (len(ids) < critic.max_new)] for row in answers for ids in row]
    assert [drawn(sampled, i) for i in range(len(ended))] == ended


def test_an_answer_at_the_length_limit_is_not_finished_and_has_no_end_token(world, given):
    critic = world.critic()
    sampled = critic.sample(world.model, world.collate(world.rows), torch.Generator())
    for i, answer in enumerate(sampled.answers):
        own, cut = drawn(sampled, i), i % SAMPLES == 0
        assert answer.finished != cut and (own[-1] == world.tokenizer.eos_id) != cut
        assert len(own) == critic.max_new if cut else len(own) <= critic.max_new


def test_lambda_rises_within_an_epoch_of_the_critics_start(world):
    critic = world.critic(start=2, w_critic=0.5)
    assert [critic.weight(epoch) for epoch in (2.0, 2.25, 3.0, 9.5)] == [0.0, 0.125, 0.5, 0.5]


def test_draws_differ_by_seed_epoch_and_step_and_are_repeated_by_nothing_else(world):
    def first(settings=world.settings, **position: int) -> float:
        return float(torch.rand(1, generator=_draws(settings, Position(**position))))

    assert first() == first(total=8)
    assert len({first(), first(replace(world.settings, seed=1)), first(step=1), first(epoch=1)}) == 4


def test_two_clips_with_the_same_prompt_get_answers_of_their_own(world):
    twins = [replace(world.rows[0], key=key) for key in (world.rows[0].key, world.rows[2].key)]
    critic, batch = world.critic(), world.collate(twins)
    alike = replace(batch, embeddings=batch.embeddings[:1].expand(2, -1, -1))
    sampled = critic.sample(world.model, alike, torch.Generator().manual_seed(7))
    assert drawn(sampled, 0) != drawn(sampled, SAMPLES)
