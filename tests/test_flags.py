"""The flags of every command, by name: one that is new or gone turns this red. When it is meant, change tests/flags.json."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

FLAGS = json.loads((Path(__file__).parent / "flags.json").read_text())  # {module: names in order of --help}


def flags_of(module: str, capsys) -> list[str]:
    """What --help of the command in `module` lists, without --help itself."""
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    return re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("module", FLAGS)
def test_flags_of_a_command_are_frozen(module, monkeypatch, capsys):
    if module == "web_demo":
        pytest.importorskip("gradio")
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    assert " ".join(flags_of(module, capsys)) == FLAGS[module]


def test_every_script_at_the_root_is_here():
    scripts = {path.stem for path in Path(__file__).parents[1].glob("*.py")} - {"setup"}
    assert scripts <= set(FLAGS)
