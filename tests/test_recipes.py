"""The data owner's path, from a folder to explanations: step by step in one process, and as data/*/recipe.sh runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mintrec_folder import CORRUPT, MISSING, ROWS, write_mintrec
from toy_training import call, read_lines, write_llama

import avt_get_emb
import engine_finetune
import explain
from imagebind_llm import __version__
from imagebind_llm.check.datasets import check

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_mintrec(tmp_path_factory.mktemp("owner") / "MIntRec")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "LLAMA", 4)


def test_a_folder_with_bad_clips_goes_from_check_to_explanations(folder, llama, tmp_path):
    report = check(folder)
    lost = {finding.what: finding.where[0].split(":")[0] for finding in report.findings if finding.kind == "loss"}
    assert report.exit_code == 1 and list(lost.values()) == [MISSING, CORRUPT]
    assert report.next_step.startswith("python avt_get_emb.py --data_path")
    data = {"data_path": folder, "emb_path": tmp_path / "emb"}
    made = call(avt_get_emb.main, data_path=folder, output_dir=tmp_path / "emb", encoder="imagebind_tiny", num_workers=0)
    assert made.code == 0 and "text 54, audio 52, vision 52" in made.out, made.err
    shape = {"adapter_layer": 4, "adapter_len": 2, "lora_rank": 4, "trainable": "all", "llama_model_path": llama}
    pace = {"epochs": 1, "warmup_epochs": 0.2, "lr": 1e-3, "batch_size": 8, "device": "cpu"}
    done = call(engine_finetune.main, **data, **shape, **pace, output_dir=tmp_path / "run")
    assert done.code == 0, done.err
    checkpoint = {"checkpoint": tmp_path / "run" / "best", "device": "cpu", "max_new_tokens": 4}
    done = call(explain.main, **data, **checkpoint, batch=tmp_path / "answers.jsonl")
    assert done.code == 0 and len(read_lines(tmp_path / "answers.jsonl")) == ROWS["test"], done.err


# --- the scripts ------------------------------------------------------------------------------------------------------


def recipe(name: str, data: Path, out: Path, llama: Path, **settings: str) -> subprocess.CompletedProcess:
    toy = {"PYTHON": sys.executable, "OUT": str(out), "RANKS": "1", "EPOCHS": "1", "LAYERS": "2", "LORA": "2", "ROWS": "8"}
    toy |= {"ENCODER": "imagebind_tiny", "PROBE_SEEDS": "0", "TRAIN_ARGS": "--adapter_len 2 --samples 2 --device cpu"}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | toy | settings
    command = ["bash", str(ROOT / "data" / name / "recipe.sh"), str(data), str(llama)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_recipe_goes_from_the_folder_to_the_report_and_a_second_run_has_nothing_to_do(folder, llama, tmp_path):
    done = recipe("mintrec", folder, tmp_path, llama)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[3:5] for line in done.stdout.splitlines() if re.match(r"== \d", line)] == [f"{i}." for i in range(1, 9)]
    run = tmp_path / "seed0"
    assert "judge, fitted on captions" in done.stdout and (run / "critic" / "best" / "judge.json").is_file()
    assert len(read_lines(run / "answers.jsonl")) == ROWS["test"]
    assert json.loads((run / "critic" / "results.json").read_text())["checkpoint"] == str(run / "critic" / "best")
    assert (run / "report" / "report.html").is_file() and (tmp_path / "probe" / "report.html").is_file()
    again = recipe("mintrec", folder, tmp_path, llama)
    assert again.returncode == 0 and "training" not in again.stdout, again.stdout + again.stderr
    assert again.stdout.count("is done (") == 3 and "0 embedded now" in again.stdout


@pytest.mark.slow
def test_without_captions_the_judge_is_fitted_on_rationales(folder, llama, tmp_path):
    done = recipe("mintrec", folder, tmp_path, llama, CAPTIONS=str(tmp_path / "none.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4. first stage: left out" in done.stdout and "captions of the clips would make it better" in done.stdout


@pytest.mark.slow
def test_two_nodes_share_a_run_and_what_is_not_there_is_left_out(folder, llama, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train.tsv", "dev.tsv", "test.tsv", "raw_data"):
        (tmp_path / "data" / name).symlink_to(folder / name)
    nodes = {"NODES": "2", "MASTER": f"127.0.0.1:{29600 + os.getpid() % 300}"}
    toy = {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "RANKS": "1", "EPOCHS": "1", "LAYERS": "2", "LORA": "2"}
    toy |= {"ENCODER": "imagebind_tiny", "PROBE_SEEDS": "0", "TRAIN_ARGS": "--adapter_len 2 --device cpu"}
    command = ["bash", str(ROOT / "data" / "mintrec" / "recipe.sh"), str(tmp_path / "data"), str(llama)]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | toy | nodes | {"NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    assert "4. first stage: left out" in said[0] and "6. self-critical: left out" in said[0]
    assert len(read_lines(tmp_path / "out" / "seed0" / "answers.jsonl")) == ROWS["test"]
    assert "==" not in said[1], "node 0 alone speaks"


def test_recipes_refuse_what_cannot_be_meant(folder, llama, tmp_path):
    done = recipe("mintrec", folder, tmp_path, llama, RANKS="16", ROWS="8")
    assert done.returncode == 2 and "16 processes for ROWS=8 rows a step; lower RANKS or raise ROWS" in done.stderr
    done = recipe("mintrec2", tmp_path / "nowhere", tmp_path, llama)
    assert done.returncode == 2 and "nowhere: no such file or folder" in done.stdout and "== 2." not in done.stdout


# --- how to cite ------------------------------------------------------------------------------------------------------


def test_the_citation_file_names_this_version_and_the_works_it_builds_on():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in text and "\nlicense: MIT\n" in text and "  - name: ITSL contributors\n" in text
    for work in ("arXiv:2305.05665", "arXiv:2303.16199", "arXiv:2309.03905", "10.1145/3503161.3547906"):
        assert work in text and work.removeprefix("arXiv:") in (ROOT / "README.md").read_text()
    yaml = pytest.importorskip("yaml", reason="comes with transformers, is no requirement of our own")
    assert {"cff-version", "message", "title", "authors", "version", "references"} <= set(yaml.safe_load(text))
