"""A training run drawn: OUTPUT_DIR/curves.html from its steps.jsonl and its history of epochs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imagebind_llm.critic.rewards import REWARDS, TRUTH, column
from imagebind_llm.files import json_lines, write_atomic
from imagebind_llm.html import Html, figure, lines, page, table

STEPS = "steps.jsonl"
# heading, what it shows, the values drawn together (each a mean since the line before)
PICTURES = (
    ("Losses", "", ("nll", "cross_entropy", "caption_nll")),
    ("Accuracy of the intent head, train", "", ("accuracy",)),
    ("Learning rate", "", ("lr",)),
    ("Norm of the gradient", "", ("grad_norm",)),
    ("Rewards", "of sampled answers, raw, in [0, 1]", tuple(column(part) for part in REWARDS if part != TRUTH)),
    ("Truth of answers", "in [-1, 1], by the rewarding judge and by the watching one", (column(TRUTH), "watched_truth")),
    ("Claims", "an answer", ("claims",)),
    ("Verdicts", "mean probability of a claim, and share of claims without a verdict", ("claim_p", "undecided")),
    ("Groups and endings", "shares of clips with answers all alike, of answers without an end", ("skipped", "unfinished")),
    ("Spread", "mean size of the advantage", ("advantage",)),
    ("Entropy", "nats a sampled token", ("entropy",)),
    ("Length", "tokens of an answer", ("length",)),
    ("Divergence", "nats an answer, from the model at the start of criticism", ("kl",)),
    ("Distinct-2", "of the answers of a step", ("distinct_2",)),
)  # fmt: skip


def draw(root: Path, history: Sequence[dict[str, Any]]) -> Path:
    """Write the page; what was never logged is left out."""
    sections: list[tuple[str, Iterable[object]]] = [("Epochs", [_epochs(history)]), ("Steps", pictures(root))]
    write_atomic(root / "curves.html", page(f"Training: {root}", sections).encode())
    return root / "curves.html"


def pictures(root: Path) -> list[Html]:
    """Everything that the steps of a run logged, as figures."""
    steps = _steps(root / STEPS)
    return [part for heading, note, names in PICTURES for part in _picture(heading, note, names, steps)]


def _steps(path: Path) -> list[dict[str, Any]]:
    """The logged steps in order; those that a killed run repeated count once, a line cut off not at all."""
    steps: dict[int, dict[str, Any]] = {}
    for _, row in json_lines(path):
        if row is not None:
            steps[row["step"]] = row
    return [steps[step] for step in sorted(steps)]


def _picture(heading: str, note: str, names: Sequence[str], steps: Sequence[dict[str, Any]]) -> list[Html]:
    series = {}
    for name in names:
        points = [(row["step"], row[name]) for row in steps if name in row]
        if points:
            xs, ys = zip(*points, strict=True)
            series[name] = (xs, ys)
    return [figure(lines(series, "step", ""), f"{heading}{f' ({note})' if note else ''}")] if series else []


def _epochs(history: Sequence[dict[str, Any]]) -> Html:
    names = [f"{split} {name}" for split in ("train", "dev") for name in _names(history, split)]
    rows = []
    for row in history:
        values = {f"{split} {name}": value for split in ("train", "dev") for name, value in row.get(split, {}).items()}
        rows.append([row["epoch"], *(f"{values[name]:.4f}" if name in values else None for name in names)])
    return table(["epoch", *names], rows)


def _names(history: Sequence[dict[str, Any]], split: str) -> list[str]:
    return list(dict.fromkeys(name for row in history for name in row.get(split, {})))
