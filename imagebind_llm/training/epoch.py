"""Training for one epoch, and evaluation. A single step is in step.py."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from imagebind_llm import distributed, metrics
from imagebind_llm.corpus.batches import Collator, by_length, load, shares, steps_of_epoch, with_captions, with_others
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.training.schedule import lr_at, peak_lr
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import CriticStep, Sums, counts_of, train_step

RESAMPLES = 500  # bootstrap samples of dev rows, for the standard error of macro F1
HEAD_ROWS = 2  # a prompt costs about a sixtieth of a clip whose four answers are sampled and scored


@dataclass
class Position:
    """Position of a run; resuming needs it, the weights and the optimizer's state."""

    epoch: int = 0  # current epoch
    step: int = 0  # steps done in it
    total: int = 0  # steps done in all
    sums: Sums = field(default_factory=Sums)  # of the current epoch on this rank
    critic: CriticSums = field(default_factory=CriticSums)


@dataclass(frozen=True)
class Moment:
    """State after a step, for the log."""

    position: Position
    steps: int  # number of steps of the epoch
    lr: float
    norm: float  # of the gradient
    tokens_per_s: float


@dataclass(frozen=True)
class ExtraRows:
    """Rows in addition to the train rows.

    captions: one is added for every two rows of a step (batches.with_captions), weighted by --w_caption.
    prompts: rows without answers. HEAD_ROWS random ones per row of a step supervise the intent head in a separate pass, so that
        it does not overfit to the few rows of self-critical training.
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
    """Train from `position` to the end of its epoch. Updates `position` and yields after every step."""
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
        head_rows = _drawn_rows(extra.prompts, HEAD_ROWS * len(steps[position.step]), settings.seed, position)
        if head_rows:
            share = head_rows[rank::ranks]
            step_batches.insert(0, (collate(share) if share else collate.without_targets(head_rows[0])).to(device))
        counts = counts_of([*(sequences[row] for row in steps[position.step]), *head_rows])
        weight = critic.weight(moment) if critic else 0.0
        step = CriticStep(critic, weight, _draws(settings, position), position.critic) if critic and weight else None
        norm = train_step(model, optimizer, step_batches, counts, settings, position.sums, step)
        position.step, position.total = position.step + 1, position.total + 1
        tokens_per_s = (position.sums["tokens"] - tokens_before) * ranks / (time.perf_counter() - started)
        yield Moment(position, len(steps), lr, norm, tokens_per_s)


def _epoch_plan(
    sequences: Sequence[Ids], captions: Sequence[Ids], settings: TrainSettings, epoch: int
) -> tuple[list[list[int]], Sequence[Ids]]:
    """The row numbers of every step of an epoch, and the sequences that they number: rows, then captions mixed in."""
    rows_a_step = settings.batch_size * settings.accum_iter * distributed.world_size()
    steps = steps_of_epoch([len(row.ids) for row in sequences], rows_a_step, settings.seed, epoch)
    if settings.w_contrast:
        sequences = with_others(steps, sequences, settings.seed, epoch)
    if captions:
        steps = with_captions(steps, len(sequences), len(captions), settings.seed, epoch)
        sequences = [*sequences, *captions]
    return steps, sequences


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Set each group's learning rate to `lr` times its `lr_scale`; returns `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def _drawn_rows(rows: Sequence[Ids], count: int, seed: int, position: Position) -> list[Ids]:
    """`count` random rows (none if `rows` is empty), others in every step, the same on every rank and after resuming."""
    if not rows:
        return []
    generator = torch.Generator().manual_seed(seed * 1_000_003 + position.total)
    return [rows[i] for i in torch.randint(len(rows), (count,), generator=generator).tolist()]


def _draws(settings: TrainSettings, position: Position) -> torch.Generator:
    """A generator whose seed depends on (seed, epoch, step) only, so that a resumed run samples the same answers."""
    parts = (settings.seed, position.epoch, position.step)
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


# --- evaluation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    model: ITSL, sequences: Sequence[Ids], collate: Collator, device: torch.device, batch_size: int
) -> tuple[dict[str, float], list[bool]]:
    """Teacher-forced scores of a split, and for each row with a known intent whether the head is right. Collective.

    Scores are nll per answer token and, if intents are known, cross_entropy, accuracy and macro_f1 of the intent head (over the
    classes that occur), and macro_f1_se, its standard deviation over bootstrap samples of the rows. Every row counts once.
    """
    if not sequences:
        return {}, []
    model.eval()
    plan = by_length([len(row.ids) for row in sequences], batch_size)[distributed.rank() :: distributed.world_size()]
    sums, predicted = Sums(), []
    for rows, batch in zip(plan, load(sequences, plan, collate, 0, device), strict=True):
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
