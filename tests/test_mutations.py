"""The list of broken formulas fits the code as it is, and the runner can tell a guard from none."""

import re
import subprocess
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation
from run_mutations import copy_tree, outcome

ROOT = Path(__file__).parents[1]


def test_there_are_enough_and_each_has_a_name_of_its_own():
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A repository with one formula and its test, one file that git does not see, copied as the runner does."""
    root, target = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("copies") / "tree"
    (root / "imagebind_llm").mkdir()
    (root / "tests").mkdir()
    (root / "imagebind_llm" / "__init__.py").touch()
    (root / "imagebind_llm" / "sums.py").write_text("def total(a, b):\n    return a + b  # exact\n")
    test = "from imagebind_llm.sums import total\n\n\ndef test_total():\n    assert total(2, 2) == 4\n"
    (root / "tests" / "test_sums.py").write_text(test)
    (root / ".gitignore").write_text("runs/\n")
    (root / "runs").mkdir()
    (root / "runs" / "large").touch()
    subprocess.run(["git", "init", "-q", root], check=True)
    copy_tree(root, target)
    return target


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ("a + b", "a - b", "caught"),
        ("a + b", "a * b", "its tests pass"),
        ("a + b", "a +", "its tests do not run: "),
        ("a / b", "a + b", "expected this text once, found it 0 times: a / b"),
        ("a", "b", "found it 4 times"),
    ],
    ids=["guarded", "unguarded", "broken", "gone", "ambiguous"],
)
def test_only_a_test_that_fails_catches(tree, old, new, verdict):
    before = (tree / "imagebind_llm" / "sums.py").read_bytes()
    found = outcome(tree, Mutation("a sum", "sums.py", old, new, "test_sums.py"))
    assert verdict in found.verdict and found.caught == (verdict == "caught")
    assert ("caught" if found.caught else "MISSED") in found.row() and "a sum" in found.row()
    assert (tree / "imagebind_llm" / "sums.py").read_bytes() == before, "the change is taken back"


def test_a_copy_has_what_git_would_commit(tree):
    assert sorted(path.name for path in tree.rglob("*") if path.is_file() and path.suffix in ("", ".py")) == [
        ".gitignore",
        "__init__.py",
        "sums.py",
        "test_sums.py",
    ]
