"""Several answers to one prompt in one row, so that the prompt is computed once for all of them.

    columns     prompt without its last token | last token, own answer | last token, second answer | ... | padding
    segments    0                             | 1                      | 2                         |     |
    positions   0 ... n-2                     | n-1 ...                | n-1 ...                   |     |

Each token sees the prompt and what precedes it in its own segment, at the position it would have on its own; so its
log-probability is what it is in a row of its own. A sampled answer of 50 tokens to a prompt of 150 then costs 51 tokens.
Rows whose clips differ share nothing; `joined` puts them below each other, so that one forward pass serves them.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from imagebind_llm.records import IGNORE, Batch, Output

UNREAD = ("weights", "contrasted", "swapped", "swapped_present")  # fields of a batch that no forward pass reads


@dataclass(frozen=True)
class Packed:
    """`batch`: the B rows of a batch with R further answers behind them. owners (R,): the row in which each stands; places
    (R,T): the column of its targets there, 0 where it has none; asked (R,T) bool: where it has one. own (B,T) bool: the
    targets that the rows had themselves."""

    batch: Batch
    owners: Tensor
    places: Tensor
    asked: Tensor
    own: Tensor

    def answers(self, output: Output) -> Tensor:
        """log p (R,T) of the further answers' targets, 0 where there is none."""
        return output.logp[self.owners[:, None], self.places] * self.asked

    def rows(self, output: Output) -> Output:
        """The output for the rows as they were."""
        return Output(output.logp[:, : self.own.shape[1]] * self.own, self.own, output.intent_logits)


def packed(batch: Batch, answers: Batch, owners: Tensor) -> Packed:
    """Put each row of `answers` (R rows) behind the row of `batch`, which needs `n_prompt`, that owners (R,) names. It begins
    with the same prompt; what follows is another answer, all or some of whose tokens are targets."""
    assert batch.n_prompt is not None
    prompts = batch.n_prompt.tolist()
    starts = [prompts[owner] for owner in owners.tolist()]
    own, asked = _targets(batch), _targets(answers)
    used = [max(n, end) for n, end in zip(prompts, _ends(own), strict=True)]
    ends = [max(n, end) for n, end in zip(starts, _ends(asked), strict=True)]
    columns = max(batch.tokens.shape[1], *_filled(used, owners.tolist(), starts, ends))
    tokens, targets = _widened(batch.tokens, columns, 0), _widened(batch.targets.masked_fill(~own, IGNORE), columns, IGNORE)
    positions = torch.arange(columns, device=tokens.device).repeat(len(tokens), 1)
    segments = (positions >= batch.n_prompt[:, None] - 1).long()
    places = torch.zeros_like(answers.tokens)
    for row, (owner, start, end) in enumerate(zip(owners.tolist(), starts, ends, strict=True)):
        first, last = used[owner], used[owner] + end - start + 1
        tokens[owner, first:last] = answers.tokens[row, start - 1 : end]
        targets[owner, first + 1 : last] = answers.targets[row, start:end]
        positions[owner, first:last] = torch.arange(start - 1, end, device=tokens.device)
        segments[owner, first:] = row + 2
        places[row, start:end] = torch.arange(first + 1, last, device=tokens.device)
        used[owner] = last
    wide = replace(batch, tokens=tokens, targets=targets, positions=positions, segments=segments, below=None, weights=None)
    return Packed(wide, owners, places, asked, own)


def _targets(batch: Batch) -> Tensor:
    """(B,T) bool; nothing precedes the first column."""
    mask = batch.targets != IGNORE
    mask[:, 0] = False
    return mask


def _ends(mask: Tensor) -> list[int]:
    """One past the last true column of each row; 0 without one."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(1).tolist()


def _filled(used: list[int], owners: list[int], starts: list[int], ends: list[int]) -> list[int]:
    """Columns of each row with the answers behind it."""
    filled = list(used)
    for owner, start, end in zip(owners, starts, ends, strict=True):
        filled[owner] += end - start + 1
    return filled


def _widened(tensor: Tensor, columns: int, value: int) -> Tensor:
    out = tensor.new_full((tensor.shape[0], columns, *tensor.shape[2:]), value)
    out[:, : tensor.shape[1]] = tensor
    return out


def with_other_clips(batch: Batch) -> Batch | None:
    """The answers that are held against another clip, with its sound and picture; None if there are none. No head is taught."""
    if (rows := batch.contrasted) is None or batch.n_prompt is None:
        return None
    return Batch(
        batch.tokens[rows],
        batch.targets[rows],
        batch.swapped,
        batch.swapped_present,
        batch.n_prompt[rows],
        torch.full_like(rows, IGNORE),
        tuple(batch.keys[row] for row in rows.tolist()),
        None if batch.below is None else batch.below[rows],
    )


def joined(first: Batch, second: Batch) -> Batch:
    """The rows of both batches in one, so that one forward pass serves them; without what that does not need."""
    longest = max(first.tokens.shape[1], second.tokens.shape[1])

    def both(name: str) -> Tensor | None:
        own, other = getattr(first, name), getattr(second, name)
        if name == "captions" and own is not None:
            other = own.new_zeros(len(second.tokens))  # those of another clip are answers
        if own is None or other is None:
            assert own is other, f"{name} is in one of the batches alone"
            return None
        if name in ("tokens", "targets", "below"):
            own, other = (_widened(t, longest, IGNORE if name == "targets" else 0) for t in (own, other))
        return torch.cat([own, other])

    found = {f.name: both(f.name) for f in fields(Batch) if f.name not in ("keys", *UNREAD)}
    return Batch(**found, keys=first.keys + second.keys)  # type: ignore[arg-type]


def split(output: Output, rows: int, columns: int) -> tuple[Output, Tensor, Tensor]:
    """Undo `joined`: the output of the first `rows` rows and `columns`, and logp and mask of the others."""
    head = None if output.intent_logits is None else output.intent_logits[:rows]
    return (
        Output(output.logp[:rows, :columns], output.mask[:rows, :columns], head),
        output.logp[rows:],
        output.mask[rows:],
    )
