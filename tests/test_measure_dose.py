"""data/demo/measure_dose.py: judges that are wrong as told, the training of a run, nothing twice; and measure_critic.py."""

import importlib
import json
import re
import sys
import zlib
from pathlib import Path

import pytest
import torch
from toy_training import call, read_lines, write_intents, write_llama, write_seen_store

import benchmark
import engine_finetune
from imagebind_llm.critic import claims, judge_fit
from imagebind_llm.critic.judge import SHARED, ClauseVectors, Judge
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.records import Answer

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "demo"))
measure_critic, measure_dose = (importlib.import_module(f"measure_{name}") for name in ("critic", "dose"))
CLAUSES = [f"clause {i}" for i in range(200)]


@pytest.fixture(autouse=True)
def talk(monkeypatch):
    """All of an answer is rationale, and a clause is as true as a checksum of it and its clip says."""

    def parsed(self, drawn):
        texts = ["Intent:" + self.tokenizer.decode(ids) for ids in drawn]
        return [Answer(None, text, len(ids) < self.max_new) for text, ids in zip(texts, drawn, strict=True)], texts

    def score(self, claims, key):
        return torch.tensor([zlib.crc32((claim + key).encode()) % 101 / 100 for claim in claims])

    monkeypatch.setattr(Critic, "_parse", parsed)
    monkeypatch.setattr(claims, "answer_spans", lambda text: ((0, 0), (7, len(text))))
    monkeypatch.setattr(Judge, "score", score)
    monkeypatch.setattr(judge_fit, "STEPS", 60)
    monkeypatch.setattr(judge_fit, "PAIRS", 32)


def judge() -> Judge:
    tensors = {"known": torch.ones(1, 1), "familiar": torch.tensor(0.0)}
    return Judge(ClauseVectors(lambda texts: torch.ones(len(texts), 1)), None, SHARED, tensors, ())


def test_a_dose_turns_so_many_verdicts_round_always_the_same_and_a_larger_one_those_of_a_smaller():
    right = judge().score(CLAUSES, "k")
    flipped = {dose: measure_dose.FlippedJudge(judge(), dose, 0).score(CLAUSES, "k") for dose in (0.0, 0.1, 0.3, 1.0)}
    assert torch.equal(flipped[0.0], right) and torch.equal(flipped[1.0], 1 - right)
    small, large = (flipped[dose] != right for dose in (0.1, 0.3))
    assert 0.05 < small.float().mean() < 0.15 and 0.2 < large.float().mean() < 0.4 and large[small].all()
    assert torch.equal(measure_dose.FlippedJudge(judge(), 0.3, 0).score(CLAUSES, "k"), flipped[0.3])
    assert not torch.equal(measure_dose.FlippedJudge(judge(), 0.3, 1).score(CLAUSES, "k"), flipped[0.3])


def test_a_deaf_judge_looks_at_another_clip_and_every_clip_is_looked_at():
    keys = [f"k{i}" for i in range(9)]
    deaf = measure_dose.DeafJudge(judge(), keys, 0)
    assert sorted(deaf.dealt) == sorted(deaf.dealt.values()) == keys and all(a != b for a, b in deaf.dealt.items())
    assert torch.equal(deaf.score(CLAUSES, "k3"), judge().score(CLAUSES, deaf.dealt["k3"]))


RESULT = {"answers": [""], "truth": [0.5], "counts": [[1, 4, 2, 8, 2, 2, 1, 4, 2]], "last_epoch": {}}


def test_it_goes_on_with_the_dose_at_which_it_was_interrupted_and_mixes_no_settings(tmp_path, monkeypatch):
    trained: list[str] = []

    class World:
        def __init__(self, settings):
            assert len(trained) < 5, "nothing is read where all is done"

        def result(self, name):
            trained.append(name)
            if len(trained) == 4:
                raise KeyboardInterrupt
            return RESULT

    monkeypatch.setattr(measure_dose, "World", World)
    flags = {"checkpoint": "x", "output_dir": tmp_path, "doses": "0 0.25"}
    done = call(measure_dose.main, **flags)
    assert done.code == 2 and "interrupted; start again to continue" in done.err
    assert call(measure_dose.main, **flags).code == 0 and trained == ["supervised", "deaf", "0", "0.25", "0.25"]
    done = call(measure_dose.main, **flags)
    rows = [line.split(" | ")[0] for line in done.out.splitlines() if line.startswith("| ")][1:]
    assert rows == ["| (supervised)", "| none, deaf", "| 0", "| 0.25"] and len(trained) == 5
    assert (tmp_path / "table.md").read_text() == done.out
    assert "<td>none, deaf</td>" in (tmp_path / "dose.html").read_text()
    done = call(measure_dose.main, **flags, limit=4)
    assert done.code == 2 and "was made with another --limit; give another --output_dir" in done.err
    assert "--doses 1.5: expected probabilities" in call(measure_dose.main, **flags | {"doses": "0 1.5"}).err


@pytest.fixture(scope="module")
def supervised(tmp_path_factory) -> tuple[Path, dict[str, object], dict[str, object]]:
    """A checkpoint, the flags that say which data it is of, and those of its shape."""
    root = tmp_path_factory.mktemp("supervised")
    data = {"data_path": write_intents(root / "MIntRec"), "emb_path": write_seen_store(root)}
    shape = {"llama_model_path": write_llama(root / "LLAMA", 4), "trainable": "all", "batch_size": 4, "device": "cpu"}
    first = {"adapter_layer": 2, "adapter_len": 3, "lora_rank": 2, "epochs": 1, "warmup_epochs": 0, "lr": 0.02}
    done = call(engine_finetune.main, **data, **shape, **first, output_dir=root / "run")
    assert done.code == 0, done.err
    return root / "run" / "best", data, shape


@pytest.mark.slow
def test_a_claims_own_credit_is_measured_without_gradients_of_whole_answers(supervised, monkeypatch):
    monkeypatch.setattr(measure_critic, "CLIPS", 2)
    monkeypatch.setattr(measure_critic, "cue_scores", lambda texts, _: {"cue_f1": zlib.crc32(texts[0].encode()) % 101 / 100})
    start, data, _ = supervised
    for credit, rows in (("claim", 3), ("claim to_go", 4), ("answer claim", 11)):
        done = call(measure_critic.main, checkpoint=start, **data, credit=credit, batches=3, samples=2)
        assert done.code == 0, done.err
        lines = [line.split(" | ") for line in done.out.splitlines() if line.startswith("| ")][1:]
        own = [line for line in lines if line[0] == "| truth, a claim's own tokens"]
        assert len(lines) == rows and re.fullmatch(r"-?[\d.]+ ± [\d.]+", own[0][3]), done.out


@pytest.mark.slow
def test_without_flips_it_trains_as_a_run_does_and_otherwise_pays_what_is_not_seen(supervised, tmp_path):
    start, data, shape = supervised
    same = {"limit": 8, "epochs": 2, "batch_size": 4, "device": "cpu"}
    done = call(measure_dose.main, checkpoint=start, **data, **same, doses="0 1", output_dir=tmp_path / "dose")
    assert done.code == 0, done.err
    logs = {name: json.loads((tmp_path / "dose" / f"{name}.json").read_text())["last_epoch"] for name in ("deaf", "0", "1")}
    assert all(abs(logs[name]["watched_truth"] - logs[name]["reward_truth"]) > 0.01 for name in ("deaf", "1"))
    critic = {"w_critic": 8, "w_rationale": 0.2, "credit": "claim", "captions": data["data_path"] / "captions.json"}
    own = {"pretrained_path": start, "lr": 3e-4, "warmup_epochs": 0.2, "output_dir": tmp_path / "run"}
    done = call(engine_finetune.main, **data, **shape | same, **critic, **own)
    assert done.code == 0, done.err
    epoch = read_lines(tmp_path / "run" / "log.txt")[-1]["train"]
    for name in ("reward_truth", "watched_truth", "kl", "advantage", "length", "skipped"):
        assert logs["0"][name] == pytest.approx(epoch[name], abs=1e-4), name
    done = call(benchmark.main, run=tmp_path / "run", rounds=1, threads=1)
    assert done.code == 0, done.err
    head, _, *parts, whole = [line.strip("| ").split(" | ") for line in done.out.splitlines()]
    assert "4 clips, 4 samples each, float32, cpu" in head[0]
    order = ["reading rows", "sampling", "rows of the head", "judging", "references and samples, forward and backward"]
    assert [name for name, *_ in parts] == [*order, "log-probabilities at the start", "optimizer"]
    assert sum(float(s) for _, s, _ in parts) == pytest.approx(float(whole[1]), abs=0.05)
    assert "expected a run with --w_critic" in call(benchmark.main, run=start.parent).err


def test_gains_are_paired_by_clip(tmp_path):
    counts = [[1, 4, true, 8, true, 2, true - 2, 4, 2] for true in (2, 3, 4)]
    better = [[1, 4, true + 1, 8, true, 2, true - 2, 4, 2] for true in (2, 3, 3)]
    start = {"truth": [0.1, 0.5, 0.9], "counts": counts, "last_epoch": {}}
    after = {"truth": [0.2, 0.6, 1.0], "counts": better, "last_epoch": {"reward_truth": 0.5, "watched_truth": 0.25}}
    row = measure_dose.write_table(tmp_path, {"supervised": start, "0": after}).splitlines()[3]
    assert "| 0.600 ± " in row and "| +0.100 ± 0.000 |" in row, "the same gain of every clip has no error"
    assert "| 0.917 ± " in row and "| +0.167 ± " in row and row.endswith("| 0.500 | 0.250 |")
    assert "–" not in row and "0.333 ± " in row
    nothing = {"truth": [0.0] * 3, "counts": [[1, 0, 0, 8, 0, 0, 0, 4, 2]] * 3, "last_epoch": {}}
    assert "| – ± – |" in measure_dose.write_table(tmp_path, {"supervised": nothing, "0": nothing})
