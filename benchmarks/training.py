"""The training step against its bare forward and backward pass, and the self-critical step against the supervised one.

SmolLM2's shape with random weights, adapters in the top 12 layers, the demo's row lengths.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.language import SHAPES
from benchmarks.runner import Case
from imagebind_llm.config import BridgeConfig, PromptConfig
from imagebind_llm.corpus.packing import Packed, packed
from imagebind_llm.critic.self_critical import ON_POLICY
from imagebind_llm.itsl.generate import generate
from imagebind_llm.itsl.losses import intent_cross_entropy, rationale_nll, self_critical
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import IGNORE, Batch
from imagebind_llm.taxonomy import DEMO
from imagebind_llm.training.schedule import make_optimizer
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import Counts, Sums, train_step, with_below

ROWS, PROMPT, ANSWER, SAMPLES, NEW = 8, 36, 48, 4, 48
Work = Callable[[], float]


def bare(rows: int = ROWS) -> Work:
    """Forward pass, both losses, backward pass; no optimizer, no counts, no checks."""
    model, batch = _model(), _batch(rows)

    def work() -> float:
        output = model(batch)
        assert output.intent_logits is not None and batch.intents is not None
        (rationale_nll(output.logp, output.mask) + intent_cross_entropy(output.intent_logits, batch.intents)).backward()
        model.zero_grad(set_to_none=True)
        return batch.tokens.numel()

    return work


def whole(rows: int = ROWS) -> Work:
    """What a run does in a step: the same, AdamW, clipping, sums for the log."""
    model, batch = _model(), _batch(rows)
    optimizer = make_optimizer(model, 0.02)
    settings, counts, sums = TrainSettings(data_path=""), Counts(rows * ANSWER, rows, rows), Sums()

    def work() -> float:
        train_step(model, optimizer, [batch], counts, settings, sums)
        return batch.tokens.numel()

    return work


def criticised(rows: int = ROWS) -> Work:
    """A self-critical step with given rewards: sampling K answers of 48 tokens, one pass over all, KL, backward."""
    parts = _CriticParts(rows)

    def work() -> float:
        rows = parts.packed(parts.sample())
        parts.backward(parts.score(rows))
        parts.reference(rows)
        return 1

    return work


def supervised(rows: int = ROWS) -> Work:
    """The supervised step on the same rows."""
    step = whole(rows)

    def work() -> float:
        step()
        return 1

    return work


class _CriticParts:
    """The stages of a self-critical step, without tokenizer and rewards (which take no time to speak of)."""

    def __init__(self, rows: int):
        self.model, self.batch = _model(), _batch(rows)
        self.prompts = self.batch.tokens[:, :PROMPT].tolist()

    def sample(self) -> Batch:
        vectors, present = self.batch.embeddings, self.batch.present
        answers = generate(
            self.model, self.prompts, NEW, None, embeddings=vectors, present=present, sampling=ON_POLICY, n_samples=SAMPLES
        )
        tokens = torch.tensor([[*p, *ids] for p, own in zip(self.prompts, answers, strict=True) for ids in own])
        targets = tokens.masked_fill(torch.arange(PROMPT + NEW) < PROMPT, IGNORE)
        repeated = torch.arange(len(self.prompts)).repeat_interleave(SAMPLES)
        rows = replace(self.batch, tokens=tokens, targets=targets)
        more = {n: getattr(self.batch, n)[repeated] for n in ("embeddings", "present", "n_prompt", "intents")}
        return replace(rows, **more)

    def packed(self, samples: Batch) -> Packed:
        """References and samples, a row for each clip, with their states below the adapters."""
        rows = packed(self.batch, samples, torch.arange(len(self.prompts)).repeat_interleave(SAMPLES))
        return replace(rows, batch=with_below(self.model, rows.batch))

    def score(self, rows: Packed) -> Tensor:
        """The loss of references and samples, in one forward pass."""
        output = self.model(rows.batch)
        own, logp = rows.rows(output), rows.answers(output)
        advantage = torch.linspace(-1, 1, len(logp))
        return rationale_nll(own.logp, own.mask) + self_critical(logp, rows.answer_mask, advantage, NEW)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def reference(self, rows: Packed) -> None:
        self.model(rows.batch)


def _model() -> ITSL:
    torch.manual_seed(0)
    shape = SHAPES["SmolLM2"]
    prompts = PromptConfig(12, 10, lora_rank=8, bias=True, lora_layers=12)
    model = ITSL(shape, prompts, BridgeConfig(shape.dim, 1024), n_intents=len(DEMO.labels))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    model.train_only("all")
    return model


def _batch(rows: int) -> Batch:
    tokens = torch.randint(1, SHAPES["SmolLM2"].vocab_size, (rows, PROMPT + ANSWER))
    targets = tokens.masked_fill(torch.arange(PROMPT + ANSWER) < PROMPT, IGNORE)
    known = torch.ones(rows, 3, dtype=torch.bool)
    intents = torch.randint(len(DEMO.labels), (rows,))
    return Batch(tokens, targets, torch.randn(rows, 3, 1024), known, torch.full((rows,), PROMPT), intents)


HERE = f"{__name__}:"
CASES = [
    Case("train_step against forward and backward alone", "tokens", HERE + "whole", HERE + "bare", ">= 0.9x"),
    Case(
        "self-critical step, K = 4, 48 new, against supervised",
        "steps",
        HERE + "criticised",
        HERE + "supervised",
        "<= 12 times as long",
    ),
]
