"""Captions beside the rows of the second stage: which, how many, what they weigh, and that none is of a held-out clip."""

import json
from collections import Counter

import pytest
import torch
from tiny_itsl import random_itsl
from toy_training import call, read_lines, write_world

import engine_finetune
from imagebind_llm.corpus.batches import Collator, with_captions
from imagebind_llm.itsl.losses import intent_cross_entropy, rationale_nll
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import Sequence
from imagebind_llm.training.schedule import make_optimizer
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import Counts, Sums, counts_of, train_step


def test_every_two_rows_get_a_caption_and_none_comes_twice_before_all_came_once():
    steps = [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    mixed = with_captions(steps, 9, 4, seed=0, epoch=0)
    assert [len(step) for step in mixed] == [6, 6, 2]
    assert [step[: len(old)] for step, old in zip(mixed, steps, strict=True)] == steps
    drawn = [row for step, old in zip(mixed, steps, strict=True) for row in step[len(old) :]]
    assert sorted(drawn[:4]) == [9, 10, 11, 12] and Counter(drawn).most_common(1)[0][1] == 2
    assert with_captions(steps, 9, 4, 0, 0) == mixed != with_captions(steps, 9, 4, 0, 1)


def answer(key: str, *ids: int) -> Sequence:
    return Sequence(key, (1, 5, *ids), 2, intent=1)


ROWS = [answer("a", 7, 8, 9, 2), answer("b", 4, 2), Sequence("c", (1, 6, 3, 9, 2), 2, caption=True)]


def text_model() -> ITSL:
    base = random_itsl("separate", lora_rank=2)
    model = ITSL(base.llama.config, base.prompt_config, None, n_intents=4)
    model.load_state_dict(base.state_dict(), strict=False)  # without the bridge, with a head
    model.train_only("all")
    return model


def test_answers_and_captions_are_means_over_their_own_tokens_each_with_its_own_weight():
    settings = TrainSettings("x", w_rationale=0.5, w_caption=3.0, captions="y", clip_grad=0.0)
    collate, model = Collator(None, ()), text_model()
    assert counts_of(ROWS) == Counts(tokens=6, intents=2, clips=2, captions=3)
    output = model(collate(ROWS))
    nll = [rationale_nll(output.logp[rows], output.mask[rows]) for rows in (slice(0, 2), slice(2, 3))]
    (0.5 * nll[0] + 3.0 * nll[1] + intent_cross_entropy(output.intent_logits[:2], torch.tensor([1, 1]))).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    model, sums = text_model(), Sums()
    passes = [collate([ROWS[0], ROWS[2]]), collate([ROWS[1]])]
    found = train_step(model, make_optimizer(model, 0.0), passes, counts_of(ROWS), settings, sums)
    assert found == pytest.approx(float(norm), rel=1e-5)
    assert sums.means()["nll"] == pytest.approx(float(nll[0].detach()), rel=1e-5)
    assert sums.means()["caption_nll"] == pytest.approx(float(nll[1].detach()), rel=1e-5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("captions"))


def train(world, output: str, **flags):
    data = {"data_path": world / "MIntRec", "emb_path": world / "emb", "llama_model_path": world / "LLAMA", "device": "cpu"}
    pace = {"adapter_layer": 2, "adapter_len": 3, "epochs": 1, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4}
    return call(engine_finetune.main, **data, **pace, output_dir=world / output, **flags)


def test_a_run_says_how_many_captions_it_mixes_in_and_logs_them_apart(world):
    done = train(world, "mixed", captions=world / "MIntRec" / "captions.json", w_caption=0.5)
    assert done.code == 0, done.err
    assert "captions mixed in: 12, one for every two rows" in done.out
    [epoch] = read_lines(world / "mixed" / "log.txt")
    assert epoch["train"]["caption_nll"] > 0 and "caption_nll" not in epoch["dev"]


def test_captions_of_a_held_out_clip_are_refused(world):
    rows = json.loads((world / "MIntRec" / "captions.json").read_text())
    file = world / "leaking.json"
    file.write_text(json.dumps([row | {"split": "train"} for row in rows]))
    done = train(world, "leaking", captions=file, w_caption=1)
    assert done.code == 2
    assert "is a clip of dev, its caption one of train" in done.err and not (world / "leaking" / "last").exists()


@pytest.mark.parametrize("flags", [{"w_caption": 1}, {"w_caption": 1, "captions": "x.json", "stage": "pretrain"}])
def test_captions_to_mix_in_need_a_file_and_the_second_stage(world, flags):
    assert "--w_caption mixes captions into --stage finetune" in train(world, "no", **flags).err
