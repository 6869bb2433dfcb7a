"""Sequences to batches: the rows of each step, rank and forward pass, padded to tensors.

The rows of a step depend only on (seed, epoch, rows per step). They are distributed over ranks and forward passes, so that one
rank with a batch of 8 and two ranks with 4 take the same steps. The rows of a step have similar lengths: an epoch is shuffled,
sorted by length within chunks, and the steps are shuffled again.
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

CHUNK_STEPS = 8  # steps per chunk that is sorted by length


def steps_of_epoch(lengths: Sequence[int], rows_a_step: int, seed: int, epoch: int) -> list[list[int]]:
    """The row numbers of each step of an epoch: every row once, `rows_a_step` in a step (one step may have fewer)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    chunks = _slices(order, rows_a_step * CHUNK_STEPS)
    steps = [step for chunk in chunks for step in _slices(sorted(chunk, key=lambda row: lengths[row]), rows_a_step)]
    return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]


def shares(step: list[int], ranks: int, passes: int) -> list[list[list[int]]]:
    """A step's rows by [rank][forward pass], distributed in turn; some may be empty in a short step."""
    return [[step[rank * passes + number :: ranks * passes] for number in range(passes)] for rank in range(ranks)]


def with_captions(steps: list[list[int]], n_rows: int, n_captions: int, seed: int, epoch: int) -> list[list[int]]:
    """The steps with one caption added for every two rows, in shuffled order; captions are numbered from `n_rows` on."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = itertools.cycle((n_rows + torch.randperm(n_captions, generator=generator)).tolist())
    return [[*step, *itertools.islice(order, (len(step) + 1) // 2)] for step in steps]


def with_others(steps: list[list[int]], rows: Sequence[Ids], seed: int, epoch: int) -> list[Ids]:
    """The rows with `other` set to the key of a random row of the same step that has another intent.

    It stays None if there is no such row, or if the row has no answer, intent or clip. The result does not depend on the number
    of ranks and passes.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    paired_rows = list(rows)
    for step in steps:
        clips = [i for i in step if rows[i].intent is not None and rows[i].embedded and len(rows[i].ids) > rows[i].n_prompt]
        for i in clips:
            if others := [j for j in clips if rows[j].intent != rows[i].intent]:
                other = others[int(torch.randint(len(others), (), generator=generator))]
                paired_rows[i] = replace(rows[i], other=rows[other].key)
    return paired_rows


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The row numbers of batches of similar length, for evaluation."""
    return _slices(sorted(range(len(lengths)), key=lambda row: lengths[row]), size)


def _slices(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class States(Protocol):
    """Interface of cached hidden states (training/frozen_states.py)."""

    def batch(self, rows: Sequence[Ids]) -> torch.Tensor: ...


class Collator:
    """Makes a Batch of sequences, with their embeddings from `store` and their cached `states` below the adapted layers."""

    def __init__(self, store: Store | None, modalities: Iterable[str], states: "States | None" = None):
        """`modalities`: those that the model may see; all others are marked as absent."""
        self.store, self.states = store, states
        self.modality_mask = torch.tensor([name in modalities for name in MODALITIES])  # (M,)

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
        """Embeddings (B,M,E) and presence (B,M) of the rows; zeros and False for rows without a clip. None without a store."""
        if self.store is None:
            return None, None
        vectors = torch.zeros(len(rows), len(MODALITIES), self.store.identity.width)
        present = torch.zeros(len(rows), len(MODALITIES), dtype=torch.bool)
        clip_rows = [i for i, row in enumerate(rows) if row.embedded]
        if clip_rows:
            vectors[clip_rows], present[clip_rows] = self.store.read([rows[i].key for i in clip_rows])
        return vectors, present & self.modality_mask

    def _swapped(
        self, rows: Sequence[Ids], embeddings: torch.Tensor | None, present: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The fields `contrasted`, `swapped` and `swapped_present` of the batch; empty if no row has an `other` clip."""
        pairs = [i for i, row in enumerate(rows) if row.other is not None]
        if not pairs or self.store is None or embeddings is None or present is None:
            return {}
        vectors, presence = self.store.read([rows[i].other or "" for i in pairs])
        presence, text = presence & self.modality_mask, MODALITIES.index("text")
        vectors[:, text], presence[:, text] = embeddings[pairs, text], present[pairs, text]
        return {"contrasted": torch.tensor(pairs), "swapped": vectors, "swapped_present": presence}

    def without_targets(self, row: Ids) -> Batch:
        """A batch without any loss, for a rank that has no row in a short step."""
        return self([Ids(row.key, row.ids, len(row.ids), None, row.embedded)])


def answer_batch(batch: Batch, rows: Sequence[int], prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Batch:
    """A batch of further answers to clips of `batch`, each with its prompt, as rows to be scored. Their intents are IGNORE.

    rows: the row of `batch` that each answer belongs to.
    """
    device = batch.tokens.device
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, sequences))
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in sequences], device=device)
    n_prompt = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ends = torch.tensor([len(ids) for ids in sequences], device=device)
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
    """The batches of a plan (the row numbers of each), in order, loaded by `num_workers` processes."""
    pin = device.type == "cuda"
    return DataLoader(_Planned(sequences, plan, collate), batch_size=None, num_workers=num_workers, pin_memory=pin)
