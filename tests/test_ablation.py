"""The ablation: which runs it makes of what is asked for, and what its table and measure_critic.py count."""

import importlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "data" / "demo"))
ablation_table, measure_critic = (importlib.import_module(name) for name in ("ablation_table", "measure_critic"))


@pytest.fixture
def script(tmp_path):
    """The script with a python that only notes what it is asked to do: returns the runs and how it ended."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" != -c ] || exec echo "$PLACES"\necho "$@" >> {tmp_path}/asked\n')
    python.chmod(0o755)

    def start(**variables: str) -> tuple[list[str], subprocess.CompletedProcess]:
        (tmp_path / "asked").write_text("")
        # what the training would have left
        for name in ("pretrain", "supervised", "loo", "intent only", "contrast", "captions mixed in"):
            (tmp_path / "out" / "seed0" / name).mkdir(parents=True, exist_ok=True)
        judged = ("supervised", "claims", "best of samples", "corrected", "local")
        for references, name in itertools.product(("blind", "10"), judged):
            (tmp_path / "out" / references / "seed0" / name).mkdir(parents=True, exist_ok=True)
        command = ["bash", str(ROOT / "data" / "demo" / "ablation.sh"), "DATA", "EMB", str(tmp_path / "out")]
        own = {"SEEDS": "0", "PYTHON": str(python), "PLACES": "2"} | variables
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, cwd=tmp_path)
        lines = (tmp_path / "asked").read_text().splitlines()
        return [line.split("--output_dir ")[1].split(" --")[0].split("/")[-1] for line in lines if "engine" in line], done

    return start


def test_a_row_brings_what_it_starts_from_and_is_made_once(script):
    assert script(ONLY="loo")[0] == ["pretrain", "supervised", "loo"]
    assert script(ONLY="loo")[0] == []
    runs, done = script(ONLY="loo", CLIPS="0")
    assert runs == [] and done.returncode == 2 and "loo was made with other flags" in done.stderr


def test_the_contrast_is_a_rival_with_the_steps_of_the_others(script, tmp_path):
    assert script(ONLY="contrast,captions mixed in")[0] == ["pretrain", "supervised", "captions mixed in", "contrast"]
    lines = [line for line in (tmp_path / "asked").read_text().splitlines() if "engine_finetune.py" in line]
    mixed, contrast = (line.split(" --epochs 3 --limit 200 --lr 3e-4 ")[1] for line in lines[2:])
    assert contrast == "--w_contrast 0.5" and mixed.endswith("--w_caption 1")
    assert set(ablation_table.ROWS) >= {"contrast", "captions mixed in"}


def test_rows_of_other_references_share_the_first_stage_and_train_on_their_file(script, tmp_path):
    assert script(ONLY="intent only")[0] == ["pretrain", "intent only"]
    assert script(ONLY="claims", REFERENCES="blind")[0] == ["supervised", "claims"]
    lines = [line for line in (tmp_path / "asked").read_text().splitlines() if "engine_finetune.py" in line]
    assert all("--rationales DATA/rationales-blind.jsonl" in line for line in lines)
    assert "/out/seed0/pretrain/best" in lines[0] and "/out/blind/seed0/supervised/best" in lines[1]
    assert script(ONLY="intent only,claims", REFERENCES="10%")[0] == ["supervised", "claims"]


def test_the_best_of_samples_needs_the_model_and_the_judge_of_claims(script, tmp_path):
    for name in ("claims", "supervised best of 4"):
        (tmp_path / "out" / "seed0" / name).mkdir(parents=True, exist_ok=True)
    assert script(ONLY="supervised best of 4")[0] == ["pretrain", "supervised", "claims"]
    [asked] = [line for line in (tmp_path / "asked").read_text().splitlines() if "--best_of" in line]
    assert "seed0/supervised/best" in asked and "--judge" in asked and "seed0/claims/best --best_of 4" in asked
    assert script(ONLY="supervised best of 4")[0] == [] and "--best_of" not in (tmp_path / "asked").read_text()


def test_processor_time_is_summed_over_attempts(tmp_path):
    (tmp_path / "training_times").write_text("0m0.010s 0m0.020s\n1m2.500s 0m3.000s\n0m0.000s 0m0.000s\n2m0.500s 0m0.000s\n")
    assert ablation_table.cpu_seconds(tmp_path / "training_times") == pytest.approx(186.03)
    assert np.isnan(ablation_table.cpu_seconds(tmp_path / "answering_times"))


def test_rivals_of_claims_differ_from_them_in_their_credit_alone_and_have_rows_in_the_table(script, tmp_path):
    rivals = {"claims": "claim", "best of samples": "best", "corrected": "corrected", "local": "local"}
    assert set(rivals) <= set(ablation_table.ROWS)
    runs = script(ONLY=",".join(rivals), REFERENCES="blind")[0]
    assert runs[-4:] == list(rivals)
    lines = [line for line in (tmp_path / "asked").read_text().splitlines() if "engine_finetune.py" in line][-4:]
    flags = [line.split("--emb_path")[1] for line in lines]
    credits = list(rivals.values())
    assert [line.removesuffix(f"--credit {credit}") for line, credit in zip(flags, credits, strict=True)] == 4 * [
        flags[0].removesuffix("--credit claim")
    ]


def test_every_number_of_ranks_has_eight_rows_a_step(script, tmp_path):
    for variables, wanted in (({}, ["2", "4"]), ({"PLACES": "1"}, ["1", "8"]), ({"RANKS": "4"}, ["4", "2"])):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        script(ONLY="loo", **variables)
        lines = [line.split() for line in (tmp_path / "asked").read_text().splitlines() if "engine_finetune.py" in line]
        flags = ("--nproc_per_node", "--batch_size")
        assert len(lines) == 3 and all([line[line.index(flag) + 1] for flag in flags] == wanted for line in lines)
    done = script(RANKS="3")[1]
    assert done.returncode == 2 and "RANKS=3 does not divide the 8 rows of a step; take 1, 2, 4 or 8" in done.stderr


def test_gains_are_paired_by_seed_and_clip():
    def run(right: list[bool], true_claims: int):
        counts = np.tile([1, 10, true_claims, 10, true_claims, 5, true_claims - 4, 10, 6], (len(right), 1))
        return ablation_table.Answers({}, np.array(right), counts)

    base = {"seed0": run([True, False] * 50, 6), "seed1": run([False, True] * 50, 6)}
    other = {"seed0": run([True, True] * 50, 7), "seed1": run([False, True] * 50, 7), "seed2": run([False, False] * 50, 0)}
    accuracy, precision, atypical = ablation_table.gains(other, base, "loo")
    assert accuracy.startswith("+25.0 [") and precision == "+10.0 [+10.0, +10.0]", "seed2 has nothing to be compared with"
    assert atypical == "+20.0 [+20.0, +20.0]"
    assert ablation_table.gains(base, base, "supervised") == ["", "", ""]
    assert ablation_table.spread([float("nan")]) == "–"
    assert ablation_table.finite({"a": 1.0, "b": float("nan")}) == {"a": 1.0, "b": None}


def test_a_signal_is_found_in_the_noise_and_none_where_there_is_none():
    draw = torch.Generator().manual_seed(0)
    way = torch.zeros(2000)
    way[0] = 5.0
    noise = torch.randn(40, 2000, generator=draw)
    mean, error = measure_critic.signal(noise + way, noise + way)
    assert mean == pytest.approx(25, abs=3 * error) and measure_critic.told_from_0((mean, error))
    assert not measure_critic.told_from_0(measure_critic.signal(noise, noise))
    other = torch.randn(40, 2000, generator=draw) - way
    signals = [measure_critic.signal(rows, rows) for rows in (noise + way, other)]
    assert float(measure_critic.cosine(noise + way, other, *signals)) == pytest.approx(-1, abs=0.2)
    assert measure_critic.cosine(noise, other, measure_critic.signal(noise, noise), signals[1]) == ""
