"""What a training run prints: an epoch's scores, peak memory, times."""

import resource
import sys
from typing import Any

import torch


def epoch_line(row: dict[str, Any], better: bool) -> str:
    parts = ";  ".join(f"{split} {shown_scores(row[split])}" for split in ("train", "dev") if row.get(split))
    return f"epoch {row['epoch']} done: {parts}{'  (best)' if better else ''}"


def shown_scores(scores: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in scores.items())


def memory() -> str:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


def clock(seconds: float) -> str:
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours}:{minutes:02d}:{int(seconds) % 60:02d}"
