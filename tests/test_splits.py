"""What a split may decide: nothing that is reported on chooses anything, and the verifier is fitted on train alone."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from toy_training import call, key_of, read_lines, write_intents, write_llama, write_store

import engine_finetune
from imagebind_llm.explain.calibration import TEMPERATURES
from imagebind_llm.taxonomy import MINTREC


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A LLaMA and embeddings."""
    root = tmp_path_factory.mktemp("world")
    write_llama(root / "LLAMA", 3)
    write_store(root / "emb")
    return root


def trained(world: Path, data: Path, out: Path) -> Path:
    """A run of one epoch on these data."""
    shape = {"llama_model_path": world / "LLAMA", "emb_path": world / "emb", "adapter_layer": 2, "adapter_len": 3}
    pace = {"epochs": 1, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4, "device": "cpu"}
    done = call(engine_finetune.main, **shape, **pace, data_path=data, output_dir=out)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def plain(world) -> Path:
    return trained(world, write_intents(world / "MIntRec"), world / "run")


def test_other_labels_of_test_rows_leave_the_calibration_and_every_number_of_dev(world, plain, tmp_path):
    """They get the labels that the model finds least likely: whatever looked at them would trust it as little as it can."""
    data = write_intents(tmp_path / "MIntRec")
    answers = [row["probabilities"] for row in read_lines(plain / "predictions_test.jsonl")]
    unlikely = [MINTREC.labels[p.index(min(p))] for p in answers]
    head, *lines = (data / "test.tsv").read_text().splitlines()
    turned = [line.rpartition("\t")[0] + "\t" + intent for line, intent in zip(lines, unlikely, strict=True)]
    (data / "test.tsv").write_text("\n".join([head, *turned]) + "\n")
    run = trained(world, data, tmp_path / "run")
    same = ("best/calibration.json", "best/verifier.json", "best/verifier.safetensors", "predictions_dev.jsonl", "log.txt")
    for name in same:
        assert (run / name).read_bytes() == (plain / name).read_bytes(), name
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (run, plain))
    assert ours["dev"] == theirs["dev"] and ours["test"]["mixed"]["accuracy"] == 0 < theirs["test"]["mixed"]["accuracy"]
    assert theirs["calibration"]["temperature"] < max(TEMPERATURES), "dev trusts it more"


def test_garbled_rationales_of_dev_leave_the_verifier_as_it_is(world, plain, tmp_path):
    data = write_intents(tmp_path / "MIntRec")
    rows = read_lines(data / "rationales.jsonl")
    of_dev = {key_of("dev", i) for i in range(6)}
    garbled = [row | ({"rationale": f"Zyx {i} wvu."} if row["key"] in of_dev else {}) for i, row in enumerate(rows)]
    (data / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in garbled))
    run = trained(world, data, tmp_path / "run")
    ours, theirs = (load_file(folder / "best" / "verifier.safetensors") for folder in (run, plain))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    said = [json.loads((folder / "best" / "verifier.json").read_text()) for folder in (run, plain)]
    assert said[0]["vocabulary"] == said[1]["vocabulary"] and said[0]["dev"] != said[1]["dev"]
