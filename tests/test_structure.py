"""The import rows of docs/architecture.md: a module imports package modules from rows above its own only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "imagebind_llm"
ROWS = (
    "config records labels gguf_header choice console critic_sums",
    "settings tokenizers distributed metrics text_metrics store attention fused linear mel crops container",
    "instructions media encoder llama losses zeroshot probe verifier batches",
    "bridge rewards datasets report checkpoint demo_world frozen_states claims credit packing",
    "seen",
    "model weights corpus rationales scoring curves protocol",
    "generate extraction assembly evaluation judge",
    "best_of alternatives",
    "inference self_critical intent_report clip_encoder captions continuation judge_fit checked_claims",
    "answers training faithfulness methods coloured_claims",
    "run rehearsal page",
    "results",
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row.split()}
FILES = sorted(PACKAGE.rglob("*.py"))


def concept(path: Path) -> str:
    """The module or, for a file of a subpackage, the subpackage."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_concepts(path: Path) -> set[str]:
    """First-level package modules that a file imports, by whatever form."""
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "imagebind_llm":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imagebind_llm."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("imagebind_llm.")}
    return {name for name in found if name in ROW or (PACKAGE / f"{name}.py").exists()}


def test_every_module_has_a_row():
    assert {concept(path) for path in FILES} - {"__init__"} <= set(ROW)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_from_rows_above_only(path):
    own = concept(path)
    if own == "__init__":
        assert not imported_concepts(path)
        return
    wrong = {name for name in imported_concepts(path) - {own} if ROW[name] >= ROW[own]}
    assert not wrong, f"{own} (row {ROW[own]}) imports {sorted(wrong)}"


def test_encoder_and_llama_never_import_each_other():
    assert "llama" not in imported_concepts(PACKAGE / "encoder.py")
    assert "encoder" not in imported_concepts(PACKAGE / "llama.py")


@pytest.mark.parametrize("library", ["torchvision", "torchaudio", "timm", "fairscale", "decord", "pytorchvideo"])
def test_core_needs_no_library_that_fails_without_cuda(library):
    for path in FILES:
        assert f"import {library}" not in path.read_text(), path
    requirements = (PACKAGE.parent / "requirements.txt").read_text()
    assert library not in requirements


def test_nothing_is_called_helper_or_util():
    banned = ("util", "misc", "common", "helper", "base", "manager")
    assert not [path.name for path in FILES if any(word in path.stem for word in banned)]
