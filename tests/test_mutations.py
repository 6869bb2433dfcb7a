"""The list of broken formulas fits the code as it is, and the runner can tell a guard from none."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS

ROOT = Path(__file__).parents[1]


def test_there_are_enough_and_each_has_a_name_and_a_change_of_its_own():
    assert len(MUTATIONS) >= 40
    assert len({mutation.name for mutation in MUTATIONS}) == len({(m.file, m.old, m.new) for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_mutation_still_applies_and_names_tests_that_are_there(mutation):
    changed = mutation.applied((ROOT / mutation.path).read_text(encoding="utf-8"))
    compile(changed, mutation.path, "exec")
    assert "\n" not in mutation.old + mutation.new
    for test in mutation.tests.split():
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name.partition('[')[0] or 'test_'}", (ROOT / "tests" / file).read_text(), re.MULTILINE), test


SUMS = {
    "imagebind_llm/__init__.py": "",
    "imagebind_llm/sums.py": "def total(a, b):\n    return a + b  # exact\n",
    "tests/test_sums.py": "from imagebind_llm.sums import total\n\n\ndef test_total():\n    assert total(2, 2) == 4\n",
    "tests/test_wrong.py": "def test_wrong():\n    raise AssertionError\n",
    ".gitignore": "runs/\n",
    "runs/large": "",
}


def run_on_sums(root: Path, changes: list[tuple[str, str]], test: str = "test_sums.py", workers: int = 1):
    """The runner on a small repository, in a process of its own: (exit code, what it prints)."""
    for name, text in SUMS.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", root], check=True)
    script = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from run_mutations import Mutation, run\n"
        f"changes = [Mutation(f'sum {{i}}', 'sums.py', *change, {test!r}) for i, change in enumerate({changes!r})]\n"
        f"sys.exit(run(Path({str(root)!r}), changes, {workers}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    return done.returncode, done.stdout + done.stderr


def test_only_a_test_that_fails_catches(tmp_path):
    changes = [("a + b", "a - b"), ("a + b", "a * b"), ("a + b", "a +"), ("a / b", "a + b"), ("a", "b")]
    code, said = run_on_sums(tmp_path, changes, workers=2)
    assert code == 1 and "1 of 5 mutations caught" in said, said
    rows = {line[8:13]: line for line in said.splitlines() if line.startswith(("caught", "MISSED"))}
    assert rows["sum 0"].startswith("caught")
    reasons = ("its tests pass", "its tests do not run", "expected this text once, found it 0 times", "found it 4 times")
    for i, reason in enumerate(reasons, 1):
        assert rows[f"sum {i}"].startswith("MISSED") and reason in rows[f"sum {i}"]
    assert (tmp_path / "imagebind_llm" / "sums.py").read_text() == SUMS["imagebind_llm/sums.py"], "a copy is changed"


def test_a_change_is_taken_back_before_the_next(tmp_path):
    code, said = run_on_sums(tmp_path, [("a + b", "a - b"), ("  # exact", ""), ("a + b", "b - a")])
    assert code == 1 and "2 of 3 mutations caught" in said and "missed: sum 1" in said


def test_tests_that_fail_without_any_change_prove_nothing(tmp_path):
    code, said = run_on_sums(tmp_path, [("a + b", "a - b")], test="test_wrong.py")
    assert code == 2 and "these tests fail without any change" in said
