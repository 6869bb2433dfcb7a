"""Progress of a run: its position, the scores of every epoch, the best epoch, and what comes next."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from imagebind_llm import distributed
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.rewards import TRUTH, column
from imagebind_llm.training.choice import Choice, Guard
from imagebind_llm.training.continuation import sums_of_rank
from imagebind_llm.training.epoch import Position
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import Sums

GAMED = "answers have become truer by the rewarding judge but not by the watching judge: the model exploits the reward"


class Progress:
    """Position, history of epochs, choice of the best epoch, and guard of the self-critical loss.

    `likelihood_decides`: between epochs of similar macro F1 (choice.py); False if answers are labels only.
    """

    def __init__(self, settings: TrainSettings, likelihood_decides: bool):
        self.settings, self.likelihood_decides = settings, likelihood_decides
        self.position, self.choice, self.guard = Position(), Choice(), Guard()
        self.history: list[dict[str, Any]] = []
        self._critic_sums = CriticSums()  # as they were at the end of the last step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, the guard stops, or dev has not improved for --patience epochs and no self-critical loss
        is still to begin."""
        waiting = self.settings.w_critic and self.guard.began is None
        return self.position.epoch >= self.settings.epochs or self.guard.stops or (self._stale and not waiting)

    @property
    def criticises(self) -> bool:
        """Whether the self-critical loss is on: after --critic_start epochs, or when dev has not improved for --patience."""
        begins = self.settings.w_critic and (self.position.epoch >= self.settings.critic_start or self._stale)
        return self.guard.began is not None or bool(begins)

    @property
    def _stale(self) -> bool:
        return bool(self.settings.patience and self.choice.stale >= self.settings.patience)

    def end_step(self) -> None:
        """Record the last step's truth by both judges in the guard. Collective."""
        if not self.settings.critic.judges or self.guard.began is None:
            return
        step = self.position.critic.since(self._critic_sums).over_ranks()
        self._critic_sums = CriticSums(self.position.critic)
        if step["judged"]:
            self.guard.note(step[column(TRUTH)] / step["judged"], step["watched"] / step["judged"])

    def end_epoch(self, scores: Mapping[str, dict[str, float]], right: list[bool]) -> tuple[bool, str]:
        """Record an epoch's scores and move to the next epoch; returns whether it is the best so far, and a warning or "".

        With the self-critical loss, the latest epoch is the best unless the guard objects, since the head's score does not show
        what answers gain. `right`: for each dev row, whether the head is right.
        """
        self.history.append({"epoch": self.position.epoch, "step": self.position.total, **scores})
        best, warning = self._offer(scores.get("dev", {})), ""
        if self.guard.began is not None:
            best = self.guard.passes(right)
            if not self.guard.agrees():
                best, warning = False, GAMED
        self.position = Position(self.position.epoch + 1, 0, self.position.total)
        self._critic_sums = CriticSums()
        return best, warning

    def begin_criticism(self, scores: dict[str, float], right: list[bool]) -> None:
        """Start the self-critical loss: the guard compares with these dev scores, and the best epoch is chosen anew."""
        self.guard, self.choice = Guard(self.position.epoch, right), Choice()
        self._offer(scores)

    def _offer(self, scores: dict[str, float]) -> bool:
        return self.choice.offer(scores, self.likelihood_decides)

    def saved(self) -> dict[str, Any]:
        """The fields of a checkpoint's JSON. Collective."""
        at = self.position
        return {
            "epoch": at.epoch,
            "step": at.step,
            "total": at.total,
            "sums": distributed.gather_objects([dict(at.sums), dict(at.critic)]),
            "choice": vars(self.choice),
            "guard": asdict(self.guard),
            "history": self.history,
        }

    def read(self, info: dict[str, Any]) -> None:
        """Restore from the JSON of a checkpoint, the inverse of `saved`."""
        losses, critic = sums_of_rank(info, distributed.rank(), distributed.world_size())
        self.position = Position(info["epoch"], info["step"], info["total"], Sums(losses), CriticSums(critic))
        self.guard, self.choice = Guard(**info["guard"]), Choice(**info["choice"])
        self.history, self._critic_sums = info["history"], CriticSums(critic)
