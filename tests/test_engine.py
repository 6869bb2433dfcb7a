"""Training runs as they are typed: the published command, killed and continued, on two ranks, both stages, and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_training import INTENTS, ROWS, Done, call, key_of, read_lines, write_alpaca, write_intents, write_llama, write_store

import engine_finetune
from imagebind_llm import distributed

ROOT = Path(__file__).parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
SMALL = {"epochs": 1, "warmup_epochs": 0, "lr": 0.02, "adapter_layer": 2, "adapter_len": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory) -> Path:
    return write_alpaca(tmp_path_factory.mktemp("alpaca") / "alpaca_data.json", 16)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "LLAMA", 4)


@pytest.fixture(scope="module")
def intents(tmp_path_factory) -> Path:
    return write_intents(tmp_path_factory.mktemp("intents") / "MIntRec")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("store") / "emb")


def words(**flags: object) -> list[str]:
    return [str(ROOT / "engine_finetune.py"), *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(arguments: list[str], launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=600)


def train(**flags: object) -> Done:
    return call(engine_finetune.main, **flags)


# --- the published command ---


def test_the_published_command_runs_as_written(alpaca, tmp_path):
    deep, out = write_llama(tmp_path / "LLAMA", 32), tmp_path / "checkpoint"
    typed = (
        f"engine_finetune.py --model Llama7B_adapter --llama_model_path {deep}/ --data_path {alpaca} --adapter_layer 30 "
        f"--adapter_len 10 --max_seq_len 512 --batch_size 4 --epochs 5 --warmup_epochs 2 --blr 9e-3 --weight_decay 0.02 "
        f"--output_dir {out}/"
    )
    done = run(typed.split(), TORCHRUN)
    assert done.returncode == 0, done.stderr
    prompts_and_gates = 30 * 10 * 16 + 30 * 2
    assert f"trained parameters: {prompts_and_gates:,} of " in done.stdout and "rows: train 16" in done.stdout
    assert "prompts: raw, as in LLaMA-Adapter v1" in done.stdout
    files = {"checkpoint-0000010", "last", "best", "log.txt", "steps.jsonl", "curves.html"}
    assert {path.name for path in out.iterdir()} == files
    log = read_lines(out / "log.txt")
    assert [row["epoch"] for row in log] == [0, 1, 2, 3, 4] and all("nll" in row["train"] for row in log)
    assert read_lines(out / "steps.jsonl")[-1]["step"] == 10
    assert done.stdout.count("epoch 4 done:") == 1, "the main rank alone speaks"


# --- the same weights, whatever happens on the way ---


def test_killed_in_the_second_epoch_it_continues_and_ends_with_the_same_bits(alpaca, llama, tmp_path):
    flags = SMALL | {"epochs": 3, "batch_size": 4, "save_steps": 1, "log_steps": 1, "data_path": alpaca}
    flags |= {"llama_model_path": llama}
    assert train(**flags, output_dir=tmp_path / "whole").code == 0
    command = [sys.executable, *words(**flags, output_dir=tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1 ["):
                break
        process.send_signal(signal.SIGKILL)
    info = json.loads((tmp_path / "killed" / "last" / "checkpoint.json").read_text())
    assert info["epoch"] == 1, "the kill must come in the middle of the work"
    done = train(**flags, output_dir=tmp_path / "killed")
    assert done.code == 0 and f"continuing {tmp_path / 'killed' / 'last'}: epoch 1" in done.out
    whole, killed = (load_file(tmp_path / name / "last" / "adapter.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
    logs = [read_lines(tmp_path / name / "log.txt") for name in ("whole", "killed")]
    assert [row["train"]["nll"] for row in logs[0]] == pytest.approx([row["train"]["nll"] for row in logs[1]], abs=1e-12)


def test_two_ranks_and_one_with_the_same_rows_a_step_have_the_same_losses(alpaca, llama, tmp_path):
    flags = SMALL | {"epochs": 3, "lr": 0.05, "data_path": alpaca, "llama_model_path": llama}
    two = run(words(**flags, batch_size=2, output_dir=tmp_path / "two"), TORCHRUN)
    assert two.returncode == 0, two.stderr
    assert train(**flags, batch_size=4, output_dir=tmp_path / "one").code == 0
    one, both = ([row["train"]["nll"] for row in read_lines(tmp_path / name / "log.txt")] for name in ("one", "two"))
    assert both == pytest.approx(one, abs=1e-4) and one[2] < one[0]


def test_ranks_leave_together(tmp_path):
    script = tmp_path / "leave.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "from imagebind_llm import distributed\n"
        "made = pathlib.Path(sys.argv[1])\n"
        "with distributed.process_group('cpu'):\n"
        "    first = distributed.is_main()\n"
        "    if first:\n"
        "        time.sleep(1)\n"
        "        made.touch()\n"
        "sys.exit(not made.exists())\n"
    )
    done = run([str(script), str(tmp_path / "made")], TORCHRUN)
    assert done.returncode == 0, done.stderr


def test_ranks_that_see_different_folders_are_refused(alpaca, llama, tmp_path):
    """As on two machines whose disks are their own."""
    script = tmp_path / "apart.py"
    flags = words(**SMALL, data_path=alpaca, llama_model_path=llama, output_dir="out")[1:]
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import engine_finetune\n"
        f"sys.argv = ['engine_finetune.py', *{flags!r}]\n"
        f"place = os.path.join({str(tmp_path)!r}, os.environ['RANK'])\n"
        "os.mkdir(place)\n"
        "os.chdir(place)\n"
        "engine_finetune.distributed.leave(engine_finetune.main)\n"
    )
    done = run([str(script)], TORCHRUN)
    assert done.returncode != 0 and "--output_dir out: expected a folder that all machines see" in done.stderr


# --- intents and rationales, both stages ---


@pytest.fixture(scope="module")
def clips(intents, store, llama) -> dict[str, object]:
    """The flags of every run on clips; the LoRA is part of it."""
    lora = {"trainable": "all", "batch_size": 4, "llama_model_path": llama, "emb_path": store}
    return SMALL | lora | {"data_path": intents}


@pytest.fixture(scope="module")
def pretrained(clips, intents, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    captions = {"stage": "pretrain", "data_path": intents / "captions.json", "lora_rank": 2, "output_dir": out}
    done = train(**clips | captions)
    assert done.code == 0, done.err
    return out / "best"


def test_finetuning_ends_with_results_calibration_and_verifier(clips, tmp_path):
    done = train(**clips, lora_rank=2, output_dir=tmp_path)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == {"checkpoint", "step", "calibration", "dev", "test"}
    assert all(0 <= results["test"][way]["macro_f1"] <= 1 for way in ("mixed", "head", "decoder"))
    assert results["dev"]["claims"]["template of the gold intent"]["cue_precision"] == 1, "of clips that are all typical"
    assert {"model", "references", "template of the predicted intent"} < results["dev"]["claims"].keys()
    assert "claims of 6 dev rationales: cue P" in done.out
    assert set(results["dev"]["following"]) == {"audio", "vision"}
    assert "claims that follow a swap, 6 dev clips: audio" in done.out
    rows = read_lines(tmp_path / "predictions_test.jsonl")
    assert [row["key"] for row in rows] == [key_of("test", i) for i in range(ROWS["test"])]
    assert [row["gold"] for row in rows] == [*INTENTS, *INTENTS]
    assert all(sum(row["probabilities"]) == pytest.approx(1, abs=1e-3) for row in rows)
    assert (tmp_path / "best" / "calibration.json").is_file() and (tmp_path / "best" / "verifier.json").is_file()
    before = (tmp_path / "results.json").stat().st_mtime_ns
    again = train(**clips, lora_rank=2, output_dir=tmp_path)
    assert again.code == 0 and "results.json: there already" in again.out
    assert results["step"] == json.loads((tmp_path / "best" / "checkpoint.json").read_text())["total"] > 0
    assert (tmp_path / "results.json").stat().st_mtime_ns == before
    scores = read_lines(tmp_path / "log.txt")[0]
    assert {"nll", "cross_entropy", "accuracy", "macro_f1"} <= scores["dev"].keys() and "test" not in scores


@pytest.mark.parametrize("bare", [("dev",), ("test",), ("dev", "test")], ids=" ".join)
def test_splits_without_intents_get_no_scores_of_intents_and_the_run_ends(bare, llama, tmp_path):
    rows = [
        {"instruction": "What is meant?", "input": f"word {split} {i}", "split": split}
        | ({"output": "It is a word."} if split in bare else {"intent": INTENTS[i % 3], "rationale": "We see it."})
        for split in ROWS
        for i in range(4)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = SMALL | {"data_path": tmp_path / "rows.json", "llama_model_path": llama, "output_dir": tmp_path / "run"}
    done = train(**flags, modalities="none")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for split in ("dev", "test"):
        assert (split in results) == (split not in bare) == (tmp_path / "run" / f"predictions_{split}.jsonl").is_file()
        assert (f"{split}: none of its 4 rows has an intent" in done.out) == (split in bare)
    assert "results.json: there already" in train(**flags, modalities="none").out


def test_a_limit_trains_on_rows_spread_over_the_split_and_judges_by_all(clips, tmp_path):
    done = train(**clips, lora_rank=2, output_dir=tmp_path, limit=4)
    assert done.code == 0 and "rows: train 12, dev 6, test 6" in done.out and "trained on: 4 rows of train" in done.out
    info = json.loads((tmp_path / "last" / "checkpoint.json").read_text())
    assert info["total"] == 1  # four rows, four a step
    verifier = json.loads((tmp_path / "best" / "verifier.json").read_text())
    assert len(read_lines(tmp_path / "predictions_test.jsonl")) == ROWS["test"] and verifier


@pytest.mark.parametrize("baseline", ["loo", "greedy", "group"])
def test_from_captions_to_answers_that_are_criticised(clips, pretrained, baseline, tmp_path):
    critic = {"w_critic": 0.5, "samples": 2, "baseline": baseline, "pretrained_path": pretrained}
    done = train(**clips | critic, output_dir=tmp_path)
    assert done.code == 0, done.err
    assert "self-critical loss from here on" in done.out
    scores = read_lines(tmp_path / "log.txt")[0]["train"]
    assert {"reward_intent", "reward_rationale", "reward_consistency", "reward_format"} <= scores.keys()


@pytest.mark.parametrize("credit", ["answer", "claim"])
def test_two_ranks_and_one_take_the_same_self_critical_steps(intents, store, llama, credit, tmp_path):
    def stepped(name: str, weight: float, launcher: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        out = tmp_path / name
        done = run([str(ROOT / "tests" / "critic_ranks.py"), *map(str, (out, intents, store, llama, weight, credit))], launcher)
        assert done.returncode == 0, done.stderr
        return load_file(out)

    one, two, without = stepped("one", 1.0), stepped("two", 1.0, TORCHRUN), stepped("without", 0.0)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-6, rtol=1e-5)
    assert max(float((one[name] - without[name]).abs().max()) for name in one) > 1e-3


def test_finetuning_begins_where_pretraining_ended(clips, pretrained, tmp_path):
    done = train(**clips | {"lr": 0}, pretrained_path=pretrained, output_dir=tmp_path)
    assert done.code == 0, done.err
    before, after = (load_file(folder / "adapter.safetensors") for folder in (pretrained, tmp_path / "last"))
    assert set(after) - set(before) and all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_goes_on_only_from_the_start_that_it_had(clips, pretrained, tmp_path):
    """A first stage trained anew under the same path would otherwise leave the second finished, and of the old one."""
    shutil.copytree(pretrained, tmp_path / "first")
    flags = clips | {"pretrained_path": tmp_path / "first", "output_dir": tmp_path / "second"}
    assert train(**flags).code == 0 and train(**flags).code == 0
    anew = {name: tensor + 1e-3 for name, tensor in load_file(tmp_path / "first" / "adapter.safetensors").items()}
    save_file(anew, tmp_path / "first" / "adapter.safetensors")
    said = refused(train(**flags))
    assert f"--pretrained_path {tmp_path / 'first'} holds other tensors" in said and "--resume no" in said


# --- refused, with a sentence ---


def refused(done: Done) -> str:
    """The one sentence of a command that could not do what was asked."""
    assert done.code == 2 and "Traceback" not in done.err and done.err.count("engine_finetune.py: ") == 1, done.err
    return done.err


def test_embeddings_that_are_not_there_are_refused_with_the_command_that_makes_them(clips, intents, tmp_path):
    without = {name: value for name, value in clips.items() if name != "emb_path"}
    said = refused(train(**without, lora_rank=2, output_dir=tmp_path / "run"))
    assert "pass --emb_path" in said and f"python avt_get_emb.py --data_path {intents}" in said and "--modalities none" in said
    few = write_store(tmp_path / "few", [key_of("train", 0)])
    said = refused(train(**clips | {"emb_path": few}, lora_rank=2, output_dir=tmp_path / "run"))
    assert (
        "no embedding for 23 clips (S01_E01_1, " in said and f"avt_get_emb.py --data_path {intents} --output_dir {few}" in said
    )


def test_data_that_cannot_be_read_is_refused_with_its_place(clips, tmp_path):
    strange = write_intents(tmp_path / "strange")
    (strange / "dev.tsv").write_text((strange / "dev.tsv").read_text().replace("Greet", "Great"))
    said = refused(train(**clips | {"data_path": strange}, output_dir=tmp_path / "run"))
    assert "dev.tsv, line 4" in said and "did you mean 'Greet'?" in said
    (tmp_path / "broken.json").write_text('[{"instruction": "a"')
    said = refused(train(**clips | {"data_path": tmp_path / "broken.json"}, output_dir=tmp_path / "run"))
    assert "broken.json: not JSON" in said


def test_other_settings_in_the_same_folder_are_named_and_can_start_over(alpaca, llama, tmp_path):
    flags = SMALL | {"data_path": alpaca, "llama_model_path": llama, "output_dir": tmp_path}
    assert train(**flags, batch_size=8).code == 0
    said = refused(train(**flags | {"lr": 0.01}, batch_size=4))
    assert "rows a step: 8 (--batch_size 8 --accum_iter 1, 1 rank) -> 4 (" in said
    assert "--lr 0.02 -> 0.01" in said and "--resume no" in said
    assert read_lines(tmp_path / "log.txt")[-1]["step"] == 2, "what was there is untouched"
    assert train(**flags, batch_size=4, resume="no").code == 0
    assert read_lines(tmp_path / "log.txt")[-1]["step"] == 4


def test_a_cache_that_is_too_small_is_said_once_with_what_it_takes(alpaca, llama, tmp_path):
    flags = SMALL | {"data_path": alpaca, "llama_model_path": llama, "epochs": 2}
    said = "is too little for the states below the adapted layers"
    done = train(**flags, output_dir=tmp_path / "small", cache_gb=1e-6)
    assert done.code == 0 and done.out.count(said) == 1 and "--cache_gb 0.1 would hold them" in done.out
    assert said not in train(**flags, output_dir=tmp_path / "none", cache_gb=0).out, "that was asked for"
    assert said not in train(**flags, output_dir=tmp_path / "enough", cache_gb=0.1).out
    assert said not in train(**flags, output_dir=tmp_path / "small", cache_gb=1e-6).out, "nothing is left to do"


def test_more_ranks_than_rows_are_refused(alpaca, llama, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 17)
    said = refused(train(**SMALL, data_path=alpaca, llama_model_path=llama, output_dir=tmp_path))
    assert "16 rows for 17 ranks; lower --nproc_per_node" in said


def test_an_adapter_of_another_shape_is_refused_with_the_value_to_pass(clips, pretrained, tmp_path):
    said = refused(train(**clips, output_dir=tmp_path))
    assert "--trainable all: there is no LoRA to train; pass --lora_rank 8" in said
    said = refused(train(**clips | {"adapter_len": 5}, pretrained_path=pretrained, output_dir=tmp_path))
    assert f"--adapter_len 5, but {pretrained} has 3: pass --adapter_len 3 or leave it out" in said
