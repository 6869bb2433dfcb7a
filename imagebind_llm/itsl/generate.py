"""Greedy and sampled decoding, and log-probabilities of given answers, with a static key-value cache.

Shorter prompts are padded on the right, and the columns of the answers follow the longest prompt. Each row has its own
positions and its padding is masked, so that a row gives the same result in a batch as alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagebind_llm.itsl.model import ITSL
from imagebind_llm.kernels.linear import reordered_weights
from imagebind_llm.kernels.logp import token_logp
from imagebind_llm.llama.cache import KVCache
from imagebind_llm.llama.decoder import check_context

Ids = Sequence[int]


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled: temperature 0 takes the likeliest; otherwise nucleus sampling with `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class NotFiniteError(ValueError):
    """The logits of the next token are not finite."""


class Rows:
    """State of a batch during decoding: its cache, each row's next position, and the logits (R,V) of its next token.

    `prompt_state` (B,D) is the normed hidden state at the last prompt position, which the intent head reads.
    """

    def __init__(
        self, model: ITSL, prompts: Sequence[Ids], new: int, embeddings: Tensor | None = None, present: Tensor | None = None
    ):
        """Compute the prompts and allocate `new` more columns. embeddings (B,M,E) and present (B,M) as in Batch."""
        self.llama = model.llama
        device = model.llama.tok_embeddings.weight.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths.max())
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        self.cache = KVCache(self.llama.config, len(prompts), longest + new, like=self.llama.tok_embeddings.weight)
        columns = torch.arange(longest + new, device=device)
        visible = (columns < lengths[:, None]) | (columns >= longest)  # (B,S)
        self.visible = None if bool(visible.all()) else visible  # None: no row is padded
        self.positions = lengths
        last = torch.arange(len(prompts), device=device) * longest + lengths - 1  # (B,)
        tokens = torch.tensor(padded, device=device)  # (B,T)
        self.prompt_state = self.llama(tokens, model.prompts(embeddings, present), keep=last, cache=self.cache)
        self.logits = self.llama.logits(self.prompt_state)  # (B,V)

    def __len__(self) -> int:
        return len(self.positions)

    def step(self, tokens: Tensor) -> None:
        """Append one token (R,) to every row."""
        mask = None if self.visible is None else self.visible[:, None, None, : self.cache.used + 1]  # (R,1,1,S)
        hidden = self.llama(tokens[:, None], cache=self.cache, positions=self.positions[:, None], mask=mask)
        self.logits = self.llama.logits(hidden[:, 0])  # (R,V)
        self.positions = self.positions + 1

    def take(self, rows: Tensor) -> None:
        """Keep these rows only, in this order; a row may be repeated."""
        self.cache.take(rows)
        self.visible = None if self.visible is None else self.visible[rows]
        self.positions, self.logits = self.positions[rows], self.logits[rows]


def _check(prompts: Sequence[Ids], new: int, model: ITSL) -> None:
    """Raise ValueError for an empty prompt, ContextError if `new` tokens after the longest prompt do not fit."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("every row needs a prompt of at least one token")
    check_context(max(map(len, prompts)) + new, model.llama.config)


@torch.no_grad()
def generate(
    model: ITSL,
    prompts: Sequence[Ids],
    max_new: int,
    eos: int | None,
    *,
    embeddings: Tensor | None = None,
    present: Tensor | None = None,
    sampling: Sampling = GREEDY,
    n_samples: int = 1,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
) -> list[list[list[int]]]:
    """Generate `n_samples` answers to each prompt: token ids answers[row][sample], without `eos`.

    An answer shorter than `max_new` ended with `eos`. With `eos` None every answer has `max_new` tokens.

    Args:
        embeddings, present: (B,M,E) and (B,M) as in Batch.
        draws: (R, max_new) float64 in [0, 1), R = rows * n_samples, the random number of each token, used instead of the
            generator's, so that an answer does not depend on the other rows of the batch.

    Raises ValueError for an empty prompt, NotFiniteError, and ContextError if the longest prompt and `max_new` tokens do not
    fit the model's context.
    """
    _check(prompts, max_new, model)
    rows = Rows(model, prompts, max_new, embeddings, present)
    if n_samples > 1:
        rows.take(torch.arange(len(prompts), device=rows.positions.device).repeat_interleave(n_samples))
    answers: list[list[int]] = [[] for _ in range(len(rows))]
    owners = list(range(len(rows)))  # index of the answer that each row of the cache continues; -1 once that has ended
    with reordered_weights():
        for step in range(max_new):
            tokens = choose(rows.logits, sampling, generator, None if draws is None else draws[:, step])
            owners = [-1 if token == eos else owner for owner, token in zip(owners, tokens.tolist(), strict=True)]
            for owner, token in zip(owners, tokens.tolist(), strict=True):
                if owner >= 0:
                    answers[owner].append(token)
            running = [row for row, owner in enumerate(owners) if owner >= 0 and len(answers[owner]) < max_new]
            if not running:
                break
            if len(running) <= 0.75 * len(owners):  # dropping rows copies the cache, so not each time that one ends
                places = torch.tensor(running, device=tokens.device)
                rows.take(places)
                tokens, owners = tokens[places], [owners[row] for row in running]
                draws = None if draws is None else draws[places]
            rows.step(tokens)
    return [answers[i : i + n_samples] for i in range(0, len(answers), n_samples)]


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None, draws: Tensor | None = None) -> Tensor:
    """The next token of every row (R,), from logits (R,V) and random numbers in [0, 1): `draws` (R,) float64, or the
    generator's. Raises NotFiniteError if the logits are not finite and the temperature is not 0."""
    if sampling.temperature == 0:
        return logits.argmax(1)
    cumulated = distribution(logits, sampling).double().cumsum(1)  # (R,V); one random number per row, not one per token
    if not cumulated[:, -1].isfinite().all():
        raise NotFiniteError("the logits of the next token are not finite; look at the embeddings, or take another checkpoint")
    if draws is None:
        draws = torch.rand(len(logits), generator=generator, dtype=torch.float64, device=logits.device)
    return torch.searchsorted(cumulated, draws[:, None] * cumulated[:, -1:], right=True).squeeze(1)


def uniform(seed: object, shape: tuple[int, ...]) -> Tensor:
    """Random numbers in [0, 1), float64 on the CPU, seeded with the repr of `seed`."""
    digest = hashlib.sha256(repr(seed).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (R,V) of the next token: softmax(logits / temperature), without the tokens beyond `top_p`.

    A token stays if the probability of all likelier ones is at most `top_p`.
    """
    p = (logits / sampling.temperature).softmax(1)
    if sampling.top_p >= 1:
        return p
    p, order = p.sort(dim=1, descending=True)
    p = p.masked_fill(p.cumsum(1) - p > sampling.top_p, 0.0)
    return torch.zeros_like(p).scatter(1, order, p / p.sum(1, keepdim=True))


@torch.no_grad()
def score_answers(
    model: ITSL,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    *,
    embeddings: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """log p(answer c | prompt b), summed over the answer's tokens: float32 (B,C). The answers may differ in length.

    The prompts are computed once; then all answers form one sequence, in which each attends only to the prompt and to itself,
    at the positions that it would have alone.
    """
    return score_rows(read_prompts(model, prompts, answers, embeddings, present), answers)


@torch.no_grad()
def read_prompts(
    model: ITSL, prompts: Sequence[Ids], answers: Sequence[Ids], embeddings: Tensor | None = None, present: Tensor | None = None
) -> Rows:
    """Compute the prompts into a cache that has room for `score_rows` with these answers.

    Raises ValueError for an empty prompt or answer, ContextError if they do not fit.
    """
    if not answers or not all(len(answer) for answer in answers):
        raise ValueError("every answer needs at least one token")
    _check(prompts, max(map(len, answers)), model)
    return Rows(model, prompts, sum(len(answer) - 1 for answer in answers), embeddings, present)


@torch.no_grad()
def score_rows(rows: Rows, answers: Sequence[Ids]) -> Tensor:
    """log p(answer c | prompt b), float32 (B,C), for the result of `read_prompts`, which cannot be used again afterwards."""
    prompts = range(len(rows))
    device = rows.positions.device
    first = torch.tensor([answer[0] for answer in answers], device=device)
    scores = rows.logits.log_softmax(1)[:, first]  # (B,C)
    inputs = [(c, i) for c, answer in enumerate(answers) for i in range(len(answer) - 1)]  # all tokens but each answer's last
    if not inputs:
        return scores
    owner, offset = torch.tensor(inputs, device=device).T  # (N,), (N,)
    tokens = torch.tensor([answers[c][i] for c, i in inputs], device=device).expand(len(prompts), -1)  # (B,N)
    targets = torch.tensor([answers[c][i + 1] for c, i in inputs], device=device).repeat(len(prompts))  # (B*N,)
    visible = (owner[:, None] == owner) & (offset[:, None] >= offset)  # (N,N)
    mask = visible.new_ones(len(prompts), 1, len(inputs), rows.cache.used + len(inputs))  # (B,1,N,S+N)
    mask[..., rows.cache.used :] = visible
    if rows.visible is not None:
        mask &= rows.visible[:, None, None]
    hidden = rows.llama(tokens, cache=rows.cache, positions=rows.positions[:, None] + offset, mask=mask)
    logp = token_logp(hidden.flatten(0, 1), rows.llama.output_weight, targets).view(len(prompts), -1)  # (B,N)
    return scores.index_add(1, owner, logp)
