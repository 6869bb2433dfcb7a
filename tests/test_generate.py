"""Generation: the public tokens and distributions; cached equals uncached; rows do not depend on their batch."""

import golden_llama
import pytest
import torch
from tiny_itsl import random_itsl

from imagebind_llm.itsl.generate import NotFiniteError, Rows, Sampling, choose, distribution, generate, score_answers
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.decoder import ContextError

EOS = 2
CASES = golden_llama.CASES["e_generate"]
ARRAYS = golden_llama.tensors("e_s_generation")
PROMPTS = [[1, 7, 9], [1, 30, 31, 32, 33, 34, 35, 36], [1, 50, 51, 52, 53]]


@pytest.fixture(scope="module")
def public() -> ITSL:
    return golden_llama.model("b_ib_finetune")


def clip(case: str) -> dict[str, torch.Tensor]:
    embeddings = ARRAYS["e"][f"{case}.embedding"][:, None]
    return {"embeddings": embeddings, "present": torch.ones(len(embeddings), 1)}


def clips(seed: int = 1) -> dict[str, torch.Tensor]:
    present = torch.tensor([[True, True, True], [False, True, False], [True, False, True]])
    return {"embeddings": torch.randn(3, 3, 12, generator=torch.Generator().manual_seed(seed)), "present": present}


def uncached_greedy(model: ITSL, prompt: list[int], n: int, **clip) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        logits = model.llama.logits(model.llama(torch.tensor([ids]), model.prompts(**clip)))
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_the_public_implementation(public, case):
    prompts, limit = CASES[case]["prompts"], CASES[case]["max_gen_len"]
    new = min(limit, CASES[case]["max_seq_len"] - max(map(len, prompts)))  # theirs is silently cut at the context
    answers = generate(public, prompts, new, EOS, **clip(case))
    assert [samples[0] for samples in answers] == CASES[case]["outputs"]


def test_step_logits_equal_the_public_implementation(public):
    wanted, case = ARRAYS["e"]["e1_batch1.step_logits"], CASES["e1_batch1"]
    with torch.no_grad():
        rows = Rows(public, case["prompts"], len(case["outputs"][0]), **clip("e1_batch1"))
        for step, token in enumerate(case["outputs"][0]):
            torch.testing.assert_close(rows.logits, wanted[step], atol=5e-5, rtol=0)
            rows.step(torch.tensor([token]))
    assert step == 23


def test_step_logits_of_unequal_rows_equal_the_public_implementation(public):
    """Theirs forces the longer prompts token by token: row r's logits for its first new token come at step len(r) - 5."""
    wanted, case = ARRAYS["e"]["e3_batch3.step_logits"], CASES["e3_batch3"]
    with torch.no_grad():
        rows = Rows(public, case["prompts"], 15, **clip("e3_batch3"))
        for step in range(15):
            for row, prompt in enumerate(case["prompts"]):
                theirs = wanted[len(prompt) - 5 + step, row]
                torch.testing.assert_close(rows.logits[row], theirs, atol=5e-5, rtol=0)
            rows.step(torch.tensor([output[step] for output in case["outputs"]]))


@pytest.mark.parametrize("sampling", golden_llama.CASES["s_sampling"], ids=lambda case: case["name"])
def test_sampling_distribution_equals_the_public_one(sampling):
    found = distribution(ARRAYS["s"]["logits"], Sampling(sampling["temperature"], sampling["top_p"]))
    torch.testing.assert_close(found, ARRAYS["s"][sampling["name"]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fusion", [None, "average", "separate"])
def test_rows_of_a_batch_equal_the_same_rows_alone_and_without_a_cache(fusion):
    model = random_itsl(fusion)
    every = clips() if fusion else {}
    answers = generate(model, PROMPTS, 12, None, **every)
    for row, prompt in enumerate(PROMPTS):
        one = {name: value[row : row + 1] for name, value in every.items()}
        assert answers[row] == generate(model, [prompt], 12, None, **one)[0]
        assert answers[row][0] == uncached_greedy(model, prompt, 12, **one)


@pytest.mark.parametrize("fusion", [None, "separate"])
def test_rows_stop_on_their_own_and_the_others_go_on_unchanged(fusion):
    model = random_itsl(fusion)
    every = clips() if fusion else {}
    free = [samples[0] for samples in generate(model, PROMPTS, 12, None, **every)]
    eos = free[0][3]  # ends row 0 here, the others where they happen to say it
    wanted = [answer[: answer.index(eos)] if eos in answer else answer for answer in free]
    assert [samples[0] for samples in generate(model, PROMPTS, 12, eos, **every)] == wanted
    assert len(wanted[0]) <= 3 < max(map(len, wanted))


def test_finished_rows_are_dropped_from_the_work(monkeypatch):
    model, widths = random_itsl(None), []
    free = [samples[0] for samples in generate(model, PROMPTS, 12, None)]
    eos = next(token for token in free[0][1:] if all(token != answer[0] for answer in free))
    assert any(eos not in answer for answer in free)
    step = Rows.step
    monkeypatch.setattr(Rows, "step", lambda rows, tokens: (widths.append(len(tokens)), step(rows, tokens))[1])
    generate(model, PROMPTS, 12, eos)
    assert widths[0] == 3 > widths[-1] and widths == sorted(widths, reverse=True)


def test_samples_are_reproducible_by_their_seed_and_differ_among_themselves():
    model, sampling = random_itsl("separate"), Sampling(1.5, 0.95)

    def drawn(seed: int) -> list[list[list[int]]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, PROMPTS, 8, None, n_samples=4, sampling=sampling, generator=generator, **clips())

    first = drawn(0)
    assert [len(samples) for samples in first] == [4, 4, 4]
    assert first == drawn(0) != drawn(1)
    assert len({tuple(sample) for samples in first for sample in samples}) > 6


def test_greedy_samples_of_a_row_are_all_its_greedy_answer():
    model = random_itsl("separate")
    one, many = (generate(model, PROMPTS, 6, None, n_samples=n, **clips()) for n in (1, 3))
    assert many == [samples * 3 for samples in one]


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_drawn_frequencies_follow_the_distribution(top_p):
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(0.8, top_p)
    drawn = choose(logits.expand(20_000, -1), sampling, torch.Generator().manual_seed(1))
    frequencies, wanted = drawn.bincount(minlength=6) / 20_000, distribution(logits, sampling)[0]
    torch.testing.assert_close(frequencies, wanted, atol=0.015, rtol=0)
    assert not frequencies[wanted == 0].any()
    assert (wanted == 0).any() == (top_p < 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_drawn_from_logits_that_are_not_finite(value):
    with pytest.raises(NotFiniteError, match="not finite"):
        choose(torch.tensor([[0.0, 1.0], [0.0, value]]), Sampling(1.0))


@pytest.mark.parametrize("fusion", [None, "separate"])
def test_answer_scores_equal_a_forward_pass_for_each_answer(fusion):
    model = random_itsl(fusion)
    every = clips() if fusion else {}
    answers = [[5], [6, 7, 8], [6, 9], [11, 12, 13, 14, 15]]
    scores = score_answers(model, PROMPTS, answers, **every)
    for row, prompt in enumerate(PROMPTS):
        prompts = model.prompts(**{name: value[row : row + 1] for name, value in every.items()})
        for c, answer in enumerate(answers):
            logp = model.llama.logits(model.llama(torch.tensor([[*prompt, *answer]]), prompts)).log_softmax(-1)[0]
            wanted = sum(logp[len(prompt) - 1 + i, token] for i, token in enumerate(answer))
            torch.testing.assert_close(scores[row, c], wanted, atol=2e-5, rtol=0)


def test_scores_of_all_single_tokens_are_a_distribution():
    scores = score_answers(random_itsl(None), PROMPTS, [[token] for token in range(61)])
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))


def test_prompt_and_answer_beyond_the_context_are_refused():
    model = random_itsl(None)
    with pytest.raises(ContextError, match="2049 positions, but the context of this LLaMA is 2048"):
        generate(model, [[1] * 2000], 49, EOS)
    with pytest.raises(ContextError, match="2053 positions"):
        score_answers(model, [[1] * 2048], [[1], [1] * 5])


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_an_empty_prompt_is_refused(prompts):
    with pytest.raises(ValueError, match="every row needs a prompt"):
        generate(random_itsl(None), prompts, 4, EOS)
