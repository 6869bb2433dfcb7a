"""What a run carries over: weights and moments if it continues, no moments if it goes back; and what its guard objects to."""

from pathlib import Path

import pytest
import torch
from test_training import head_model, rows

from imagebind_llm.config import ModelConfig
from imagebind_llm.corpus.sequences import Corpus
from imagebind_llm.itsl.assembly import Assembled
from imagebind_llm.training.choice import Guard
from imagebind_llm.training.run import Run
from imagebind_llm.training.schedule import make_optimizer
from imagebind_llm.training.settings import TrainSettings


def run_in(folder: Path) -> Run:
    """A run without data to speak of; it continues what lies in the folder."""
    model = head_model()
    own = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    assembled = Assembled(model, ModelConfig(model.llama.config, model.prompt_config, None, 4), own, "toy")
    settings = TrainSettings(data_path="x", output_dir=str(folder), lora_rank=2, trainable="all")
    corpus = Corpus({"train": rows()}, None, None, (), rows(), prompts={}, stages=(), notes=[], captions={}, caption_rows=[])
    return Run(settings, assembled, make_optimizer(model, 0.05), corpus)


def trained(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.assembled.model.named_parameters() if p.requires_grad}


def step(run: Run, seed: int) -> None:
    """A step along gradients that are drawn."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in run.assembled.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.1
    run.optimizer.step()
    run.position.total += 1


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_continued_run_has_the_weights_and_moments_that_were_saved(tmp_path):
    whole = run_in(tmp_path)
    step(whole, 1)
    step(whole, 2)
    whole.save()
    continued = run_in(tmp_path)
    assert same(trained(continued), trained(whole)) and continued.position.total == 2
    for run in (whole, continued):
        step(run, 3)
    assert same(trained(continued), trained(whole)), "the next step is the same one"


def test_the_self_critical_loss_begins_with_the_best_weights_and_without_moments(tmp_path):
    run = run_in(tmp_path)
    step(run, 1)
    run.save(best=True)
    best = trained(run)
    step(run, 2)
    run.save()
    assert not same(trained(run), best)
    run.begin_criticism(lambda: ({}, []))
    assert same(trained(run), best) and same(run.reference(), best)
    fresh = make_optimizer(run.assembled.model, 0.05)
    assert not run.optimizer.state and len(fresh.param_groups) == len(run.optimizer.param_groups)


@pytest.mark.parametrize(("lost", "won", "strikes"), [(0, 0, 0), (2, 1, 0), (0, 8, 0), (12, 9, 0), (12, 1, 1), (30, 0, 1)])
def test_the_guard_counts_a_model_that_is_worse_by_more_than_a_standard_error(lost, won, strikes):
    guard = Guard(0, [True] * 60 + [False] * 40)
    now = [False] * lost + [True] * (60 - lost) + [True] * won + [False] * (40 - won)
    assert guard.passes(now) == (not strikes) and guard.strikes == strikes
