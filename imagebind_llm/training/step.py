"""The training step.

    loss = w_intent * CE(intent head) + w_rationale * NLL(answer tokens) + w_caption * NLL(tokens of captions mixed in)
           + w_contrast * contrast(answers with their own clip, with another's) + lambda * self-critical loss (sampled answers)
Each term is a mean over the whole step, all ranks and forward passes, so that the gradient does not depend on how the rows are
distributed. Every backward pass has exactly one forward pass of the wrapped model, as DistributedDataParallel requires.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from imagebind_llm import distributed
from imagebind_llm.corpus.packing import joined, packed, split, with_other_clips
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.sampled_answers import SampledAnswers
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.itsl.generate import NotFiniteError
from imagebind_llm.itsl.losses import contrast, intent_cross_entropy, rationale_nll
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import IGNORE, Batch, Output
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.sums import RunningSums
from imagebind_llm.training.settings import TrainSettings


class TrainingError(ValueError):
    """Training cannot continue; the message says why and what to change."""


@dataclass(frozen=True)
class Counts:
    """Divisors of the losses of a whole step, over all ranks and passes."""

    tokens: int  # of answers
    intents: int  # rows with a known intent
    clips: int  # of these, rows with an answer, for which answers are sampled
    captions: int = 0  # tokens of captions mixed in
    contrasted: int = 0  # answers that are compared with another clip


def counts_of(rows: Sequence[Ids]) -> Counts:
    """The divisors of a step with these rows."""
    tokens = [sum(len(row.ids) - row.n_prompt for row in rows if row.caption == caption) for caption in (False, True)]
    labelled = [row for row in rows if row.intent is not None]
    contrasted = sum(row.other is not None for row in rows)
    return Counts(tokens[0], len(labelled), sum(len(row.ids) > row.n_prompt for row in labelled), tokens[1], contrasted)


class Sums(RunningSums):
    """Sums over the rows that one rank has trained on; `tokens` counts prompts and answers without padding."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        answers = ("nll", "answer_tokens", "cross_entropy", "intents", "right", "tokens")
        return (*answers, "caption_nll", "caption_tokens", "contrast", "contrasted")

    def add(self, batch: Batch, logp: Tensor, mask: Tensor, intent_logits: Tensor | None) -> None:
        answers, captions = by_kind(batch, mask)
        self["nll"] -= float((logp * answers).sum())
        self["answer_tokens"] += int(answers.sum())
        if captions is not None:
            self["caption_nll"] -= float((logp * captions).sum())
            self["caption_tokens"] += int(captions.sum())
        self["tokens"] += int(mask.sum()) + int(batch.n_prompt.sum()) if batch.n_prompt is not None else 0
        if intent_logits is not None and batch.intents is not None:
            has_intent = batch.intents != IGNORE
            self["cross_entropy"] += float(intent_cross_entropy(intent_logits, batch.intents, 1))
            self["intents"] += int(has_intent.sum())
            self["right"] += int((intent_logits.argmax(1) == batch.intents)[has_intent].sum())

    def means(self) -> dict[str, float]:
        """Means per answer token, caption token, contrasted answer or known intent; without the means over nothing."""
        ratios = {
            "nll": ("nll", "answer_tokens"),
            "caption_nll": ("caption_nll", "caption_tokens"),
            "contrast": ("contrast", "contrasted"),
            "cross_entropy": ("cross_entropy", "intents"),
            "accuracy": ("right", "intents"),
        }
        return {name: self[total] / self[count] for name, (total, count) in ratios.items() if self[count]}


def by_kind(batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split mask (B,T) into the targets of answers and those of captions mixed in (None if the batch has none)."""
    if batch.captions is None:
        return mask, None
    return mask & ~batch.captions[:, None], mask & batch.captions[:, None]


@dataclass(frozen=True)
class CriticStep:
    """The self-critical part of one step."""

    critic: Critic
    weight: float  # lambda
    generator: torch.Generator  # its seed determines the sampled answers
    sums: CriticSums  # the log is added to these


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    passes: Sequence[Batch],
    counts: Counts,
    settings: TrainSettings,
    sums: Sums,
    critic: CriticStep | None = None,
) -> float:
    """Forward and backward for every batch of `passes`, then one update; adds to `sums`. Returns the gradient's norm, which is
    the same on every rank.

    With a critic, answers are sampled first; one forward pass computes references and samples.
    Raises TrainingError, before any weight changes, if the gradient is not finite.
    """
    ranks = distributed.world_size()
    bad_keys: list[str] = []
    criticism: Tensor | float
    for number, batch in enumerate(passes):
        sampled = _sampled(model, batch, critic)
        with distributed.without_sync(model) if number < len(passes) - 1 else nullcontext():
            others = with_other_clips(batch)
            rows = batch if others is None else joined(batch, others)
            if critic and sampled:
                output, criticism = critic_loss(model, rows, sampled, critic, counts, settings)
            else:
                output, criticism = model(rows, checkpoint=settings.checkpoint_activations), 0.0
            output, swapped, _ = split(output, *batch.tokens.shape)
            loss = supervised_loss(batch, output, swapped, counts, settings, sums) + criticism
            (loss * ranks).backward()  # the wrapped model averages gradients over ranks, but losses are shares of the step's
        if not math.isfinite(float(loss.detach())):
            bad_keys += batch.keys
        with torch.no_grad():
            sums.add(batch, output.logp, output.mask, output.intent_logits)
    return _update(optimizer, settings.clip_grad, passes, bad_keys)


def supervised_loss(
    batch: Batch, output: Output, swapped: Tensor, counts: Counts, settings: TrainSettings, sums: Sums
) -> Tensor:
    """A pass's share of a step's loss on references: answers, captions, contrast, intents. Adds the contrast to `sums`.
    swapped: (C,T) log p of the contrasted answers with another clip; C may be 0."""
    answers, captions = by_kind(batch, output.mask)
    logp = output.logp if batch.weights is None else output.logp * batch.weights
    loss = settings.w_rationale * rationale_nll(logp, answers, counts.tokens)
    if captions is not None:
        loss = loss + settings.w_caption * rationale_nll(logp, captions, counts.captions)
    if (pairs := batch.contrasted) is not None:
        margin = contrast(output.logp[pairs], swapped, output.mask[pairs], counts.contrasted)
        loss = loss + settings.w_contrast * margin
        sums["contrast"] += float(margin.detach()) * counts.contrasted
        sums["contrasted"] += len(pairs)
    if output.intent_logits is not None and batch.intents is not None:
        loss = loss + settings.w_intent * intent_cross_entropy(output.intent_logits, batch.intents, counts.intents)
    return loss


def critic_loss(
    model: nn.Module, batch: Batch, sampled: SampledAnswers, critic: CriticStep, counts: Counts, settings: TrainSettings
) -> tuple[Output, Tensor]:
    """One forward pass for references and samples. Returns the output for the references, and the pass's share of a step's
    self-critical loss, which is a mean over the step's sampled answers."""
    itsl = cast(ITSL, distributed.unwrap(model))
    rows = packed(batch, sampled.scored, sampled.owners)
    packed_batch = with_below(itsl, rows.batch)
    output = model(packed_batch, checkpoint=settings.checkpoint_activations)
    reference = rows.answers(critic.critic.at_the_start(itsl, packed_batch))
    criticism = critic.critic.loss(sampled, rows.answers(output), rows.answer_mask, reference, critic.sums)
    n_answers = counts.clips * critic.critic.settings.samples  # in the step
    return rows.rows(output), critic.weight * criticism * len(sampled.answers) / n_answers


def _sampled(model: nn.Module, batch: Batch, critic: CriticStep | None) -> SampledAnswers | None:
    if critic is None:
        return None
    try:
        return critic.critic.sample(cast(ITSL, distributed.unwrap(model)), batch, critic.generator)
    except NotFiniteError as error:  # on this rank only; torchrun stops the others
        raise _not_finite(batch.keys) from error


def _update(optimizer: torch.optim.Optimizer, clip_grad: float, passes: Sequence[Batch], bad_keys: list[str]) -> float:
    """Clip the gradient and update; returns the norm. `bad_keys`: rows of this rank whose loss is not finite."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, clip_grad or math.inf))
    if not math.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        keys = [key for rank_keys in distributed.gather_objects(bad_keys) for key in rank_keys]
        raise _not_finite(keys or [key for batch in passes for key in batch.keys])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def with_below(model: ITSL, batch: Batch) -> Batch:
    """The batch with its states below the adapted layers (`Llama.lower`), so that several passes do not compute them again."""
    if batch.below is not None or not model.llama.lowest:
        return batch
    with torch.no_grad():
        return replace(batch, below=model.llama.lower(batch.tokens, batch.positions, batch.segments))


def _not_finite(keys: Sequence[str]) -> TrainingError:
    return TrainingError(
        f"the loss or its gradient is not finite for a batch with {', '.join(keys[:8])}"
        f"{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}; no weight was changed and no checkpoint overwritten. "
        f"Lower --blr, raise --warmup_epochs, or try --dtype float32; if it happens again, check these rows' embeddings"
    )
