"""Several answers in one row say what each says in a row of its own."""

from dataclasses import replace

import pytest
import torch
from tiny_itsl import random_itsl

from imagebind_llm.corpus.packing import packed
from imagebind_llm.records import IGNORE, Batch
from imagebind_llm.training.step import with_below

LENGTHS = ((5, 3), (8, 6), (4, 0))  # of prompts and own answers
OWNERS, ANSWERS = (0, 0, 1, 1, 1), (7, 2, 4, 1, 9)  # whose rows the further answers stand in, and their lengths


def rows(lengths: list[tuple[int, int]], prompts: list[list[int]], draw: torch.Generator) -> Batch:
    """Prompts, and random answers to them of these lengths; the clips are those of the prompts."""
    told = [torch.randint(1, 61, (m,), generator=draw).tolist() for _, m in lengths]
    longest = max(map(sum, lengths))
    tokens = torch.tensor([[*p, *a, *[0] * (longest - len(p) - len(a))] for p, a in zip(prompts, told, strict=True)])
    columns = torch.arange(longest)
    spans = [(columns >= n) & (columns < n + m) for n, m in lengths]
    targets = tokens.masked_fill(~torch.stack(spans), IGNORE)
    return Batch(tokens, targets, n_prompt=torch.tensor([n for n, _ in lengths]))


@pytest.fixture
def case():
    """A model whose lowest layer is not adapted, a batch of three rows, one without an answer, and five further answers."""
    draw = torch.Generator().manual_seed(0)
    model = random_itsl("separate").double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("output" not in name and "tok_embeddings" not in name)
    prompts = [torch.randint(1, 61, (n,), generator=draw).tolist() for n, _ in LENGTHS]
    batch = rows(list(LENGTHS), prompts, draw)
    clips, present = (
        torch.randn(3, 3, 12, dtype=torch.float64, generator=draw),
        torch.tensor([[True] * 3, [True, False, True], [True] * 3]),
    )
    batch = replace(batch, embeddings=clips, present=present)
    owners = torch.tensor(OWNERS)
    answers = rows([(LENGTHS[o][0], m) for o, m in zip(OWNERS, ANSWERS, strict=True)], [prompts[o] for o in OWNERS], draw)
    return model, batch, replace(answers, embeddings=clips[owners], present=present[owners]), owners


def test_answers_in_one_row_have_the_likelihoods_and_gradients_of_rows_of_their_own(case):
    model, batch, answers, owners = case
    wide = packed(batch, answers, owners)
    output = model(wide.batch)
    alone, apart = model(batch), model(answers)
    torch.testing.assert_close(wide.rows(output).logp, alone.logp)
    torch.testing.assert_close(wide.answers(output), apart.logp)
    assert wide.rows(output).mask.equal(alone.mask) and wide.answer_mask.equal(apart.mask)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slope = torch.randn(answers.tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradients(own: torch.Tensor, others: torch.Tensor) -> list[torch.Tensor]:
        found = torch.autograd.grad(own.sum() + (others * slope).sum(), trained, allow_unused=True)
        return [grad for grad in found if grad is not None]

    for one, other in zip(
        gradients(alone.logp, apart.logp), gradients(wide.rows(output).logp, wide.answers(output)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_states_below_the_adapters_are_those_of_the_packed_rows(case):
    model, batch, answers, owners = case
    model.llama.lowest = 2
    wide = packed(batch, answers, owners).batch
    for layer in model.llama.layers[:2]:
        layer.attention.gate.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(model(with_below(model, replace(wide))).logp, model(wide).logp)


def test_a_row_takes_no_more_columns_than_its_answers_need(case):
    _, batch, answers, owners = case
    wide = packed(batch, answers, owners).batch
    assert wide.tokens.shape == (3, 8 + 6 + (4 + 1) + (1 + 1) + (9 + 1))
    assert wide.segments.amax(1).tolist() == [3, 6, 1]
