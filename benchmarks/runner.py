"""Runs two contenders in turn, each in a process of its own, and compares them.

Machines are noisy, so nothing absolute is claimed: both contenders run in the same minutes, A B A B ..., and the ratio of
their medians is the result. A process each, so that peak memory is one contender's alone.
"""

import importlib
import multiprocessing
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One comparison. `ours` and `peer` are "module:function"; function(**options) sets up and returns a callable that does
    one unit of timed work and returns how many `unit`s it processed. The contender's own options override `options`.
    `note` names a function of the same kind whose return value is a line of text to print below the ratio."""

    name: str
    unit: str
    ours: str
    peer: str
    target: str = ""
    options: dict = field(default_factory=dict)
    ours_options: dict = field(default_factory=dict)
    peer_options: dict = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Measurement:
    """Medians over the rounds: seconds and CPU-seconds a run, units a run, peak memory in MB and above the set-up."""

    wall_s: float
    cpu_s: float
    units: float
    peak_mb: float
    above_setup_mb: float

    @property
    def rate(self) -> float:
        return self.units / self.wall_s


def compare(case: Case, rounds: int, threads: int) -> tuple[Measurement, Measurement]:
    """Measure `ours` and `peer` in turn, one warm-up and then `rounds` counted rounds each."""
    with (
        _Contender(case.ours, case.options | case.ours_options, threads) as ours,
        _Contender(case.peer, case.options | case.peer_options, threads) as peer,
    ):
        for contender in (ours, peer):
            contender.run()
            contender.forget()
        for _ in range(rounds):
            ours.run()
            peer.run()
        return ours.result(), peer.result()


class _Contender:
    """A child process that holds one contender, told when to run."""

    def __init__(self, function: str, options: dict, threads: int):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the child when it imports torch
        self._process = context.Process(target=_serve, args=(theirs, function, options))
        self._process.start()
        theirs.close()
        self._setup_mb = self._receive()
        self._runs: list[tuple[float, float, float, float]] = []

    def run(self) -> None:
        self._pipe.send("run")
        self._runs.append(self._receive())

    def forget(self) -> None:
        self._runs.clear()

    def result(self) -> Measurement:
        wall, cpu, units, _ = (statistics.median(column) for column in zip(*self._runs, strict=True))
        peak = max(run[3] for run in self._runs)
        return Measurement(wall, cpu, units, peak, peak - self._setup_mb)

    def _receive(self):
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self) -> "_Contender":
        return self

    def __exit__(self, *exception) -> None:
        self._pipe.close()
        self._process.join(timeout=30)
        self._process.terminate()


def _serve(pipe, function: str, options: dict) -> None:
    """In the child: set up, then one timed run for every message. Libraries' warnings would tear the table."""
    warnings.simplefilter("ignore")
    try:
        work: Callable[[], float] = named(function)(**options)
        pipe.send(_resident_mb())
        while pipe.recv() == "run":
            pipe.send(_timed(work))
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)


def named(function: str) -> Callable:
    """The function that "module:name" names."""
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def _timed(work: Callable[[], float]) -> tuple[float, float, float, float]:
    """(wall seconds, CPU-seconds with child processes, units, peak MB) of one run."""
    _reset_peak()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    units = work()
    return time.perf_counter() - wall, _cpu_seconds() - cpu, units, _peak_mb()


def _cpu_seconds() -> float:
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def _status_mb(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _resident_mb() -> float:
    return _status_mb("VmRSS")


def _peak_mb() -> float:
    return _status_mb("VmHWM")


def _reset_peak() -> None:
    """Start a new peak (Linux; where the kernel refuses, the peak since the start stands)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
