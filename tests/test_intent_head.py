"""The intent head reads the last prompt token and what is known of the clip: no answer, no absent modality; always the same."""

import pytest
import torch
from tiny_itsl import random_itsl

from imagebind_llm.config import BridgeConfig
from imagebind_llm.itsl.generate import Rows
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import IGNORE, Batch

N_PROMPT = torch.tensor([4, 6, 3])


def head_model(fusion: str = "separate") -> ITSL:
    """Open gates, and a head that looks at everything."""
    base = random_itsl(fusion)
    model = ITSL(base.llama.config, base.prompt_config, BridgeConfig(24, 12, fusion), n_intents=5)
    model.load_state_dict(base.state_dict(), strict=False)
    torch.manual_seed(4)
    torch.nn.init.normal_(model.intent_head.linear.weight, std=0.3)
    torch.nn.init.normal_(model.bridge.image_bind_proj.bias)  # what is absent would be carried to something
    return model.requires_grad_(False)


def batch(answers: int = 0, length: int = 9, present: torch.Tensor | None = None) -> Batch:
    """Three prompts of different lengths, the same ones always; `answers` is the seed of what follows them."""
    tokens = torch.randint(61, (3, length), generator=torch.Generator().manual_seed(100 + answers))
    prompts = torch.randint(61, (3, 6), generator=torch.Generator().manual_seed(1))
    asked = torch.arange(length) < N_PROMPT[:, None]
    tokens[:, :6] = torch.where(asked[:, :6], prompts, tokens[:, :6])
    embeddings = torch.randn(3, 3, 12, generator=torch.Generator().manual_seed(2))
    there = torch.ones(3, 3, dtype=torch.bool) if present is None else present
    return Batch(tokens, tokens.masked_fill(asked, IGNORE), embeddings, there, N_PROMPT)


@pytest.mark.parametrize("fusion", ["separate", "average"])
def test_answers_do_not_move_the_heads_logits(fusion):
    model = head_model(fusion)
    logits = [model(own).intent_logits for own in (batch(0), batch(1), batch(2, length=13))]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fusion", ["separate", "average"])
def test_training_and_inference_give_the_same_logits(fusion):
    model, present = head_model(fusion), torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    own = batch(present=present)
    trained = model.train()(own).intent_logits
    prompts = [own.tokens[i, :n].tolist() for i, n in enumerate(N_PROMPT.tolist())]
    rows = Rows(model.eval(), prompts, 1, own.embeddings, present)
    asked = model.intent_logits(rows.prompt_state, model.carried(own.embeddings, present), present)
    torch.testing.assert_close(asked, trained, atol=2e-6, rtol=0)
    assert trained.std(0).min() > 0.01, "they say something about each row"


def test_an_absent_modality_is_nothing_to_the_head():
    """As if the head had no weights for it."""
    model, present = head_model(), torch.tensor([[True, False, True]]).expand(3, -1)
    without = head_model()
    width = model.llama.config.dim
    without.intent_head.linear.weight[:, 2 * width : 3 * width] = 0  # hidden state, text, audio, vision
    assert torch.equal(model(batch(present=present)).intent_logits, without(batch(present=present)).intent_logits)
    assert not torch.equal(model(batch()).intent_logits, without(batch()).intent_logits)
