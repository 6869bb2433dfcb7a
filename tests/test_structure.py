"""The rooms of the package, floor by floor (docs/architecture.md): a file imports from its own room and from floors below.

Satellites use the package and nothing in it uses them. Within a room no two files import each other, directly or around.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "imagebind_llm"
FLOORS = (
    "config files flags html markdown metrics records sums taxonomy text_metrics distributed weight_files",
    "kernels clips datasets",
    "encoder llama",
    "itsl",
    "corpus",
    "critic",
    "explain",
    "training intents check ask",
    "demo_world rationale_writing web",  # the satellites
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
SATELLITES = FLOORS[-1].split()
FILES = sorted(PACKAGE.rglob("*.py"))
MODULE = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imported_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, by whatever form: "imagebind_llm.llama.decoder"."""
    depth = len(path.relative_to(ROOT).parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            start = list(path.relative_to(ROOT).parts[: depth - node.level]) if node.level else []
            module = ".".join([*start, node.module] if node.module else start)
            names |= {f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULE else module for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name in MODULE and name != "imagebind_llm"}


def room(module: str) -> str:
    """The first-level package or, on the ground, the file."""
    return module.split(".")[1]


@pytest.mark.parametrize("module", MODULE)
def test_a_file_imports_from_its_own_room_and_from_floors_below(module):
    imported = imported_modules(MODULE[module])
    if module == "imagebind_llm":
        assert not imported
        return
    own = room(module)
    below = {name for name in imported if FLOOR[room(name)] < FLOOR[own]}
    beside = {name for name in imported if FLOOR[own] == 0 == FLOOR[room(name)]} if own not in SATELLITES else set()
    wrong = {name for name in imported - below - beside if room(name) != own}
    assert not wrong, f"{module} (floor {FLOOR[own]}) imports {sorted(wrong)}"


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_no_circle_within_a_room(name):
    files = {module: path for module, path in MODULE.items() if module != "imagebind_llm"}
    inside = {module for module in files if room(module) == name or (FLOOR[room(module)] == 0 == FLOOR[name])}
    graph = {module: imported_modules(files[module]) & inside - {module} for module in inside}
    assert set(TopologicalSorter(graph).static_order()) >= inside


def test_nothing_imports_a_satellite():
    users = {
        module: sorted(name for name in imported_modules(path) if room(name) in SATELLITES)
        for module, path in MODULE.items()
        if module != "imagebind_llm" and room(module) not in SATELLITES
    }
    assert not {module: names for module, names in users.items() if names}


@pytest.mark.parametrize("name", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_a_room_says_what_it_is_what_comes_in_and_what_goes_out(name):
    text = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text())) or ""
    assert len(text.splitlines()) >= 3 and "In: " in text and "Out: " in text


def test_encoder_and_llama_never_import_each_other():
    for module, path in MODULE.items():
        if module.startswith("imagebind_llm.encoder"):
            assert not [name for name in imported_modules(path) if room(name) == "llama"], module
        if module.startswith("imagebind_llm.llama"):
            assert not [name for name in imported_modules(path) if room(name) == "encoder"], module


@pytest.mark.parametrize("library", ["torchvision", "torchaudio", "timm", "fairscale", "decord", "pytorchvideo"])
def test_core_needs_no_library_that_fails_without_cuda(library):
    for path in FILES:
        assert f"import {library}" not in path.read_text(), path
    requirements = (PACKAGE.parent / "requirements.txt").read_text()
    assert library not in requirements


def test_nothing_is_called_helper_or_util():
    banned = ("util", "misc", "common", "helper", "base", "manager")
    assert not [path.name for path in FILES if any(word in path.stem for word in banned)]
