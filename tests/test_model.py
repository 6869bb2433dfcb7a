"""The whole model: golden logits and gradients with open gates, absent modalities, and what trains."""

import golden_llama
import pytest
import torch
from tiny_itsl import TINY, random_itsl

from imagebind_llm.config import BridgeConfig, LlamaConfig, PromptConfig
from imagebind_llm.itsl.losses import rationale_nll
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.kernels.logp import token_logp
from imagebind_llm.records import IGNORE, Batch

ALL_CASES = ("a_v1", *golden_llama.IMAGEBIND_LLM)
LLAMA_7B = LlamaConfig(4096, 32, 32, 32, 11008, 32000)


def random_batch(rows: int = 3, length: int = 9) -> Batch:
    tokens = torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(5))
    targets = tokens.masked_fill(torch.arange(length) < 5, IGNORE)
    embeddings = torch.randn(rows, 3, 12, generator=torch.Generator().manual_seed(6))
    return Batch(tokens, targets, embeddings, torch.ones(rows, 3, dtype=torch.bool))


@pytest.mark.parametrize("case", ALL_CASES)
def test_logits_and_loss_equal_the_public_implementation(case):
    model, batch, io = golden_llama.model(case), golden_llama.batch(case), golden_llama.tensors(case)["io"]
    hidden = model.llama(batch.tokens, model.prompts(batch.embeddings, batch.present))
    torch.testing.assert_close(model.llama.logits(hidden), io["logits"], atol=5e-5, rtol=0)
    output = model(batch)
    torch.testing.assert_close(rationale_nll(output.logp, output.mask), io["loss"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ALL_CASES)
def test_gradients_equal_the_public_implementation(case):
    model, batch, wanted = golden_llama.model(case), golden_llama.batch(case), golden_llama.tensors(case)["grads"]
    model.train_only("all")
    output = model(batch)
    rationale_nll(output.logp, output.mask).backward()
    parameters = dict(model.named_parameters())
    assert wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(parameters[golden_llama.our_name(name)].grad, grad, atol=2e-5, rtol=0)


def test_logp_is_the_log_softmax_of_the_whole_forward_at_the_answer_tokens():
    model, batch = random_itsl("separate"), random_batch()
    output = model(batch)
    logits = model.llama.logits(model.llama(batch.tokens, model.prompts(batch.embeddings, batch.present)))
    wanted = logits[:, :-1].log_softmax(-1).gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)
    assert torch.equal(output.mask, batch.targets != IGNORE)
    torch.testing.assert_close(output.logp[:, 5:], wanted[:, 4:], atol=2e-6, rtol=0)
    assert output.logp[:, :5].abs().max() == 0


def test_a_batch_without_any_target_has_zero_loss_and_zero_gradient():
    model, batch = random_itsl("average"), random_batch()
    model.train_only("prompts")
    output = model(Batch(batch.tokens, torch.full_like(batch.tokens, IGNORE), batch.embeddings, batch.present))
    loss = rationale_nll(output.logp, output.mask)
    loss.backward()
    assert loss == 0
    assert model.prefix_query.weight.grad is None or model.prefix_query.weight.grad.abs().max() == 0


def test_a_target_at_the_first_position_is_left_out_since_nothing_precedes_it():
    model, batch = random_itsl(None), random_batch()
    targets = batch.targets.clone()
    targets[:, 0] = batch.tokens[:, 0]
    output, wanted = model(Batch(batch.tokens, targets)), model(Batch(batch.tokens, batch.targets))
    assert torch.equal(output.mask, wanted.mask) and torch.equal(output.logp, wanted.logp)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_new_model_has_closed_gates_and_no_prompt_vector_of_zero(normalise):
    model = ITSL(TINY, PromptConfig(3, 2, normalise), BridgeConfig(24, 12, "separate"))
    assert all(not gate.any() for name, gate in model.named_parameters() if name.endswith("gate"))
    for queries in (model.prefix_query.weight, model.fusion.modality_query.weight):
        assert queries.abs().amax(1).min() > 0.01


def test_a_layer_sees_a_modality_scaled_feature_by_feature_in_its_own_way():
    model, batch = random_itsl("separate"), random_batch()
    learned, layers = model.prompt_config.adapter_len, model.prompt_config.adapter_layer
    with torch.no_grad():
        model.fusion.modality_query.weight.zero_()
        model.fusion.modality_scale.weight.zero_()
        plain = model.prompts(batch.embeddings, batch.present).vectors[:, :, learned:]  # (B,A,M,D)
        model.fusion.modality_scale.weight.view(layers, 3, -1)[1, 2, 5] = 2.0
        scaled = model.prompts(batch.embeddings, batch.present).vectors[:, :, learned:]
    torch.testing.assert_close(scaled[:, 1, 2, 5], 3 * plain[:, 1, 2, 5])
    assert (scaled != plain).nonzero()[:, 1:].unique(dim=0).tolist() == [[1, 2, 5]]


@pytest.mark.parametrize("fusion", ["average", "separate"])
def test_absent_modality_does_not_change_the_output(fusion):
    model, batch = random_itsl(fusion), random_batch()
    present = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    filled = torch.where(present[..., None], batch.embeddings, float("nan"))
    clean, dirty = (model(Batch(batch.tokens, batch.targets, e, present)).logp for e in (batch.embeddings, filled))
    assert torch.equal(clean, dirty)
    assert not torch.equal(clean, model(batch).logp)


@pytest.mark.parametrize("fusion", ["average", "separate"])
def test_a_clip_without_modalities_is_a_text_only_row(fusion):
    model, batch = random_itsl(fusion), random_batch()
    none = torch.zeros(3, 3, dtype=torch.bool)
    output = model(Batch(batch.tokens, batch.targets, batch.embeddings, none))
    torch.testing.assert_close(output.logp, model(Batch(batch.tokens, batch.targets)).logp, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fusion", ["average", "separate"])
def test_every_present_modality_and_every_trained_parameter_has_a_gradient(fusion):
    model, batch = random_itsl(fusion, lora_rank=2), random_batch()
    model.train_only("all")
    embeddings = batch.embeddings.clone().requires_grad_()
    output = model(Batch(batch.tokens, batch.targets, embeddings, batch.present))
    rationale_nll(output.logp, output.mask).backward()
    assert (embeddings.grad.abs().amax(2) > 0).all()
    zero_start = ("lora_down.weight",)  # their lora_up starts at zero
    for name, parameter in model.trainable_parameters("all").items():
        assert parameter.grad is not None and (parameter.grad.abs().max() > 0 or name.endswith(zero_start)), name


@pytest.mark.parametrize("fusion", ["average", "separate"])
def test_a_whole_model_in_bfloat16_takes_float32_embeddings(fusion):
    model, batch = random_itsl(fusion), random_batch()
    wanted, found = model(batch).logp, model.to(torch.bfloat16)(batch).logp
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_prompts_of_one_row_do_not_reach_another():
    model, batch = random_itsl("separate"), random_batch()
    changed = batch.embeddings.clone()
    changed[1] = -changed[1]
    before, after = (model(Batch(batch.tokens, batch.targets, e, batch.present)).logp for e in (batch.embeddings, changed))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_the_published_command_trains_1229760_numbers_of_llama_7b():
    with torch.device("meta"):
        model = ITSL(LLAMA_7B, PromptConfig(adapter_layer=30, adapter_len=10))
    assert sum(p.numel() for p in model.trainable_parameters("prompts").values()) == 1_229_760


def test_imagebind_llm_trains_as_many_numbers_as_published():
    with torch.device("meta"):
        bridge = BridgeConfig(4 * 4096, 1024, fusion="average")
        model = ITSL(LLAMA_7B, PromptConfig(32, 1, False, lora_rank=16, bias=True), bridge)
    assert sum(p.numel() for p in model.bridge.parameters()) == 608_190_464
    millions = {
        which: sum(p.numel() for p in model.trainable_parameters(which).values()) / 1e6 for which in ("prompts", "lora")
    }
    assert millions == pytest.approx({"prompts": 608.3, "lora": 41.3}, abs=0.06)


def test_train_only_lets_exactly_the_named_group_train_in_float32():
    model = random_itsl("separate", lora_rank=2).bfloat16()
    groups = {which: model.trainable_parameters(which).keys() for which in ("prompts", "lora", "all")}
    assert groups["prompts"] | groups["lora"] == groups["all"] and not groups["prompts"] & groups["lora"]
    for which, names in groups.items():
        model.train_only(which)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == names
        assert {parameter.dtype for name, parameter in model.named_parameters() if name in names} == {torch.float32}
    gates = {name for name in groups["prompts"] if name.endswith("gate")}
    assert gates == {f"llama.layers.{i}.attention.gate" for i in (1, 2, 3)}
    with pytest.raises(ValueError, match="trainable 'gates': expected one of prompts, lora, all"):
        model.train_only("gates")


@pytest.mark.parametrize("entries", [1, 61 * 4, 10**6])
def test_token_logp_and_its_gradient_equal_log_softmax_in_any_chunking(entries, monkeypatch):
    monkeypatch.setattr("imagebind_llm.kernels.logp.CHUNK_ENTRIES", entries)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(10, 16, requires_grad=True), torch.randn(61, 16), torch.randint(61, (10,))
    scale = torch.randn(10)
    ours = token_logp(hidden, weight, targets)
    (grad,) = torch.autograd.grad((ours * scale).sum(), hidden)
    wanted = (hidden @ weight.T).log_softmax(1)[torch.arange(10), targets]
    (wanted_grad,) = torch.autograd.grad((wanted * scale).sum(), hidden)
    torch.testing.assert_close(ours, wanted, atol=2e-6, rtol=0)
    torch.testing.assert_close(grad, wanted_grad, atol=1e-5, rtol=0)


def test_no_prompt_at_all_is_refused():
    with pytest.raises(ValueError, match="adapter_len 0: at least 1 prompt"):
        ITSL(TINY, PromptConfig(2, 0))
