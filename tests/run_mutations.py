"""Breaks formulas one at a time and runs the tests that must notice: mutations.py has the list.

    make mutations                                   all of them, one after the other
    make mutations ARGS="--only divergence -j 2"     those with this in their name, two at a time

The tree is copied, once for each that runs at a time; in a copy a change is made, the tests named beside it run, and the change
is taken back. caught: some of these tests fail. MISSED: they pass, do not even start (an import that fails proves nothing) or
never end, or the text to change is gone. A miss ends the command with exit code 1; tests that fail without any change with 2.

Tests run in a fork of this process, which has imported the libraries, but nothing of ours: that takes most of their time.
"""

import argparse
import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutations import MUTATIONS, PACKAGE, Mutation, node_ids

ROOT = Path(__file__).parents[1]
LONGEST_S = 900  # of one mutation's tests
PYTEST = ("-q", "-x", "-p", "no:cacheprovider", "--tb=line", "-m", "not slow and not gpu")
FAILED = 1  # pytest's exit code if tests ran and some failed
LIBRARIES = ("torch.distributed", "torch.utils.data", "safetensors.torch", "scipy.stats", "sacrebleu", "hypothesis", "tqdm")
LIBRARIES += ("sklearn.linear_model", "sklearn.metrics", "sklearn.model_selection", "sklearn.feature_extraction.text", "av")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation: "caught", or why it was missed."""

    mutation: Mutation
    verdict: str
    seconds: float

    @property
    def caught(self) -> bool:
        return self.verdict == "caught"

    def row(self) -> str:
        """Its line of the table."""
        last = self.mutation.tests if self.caught else self.verdict
        named = f"{'caught' if self.caught else 'MISSED'}  {self.mutation.name:<62} {self.mutation.file:<17}"
        return f"{named} {self.seconds:5.1f} s  {last}"


def copy_tree(source: Path, target: Path) -> None:
    """All files that git would commit, with their times."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=source, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


class Tests:
    """Tests of a tree in a process of their own, which starts at once; `end` says how it ended."""

    def __init__(self, tree: Path, tests: list[str], keep_compiled: bool = False):
        self.tree, self.started, self.said = tree, time.monotonic(), tree.with_name(f"{tree.name}.txt")
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 9
            try:
                code = self._run(tests, keep_compiled)
            finally:
                os._exit(code)

    def _run(self, tests: list[str], keep_compiled: bool) -> int:
        signal.alarm(LONGEST_S)
        os.chdir(self.tree)
        os.environ |= ENVIRONMENT | {"PYTHONPATH": str(self.tree)}
        sys.path[:] = [str(self.tree), *(path for path in sys.path if not path.startswith(str(ROOT / "tests")))]
        sys.dont_write_bytecode = not keep_compiled
        with open(self.said, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        own = importlib.util.find_spec(PACKAGE)
        assert own and own.origin and Path(own.origin).is_relative_to(self.tree), "the code of another tree would run"
        code = pytest.main([*PYTEST, *tests])
        sys.stdout.flush()
        return int(code)

    def end(self, status: int) -> tuple[int | None, float, str]:
        """pytest's exit code (None: killed), the seconds that it took and what it printed, from the status of os.wait."""
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else None, time.monotonic() - self.started, self.said.read_text(encoding="utf-8")


def verdict(code: int | None, said: str) -> str:
    """What the end of a mutation's tests says of it."""
    last = said.strip().splitlines()[-1:] or [""]
    known = {FAILED: "caught", 0: "its tests pass", None: f"its tests took more than {LONGEST_S} s"}
    return known.get(code, f"its tests do not run: {last[0]}")


@contextlib.contextmanager
def changed(path: Path, text: str):
    """The file with another text; afterwards with its own and its times, so that its compiled form holds again."""
    own, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(times[0], times[1] + 10**10))  # a compiled form knows its source by the second and the size
    try:
        yield
    finally:
        path.write_bytes(own)
        os.utime(path, ns=times)


def outcomes(trees: list[Path], mutations: list[Mutation]) -> list[Outcome]:
    """Of all mutations, one at a time in each tree; prints a row as each is done."""
    waiting, free, found = mutations[::-1], list(trees), []
    running: dict[int, tuple[Mutation, Tests, contextlib.ExitStack]] = {}

    def note(one: Outcome) -> None:
        found.append(one)
        print(one.row(), flush=True)

    while waiting or running:
        while waiting and free:
            mutation, stack = waiting.pop(), contextlib.ExitStack()
            path = free[-1] / mutation.path
            try:
                stack.enter_context(changed(path, mutation.applied(path.read_text(encoding="utf-8"))))
            except ValueError as error:
                note(Outcome(mutation, str(error), 0.0))
                continue
            tests = Tests(free.pop(), node_ids([mutation]))
            running[tests.pid] = (mutation, tests, stack)
        if running:
            pid, status = os.wait()
            mutation, tests, stack = running.pop(pid)
            stack.close()
            free.append(tests.tree)
            code, seconds, said = tests.end(status)
            note(Outcome(mutation, verdict(code, said), seconds))
    return found


def run(root: Path, mutations: list[Mutation], workers: int) -> int:
    """The table of these mutations of the tree at `root`. Returns the exit code."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / f"tree-{number}" for number in range(workers)]
        copy_tree(root, trees[0])
        tests = Tests(trees[0], node_ids(mutations), keep_compiled=True)
        code, seconds, said = tests.end(os.waitpid(tests.pid, 0)[1])
        if code != 0:
            print(f"{said}\nmutations: these tests fail without any change (exit code {code}); mend them first")
            return 2
        print(f"the tests of {len(mutations)} mutations pass without any change ({seconds:.0f} s)", flush=True)
        for other in trees[1:]:
            shutil.copytree(trees[0], other)
        found = outcomes(trees, mutations)
    missed = [one for one in found if not one.caught]
    print(f"\n{len(found) - len(missed)} of {len(found)} mutations caught in {(time.monotonic() - started) / 60:.1f} minutes")
    for one in missed:
        print(f"missed: {one.mutation.name} ({one.mutation.path}): {one.verdict}")
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Break formulas one at a time, run the tests that must notice, and say so.")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations with this in their name")
    parser.add_argument("-j", type=int, default=1, metavar="N", dest="workers", help="how many at a time")
    given = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if given.only in mutation.name]
    if not chosen:
        parser.error(f"no mutation has {given.only!r} in its name")
    os.environ |= ENVIRONMENT  # torch reads it when it is imported
    for name in LIBRARIES:
        importlib.import_module(name)
    return run(ROOT, chosen, given.workers)


if __name__ == "__main__":
    sys.exit(main())
