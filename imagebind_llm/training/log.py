"""The log of a training run: console, and log.txt (a line of JSON per epoch), steps.jsonl and curves.html in its folder."""

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from imagebind_llm import distributed
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.files import write_json_lines
from imagebind_llm.training.curves import STEPS, draw
from imagebind_llm.training.epoch import Moment, Position
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import Sums

QUIET = {"advantage", "distinct_2", "reward_format"}  # in the log, not on the console


def say(text: str) -> None:
    """Print a line on the main rank."""
    if distributed.is_main():
        print(text, flush=True)


class Log:
    """Writes the log of a run. Means are over the steps since the previous line."""

    def __init__(self, root: Path, settings: TrainSettings, position: Position):
        self.root, self.settings = root, settings
        self._sums = (Sums(position.sums), CriticSums(position.critic))  # as they were at the previous line
        self.start_clock(position)

    def start_clock(self, position: Position) -> None:
        """Measure the time of steps from now on."""
        self._last = (time.perf_counter(), position.total)  # time and step of the previous line

    def step(self, moment: Moment) -> None:
        """Write a line after every --log_steps steps and after the last of an epoch. Collective."""
        at = moment.position
        if at.step % self.settings.log_steps and at.step != moment.steps:
            return
        means = at.sums.since(self._sums[0]).over_ranks().means() | at.critic.since(self._sums[1]).over_ranks().means()
        self._sums = (Sums(at.sums), CriticSums(at.critic))
        if distributed.is_main():
            say(self._line(moment, means))
            values = means | {"lr": moment.lr, "grad_norm": moment.norm, "tokens_per_s": moment.tokens_per_s}
            self.root.mkdir(parents=True, exist_ok=True)
            with open(self.root / STEPS, "a") as file:
                file.write(json.dumps({"step": at.total, "epoch": at.epoch, **values}) + "\n")
            self.start_clock(at)

    def _line(self, moment: Moment, means: dict[str, float]) -> str:
        at = moment.position
        step_s = (time.perf_counter() - self._last[0]) / max(at.total - self._last[1], 1)
        left_s = ((self.settings.epochs - at.epoch) * moment.steps - at.step) * step_s
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items() if name not in QUIET)
        return (
            f"epoch {at.epoch} [{at.step}/{moment.steps}]  {shown}  lr {moment.lr:.2e}  grad {moment.norm:.2f}  "
            f"{moment.tokens_per_s:.0f} tokens/s  {memory()}  left {clock(left_s)}"
        )

    def epoch(self, history: Sequence[dict[str, Any]], best: bool, position: Position) -> None:
        """Write a line for the last epoch of `history`, log.txt and curves.html."""
        self._sums = (Sums(), CriticSums())
        if distributed.is_main():
            write_json_lines(self.root / "log.txt", history)
            say(epoch_line(history[-1], best))
            draw(self.root, history)
        self.start_clock(position)


def epoch_line(row: dict[str, Any], best: bool) -> str:
    parts = ";  ".join(f"{split} {shown_scores(row[split])}" for split in ("train", "dev") if row.get(split))
    return f"epoch {row['epoch']} done: {parts}{'  (best)' if best else ''}"


def shown_scores(scores: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in scores.items())


def memory() -> str:
    """Peak memory of the GPU, or of this process without one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


def clock(seconds: float) -> str:
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours}:{minutes:02d}:{int(seconds) % 60:02d}"
