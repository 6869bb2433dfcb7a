"""Released adapters bring their own prompt shape and give the public logits; an incomplete one is refused."""

import dataclasses

import golden_llama
import pytest
import torch
from toy_training import write_llama

from imagebind_llm.itsl.adapter import open_adapter
from imagebind_llm.itsl.assembly import build
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.checkpoint_files import expected_shapes
from imagebind_llm.llama.load import assign
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.weight_files import WeightsError

KEPT = ("bias", "gate", "lora", "norm")


def released(case: str, file, change=lambda tensors: None):
    """The adapter file that the public programs would release for a golden case."""
    weights = golden_llama.tensors(case)["weights"]
    if case == "a_v1":
        adapter = {name: w for name, w in weights.items() if "gate" in name or name.startswith("adapter")}
        adapter["layers.0.attention.gate"] = torch.zeros_like(adapter["layers.0.attention.gate"])  # never trained in v1
    else:
        adapter = {n: w for n, w in weights.items() if not n.startswith("llama.") or any(part in n for part in KEPT)}
    change(adapter)
    torch.save(adapter if case == "a_v1" else {"model": adapter, "epoch": 3}, file)
    return file


@pytest.mark.parametrize("case", ["a_v1", *golden_llama.IMAGEBIND_LLM])
def test_adapter_over_a_plain_llama_is_the_whole_public_model(tmp_path, case):
    whole = golden_llama.model(case)
    adapter = open_adapter(released(case, tmp_path / "adapter.pth"))
    adapter.check_fits(whole.llama.config)
    ours = ITSL(whole.llama.config, adapter.prompts, adapter.bridge, device="meta")
    state = whole.llama.state_dict()
    assign(ours.llama, {name: state[name] for name in expected_shapes(whole.llama.config)})
    assign(ours, adapter.read())
    batch = golden_llama.batch(case)
    with torch.no_grad():
        assert torch.equal(ours(batch).logp, whole(batch).logp)


def test_settings_are_those_of_the_public_model(tmp_path):
    found = open_adapter(released("b_ib_finetune", tmp_path / "adapter.pth"))
    assert dataclasses.astuple(found.prompts) == (3, 1, False, 4, True, None)
    assert dataclasses.astuple(found.bridge) == (128, 48, "average", False)
    assert open_adapter(released("d_ib_legacy", tmp_path / "adapter.pth")).bridge.legacy
    v1 = open_adapter(released("a_v1", tmp_path / "adapter.pth"))
    assert dataclasses.astuple(v1.prompts) == (3, 5, False, 0, False, None)


def test_old_spelling_of_llama_is_understood(tmp_path):
    def misspell(tensors):
        for name in [name for name in tensors if name.startswith("llama.")]:
            tensors[name.replace("llama", "llma")] = tensors.pop(name)

    new, old = released("b_ib_finetune", tmp_path / "new.pth"), released("b_ib_finetune", tmp_path / "old.pth", misspell)
    assert open_adapter(new).read().keys() == open_adapter(old).read().keys()


# --- bad input ---


@pytest.mark.parametrize(
    ("case", "lost", "message"),
    [
        ("b_ib_finetune", "llama.layers.2.attention.gate", r"lacks llama\.layers\.2\.attention\.gate"),
        ("b_ib_finetune", "llama.layers.1.feed_forward.lora_w2_l1.weight", r"lacks llama\.layers\.1\.feed_forward\.lora_w2_l1"),
        ("b_ib_finetune", "llama.layers.3.attention.wo.bias", r"lacks llama\.layers\.3\.attention\.wo\.bias"),
        ("b_ib_finetune", "llama.norm.weight", r"lacks llama\.norm\.weight"),
        ("b_ib_finetune", "image_bind_f3_2.weight", r"lacks bridge\.image_bind_f3_2\.weight"),
        ("b_ib_finetune", "image_bind_proj.weight", "lacks image_bind_proj"),
        ("d_ib_legacy", "image_bind_norm_2.bias", r"lacks bridge\.image_bind_norm_2\.bias"),
        ("a_v1", "layers.1.attention.gate", r"lacks llama\.layers\.1\.attention\.gate"),
        ("a_v1", "adapter_query.weight", "not an adapter"),
    ],
)
def test_missing_tensor_is_named(tmp_path, case, lost, message):
    with pytest.raises(WeightsError, match=message):
        open_adapter(released(case, tmp_path / "x.pth", lambda tensors: tensors.pop(lost)))


def test_unknown_tensor_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"unknown tensors llama\.layers\.0\.attention\.wk\.bias"):
        more = {"llama.layers.0.attention.wk.bias": torch.ones(32)}
        open_adapter(released("b_ib_finetune", tmp_path / "x.pth", lambda tensors: tensors.update(more)))


def test_v1_adapter_with_shut_gates_needs_to_be_told_its_layers(tmp_path):
    def shut(tensors):
        for name in tensors:
            if "gate" in name:
                tensors[name] = torch.zeros(1, 4, 1, 1)

    file = released("a_v1", tmp_path / "x.pth", shut)
    with pytest.raises(WeightsError, match="pass --adapter_layer"):
        open_adapter(file)
    assert open_adapter(file, adapter_layer=3).prompts.adapter_len == 5
    with pytest.raises(WeightsError, match="15 prompts do not divide over 4 layers"):
        open_adapter(file, adapter_layer=4)


def test_training_from_an_adapter_of_another_llama_is_refused_by_its_sizes(tmp_path):
    adapter = released("b_ib_finetune", tmp_path / "adapter.pth")
    llama = write_llama(tmp_path / "LLAMA", 4)
    start = {"pretrained_path": str(adapter), "llama_model_path": str(llama)}
    settings = TrainSettings(data_path="x", output_dir=str(tmp_path / "run"), **start)
    with pytest.raises(WeightsError, match="made for a LLaMA of 4 layers and width 32, this one has 4 and 16"):
        build(settings, None, 48, torch.device("cpu"))


def test_adapter_of_another_width_or_depth_is_refused(tmp_path):
    adapter = open_adapter(released("b_ib_finetune", tmp_path / "x.pth"))
    llama = golden_llama.model("b_ib_finetune").llama.config
    for change in ({"dim": 64}, {"n_layers": 5}):
        with pytest.raises(WeightsError, match="made for a LLaMA of 4 layers and width 32, this one has"):
            adapter.check_fits(dataclasses.replace(llama, **change))
