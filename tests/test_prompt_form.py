"""Which form new prompts have: LLaMA-Adapter v1's for its published command, else ours; a checkpoint keeps the one it has."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from toy_training import write_llama

from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import Assembled, build
from imagebind_llm.training.settings import TrainSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> TrainSettings:
    """The published command's settings around a LLaMA of 32 narrow layers."""
    root = tmp_path_factory.mktemp("published")
    return TrainSettings(
        str(root / "alpaca_data.json"),
        str(root / "checkpoint"),
        model="Llama7B_adapter",
        llama_model_path=str(write_llama(root / "LLAMA", 32)),
        adapter_layer=30,
        adapter_len=10,
        blr=9e-3,
    )


def spread(built: Assembled) -> float:
    return float(built.model.prefix_query.weight.detach().std())


def test_the_published_command_draws_prompts_from_n_0_1_and_feeds_them_raw_to_the_frozen_maps(published):
    built = build(published.build, None, None, CPU)
    assert spread(built) == pytest.approx(1.0, abs=0.05) and built.config.prompts.normalise_prefix is False
    attention = built.model.llama.layers[-1].attention
    prompts = built.model.prompts().vectors[:, -1]  # (1,P,D)
    kv = attention.prompt_kv(prompts, None)
    for got, frozen in ((kv.keys, attention.wk), (kv.values, attention.wv)):
        torch.testing.assert_close(got.transpose(1, 2).flatten(2), prompts @ frozen.weight.T)  # (1,P,D)


@pytest.mark.parametrize(
    ("changed", "width"),
    [({}, 1024), ({"model": "auto"}, None), ({"lora_rank": 2, "trainable": "all"}, None)],
    ids=["clips", "no name", "LoRA"],
)
def test_prompts_beside_clips_or_lora_or_without_v1s_name_are_small_and_brought_to_unit_rms(published, changed, width):
    built = build(replace(published, bridge_width=0.5, **changed).build, None, width, CPU)
    assert spread(built) == pytest.approx(0.02, abs=0.001) and built.config.prompts.normalise_prefix is True


def write_older(root: Path, published: TrainSettings) -> dict:
    """A checkpoint of the published command as it was made before prompts had a form to name; its JSON."""
    older = build(replace(published, model="auto").build, None, None, CPU)
    model = asdict(older.config)
    del model["prompts"]["normalise_prefix"]
    checkpoint.save(root, 1, older.adapter(), {}, {"model": model}, best=True)
    return json.loads((root / "best" / checkpoint.INFO).read_text())


def test_a_checkpoint_that_names_no_form_loads_as_the_older_one_and_goes_on_as_it(published, tmp_path):
    info = write_older(tmp_path, published)
    assert checkpoint.config_from_json(info["model"]).prompts.normalise_prefix is True
    continued = replace(published, output_dir=str(tmp_path))
    assert build(continued.build, None, None, CPU).config.prompts.normalise_prefix is True
    anew = build(replace(continued, resume="no").build, None, None, CPU)
    assert anew.config.prompts.normalise_prefix is False and spread(anew) == pytest.approx(1.0, abs=0.05)


def test_a_checkpoint_names_the_form_of_its_prompts(published):
    for name, normalised in (("Llama7B_adapter", False), ("auto", True)):
        config = build(replace(published, model=name).build, None, None, CPU).config
        assert asdict(config)["prompts"]["normalise_prefix"] is normalised
        assert checkpoint.config_from_json(json.loads(json.dumps(asdict(config)))) == config
