"""An evaluation that ranks share counts every row once, and says on each rank what one rank alone says."""

from collections.abc import Callable

import pytest
import torch
from test_training import CPU, head_model, rows

from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.explain.explainer import Reading
from imagebind_llm.training.epoch import evaluate
from imagebind_llm.training.results import _scored


class Meeting:
    """What pretend ranks tell each other, who run one after the other: in a round they hear what was said in the one before."""

    def __init__(self, ranks: int):
        self.rank, self.said, self.heard = 0, [[] for _ in range(ranks)], [[] for _ in range(ranks)]

    def begin_round(self) -> None:
        self.heard, self.said = self.said, [[] for _ in self.said]

    def gather(self, value) -> list:
        number = len(self.said[self.rank])
        self.said[self.rank].append(value)
        return [others[number] if number < len(others) else value for others in self.heard]


@pytest.fixture
def on_ranks(monkeypatch):
    """Run a function on each of some pretend ranks, until what they tell each other is known: what each of them returns."""

    def run(ranks: int, function: Callable[[], object]) -> list:
        meeting, results = Meeting(ranks), []
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "rank", lambda: meeting.rank)
            patch.setattr(distributed, "world_size", lambda: ranks)
            patch.setattr(distributed, "gather_objects", meeting.gather)
            patch.setattr(distributed, "all_sum", lambda tensor: torch.stack(meeting.gather(tensor)).sum(0))
            for _ in range(3):  # in the last one everybody hears what depends on nothing unheard
                meeting.begin_round()
                results = []
                for meeting.rank in range(ranks):
                    results.append(function())
        return results

    return run


@pytest.mark.parametrize("ranks", [2, 3])
def test_dev_scores_of_several_ranks_are_those_of_one(on_ranks, ranks):
    model, collate = head_model(), Collator(None, ())
    alone, right = evaluate(model, rows(), collate, CPU, 2)
    for scores, found in on_ranks(ranks, lambda: evaluate(model, rows(), collate, CPU, 2)):
        assert scores == pytest.approx(alone, rel=1e-5) and found == right


class Counting:
    """An explainer that says of a prompt what its tokens are, and which prompts it was asked about."""

    def __init__(self):
        self.asked: list[list[int]] = []

    def score(self, prompts, embeddings, present) -> Reading:
        self.asked += prompts
        said = torch.tensor([[float(sum(prompt)), float(len(prompt))] for prompt in prompts]).reshape(-1, 2)
        return Reading(said, -said)


@pytest.mark.parametrize("ranks", [2, 3])
def test_results_of_several_ranks_are_in_order_and_every_row_is_scored_once(on_ranks, ranks):
    prompts = [list(row.ids[: row.n_prompt]) for row in rows()]
    wanted = _scored(Counting(), rows(), prompts, Collator(None, ()), 2)
    explainers: list[Counting] = []

    def scored():
        explainers.append(Counting())
        return _scored(explainers[-1], rows(), prompts, Collator(None, ()), 2)

    for found in on_ranks(ranks, scored):
        assert all(torch.equal(own, theirs) for own, theirs in zip(found, wanted, strict=True))
    asked = [prompt for explainer in explainers[-ranks:] for prompt in explainer.asked]
    known = [list(row.ids[: row.n_prompt]) for row in rows() if row.intent is not None]
    assert sorted(asked) == sorted(known) and len(wanted[2]) == len(known)
