"""Running sums by name: every rank adds up its own, and means are taken of the sums of all ranks."""

from collections.abc import Mapping
from typing import Self

import torch

from imagebind_llm import distributed


class RunningSums(dict[str, float]):
    """Sums by name, of one rank. All `names` are there from the start, alike on every rank; there are no others."""

    def __init__(self, values: Mapping[str, float] | None = None):
        """With these values; 0 for the names that they lack."""
        super().__init__({name: (values or {}).get(name, 0.0) for name in self.names()})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        raise NotImplementedError

    def since(self, before: Self) -> Self:
        """What the sums have grown by."""
        return type(self)({name: value - before[name] for name, value in self.items()})

    def over_ranks(self) -> Self:
        """Added up over all ranks. Collective."""
        totals = distributed.all_sum(torch.tensor(list(self.values()), dtype=torch.float64))
        return type(self)(dict(zip(self, totals.tolist(), strict=True)))
