"""The contrast over inputs: an answer with its own clip against the same answer with the sound and picture of another."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_critic import LAMBDA, World, said
from tiny_itsl import random_itsl
from toy_training import apart, call, interrupted, read_lines, write_intents, write_llama, write_store

import engine_finetune
from imagebind_llm.config import BridgeConfig
from imagebind_llm.corpus.batches import Collator, with_others
from imagebind_llm.critic import self_critical
from imagebind_llm.itsl.losses import contrast, intent_cross_entropy, rationale_nll
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import Batch, Sequence
from imagebind_llm.training.schedule import make_optimizer
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import Counts, Sums, counts_of, train_step

MASK = torch.tensor([[True, True, False, False], [True, True, True, True]])


def test_inputs_that_make_no_difference_cost_log_2_and_a_likelier_own_clip_less():
    logp = -torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    assert float(contrast(logp, logp, MASK)) == pytest.approx(math.log(2))
    assert float(contrast(logp, logp - 1, MASK)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(contrast(logp, logp - 1, MASK, 8)) == pytest.approx(math.log(1 + math.exp(-1)) / 4)
    assert 0 < float(contrast(logp, logp - 50, MASK)) < 1e-6, "there is an end to what can be gained"


def test_its_gradient_is_a_share_of_each_answers_mean():
    draw = torch.Generator().manual_seed(0)
    own, other = (torch.randn(2, 4, generator=draw).requires_grad_() for _ in range(2))
    contrast(own, other, MASK).backward()
    lengths = torch.tensor([2.0, 4.0])
    gap = ((own - other).detach() * MASK).sum(1) / lengths
    expected = -(1 - gap.sigmoid())[:, None] * MASK / lengths[:, None] / 2
    torch.testing.assert_close(own.grad, expected)
    torch.testing.assert_close(other.grad, -expected)


def row(key: str, intent: int | None, *ids: int, embedded: bool = True) -> Sequence:
    return Sequence(key, (1, 5, *ids), 2, intent, embedded)


ROWS = [row("a", 0, 7, 8, 9, 2), row("b", 1, 4, 2), row("c", 0, 3, 9, 2), row("d", 2, 6, 6, 2)]


def test_every_answer_is_held_against_a_clip_of_its_step_that_has_another_intent():
    rows = [*ROWS, row("e", 0, 3, 2), row("f", None, 3, 2), row("g", 1), row("h", 1, 3, 2, embedded=False)]
    drawn = [with_others([[0, 1, 2, 3], [4, 5, 6, 7]], rows, 0, epoch) for epoch in range(20)]
    assert [{one.other for one in found} for found in zip(*(rows[:4] for rows in drawn), strict=True)] == [
        {"b", "d"}, {"a", "c", "d"}, {"b", "d"}, {"a", "b", "c"}
    ]  # fmt: skip
    assert all(one.other is None for rows in drawn for one in rows[4:])
    assert with_others([[0, 1, 2, 3]], rows, 0, 3) == with_others([[0, 1, 2, 3]], rows, 0, 3) != drawn[4]
    assert counts_of(drawn[0][:4]).contrasted == 4 and counts_of(ROWS).contrasted == 0


class Clips:
    """A store: vectors of length 12 by key."""

    def __init__(self):
        draw = torch.Generator().manual_seed(5)
        self.rows = {key: torch.randn(3, 12, generator=draw) for key in "abcd"}
        self.there = {key: torch.tensor([True, key != "d", True]) for key in "abcd"}
        self.identity = type("Identity", (), {"width": 12})

    def read(self, keys):
        return torch.stack([self.rows[key] for key in keys]), torch.stack([self.there[key] for key in keys])


def test_sound_and_picture_are_the_others_and_the_text_is_its_own():
    clips, rows = Clips(), [replace(ROWS[0], other="d"), ROWS[1], replace(ROWS[2], other="b")]
    batch = Collator(clips, ("text", "audio", "vision"))(rows)
    assert batch.contrasted.tolist() == [0, 2]
    assert torch.equal(batch.swapped[0], torch.stack([clips.rows["a"][0], *clips.rows["d"][1:]]))
    assert torch.equal(batch.swapped[1], torch.stack([clips.rows["c"][0], *clips.rows["b"][1:]]))
    assert batch.swapped_present.tolist() == [[True, False, True], [True, True, True]]
    assert Collator(clips, ("audio",))(rows).swapped_present.tolist() == [[False, False, False], [False, True, False]]
    assert Collator(clips, ("audio",))(ROWS).contrasted is None


def head_model() -> ITSL:
    base = random_itsl("separate", lora_rank=2)
    model = ITSL(base.llama.config, base.prompt_config, BridgeConfig(24, 12, "separate"), n_intents=4)
    model.load_state_dict(base.state_dict(), strict=False)
    model.train_only("all")
    return model


def with_others_clip(batch: Batch) -> Batch:
    """All rows of it are contrasted."""
    return replace(batch, embeddings=batch.swapped, present=batch.swapped_present, contrasted=None)


@pytest.mark.parametrize("sizes", [(4,), (1, 3)])
def test_a_step_adds_the_contrast_over_all_its_passes_and_teaches_the_head_nothing_by_it(sizes):
    settings = TrainSettings("x", w_rationale=0.5, w_contrast=3.0, clip_grad=0.0)
    rows = with_others([[0, 1, 2, 3]], ROWS, 0, 0)
    collate, model = Collator(Clips(), ("text", "audio", "vision")), head_model()
    batch = collate(rows)
    output, other = model(batch), model(with_others_clip(batch))
    held = contrast(output.logp, other.logp, output.mask)
    nll, ce = rationale_nll(output.logp, output.mask), intent_cross_entropy(output.intent_logits, batch.intents)
    (0.5 * nll + ce + 3.0 * held).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    model, sums = head_model(), Sums()
    passes = [collate(rows[sum(sizes[:i]) :][:size]) for i, size in enumerate(sizes)]
    assert counts_of(rows) == Counts(tokens=12, intents=4, clips=4, contrasted=4)
    found = train_step(model, make_optimizer(model, 0.0), passes, counts_of(rows), settings, sums)
    assert found == pytest.approx(float(norm), rel=1e-5)
    assert sums.means()["contrast"] == pytest.approx(float(held.detach()), rel=1e-5)
    assert sums.means()["nll"] == pytest.approx(float(nll.detach()), rel=1e-5)


def test_answers_are_contrasted_and_criticised_in_one_pass(tmp_path, monkeypatch):
    world = World(tmp_path)

    def instead(model, prompts, max_new, eos, *, sampling, n_samples, **_):
        return [[said(world.tokenizer, list(prompt), number, max_new) for number in range(n_samples)] for prompt in prompts]

    monkeypatch.setattr(self_critical, "generate", instead)
    world.rows = with_others([[0, 1, 2, 3, 4]], world.rows, 0, 0)
    assert [one.other is None for one in world.rows] == [False, True, False, False, False] and LAMBDA
    without, with_it = (world.gradient(world.critic(), (2, 3), w_contrast=weight) for weight in (0.0, 2.0))
    batch = world.collate([one for one in world.rows if one.other])
    output, other = world.model(batch), world.model(with_others_clip(batch))
    found = torch.autograd.grad(contrast(output.logp, other.logp, output.mask), world.trained.values(), allow_unused=True)
    largest = 0.0
    for name, gradient in zip(world.trained, found, strict=True):
        if gradient is not None:
            torch.testing.assert_close(with_it[name] - without[name], 2 * gradient, atol=2e-5, rtol=1e-3)
            largest = max(largest, float(gradient.abs().max()))
    assert largest > 1e-3


def test_steps_of_it_alone_make_the_own_clip_tell():
    settings = TrainSettings("x", w_rationale=0.0, w_intent=0.0, w_contrast=1.0)
    rows, collate, model = with_others([[0, 1, 2, 3]], ROWS, 0, 0), Collator(Clips(), ("audio", "vision")), head_model()
    optimizer, found = make_optimizer(model, 0.0), []
    for _ in range(15):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
        sums = Sums()
        train_step(model, optimizer, [collate(rows)], counts_of(rows), settings, sums)
        found.append(sums.means()["contrast"])
    assert found[-1] < 0.5 * found[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("contrast")
    write_intents(root / "MIntRec"), write_store(root / "emb"), write_llama(root / "LLAMA", 4)
    return root


def train(world, output: str, **flags):
    data = {"data_path": world / "MIntRec", "emb_path": world / "emb", "llama_model_path": world / "LLAMA", "device": "cpu"}
    pace = {"adapter_layer": 2, "adapter_len": 3, "epochs": 1, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4, "gate_lr": 20}
    return call(engine_finetune.main, **data | pace | flags, output_dir=world / output)


@pytest.mark.slow
def test_a_run_logs_it_and_goes_on_from_an_interruption_with_the_same_bits(world):
    flags = {"w_contrast": 2, "batch_size": 6, "epochs": 2, "save_steps": 1}
    assert train(world, "whole", **flags).code == 0
    epochs = read_lines(world / "whole" / "log.txt")
    assert all(0.5 < epoch["train"]["contrast"] < 0.9 for epoch in epochs) and "contrast" not in epochs[0]["dev"]
    with interrupted(4):
        train(world, "cut", **flags)
    done = train(world, "cut", **flags)
    assert done.code == 0 and "epoch 1, step 1" in done.out, done.err
    ends = [load_file(world / name / "last" / "adapter.safetensors") for name in ("whole", "cut")]
    assert apart(*ends) == 0 and read_lines(world / "cut" / "log.txt")[1]["train"] == epochs[1]["train"]
    assert train(world, "without", **flags | {"w_contrast": 0}).code == 0
    assert apart(ends[0], load_file(world / "without" / "last" / "adapter.safetensors")) > 1e-4


@pytest.mark.parametrize("flags", [{"modalities": "none"}, {"modalities": "text"}, {"stage": "pretrain"}])
def test_it_needs_sounds_or_pictures_of_the_second_stage(world, flags):
    assert "--w_contrast swaps sounds and pictures" in train(world, "no", w_contrast=1, **flags).err


def test_it_needs_intents(world):
    file = world / "questions.json"
    file.write_text('[{"instruction": "Say.", "input": "", "output": "It is."}]')
    assert "expected clips with intents" in train(world, "no", w_contrast=1, data_path=file).err
