"""The training step, the epoch, the evaluation. One wrapped forward pass for every backward pass.

    loss = w_intent * CE(intent head) + w_rationale * NLL(answer tokens) + w_caption * NLL(tokens of captions mixed in)
           + w_contrast * contrast(answers with their own clip, with another's) + lambda * self-critical loss (sampled answers)
All are sums over all rows of a step, on every rank and in every forward pass, over their number there; so the gradient does
not depend on how the rows were shared out.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from imagebind_llm import distributed, metrics
from imagebind_llm.corpus.batches import Collator, by_length, load, shares, steps_of_epoch, with_captions, with_others
from imagebind_llm.corpus.packing import joined, packed, split, with_other_clips
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.self_critical import Critic, SampledAnswers
from imagebind_llm.itsl.generate import NotFiniteError
from imagebind_llm.itsl.losses import contrast, intent_cross_entropy, rationale_nll
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import IGNORE, Batch, Output
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.sums import RunningSums
from imagebind_llm.training.schedule import lr_at, peak_lr
from imagebind_llm.training.settings import TrainSettings

RESAMPLES = 500  # of dev rows, for the standard error of its macro F1
HEADED_ROWS = 2  # a prompt costs about a sixtieth of a clip whose four answers are sampled and scored


class TrainingError(ValueError):
    """Training cannot go on; the message says why and what to change."""


# --- one step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What a whole step's losses are divided by, over all ranks and passes: its answer tokens, its known intents, the clips
    among these whose answers may be criticised (not those that are prompts alone), the tokens of captions mixed in, and the
    answers that are held against another clip."""

    tokens: int
    intents: int
    clips: int
    captions: int = 0
    contrasted: int = 0


def counts_of(rows: Sequence[Ids]) -> Counts:
    tokens = [sum(len(row.ids) - row.n_prompt for row in rows if row.caption == caption) for caption in (False, True)]
    labelled = [row for row in rows if row.intent is not None]
    contrasted = sum(row.other is not None for row in rows)
    return Counts(tokens[0], len(labelled), sum(len(row.ids) > row.n_prompt for row in labelled), tokens[1], contrasted)


class Sums(RunningSums):
    """Sums of one rank over what the model was trained on; `tokens` are all, prompts too, without padding."""

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
        """Per answer token and per known intent; what there is none of is left out."""
        ratios = {
            "nll": ("nll", "answer_tokens"),
            "caption_nll": ("caption_nll", "caption_tokens"),
            "contrast": ("contrast", "contrasted"),
            "cross_entropy": ("cross_entropy", "intents"),
            "accuracy": ("right", "intents"),
        }
        return {name: self[total] / self[count] for name, (total, count) in ratios.items() if self[count]}


def by_kind(batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """The targets (B,T) of answers, and those of captions mixed in (None if the batch has none)."""
    if batch.captions is None:
        return mask, None
    return mask & ~batch.captions[:, None], mask & batch.captions[:, None]


@dataclass(frozen=True)
class CriticStep:
    """The self-critical part of one step: lambda, and the generator whose seed the draws follow from."""

    critic: Critic
    weight: float
    generator: torch.Generator
    sums: CriticSums


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    passes: Sequence[Batch],
    counts: Counts,
    settings: TrainSettings,
    sums: Sums,
    critic: CriticStep | None = None,
) -> float:
    """Forward and backward of every pass, one update; adds to `sums`. Returns the gradient's norm, alike on every rank.

    With a critic, answers are sampled first; references and samples go through the model together.

    Raises TrainingError, before anything is changed, if the gradient is not finite.
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
            (loss * ranks).backward()  # wrapped models average over ranks, losses are sums over them
        if not math.isfinite(float(loss.detach())):
            bad_keys += batch.keys
        with torch.no_grad():
            sums.add(batch, output.logp, output.mask, output.intent_logits)
    return _update(optimizer, settings.clip_grad, passes, bad_keys)


def supervised_loss(
    batch: Batch, output: Output, swapped: Tensor, counts: Counts, settings: TrainSettings, sums: Sums
) -> Tensor:
    """A pass's share of a step's loss on references: answers, captions mixed in, contrast, intents; the contrast is added to
    `sums`. swapped: log p of the contrasted answers with another clip, no rows if there are none."""
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
    """One forward pass for references and samples: the output for the references, and the pass's share of a step's
    self-critical loss, which is a mean over the answers of the step."""
    itsl = cast(ITSL, distributed.unwrap(model))
    rows = packed(batch, sampled.scored, sampled.owners)
    wide = with_below(itsl, rows.batch)
    output = model(wide, checkpoint=settings.checkpoint_activations)
    before = rows.answers(critic.critic.at_the_start(itsl, wide))
    criticism = critic.critic.loss(sampled, rows.answers(output), rows.asked, before, critic.sums)
    n_answers = counts.clips * critic.critic.settings.samples  # of the step
    return rows.rows(output), critic.weight * criticism * len(sampled.answers) / n_answers


def _sampled(model: nn.Module, batch: Batch, critic: CriticStep | None) -> SampledAnswers | None:
    if critic is None:
        return None
    try:
        return critic.critic.sample(cast(ITSL, distributed.unwrap(model)), batch, critic.generator)
    except NotFiniteError as error:  # on this rank; torchrun ends the others
        raise _not_finite(batch.keys) from error


def _update(optimizer: torch.optim.Optimizer, clip_grad: float, passes: Sequence[Batch], bad_keys: list[str]) -> float:
    """Clip the gradient and take the step; returns the norm. `bad_keys`: rows of this rank whose loss is not finite."""
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
    """The batch with its states below the adapted layers, so that several passes need not compute them again."""
    if batch.below is not None or not model.llama.lowest:
        return batch
    with torch.no_grad():
        return replace(batch, below=model.llama.lower(batch.tokens, batch.positions, batch.segments))


def _not_finite(keys: Sequence[str]) -> TrainingError:
    return TrainingError(
        f"the loss or its gradient is not finite for a batch with {', '.join(keys[:8])}"
        f"{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}; no weight was changed and no checkpoint overwritten. "
        f"Lower --blr, lengthen --warmup_epochs, or try --dtype float32; look at these rows' embeddings if it is always they"
    )


# --- an epoch ---------------------------------------------------------------------------------------------------------


@dataclass
class Position:
    """How far a run has come; with the weights and the optimizer, all that resuming needs."""

    epoch: int = 0  # the one that is being trained
    step: int = 0  # inside it
    total: int = 0  # since the start
    sums: Sums = field(default_factory=Sums)  # of the running epoch, this rank's
    critic: CriticSums = field(default_factory=CriticSums)


@dataclass(frozen=True)
class Moment:
    """What a console line shows."""

    position: Position
    steps: int  # of the epoch
    lr: float
    norm: float
    tokens_per_s: float


@dataclass(frozen=True)
class ExtraRows:
    """Rows that go through the model beside those that are trained on.

    captions: one for every two rows of a step (batches.with_captions), weighted by --w_caption.
    prompts: rows without answers, HEADED_ROWS of which are drawn for each row of a step and supervise the intent head, so that
        it does not overfit to the few rows that are criticised. They have a pass of their own, at a prompt's cost.
    """

    captions: Sequence[Ids] = ()
    prompts: Sequence[Ids] = ()


def train_one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sequences: Sequence[Ids],
    collate: Collator,
    settings: TrainSettings,
    device: torch.device,
    position: Position,
    critic: Critic | None = None,
    extra: ExtraRows | None = None,
) -> Iterator[Moment]:
    """Train from `position` to the end of its epoch, yielding after every step; `position` always says what is done."""
    extra = extra or ExtraRows()
    steps, sequences = _epoch_plan(sequences, extra.captions, settings, position.epoch)
    ranks, rank, passes = distributed.world_size(), distributed.rank(), settings.accum_iter
    plan = [rows for step in steps[position.step :] for rows in shares(step, ranks, passes)[rank]]
    batches = iter(load(sequences, plan, collate, settings.num_workers, device))
    model.train()
    while position.step < len(steps):
        started, tokens_before = time.perf_counter(), position.sums["tokens"]
        moment = position.epoch + position.step / len(steps)
        lr = _set_lr(optimizer, lr_at(moment, peak_lr(settings, ranks), settings))
        step_batches = [next(batches).to(device) for _ in range(passes)]
        headed = _drawn_rows(extra.prompts, HEADED_ROWS * len(steps[position.step]), settings.seed, position)
        if headed:
            share = headed[rank::ranks]
            step_batches.insert(0, (collate(share) if share else collate.without_targets(headed[0])).to(device))
        counts = counts_of([*(sequences[row] for row in steps[position.step]), *headed])
        weight = critic.weight(moment) if critic else 0.0
        step = CriticStep(critic, weight, _draws(settings, position), position.critic) if critic and weight else None
        norm = train_step(model, optimizer, step_batches, counts, settings, position.sums, step)
        position.step, position.total = position.step + 1, position.total + 1
        tokens_per_s = (position.sums["tokens"] - tokens_before) * ranks / (time.perf_counter() - started)
        yield Moment(position, len(steps), lr, norm, tokens_per_s)


def _epoch_plan(
    sequences: Sequence[Ids], captions: Sequence[Ids], settings: TrainSettings, epoch: int
) -> tuple[list[list[int]], Sequence[Ids]]:
    """The rows of every step of an epoch, as places among the sequences that are returned, captions mixed in at their end."""
    rows_a_step = settings.batch_size * settings.accum_iter * distributed.world_size()
    steps = steps_of_epoch([len(row.ids) for row in sequences], rows_a_step, settings.seed, epoch)
    if settings.w_contrast:
        sequences = with_others(steps, sequences, settings.seed, epoch)
    if captions:
        steps = with_captions(steps, len(sequences), len(captions), settings.seed, epoch)
        sequences = [*sequences, *captions]
    return steps, sequences


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Give each group its share of the schedule's learning rate, which is returned."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def _drawn_rows(rows: Sequence[Ids], count: int, seed: int, position: Position) -> list[Ids]:
    """So many of the rows, or none of none: drawn anew in every step, the same on every rank and after resuming."""
    if not rows:
        return []
    generator = torch.Generator().manual_seed(seed * 1_000_003 + position.total)
    return [rows[i] for i in torch.randint(len(rows), (count,), generator=generator).tolist()]


def _draws(settings: TrainSettings, position: Position) -> torch.Generator:
    """A seed that depends on (seed, epoch, step) alone, so that resuming draws the same answers, on any number of ranks."""
    parts = (settings.seed, position.epoch, position.step)
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


# --- evaluation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    model: ITSL, sequences: Sequence[Ids], collate: Collator, device: torch.device, batch_size: int, num_workers: int = 0
) -> tuple[dict[str, float], list[bool]]:
    """Teacher-forced scores of a split, every row once, whatever the number of ranks: nll per answer token and, where intents
    are known, cross_entropy, accuracy and macro_f1 of the intent head (over the classes that occur), and as macro_f1_se its
    standard error: the standard deviation over bootstrap samples of the rows.

    Also returned: whether the head was right, for each row with a known intent, in order.
    """
    if not sequences:
        return {}, []
    model.eval()
    plan = by_length([len(row.ids) for row in sequences], batch_size)[distributed.rank() :: distributed.world_size()]
    sums, predicted = Sums(), []
    for rows, batch in zip(plan, load(sequences, plan, collate, num_workers, device), strict=True):
        output = model(batch.to(device))
        sums.add(batch.to(device), output.logp, output.mask, output.intent_logits)
        if output.intent_logits is not None:
            predicted += list(zip(rows, output.intent_logits.argmax(1).tolist(), strict=True))
    scores = sums.over_ranks().means()
    guesses = sorted(pair for rank_pairs in distributed.gather_objects(predicted) for pair in rank_pairs)
    pairs = [(gold, guess) for row, guess in guesses if (gold := sequences[row].intent) is not None]
    if pairs:
        gold, predicted_classes = torch.tensor(pairs).T.numpy()
        scores["macro_f1"] = metrics.scores(gold, predicted_classes)["macro_f1"]
        scores["macro_f1_se"] = float(metrics.resampled(gold, predicted_classes[None], RESAMPLES)["macro_f1"].std())
    return scores, [gold == guess for gold, guess in pairs]
