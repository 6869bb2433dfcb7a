"""README says what is true now: its commands exist with these flags, its tree and its rows name the modules that are there.

Every command is also run, at toy size, in README's order, by test_readme_commands.py.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_structure import FILES, ROW, concept

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES]


def program(command: list[str]) -> list[str] | None:
    """[script] or [-m module] of a python or torchrun command."""
    if command[0] == "torchrun":
        return [next(word for word in command if word.endswith(".py"))]
    if command[0] == "python":
        return command[1:3] if command[1] == "-m" else command[1:2]
    return None


def test_there_are_commands():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "make"], ids=" ".join)
def test_make_targets_exist(command):
    assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def known_flags():
    pages: dict[str, str] = {}

    def look_up(what: list[str]) -> str:
        name = " ".join(what)
        if name not in pages:
            arguments = [sys.executable, *what, "--help"]
            pages[name] = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
        return pages[name]

    return look_up


@pytest.mark.parametrize("command", [c for c in COMMANDS if program(c)], ids=" ".join)
def test_flags_of_every_command_are_known(command, known_flags):
    what = program(command)
    own = command[command.index(what[-1]) + 1 :]
    flags = {word for word in own if word.startswith("--")}
    page = known_flags(what)
    assert page or not flags, f"{what} prints no help"
    assert not {flag for flag in flags if flag not in page}


RECIPES = sorted((ROOT / "data").glob("mintrec*/README.md"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_flags_of_the_torchrun_lines_of_the_data_sets_are_known(path, known_flags):
    """Torchrun's own flags stand before the script, the script's after it; $T is what the line above them sets it to."""
    text = path.read_text()
    (common,) = re.findall(r'^T="(.*)"$', text, re.MULTILINE)
    lines = [shlex.split(line.replace("$T", common)) for line in re.findall(r"^torchrun .*\$T.*$", text, re.MULTILINE)]
    assert [line[line.index("--nproc_per_node") + 1] for line in lines] == ["2", "1", "8", "8"] and "--nnodes" in lines[3]
    for line in lines:
        script = line.index("engine_finetune.py")
        for words, what in ((line[:script], ["-m", "torch.distributed.run"]), (line[script:], ["engine_finetune.py"])):
            page = known_flags(what).replace("-", "_")  # torchrun takes either
            assert not {word for word in words if word.startswith("--") and word.replace("-", "_") not in page}
        ranks, nodes, batch, accum = (
            int(line[line.index(name) + 1]) if name in line else 1
            for name in ("--nproc_per_node", "--nnodes", "--batch_size", "--accum_iter")
        )
        assert ranks * nodes * batch * accum == 32, "the page says: 32 rows a step"


def test_tree_and_rows_name_the_modules_that_are_there():
    modules = {concept(path) for path in FILES} - {"__init__"}
    tree, rows = (re.search(rf"```\n({start}.*?)```", README, re.DOTALL).group(1) for start in ("avt_get_emb.py", "0  "))
    assert not {name for name in modules if not re.search(rf"\b{name}(\.py|/)", tree)}
    written = {name: int(line.split()[0]) for line in rows.splitlines() for name in line.split()[1:]}
    assert {name: written[name] for name in modules} == {name: ROW[name] for name in modules}
