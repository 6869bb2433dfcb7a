"""Sequences to batches: which rows a step sees, who computes which of them, and how they are padded.

The rows of a step depend on (seed, epoch, rows a step) alone. Ranks and forward passes share them out, so that one rank with
a batch of 8 and two ranks with 4 take the same steps. Rows of similar length meet in a step: they are sorted inside chunks
of a shuffled epoch, and the steps are shuffled again.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from imagebind_llm.config import MODALITIES
from imagebind_llm.encoder.store import Store
from imagebind_llm.records import IGNORE, Batch
from imagebind_llm.records import Sequence as Ids

CHUNK_STEPS = 8  # steps whose rows are sorted by length together


def steps_of_epoch(lengths: Sequence[int], rows_a_step: int, seed: int, epoch: int) -> list[list[int]]:
    """Every row once, in steps of `rows_a_step` (the last may be shorter), of similar length, in an order of its own."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    chunks = _slices(order, rows_a_step * CHUNK_STEPS)
    steps = [step for chunk in chunks for step in _slices(sorted(chunk, key=lambda row: lengths[row]), rows_a_step)]
    return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]


def shares(step: list[int], ranks: int, passes: int) -> list[list[list[int]]]:
    """A step's rows for [rank][forward pass], dealt out in turn; some of a short last step may be empty."""
    return [[step[rank * passes + number :: ranks * passes] for number in range(passes)] for rank in range(ranks)]


def with_captions(steps: list[list[int]], n_rows: int, n_captions: int, seed: int, epoch: int) -> list[list[int]]:
    """The steps with one caption for every two rows; captions are numbered from `n_rows` on and taken in a shuffled order."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = itertools.cycle((n_rows + torch.randperm(n_captions, generator=generator)).tolist())
    return [[*step, *itertools.islice(order, (len(step) + 1) // 2)] for step in steps]


def with_others(steps: list[list[int]], rows: Sequence[Ids], seed: int, epoch: int) -> list[Ids]:
    """The rows, each with the clip of a row of its step that has another intent as its `other`, drawn evenly; without one where
    there is none, or the row has no answer, intent or clip. The same for any number of ranks and passes."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    found = list(rows)
    for step in steps:
        asked = [i for i in step if rows[i].intent is not None and rows[i].embedded and len(rows[i].ids) > rows[i].n_prompt]
        for i in asked:
            if others := [j for j in asked if rows[j].intent != rows[i].intent]:
                drawn = others[int(torch.randint(len(others), (), generator=generator))]
                found[i] = replace(rows[i], other=rows[drawn].key)
    return found


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """All rows in batches of similar length, for evaluation."""
    return _slices(sorted(range(len(lengths)), key=lambda row: lengths[row]), size)


def _slices(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class States(Protocol):
    """Hidden states by row (frozen_states.py)."""

    def batch(self, rows: Sequence[Ids]) -> torch.Tensor: ...


class Collator:
    """Makes Batches of sequences; reads the embeddings of those that have any, and the `states` below the adapted layers."""

    def __init__(self, store: Store | None, modalities: Iterable[str], states: "States | None" = None):
        """`modalities` of a clip that the model may know."""
        self.store, self.states = store, states
        self.known = torch.tensor([name in modalities for name in MODALITIES])

    def __call__(self, rows: Sequence[Ids]) -> Batch:
        longest = max(len(row.ids) for row in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        targets = torch.full_like(tokens, IGNORE)
        for i, row in enumerate(rows):
            ids = torch.tensor(row.ids)
            tokens[i, : len(ids)] = ids
            targets[i, row.n_prompt : len(ids)] = ids[row.n_prompt :]
        weights = None
        if any(row.weights for row in rows):
            weights = torch.ones(len(rows), longest)
            for i, row in enumerate(rows):
                weights[i, : len(row.weights or ())] = torch.tensor(row.weights or ())
        embeddings, present = self.embeddings(rows)
        return Batch(
            tokens,
            targets,
            embeddings,
            present,
            n_prompt=torch.tensor([row.n_prompt for row in rows]),
            intents=torch.tensor([IGNORE if row.intent is None else row.intent for row in rows]),
            keys=tuple(row.key for row in rows),
            below=self.states.batch(rows) if self.states is not None else None,
            captions=torch.tensor([row.caption for row in rows]) if any(row.caption for row in rows) else None,
            weights=weights,
            **self._swapped(rows, embeddings, present),
        )

    def embeddings(self, rows: Sequence[Ids]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(B,M,E) and (B,M); zeros and False for rows that have no clip. Nothing at all without a store."""
        if self.store is None:
            return None, None
        vectors = torch.zeros(len(rows), len(MODALITIES), self.store.identity.width)
        present = torch.zeros(len(rows), len(MODALITIES), dtype=torch.bool)
        there = [i for i, row in enumerate(rows) if row.embedded]
        if there:
            vectors[there], present[there] = self.store.read([rows[i].key for i in there])
        return vectors, present & self.known

    def _swapped(
        self, rows: Sequence[Ids], embeddings: torch.Tensor | None, present: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The rows that name an `other` clip, and their embeddings with that clip's sound and picture; nothing without any."""
        picked = [i for i, row in enumerate(rows) if row.other is not None]
        if not picked or self.store is None or embeddings is None or present is None:
            return {}
        vectors, there = self.store.read([rows[i].other or "" for i in picked])
        there, text = there & self.known, MODALITIES.index("text")
        vectors[:, text], there[:, text] = embeddings[picked, text], present[picked, text]
        return {"contrasted": torch.tensor(picked), "swapped": vectors, "swapped_present": there}

    def without_targets(self, row: Ids) -> Batch:
        """A batch that has no effect: what a rank computes when a short step has no row for it."""
        return self([Ids(row.key, row.ids, len(row.ids), None, row.embedded)])


def answer_batch(batch: Batch, rows: Sequence[int], prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Batch:
    """Answers to clips of a batch as rows to be scored, each behind its prompt; no intent head is asked. `rows`: which row of
    the batch each answers, with its clip and key."""
    device = batch.tokens.device
    both = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, both))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in both], device=device)
    n_prompt = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ends = torch.tensor([len(row) for row in both], device=device)
    columns = torch.arange(longest, device=device)
    answer = (columns >= n_prompt[:, None]) & (columns < ends[:, None])
    owners = torch.tensor(rows, device=device)
    return Batch(
        tokens,
        tokens.masked_fill(~answer, IGNORE),
        None if batch.embeddings is None else batch.embeddings[owners],
        None if batch.present is None else batch.present[owners],
        n_prompt,
        torch.full_like(n_prompt, IGNORE),
        tuple(batch.keys[row] for row in rows),
    )


class _Planned(TorchDataset):
    def __init__(self, sequences: Sequence[Ids], plan: list[list[int]], collate: Collator):
        self.sequences, self.plan, self.collate = sequences, plan, collate

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        rows = [self.sequences[row] for row in self.plan[index]]
        return self.collate(rows) if rows else self.collate.without_targets(self.sequences[0])


def load(
    sequences: Sequence[Ids], plan: list[list[int]], collate: Collator, num_workers: int, device: torch.device
) -> Iterable[Batch]:
    """The batches of a plan (rows of each), in order, read ahead by `num_workers` processes."""
    pin = device.type == "cuda"
    return DataLoader(_Planned(sequences, plan, collate), batch_size=None, num_workers=num_workers, pin_memory=pin)
