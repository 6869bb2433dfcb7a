"""Runs with the self-critical loss: what they start from, what guards them, and the same bits whatever happens on the way.

A random LLaMA says nothing that parses, so here an answer is worth what a checksum of its text says.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_training import (
    TOKENIZER,
    Done,
    apart,
    call,
    interrupted,
    read_lines,
    write_intents,
    write_llama,
    write_seen_store,
    write_store,
)

import engine_finetune
import explain
from imagebind_llm.critic import claims, judge_fit, self_critical
from imagebind_llm.critic.rewards import REWARD_WEIGHTS
from imagebind_llm.itsl.checkpoint import read_info
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.records import Answer
from imagebind_llm.training.choice import WINDOW, Guard


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, object]:
    """The flags of a run with three steps an epoch."""
    root = tmp_path_factory.mktemp("world")
    data = {"data_path": write_intents(root / "MIntRec"), "emb_path": write_store(root / "emb")}
    shape = {"llama_model_path": write_llama(root / "LLAMA", 4), "adapter_layer": 2, "adapter_len": 3, "lora_rank": 2}
    return data | shape | {"trainable": "all", "batch_size": 4, "warmup_epochs": 0, "lr": 0.02, "device": "cpu", "samples": 2}


@pytest.fixture(autouse=True)
def worth(monkeypatch):
    def parsed(self, drawn):
        texts = [self.tokenizer.decode(ids) for ids in drawn]
        return [Answer(None, text, len(ids) < self.max_new) for text, ids in zip(texts, drawn, strict=True)], texts

    def parts(answers, golds, references, cider, verifier):
        values = torch.tensor([zlib.crc32(answer.rationale.encode()) % 101 / 100 for answer in answers])
        return dict.fromkeys(REWARD_WEIGHTS, values)

    monkeypatch.setattr(self_critical.Critic, "_parse", parsed)
    monkeypatch.setattr(self_critical, "reward_parts", parts)


def train(world: dict[str, object], out: Path, **flags: object) -> Done:
    return call(engine_finetune.main, **{"epochs": 1, "w_critic": 1} | world | flags, output_dir=out)


def weights(out: Path, link: str = "last") -> dict[str, torch.Tensor]:
    return load_file(out / link / "adapter.safetensors")


def no_link(*_):
    raise PermissionError(1, "Operation not permitted")


def test_each_baseline_changes_what_is_learnt_and_so_does_the_loss_itself(world, tmp_path):
    flags = {name: {"baseline": name} for name in ("loo", "greedy", "group")} | {"without": {"w_critic": 0}}
    for name, own in flags.items():
        assert train(world, tmp_path / name, **own).code == 0
    found = [weights(tmp_path / name) for name in flags]
    pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
    assert all(apart(a, b) > 1e-4 for a, b in pairs)
    scores = read_lines(tmp_path / "loo" / "log.txt")[0]["train"]
    assert scores["skipped"] < 1 and scores["advantage"] > 0.1 and scores["kl"] != 0


@pytest.mark.parametrize("dev", [True, False])
def test_interrupted_it_continues_with_the_same_reference_and_ends_with_the_same_bits(world, dev, tmp_path):
    data = write_intents(tmp_path / "MIntRec")
    if not dev:
        (data / "dev.tsv").unlink()
    own = world | {"data_path": data, "epochs": 2, "save_steps": 1}
    done = train(own, tmp_path / "whole")
    assert done.code == 0, done.err
    assert dev or "there is no dev split to guard it by" in done.out
    with interrupted(5):
        done = train(own, tmp_path / "cut")
    assert "interrupted; start again" in done.err, done.out
    reference = (tmp_path / "cut" / "reference.safetensors").read_bytes()
    done = train(own, tmp_path / "cut")
    assert done.code == 0 and "epoch 1, step 1" in done.out and "from here on" not in done.out
    assert (tmp_path / "cut" / "reference.safetensors").read_bytes() == reference
    assert apart(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    assert (
        apart(load_file(tmp_path / "whole" / "reference.safetensors"), load_file(tmp_path / "cut" / "reference.safetensors"))
        == 0
    )


@pytest.mark.parametrize("links", [True, False])  # on a disk without links `best` is a file
@pytest.mark.parametrize("flags", [{"patience": 2, "critic_start": 5}, {"patience": 0, "critic_start": 3}])
def test_it_begins_with_the_best_supervised_model(world, flags, links, tmp_path, monkeypatch):
    """After --critic_start epochs, or when dev is no better for --patience of them; that is not the end of the run."""
    if not links:
        monkeypatch.setattr("imagebind_llm.itsl.checkpoint.Path.symlink_to", no_link)
    seen, nll = [], iter([1.0, 2.0, 2.0, 1.0, 0.9, 0.8, 0.7])

    def evaluate(model, *_):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return {"nll": next(nll), "macro_f1": 0.5}, [True] * 6

    monkeypatch.setattr(engine_finetune, "evaluate", evaluate)
    with interrupted(13):  # the first step of the fifth epoch, before it is saved
        done = train(world, tmp_path, epochs=6, save_steps=1, **flags)
    assert done.out.count("self-critical loss from here on") == 1, done.err
    assert train(world, tmp_path, epochs=6, save_steps=1, **flags).code == 0
    assert apart(load_file(tmp_path / "reference.safetensors"), seen[0]) == 0 < apart(seen[0], seen[2])
    assert apart(seen[3], seen[0]) == 0, "the fourth look is at the model that is gone back to"
    criticised = ["kl" in row["train"] for row in read_lines(tmp_path / "log.txt")]
    assert criticised == [False, False, False, True, True, True]
    assert read_info(tmp_path / "last")["guard"]["began"] == 3


def test_it_stops_at_the_second_strike_and_keeps_the_model_before_them(world, tmp_path, monkeypatch):
    start, near = [True] * 38 + [False] * 2, [False] * 2 + [True] * 37 + [False]  # two lost, one won: -2.5 % +- 4.4 %
    looks = iter([start, near, [False] * 10 + start[10:], [False] * 20 + start[20:]])
    monkeypatch.setattr(engine_finetune, "evaluate", lambda *_: ({"nll": 1.0, "macro_f1": 0.5}, next(looks)))
    done = train(world, tmp_path, epochs=9)
    assert done.code == 0, done.err
    assert len(read_lines(tmp_path / "log.txt")) == 3, "one epoch within a standard error, two beyond it"
    info = {link: json.loads((tmp_path / link / "checkpoint.json").read_text()) for link in ("best", "last")}
    assert info["best"]["epoch"] == 1 and info["last"]["guard"]["strikes"] == 2


def test_other_shares_of_the_same_steps_draw_the_same_answers(world, tmp_path):
    """Stopped in the second epoch with 4 rows a pass, continued with 2 passes of 2: as when memory became short."""
    own = {"epochs": 2, "save_steps": 1, "lr": 0.1}
    assert train(world, tmp_path / "whole", **own).code == 0
    with interrupted(5):
        assert train(world, tmp_path / "cut", **own).code == 2
    done = train(world, tmp_path / "cut", **own, batch_size=2, accum_iter=2, checkpoint_activations="")
    assert done.code == 0 and "epoch 1, step 1" in done.out, done.err
    assert apart(weights(tmp_path / "whole"), weights(tmp_path / "cut")) < 1e-6
    whole, cut = (read_lines(tmp_path / name / "log.txt")[1]["train"] for name in ("whole", "cut"))
    assert whole["kl"] == pytest.approx(cut["kl"], abs=1e-5) and whole["length"] == cut["length"] > 0


def test_a_guard_without_rows_objects_to_nothing():
    guard = Guard(0, [])
    assert all(guard.passes([]) for _ in range(3)) and not guard.stops


def test_rationales_of_one_intent_make_no_verifier_and_cost_no_checkpoint(world, tmp_path):
    data = write_intents(tmp_path / "MIntRec")
    rows = [row for row in read_lines(data / "rationales.jsonl") if "smile" in row["rationale"]]
    (data / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = train(world | {"data_path": data}, tmp_path / "supervised", w_critic=0)
    assert done.code == 0 and "no verifier: " in done.out, done.err
    done = train(world | {"data_path": data}, tmp_path / "critic")
    assert done.code == 2 and "at least 2 intents" in done.err and not (tmp_path / "critic" / "last").exists()
    (data / "rationales.jsonl").unlink()
    done = train(world | {"data_path": data}, tmp_path / "none", epochs=9, critic_start=8)
    assert done.code == 2 and "--w_critic needs intents and reference rationales" in done.err
    assert not (tmp_path / "none" / "last").exists(), "said before anything is trained"


# --- with a judge ---


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Iterator[dict[str, object]]:
    """Flags of a run that credits claims: the pictures of its clips are near to the captions, its sounds are noise."""
    root = tmp_path_factory.mktemp("seen")
    data, emb = write_intents(root / "MIntRec"), write_seen_store(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_fit, "STEPS", 60)
        patch.setattr(judge_fit, "PAIRS", 32)
        yield {"data_path": data, "emb_path": emb, "captions": data / "captions.json", "credit": "claim"}


@pytest.fixture
def talk(monkeypatch):
    """All of an answer is rationale, and a clause is as true as a checksum of it says."""

    def parsed(self, drawn):
        texts = ["Intent:" + self.tokenizer.decode(ids) for ids in drawn]
        return [Answer(None, text, len(ids) < self.max_new) for text, ids in zip(texts, drawn, strict=True)], texts

    def score(self, claims, key):
        return torch.tensor([zlib.crc32((claim + key).encode()) % 101 / 100 for claim in claims])

    monkeypatch.setattr(self_critical.Critic, "_parse", parsed)
    monkeypatch.setattr(claims, "answer_spans", lambda text: ((0, 0), (7, len(text))))
    monkeypatch.setattr(self_critical.Judge, "score", score)


def test_claims_are_credited_and_the_run_says_by_what_judge(world, seen, talk, tmp_path):
    done = train(world | seen, tmp_path / "whole", log_steps=1)
    assert done.code == 0, done.err
    assert "judge, " in done.out and "vision 1.000" in done.out and "watching judge (gives no rewards)" in done.out
    scores = read_lines(tmp_path / "whole" / "log.txt")[0]["train"]
    assert scores["claims"] > 0 and scores["skipped"] < 1 and {"reward_truth", "watched_truth", "undecided"} <= scores.keys()
    assert "reward_truth" in read_lines(tmp_path / "whole" / "steps.jsonl")[1]
    assert "Truth of answers" in (tmp_path / "whole" / "curves.html").read_text()
    stored = sorted(path.name for path in (tmp_path / "whole" / "best").iterdir())
    assert {"judge.json", "judge.safetensors", "watch.json", "watch.safetensors"} <= set(stored)
    asked = {"checkpoint": tmp_path / "whole" / "best", "data_path": seen["data_path"], "emb_path": seen["emb_path"]}
    asked |= {"max_new_tokens": 8, "batch": tmp_path / "best.jsonl", "limit": 2}  # on the device that auto finds
    done = call(explain.main, **asked, best_of=2)
    assert done.code == 0 and [row["best_of"] for row in read_lines(tmp_path / "best.jsonl")] == [2, 2], done.err
    done = call(explain.main, **asked)
    assert done.code == 0 and [row["best_of"] for row in read_lines(tmp_path / "best.jsonl")] == [None, None], done.err
    done = call(explain.main, **asked, best_of=2, judge=tmp_path)
    assert done.code == 2 and "no judge can be read" in done.err


def test_rivals_of_claims_run_and_each_learns_something_of_its_own(world, seen, talk, tmp_path, monkeypatch):
    says = (" a smile, a sob, a wink.", " a frown, a cry, a shrug.", " a grin, a nod, a bow.", " a wave, a hum.")
    tokenizer, expectation = load_tokenizer(TOKENIZER), self_critical.local_expectation

    def said(model, prompts, max_new, eos, *, n_samples, **_):
        chosen = [[says[(zlib.crc32(repr(p).encode()) + n * n_samples) % 4] for n in range(n_samples)] for p in prompts]
        return [[tokenizer.encode(text)[: max_new - 1] for text in texts] for texts in chosen]

    monkeypatch.setattr(self_critical, "generate", said)
    monkeypatch.setattr(self_critical, "local_expectation", lambda logp, v: expectation(logp / 50, v))  # or p is 0 here
    flags = {name: {"credit": name, "w_critic": 8} for name in ("best", "local", "corrected")}
    for name, own in (flags | {"none": {"w_critic": 1e-9}}).items():
        done = train(world | seen, tmp_path / name, **own, limit=8)
        assert done.code == 0, done.err
    for name in flags:
        scores = read_lines(tmp_path / name / "log.txt")[0]["train"]
        assert scores["claims"] > 2 and scores["skipped"] < 1 and scores["advantage"] > 0 and scores["length"] > 1
        assert ("kl" in scores) == (name == "best"), "sampled answers are scored by it alone"
    found = [weights(tmp_path / name) for name in (*flags, "none")]
    assert all(apart(a, b) > 1e-4 for i, a in enumerate(found) for b in found[:i])


@pytest.mark.slow
def test_with_claims_credited_it_continues_with_the_same_bits(world, seen, talk, tmp_path):
    own = world | seen | {"epochs": 2, "save_steps": 1, "limit": 8, "batch_size": 2}
    assert train(own, tmp_path / "whole").code == 0
    with interrupted(6):
        train(own, tmp_path / "cut")
    done = train(own, tmp_path / "cut")
    assert done.code == 0 and "epoch 1, step 1" in done.out, done.err
    assert apart(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    guards = [json.loads((tmp_path / name / "last" / "checkpoint.json").read_text())["guard"] for name in ("whole", "cut")]
    assert guards[0] == guards[1] and len(guards[0]["paid"]) == 7, "criticism weighs nothing in its first step"
    whole_answers = train(own | {"credit": "answer", "reward_weights": "truth=1"}, tmp_path / "answer")
    assert whole_answers.code == 0 and apart(weights(tmp_path / "whole"), weights(tmp_path / "answer")) > 1e-4


def test_references_that_are_not_trusted_are_learnt_as_far_as_the_judge_believes_them(world, seen, tmp_path, monkeypatch):
    """Judged by a store in which every clip shows what its rationale does not say, they count a tenth."""
    believed = {"w_critic": 0, "trust_references": "no", "credit": "answer", "batch_size": 4}
    monkeypatch.setattr(self_critical.Judge, "score", lambda self, claims, key: torch.ones(len(claims)))
    assert train(world | seen | believed, tmp_path / "believed").code == 0
    assert train(world | seen | believed | {"trust_references": "yes"}, tmp_path / "trusted").code == 0
    assert apart(weights(tmp_path / "believed"), weights(tmp_path / "trusted")) == 0, "weights of 1 change nothing"
    monkeypatch.setattr(self_critical.Judge, "score", lambda self, claims, key: torch.zeros(len(claims)))
    assert train(world | seen | believed, tmp_path / "doubted").code == 0
    assert apart(weights(tmp_path / "believed"), weights(tmp_path / "doubted")) > 1e-4


def test_a_judge_that_can_tell_nothing_is_refused_before_anything_is_trained(world, seen, tmp_path):
    done = train(world | seen | {"emb_path": world["emb_path"]}, tmp_path)
    assert done.code == 2 and "cannot tell clips" in done.err and not (tmp_path / "last").exists()
    done = train(world | seen | {"modalities": "none"}, tmp_path / "blind")
    assert done.code == 2 and "the judge needs embeddings of the clips" in done.err


def test_a_caption_of_another_split_than_its_clips_is_refused(world, seen, tmp_path):
    rows = json.loads(Path(seen["captions"]).read_text())
    rows.append({"key": "S03_E01_0", "caption": "Face: a broad smile.", "split": "train"})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    done = train(world | seen | {"captions": tmp_path / "captions.json"}, tmp_path / "run")
    assert done.code == 2 and "S03_E01_0 is a clip of test, its caption one of train" in done.err


def test_pay_that_rises_while_the_watching_judge_does_not_stops_the_run():
    noise = [0.01 * (i % 3) for i in range(2 * WINDOW)]
    rising = [0.2 * (i >= WINDOW) + n for i, n in enumerate(noise)]
    for watched, stops in ((rising, False), (noise, True), ([-v for v in rising], True)):
        guard = Guard(0, [])
        for paid, watch in zip(rising, watched, strict=True):
            assert guard.agrees(), "not before two windows are there"
            guard.note(paid, watch)
        assert guard.agrees() != stops and guard.agrees() != stops and guard.stops == stops
    guard = Guard(0, [])
    for paid in noise:
        guard.note(paid, 0.0)
    assert guard.agrees(), "nothing was gained"


def test_answers_that_cannot_fit_into_the_context_are_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(self_critical, "SPARE_TOKENS", 5000)
    done = train(world, tmp_path)
    assert done.code == 2 and "--w_critic samples up to" in done.err and "--max_seq_len" in done.err
