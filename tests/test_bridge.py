"""The bridge: ImageBind-LLM's numbers, and what absent modalities do (nothing)."""

import dataclasses

import golden_llama
import pytest
import torch
from tiny_itsl import TINY
from torch.nn.functional import normalize

from imagebind_llm.config import BridgeConfig, PromptConfig
from imagebind_llm.itsl.fusion import FUSIONS, Average
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.training.settings import TrainSettings


def random_model(fusion: str, legacy: bool = False) -> ITSL:
    """A model whose bridge leads from width 12 to 32."""
    torch.manual_seed(0)
    return ITSL(TINY, PromptConfig(3, 2), BridgeConfig(24, 12, fusion, legacy))


@pytest.mark.parametrize("case", golden_llama.IMAGEBIND_LLM)
def test_averaged_fusion_equals_imagebind_llm(case):
    io, carried = golden_llama.tensors(case)["io"], golden_llama.model(case).carried
    one = carried(io["embedding"][:, None], torch.ones(3, 1))
    torch.testing.assert_close(one, io["bridge"], atol=5e-6, rtol=0)
    both = torch.stack([io["embedding"], io["embedding2"]], 1)
    mixed = carried(both, torch.tensor([[1.0, 0.5]]).expand(3, -1))
    torch.testing.assert_close(mixed, io["bridge_image1_audio0.5"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("fusion", ["average", "separate"])
@pytest.mark.parametrize("rubbish", [0.0, 1e30, float("nan"), float("inf")])
def test_what_stands_in_an_absent_slot_is_never_looked_at(fusion, rubbish):
    carried, e = random_model(fusion).carried, torch.randn(2, 3, 12)
    present = torch.tensor([[True, False, True], [False, False, False]])
    filled = torch.where(present[..., None], e, rubbish)
    assert torch.equal(carried(e, present), carried(filled, present))


def test_average_over_the_present_is_the_average_without_the_absent():
    carried, e = random_model("average").carried, torch.randn(4, 3, 12)
    present = torch.tensor([[True, False, True]]).expand(4, -1)
    assert torch.equal(carried(e, present), carried(e[:, [0, 2]], present[:, [0, 2]]))


def test_a_row_without_any_modality_gives_zeros_when_averaged():
    out = random_model("average").carried(torch.randn(2, 3, 12), torch.tensor([[False] * 3, [True] * 3]))
    assert out[0].abs().max() == 0 < out[1].abs().max()


def test_separate_fusion_carries_each_modality_alone_and_forgets_its_length():
    model, e = random_model("separate"), torch.randn(2, 3, 12)
    out = model.carried(e * torch.tensor([1.0, 5.0, 20.0])[:, None], torch.ones(2, 3, dtype=torch.bool))
    for m in range(3):
        torch.testing.assert_close(out[:, m], model.bridge(normalize(e[:, m], dim=-1)))


def test_gated_blocks_equal_the_formula_written_out():
    bridge, x = random_model("separate").bridge, torch.randn(5, 12)
    weights = dict(bridge.named_parameters())
    y = x @ weights["image_bind_proj.weight"].T + weights["image_bind_proj.bias"]
    for i in (1, 2, 3):
        z = y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"image_bind_norm_{i}.weight"]
        a, b = (z @ weights[f"image_bind_{f}_{i}.weight"].T for f in ("f1", "f3"))
        y = y + (a * a.sigmoid() * b) @ weights[f"image_bind_f2_{i}.weight"].T
    torch.testing.assert_close(bridge(x), y)


def test_another_fusion_is_a_class_and_a_line(monkeypatch):
    class Largest(Average):
        def carry(self, embeddings, weights, bridge):
            return bridge(embeddings.amax(1, keepdim=True))

    monkeypatch.setitem(FUSIONS, "largest", Largest)
    model, e, present = random_model("largest"), torch.rand(2, 3, 12), torch.ones(2, 3, dtype=torch.bool)
    wanted = model.bridge(normalize(e, dim=-1).amax(1))
    torch.testing.assert_close(model.carried(e, present)[:, 0], wanted)
    prompts = model.prompts(e, present).vectors  # (2,3,2,32)
    torch.testing.assert_close(prompts - model.prompts().vectors, wanted[:, None, None].expand_as(prompts))


def test_the_flag_takes_every_fusion():
    [field] = [field for field in dataclasses.fields(TrainSettings) if field.name == "fusion"]
    assert field.metadata["choices"] == tuple(FUSIONS) and field.default in FUSIONS


def test_an_unknown_fusion_is_refused():
    with pytest.raises(ValueError, match="fusion 'sum': expected one of separate, average"):
        random_model("sum")


@pytest.mark.parametrize("fusion", ["average", "separate"])
def test_a_bridge_in_bfloat16_takes_float32_embeddings_and_stays_near_itself(fusion):
    model, e, present = random_model(fusion), torch.randn(2, 3, 12), torch.tensor([[True, False, True], [False] * 3])
    wanted = model.carried(e, present)
    found = model.to(torch.bfloat16).carried(e, present)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
