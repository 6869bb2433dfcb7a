"""Breaks formulas one at a time and runs the tests that must notice: mutations.py has the list.

    make mutations                                   all of them, one after the other: many minutes
    make mutations ARGS="--only divergence -j 2"     those with this in their name, two at a time

The tree is copied once for each worker; there a change is made, the tests named beside it run, and the change is taken back.
caught: some of these tests fail. MISSED: they pass, do not even start (an import that fails proves nothing) or never end, or
the text to change is gone. A miss ends the command with exit code 1; tests that fail without any change end it with 2.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mutations import MUTATIONS, Mutation, node_ids

ROOT = Path(__file__).parents[1]
LONGEST_S = 600  # of one mutation's tests
PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", "-m", "not slow and not gpu")
FAILED = 1  # pytest's exit code if tests ran and some failed


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


def run_tests(tree: Path, tests: list[str], **more: str) -> tuple[int | None, str]:
    """pytest's exit code (None: it took too long) and output, of tests in a tree whose modules come before installed ones."""
    own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = os.environ | own | more
    try:
        done = subprocess.run(
            [sys.executable, *PYTEST, *tests], cwd=tree, env=environment, capture_output=True, text=True, timeout=LONGEST_S
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def outcome(tree: Path, mutation: Mutation) -> Outcome:
    """Change the tree, run the tests, and change it back."""
    started, path = time.monotonic(), tree / mutation.path
    source, times = path.read_text(encoding="utf-8"), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    try:
        path.write_text(mutation.applied(source), encoding="utf-8")
        code, said = run_tests(tree, node_ids([mutation]), PYTHONDONTWRITEBYTECODE="1")
    except ValueError as error:  # the text is not there, or not once
        return Outcome(mutation, str(error), time.monotonic() - started)
    finally:
        path.write_text(source, encoding="utf-8")
        os.utime(path, ns=times)  # so that its compiled form holds again
    known = {FAILED: "caught", 0: "its tests pass", None: f"its tests took more than {LONGEST_S} s"}
    last = said.strip().splitlines()[-1:] or [""]
    return Outcome(mutation, known.get(code, f"its tests do not run: {last[0]}"), time.monotonic() - started)


def outcomes(tree: Path, mutations: list[Mutation], workers: int) -> list[Outcome]:
    """Of all mutations, by so many workers with a copy of the tree each; prints a row as each is done."""
    waiting: queue.SimpleQueue[Mutation] = queue.SimpleQueue()
    found: list[Outcome] = []
    for mutation in mutations:
        waiting.put(mutation)

    def work(own: Path) -> None:
        while True:
            try:
                found.append(outcome(own, waiting.get_nowait()))
            except queue.Empty:
                return
            print(found[-1].row(), flush=True)

    others = [tree.with_name(f"{tree.name}-{i}") for i in range(1, workers)]
    for other in others:  # before anything is changed
        shutil.copytree(tree, other)
    threads = [threading.Thread(target=work, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    work(tree)
    for thread in threads:
        thread.join()
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break a formula in one line, run the tests that should notice, and say so.")
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations with this in their name")
    parser.add_argument("-j", type=int, default=1, metavar="N", dest="workers", help="how many at a time")
    given = parser.parse_args(arguments)
    chosen = [mutation for mutation in MUTATIONS if given.only in mutation.name]
    if not chosen:
        parser.error(f"no mutation has {given.only!r} in its name")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_tree(ROOT, tree)
        code, said = run_tests(tree, node_ids(chosen))
        if code != 0:
            print(f"{said}\nmutations: the tests fail without any change (pytest ended with {code}); mend them first")
            return 2
        print(f"{time.monotonic() - started:.0f} s: the tests of {len(chosen)} mutations pass without any change", flush=True)
        found = outcomes(tree, chosen, given.workers)
    missed = [one for one in found if not one.caught]
    print(f"\n{len(found) - len(missed)} of {len(found)} mutations caught in {(time.monotonic() - started) / 60:.1f} minutes")
    for one in missed:
        print(f"missed: {one.mutation.name} ({one.mutation.path}): {one.verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
