"""Packs several answers to one prompt into one row, so that the prompt is computed once for all of them.

    columns     prompt without its last token | last token, first answer | last token, second answer | ... | padding
    segments    0                             | 1                        | 2                         |     |
    positions   0 ... n-2                     | n-1 ...                  | n-1 ...                   |     |

Each token attends to the prompt and to earlier tokens of its own segment, at the position that it would have in a separate row,
so its log-probability is the same as there. A sampled answer of 50 tokens to a prompt of 150 then costs 51 tokens. Rows with
different clips share no prompt; `joined` concatenates them along the batch, for one forward pass.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from imagebind_llm.records import IGNORE, Batch, Output

NOT_FORWARD = ("weights", "contrasted", "swapped", "swapped_present")  # fields of a batch that no forward pass reads


@dataclass(frozen=True)
class Packed:
    """A batch of B rows to which R further answers are appended."""

    batch: Batch
    owners: Tensor  # (R,) the row that each answer is appended to
    places: Tensor  # (R,T) the column of each of its targets in that row, 0 if it has none
    answer_mask: Tensor  # (R,T) bool, which of the answers' tokens are targets
    row_mask: Tensor  # (B,T) bool, the targets of the original rows

    def answers(self, output: Output) -> Tensor:
        """log p (R,T) of the appended answers' targets, 0 elsewhere."""
        return output.logp[self.owners[:, None], self.places] * self.answer_mask

    def rows(self, output: Output) -> Output:
        """The output for the original rows."""
        return Output(output.logp[:, : self.row_mask.shape[1]] * self.row_mask, self.row_mask, output.intent_logits)


def packed(batch: Batch, answers: Batch, owners: Tensor) -> Packed:
    """Append each of the R rows of `answers`, without its prompt, to the row of `batch` that `owners` (R,) names.

    Both rows must begin with the same prompt, and `batch` needs `n_prompt`. All or some of the answers' tokens are targets.
    """
    assert batch.n_prompt is not None
    prompts = batch.n_prompt.tolist()
    starts = [prompts[owner] for owner in owners.tolist()]
    row_mask, answer_mask = _target_mask(batch), _target_mask(answers)
    used = [max(n, end) for n, end in zip(prompts, _ends(row_mask), strict=True)]
    ends = [max(n, end) for n, end in zip(starts, _ends(answer_mask), strict=True)]
    columns = max(batch.tokens.shape[1], *_packed_lengths(used, owners.tolist(), starts, ends))
    tokens = _widened(batch.tokens, columns, 0)
    targets = _widened(batch.targets.masked_fill(~row_mask, IGNORE), columns, IGNORE)
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
    rows = replace(batch, tokens=tokens, targets=targets, positions=positions, segments=segments, below=None, weights=None)
    return Packed(rows, owners, places, answer_mask, row_mask)


def _target_mask(batch: Batch) -> Tensor:
    """(B,T) bool, which tokens are targets; never the first, which no position precedes."""
    mask = batch.targets != IGNORE
    mask[:, 0] = False
    return mask


def _ends(mask: Tensor) -> list[int]:
    """One past the last true column of each row; 0 if it has none."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask * columns).amax(1).tolist()


def _packed_lengths(used: list[int], owners: list[int], starts: list[int], ends: list[int]) -> list[int]:
    """Number of columns of each row with the answers that are appended to it."""
    lengths = list(used)
    for owner, start, end in zip(owners, starts, ends, strict=True):
        lengths[owner] += end - start + 1
    return lengths


def _widened(tensor: Tensor, columns: int, value: int) -> Tensor:
    """A tensor (B,T,...) padded with `value` to `columns` columns."""
    out = tensor.new_full((tensor.shape[0], columns, *tensor.shape[2:]), value)
    out[:, : tensor.shape[1]] = tensor
    return out


def with_other_clips(batch: Batch) -> Batch | None:
    """The contrasted answers of a batch with the sound and picture of another clip; None if there are none.

    Their intents are IGNORE, so that they do not supervise the intent head.
    """
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
    """The rows of both batches in one batch, for one forward pass, without the fields NOT_FORWARD."""
    longest = max(first.tokens.shape[1], second.tokens.shape[1])

    def both(name: str) -> Tensor | None:
        top, bottom = getattr(first, name), getattr(second, name)
        if name == "captions" and top is not None:
            bottom = top.new_zeros(len(second.tokens))  # the second batch holds answers only
        if top is None or bottom is None:
            assert top is bottom, f"{name} is in one of the batches only"
            return None
        if name in ("tokens", "targets", "below"):
            top, bottom = (_widened(t, longest, IGNORE if name == "targets" else 0) for t in (top, bottom))
        return torch.cat([top, bottom])

    tensors = {f.name: both(f.name) for f in fields(Batch) if f.name not in ("keys", *NOT_FORWARD)}
    return Batch(**tensors, keys=first.keys + second.keys)  # type: ignore[arg-type]


def split(output: Output, rows: int, columns: int) -> tuple[Output, Tensor, Tensor]:
    """Undo `joined`: the output of the first batch, which had `rows` rows and `columns`, and logp and mask of the second."""
    head = None if output.intent_logits is None else output.intent_logits[:rows]
    return (
        Output(output.logp[:rows, :columns], output.mask[:rows, :columns], head),
        output.logp[rows:],
        output.mask[rows:],
    )
