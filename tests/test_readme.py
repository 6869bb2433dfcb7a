"""README and the pages in docs/ say what is true now: their commands exist with these flags, their links lead somewhere, the
tree and the floors name the modules that are there.

Every command is also run, at toy size, page by page, by test_readme_commands.py.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_structure import FLOOR, PACKAGE, SATELLITES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ORDER = (  # in which a reader tries them: what a page's commands need, one before it makes
    *("results", "embeddings", "training", "explaining", "rationales", "classifier", "scoring", "weights", "demo"),
    *("performance", "differences", "architecture"),
)
MOST_BYTES = 12 * 1024
README = (ROOT / "README.md").read_text()
PAGES = "\n".join([README, *((DOCS / f"{name}.md").read_text() for name in ORDER)])
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGES, re.DOTALL) for line in block.splitlines() if line.strip()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES]


def program(command: list[str]) -> list[str] | None:
    """[script] or [-m module] of a python or torchrun command."""
    if command[0] == "torchrun":
        return [next(word for word in command if word.endswith(".py"))]
    if command[0] == "python":
        return command[1:3] if command[1] == "-m" else command[1:2]
    return None


def test_there_are_commands():
    assert len(COMMANDS) >= 30


MOST_LINES = 1600
EIGHT_FILES = re.search(r"## The method in eight files\n(.*?)\n\nAround them", README, re.DOTALL)


def test_the_eight_files_are_the_method_in_reading_order_and_can_be_read_in_an_evening():
    assert EIGHT_FILES
    files = re.findall(r"`([a-z_]+/[a-z_]+\.py)`", EIGHT_FILES.group(1))
    itsl = ("itsl/model.py", "itsl/bridge.py", "llama/decoder.py", "itsl/instructions.py", "itsl/losses.py")
    assert files == [*itsl, "critic/rewards.py", "critic/credit.py", "critic/self_critical.py", "training/step.py"]
    assert sum(len((PACKAGE / file).read_text().splitlines()) for file in files) < MOST_LINES


def test_readme_is_short_and_leads_to_every_page():
    assert len(README.encode()) <= MOST_BYTES, "the first page is read in minutes: move it to docs/"
    assert sorted(ORDER) == sorted(path.stem for path in DOCS.glob("*.md")), "its commands are not tested"
    assert not [name for name in ORDER if f"](docs/{name}.md" not in README]


# --- links ------------------------------------------------------------------------------------------------------------

LINKING = sorted({*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("data/*/README.md"), *ROOT.glob("checkpoints/*.md")})


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not re.match(r"https?:", target):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), f"{path.name} links to {target}"
            assert not anchor or anchor in anchors(there.read_text()), f"{path.name}: no heading {target}"


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_files_that_pages_name_are_there(path):
    roots = (ROOT, ROOT / "imagebind_llm", ROOT / "data" / "demo")
    named = set(re.findall(r"`((?:[\w.]+/)*[\w]+\.(?:py|sh))`", path.read_text()))
    assert not {name for name in named if not any((root / name).is_file() for root in roots)}


# --- commands ---------------------------------------------------------------------------------------------------------


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


def test_tree_and_floors_name_the_rooms_and_files_that_are_there():
    page = (DOCS / "architecture.md").read_text()
    tree, floors = (re.search(rf"```\n({start}.*?)```", page, re.DOTALL).group(1) for start in ("avt_get_emb.py", "0  "))
    rooms = {path.name: set(path.glob("*.py")) for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert not {name for name in FLOOR if not re.search(rf"^  .*\b{name}(\.py|/)", tree, re.MULTILINE)}
    for name in set(rooms) - set(SATELLITES):
        lines = re.search(rf"^  {name}/ .*\n(?: {{10,}}.*\n)*", tree, re.MULTILINE).group(0)
        files = {path.name for path in rooms[name]} - {"__init__.py", "__main__.py"}
        assert not {file for file in files if not re.search(rf"\b{file}", lines)}, name
    written = {name: int(line.split()[0]) for line in floors.splitlines()[:-1] for name in line.split()[1:]}
    assert written == FLOOR
