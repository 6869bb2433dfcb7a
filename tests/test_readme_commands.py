"""Every ```bash line of README and docs/ does what it says, at toy size, page by page, in a folder laid out as they have it.

Nothing in a command is replaced but the number of processes; `TOY` says what is added to make it quick, and what takes the
place of weights that are not here: the tiny encoder, a random LLaMA in Meta's layout, a chat server on this machine.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import ChatServer
from media_files import write_clip
from mintrec_folder import write_mintrec
from test_demo_run import run as demo
from test_readme import COMMANDS, PAGES, ROOT, program
from toy_training import write_alpaca, write_llama

from imagebind_llm.taxonomy import MINTREC

NEEDS = {  # a command's beginning: why it is checked for its flags only
    "make test": "it is what runs this",
    "python web_demo.py": "it serves until it is stopped; test_web_demo.py starts it",
}
WORLD = "--train 72 --dev 8 --test 8"  # the smallest whose dev and test show no intent that train does not
TOY = {  # what is added to a program's own arguments; of two of a flag the last counts
    "-m imagebind_llm.check": "",
    "-m imagebind_llm.demo_world": WORLD,
    "-m imagebind_llm.explain.faithfulness": "--limit 4 --max_new_tokens 4",
    "-m imagebind_llm.ask": "--max_new_tokens 4",
    "-m imagebind_llm.explain.scoring": "",
    "avt_get_emb.py": "--encoder imagebind_tiny --num_workers 0",
    "classifier.py": "--seeds 0 1",
    "engine_finetune.py": "--epochs 1 --warmup_epochs 0.1 --samples 2",
    "data/demo/make_report.py": "",
    "data/demo/measure_captions.py": "--limit 4",
    "data/demo/measure_critic.py": "--batches 3 --samples 2",
    "data/demo/measure_explanations.py": "--limit 4 --swapped 2",
    "explain.py": "--max_new_tokens 4",
    "write_rationales.py": "--limit 2",
}
LLAMA_LAYERS = 32  # the published command names LLaMA-7B's preset, whose depth it has; the width is 16
EXITS = {"-m imagebind_llm.check": {0, 1}}  # the MIntRec folder has bad clips, which the check lists


def wanted(command: list[str]) -> bool:
    return not any(" ".join(command).startswith(prefix) for prefix in NEEDS)


def made_small(command: list[str]) -> list[str]:
    """The words to run in place of a python or torchrun command."""
    what = program(command)
    assert what
    name = " ".join(what)
    own = command[command.index(what[-1]) + 1 :] + shlex.split(TOY[name])
    if name == "engine_finetune.py" and "--llama_model_path" not in own:
        own += ["--llama_model_path", "LLAMA_FOLDER"]
    if "bfloat16" in own:  # the pages' other way to make the same store, which would be refused beside the first
        own += ["--output_dir", "runs/bfloat16"]
    ranks = ["-m", "torch.distributed.run", "--nproc_per_node", "2"] if command[0] == "torchrun" else []
    return [sys.executable, *ranks, *what, *own]


def commands_of_demo() -> list[list[str]]:
    """What make demo runs, stage by stage."""
    words = [shlex.split(stage.command) for stage in demo.STAGES]
    return [["torchrun", *one[2:]] if one[:2] == ["-m", "torch.distributed.run"] else ["python", *one] for one in words]


def test_every_command_is_run_or_said_to_need_what_is_not_here():
    for command in COMMANDS:
        name = " ".join(program(command) or command[:2])
        assert not wanted(command) or name == "make demo" or name in TOY, f"neither run nor in NEEDS: {' '.join(command)}"
    for prefix in NEEDS:
        assert any(" ".join(command).startswith(prefix) for command in COMMANDS), f"no page has a command {prefix}"
    for command in commands_of_demo():
        assert " ".join(program(command) or []) in TOY, command


def write_own_table(root: Path) -> None:
    """clips.csv: the clips of MIntRec under labels of one's own, with coarse classes."""
    rows = ["path,text,split,label,coarse"]
    for split in ("train", "dev", "test"):
        for line in (root / "MIntRec" / f"{split}.tsv").read_text().splitlines()[1:]:
            season, episode, clip, text, label = line.split("\t")
            path, words = f"MIntRec/raw_data/{season}/{episode}/{clip}.mp4", text.replace(",", " ")
            rows.append(f"{path},{words},{split},to {label},{MINTREC.coarse(label)}")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working copy as a reader has it, with the files that the pages call by name."""
    root = tmp_path_factory.mktemp("copy")
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs") and not path.name.startswith("."):
            (root / path.name).symlink_to(path)
    (root / "data" / "demo").mkdir(parents=True)  # the clips are made anew, small
    for script in (ROOT / "data" / "demo").glob("*.py"):
        (root / "data" / "demo" / script.name).symlink_to(script)
    write_mintrec(root / "MIntRec")
    (root / "captions.json").symlink_to(root / "MIntRec" / "captions.json")
    write_own_table(root)
    write_llama(root / "LLAMA_FOLDER", LLAMA_LAYERS)
    (root / "PATH").symlink_to(root / "LLAMA_FOLDER")
    write_alpaca(root / "alpaca_data.json", 16)
    write_clip(root / "clip.mp4", seconds=0.6)
    return root


@pytest.mark.slow
def test_every_command_runs_in_order(place):
    pytest.importorskip("openai", reason="the extra `rationales` is not installed")
    variables = {"TARGET_FOLDER": str(place / "LLAMA_FOLDER"), "DATA_PATH": str(place), "OPENAI_API_KEY": "none"}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} | variables
    failed = []
    with ChatServer() as server:
        for command in [*commands_of_demo(), *filter(wanted, COMMANDS)]:
            if command[0] == "make":
                continue  # its commands came first: what the pages show before it is made by it
            words = made_small([re.sub(r"\$(\w+)", lambda name: variables[name[1]], word) for word in command])
            if "write_rationales.py" in words:
                words += ["--base_url", server.url]
            done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
            if done.returncode not in EXITS.get(" ".join(program(command) or []), {0}):
                failed.append(f"{' '.join(words[1:])}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    assert not failed, "\n\n".join(failed)
    for block in re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL):
        done = subprocess.run([sys.executable, "-c", block], cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
