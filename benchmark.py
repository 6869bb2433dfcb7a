"""Speed and memory against named peers, in one run: python benchmark.py [--only extraction language ...]

Each row runs ours and the peer in turn in processes of their own and prints the ratio ours / peer of their medians: wall
and CPU-seconds for the same work, and peak memory above the loaded model. Below 1 is better than the peer.

    python benchmark.py --run runs/demo/ablation/blind/seed0/claims     a self-critical step of that run by part, and no rows
"""

import importlib
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.critic import step_by_part
from benchmarks.runner import Case, Measurement, compare, named
from imagebind_llm.flags import exit_code, flag, parse

SUBJECTS = ("extraction", "media", "language", "loading", "training")


@dataclass(frozen=True)
class BenchmarkSettings:
    """The flags of benchmark.py."""

    only: tuple[str, ...] = flag(SUBJECTS, "subjects to measure", SUBJECTS)
    match: str = flag("", "measure only cases whose name contains this")
    rounds: int = flag(3, "timed runs of each program, after one warm-up")
    threads: int = flag(2, "threads of each program")
    run: str = flag("", "output folder of a run with --credit claim: time the parts of its step, means over --rounds steps")


def main() -> int:
    settings = parse(BenchmarkSettings, description=__doc__)
    return exit_code("benchmark.py", lambda: by_part(settings) if settings.run else compare_all(settings))


def compare_all(settings: BenchmarkSettings) -> None:
    """Ours beside each peer. Raises ValueError if no case has the name."""
    cases = [case for subject in settings.only for case in importlib.import_module(f"benchmarks.{subject}").CASES]
    cases = [case for case in cases if settings.match in case.name]
    if not cases:
        raise ValueError(f"no case of {', '.join(settings.only)} has {settings.match!r} in its name")
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {settings.threads} threads, {platform.machine()}, {capability}")
    print(f"{'case':62} {'':6} {'wall s':>8} {'CPU s':>8} {'units/s':>9} {'peak MB':>9} {'above MB':>9}")
    for case in cases:
        print_case(case, *compare(case, settings.rounds, settings.threads))
        if case.note:
            print(f"  {named(case.note)()}", flush=True)


def by_part(settings: BenchmarkSettings) -> None:
    """Where a step of a run spends its time."""
    torch.set_num_threads(settings.threads)
    print(step_by_part(Path(settings.run), settings.rounds))


def print_case(case: Case, ours: Measurement, peer: Measurement) -> None:
    for label, name, m in ((case.name, "ours", ours), (f"  units: {case.unit}", "peer", peer)):
        print(f"{label:62} {name:6} {m.wall_s:8.3f} {m.cpu_s:8.2f} {m.rate:9.2f} {m.peak_mb:9.0f} {m.above_setup_mb:9.0f}")
    per_unit = (ours.wall_s / ours.units) / (peer.wall_s / peer.units)
    cpu = (ours.cpu_s / ours.units) / (peer.cpu_s / peer.units)
    memory = ours.above_setup_mb / max(peer.above_setup_mb, 1.0)
    print(
        f"{'  target: ' + case.target:62} {'ratio':6} {per_unit:8.3f} {cpu:8.3f} {1 / per_unit:9.2f} {'':9} {memory:9.3f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
