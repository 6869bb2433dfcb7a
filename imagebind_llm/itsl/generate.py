"""Answers from the model: greedy or sampled decoding, and scoring of fixed answers, over a static cache.

Rows with prompts of unequal length are padded on the right. The answer's columns follow the longest prompt, the same
for every row, while each row counts its own positions and never sees its padding: a row in a batch equals the row alone.
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
    """How the next token is drawn. Temperature 0 takes the likeliest; else the smallest set of tokens that holds `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class NotFiniteError(ValueError):
    """There is no next token to draw from logits that are not finite."""


class Rows:
    """A batch in the middle of decoding: its cache, each row's next position, and the logits (R,V) of its next token.

    `read` (B,D) is the normed hidden state at the last prompt position, which an intent head takes.
    """

    def __init__(
        self, model: ITSL, prompts: Sequence[Ids], new: int, embeddings: Tensor | None = None, present: Tensor | None = None
    ):
        """Reads the prompts and makes room for `new` more columns. embeddings (B,M,E) and present (B,M) as in Batch."""
        self.llama = model.llama
        device = model.llama.tok_embeddings.weight.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths.max())
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        self.cache = KVCache(self.llama.config, len(prompts), longest + new, like=self.llama.tok_embeddings.weight)
        columns = torch.arange(longest + new, device=device)
        seen = (columns < lengths[:, None]) | (columns >= longest)  # (B,S)
        self.seen = None if bool(seen.all()) else seen
        self.positions = lengths
        last = torch.arange(len(prompts), device=device) * longest + lengths - 1  # (B,)
        tokens = torch.tensor(padded, device=device)  # (B,T)
        self.read = self.llama(tokens, model.prompts(embeddings, present), keep=last, cache=self.cache)
        self.logits = self.llama.logits(self.read)  # (B,V)

    def __len__(self) -> int:
        return len(self.positions)

    def step(self, tokens: Tensor) -> None:
        """Append one token (R,) to every row."""
        mask = None if self.seen is None else self.seen[:, None, None, : self.cache.used + 1]  # (R,1,1,S)
        hidden = self.llama(tokens[:, None], cache=self.cache, positions=self.positions[:, None], mask=mask)
        self.logits = self.llama.logits(hidden[:, 0])  # (R,V)
        self.positions = self.positions + 1

    def take(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order; naming a row several times repeats it."""
        self.cache.take(rows)
        self.seen = None if self.seen is None else self.seen[rows]
        self.positions, self.logits = self.positions[rows], self.logits[rows]


def _check(prompts: Sequence[Ids], new: int, model: ITSL) -> None:
    """Raises ValueError for an empty prompt, ContextError if `new` tokens after the longest one do not fit."""
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
    """`n_samples` answers to each prompt, as token ids: answers[row][sample], without the `eos` that ended it.

    An answer shorter than `max_new` was ended by the model. With `eos` None every answer has `max_new` tokens.
    `draws` (R, max_new) float64 in [0, 1), R = rows * n_samples, are the random numbers of each answer, token by token, in
    place of the generator's: an answer then does not depend on which others are drawn beside it.
    Raises ContextError if the longest prompt and `max_new` tokens do not fit the model's context.
    """
    _check(prompts, max_new, model)
    rows = Rows(model, prompts, max_new, embeddings, present)
    if n_samples > 1:
        rows.take(torch.arange(len(prompts), device=rows.positions.device).repeat_interleave(n_samples))
    answers: list[list[int]] = [[] for _ in range(len(rows))]
    owners = list(range(len(rows)))  # whose answer each row of the cache writes; -1 once that has ended
    with reordered_weights():
        for step in range(max_new):
            chosen = choose(rows.logits, sampling, generator, None if draws is None else draws[:, step])
            owners = [-1 if token == eos else owner for owner, token in zip(owners, chosen.tolist(), strict=True)]
            for owner, token in zip(owners, chosen.tolist(), strict=True):
                if owner >= 0:
                    answers[owner].append(token)
            running = [row for row, owner in enumerate(owners) if owner >= 0 and len(answers[owner]) < max_new]
            if not running:
                break
            if len(running) <= 0.75 * len(owners):  # dropping rows copies the cache, so not for every one
                kept = torch.tensor(running, device=chosen.device)
                rows.take(kept)
                chosen, owners = chosen[kept], [owners[row] for row in running]
                draws = None if draws is None else draws[kept]
            rows.step(chosen)
    return [answers[i : i + n_samples] for i in range(0, len(answers), n_samples)]


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None, draws: Tensor | None = None) -> Tensor:
    """The next token of every row (R,), from logits (R,V) and random numbers in [0, 1): `draws` (R,) float64, or the
    generator's. Raises NotFiniteError to draw from such logits."""
    if sampling.temperature == 0:
        return logits.argmax(1)
    cumulated = distribution(logits, sampling).double().cumsum(1)  # (R,V); one random number a row, not one a token
    if not cumulated[:, -1].isfinite().all():
        raise NotFiniteError("the logits of the next token are not finite; look at the embeddings, or take another checkpoint")
    if draws is None:
        draws = torch.rand(len(logits), generator=generator, dtype=torch.float64, device=logits.device)
    return torch.searchsorted(cumulated, draws[:, None] * cumulated[:, -1:], right=True).squeeze(1)


def uniform(seed: object, shape: tuple[int, ...]) -> Tensor:
    """Random numbers in [0, 1), float64, that follow from what `seed` prints as, on any device."""
    digest = hashlib.sha256(repr(seed).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities (R,V) that tokens are drawn with.

    softmax(logits / temperature); a token stays if the probability of all likelier ones is at most `top_p`.
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

    The prompts are read once; then all answers stand side by side in one sequence whose mask lets each see the prompt
    and itself alone, at the positions it would have on its own.
    """
    return score_rows(read_prompts(model, prompts, answers, embeddings, present), answers)


@torch.no_grad()
def read_prompts(
    model: ITSL, prompts: Sequence[Ids], answers: Sequence[Ids], embeddings: Tensor | None = None, present: Tensor | None = None
) -> Rows:
    """The prompts read into a cache that has room for scoring these answers. Raises ValueError for an empty answer."""
    if not answers or not all(len(answer) for answer in answers):
        raise ValueError("every answer needs at least one token")
    _check(prompts, max(map(len, answers)), model)
    return Rows(model, prompts, sum(len(answer) - 1 for answer in answers), embeddings, present)


@torch.no_grad()
def score_rows(rows: Rows, answers: Sequence[Ids]) -> Tensor:
    """log p(answer c | prompt b) of prompts that `read_prompts` has read: float32 (B,C). Uses the rows up."""
    prompts = range(len(rows))
    device = rows.positions.device
    first = torch.tensor([answer[0] for answer in answers], device=device)
    scores = rows.logits.log_softmax(1)[:, first]  # (B,C)
    fed = [(c, i) for c, answer in enumerate(answers) for i in range(len(answer) - 1)]
    if not fed:
        return scores
    owner, offset = torch.tensor(fed, device=device).T  # (N,), (N,)
    tokens = torch.tensor([answers[c][i] for c, i in fed], device=device).expand(len(prompts), -1)  # (B,N)
    targets = torch.tensor([answers[c][i + 1] for c, i in fed], device=device).repeat(len(prompts))  # (B*N,)
    visible = (owner[:, None] == owner) & (offset[:, None] >= offset)  # (N,N)
    mask = visible.new_ones(len(prompts), 1, len(fed), rows.cache.used + len(fed))  # (B,1,N,S+N)
    mask[..., rows.cache.used :] = visible
    if rows.seen is not None:
        mask &= rows.seen[:, None, None]
    hidden = rows.llama(tokens, cache=rows.cache, positions=rows.positions[:, None] + offset, mask=mask)
    logp = token_logp(hidden.flatten(0, 1), rows.llama.output_weight, targets).view(len(prompts), -1)  # (B,N)
    return scores.index_add(1, owner, logp)
