"""A self-critical step of a run by part, on the run's own model, data and judges: sampling, judging, log-probabilities ...

    python benchmark.py --run runs/demo/ablation/blind/seed0/claims --rounds 3

The step is training.train_step itself, its parts timed from outside. One process takes all rows of a step; states below the
adapted layers are kept on disk as in a run, those of sampled answers computed in every step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from imagebind_llm import distributed, markdown
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import load_corpus
from imagebind_llm.critic.judge import ClauseVectors, Judge
from imagebind_llm.critic.judge_fit import NAMES
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.critic.verifier import Verifier
from imagebind_llm.itsl.assembly import build, open_language
from imagebind_llm.itsl.checkpoint import read_info
from imagebind_llm.training.epoch import ExtraRows, Position, train_one_epoch
from imagebind_llm.training.frozen_states import compute_states
from imagebind_llm.training.schedule import make_optimizer
from imagebind_llm.training.settings import TrainSettings

HEAD, SAMPLING, JUDGING, SCORING = "rows of the head", "sampling", "judging", "references and samples, forward and backward"
REFERENCE, OPTIMIZER = "log-probabilities at the start", "optimizer"
REST = "reading rows"


class Stopwatch:
    """Seconds by part; of parts inside one another only the innermost runs."""

    def __init__(self, device: torch.device):
        self.spent: dict[str, float] = {}
        self._device, self._open, self._since = device, [REST], time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, work: Callable, then: Callable[[Any], str] | None = None) -> Callable:
        """The same work, timed; `then`: which part begins after it, by what it returned (none: what ran before goes on)."""

        def timed_work(*args: Any, **named: Any) -> Any:
            with self.part(name):
                found = work(*args, **named)
            if then is not None:
                self._open[-1] = then(found)
            return found

        return timed_work

    def _turn(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent[self._open[-1]] = self.spent.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def step_by_part(run: Path, steps: int = 3) -> str:
    """A line of Markdown for each part: seconds of a step and share, means over `steps` after one that warms up.

    `run`: the output folder of a run with --w_critic whose claims were judged. Raises ValueError for any other."""
    info = read_info(run / "best")
    settings = TrainSettings.saved(info["settings"])
    rows = settings.batch_size * settings.accum_iter * info["world_size"]
    if not settings.w_critic or not (run / "best" / "judge.json").is_file():
        raise ValueError(f"--run {run}: expected a run with --w_critic and --credit claim, whose checkpoint has a judge")
    settings = replace(settings, pretrained_path=str(run / "best"), batch_size=rows, accum_iter=1, save_steps=10**9)
    device = torch.device(distributed.choose_device(settings.device))
    llama, tokenizer = open_language(settings.llama_model_path, settings.model)
    corpus = load_corpus(settings.corpus, tokenizer, min(settings.max_seq_len, llama.max_seq_len))
    assert corpus.store is not None and corpus.taxonomy is not None, "it was criticised, so there were clips and intents"
    model = build(settings.build, corpus.taxonomy, corpus.store.identity.width, device).model
    vectors = ClauseVectors.load(corpus.store.identity, settings.encoder_weights, device)
    judges = [Judge.load(run / "best", corpus.store, vectors, name) for name in NAMES]
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    verifier = Verifier.load(run / "best")
    critic = Critic(settings.critic, tokenizer, corpus.taxonomy, corpus.splits["train"], verifier, start, -1, *judges)
    optimizer = make_optimizer(model, settings.weight_decay, settings.gate_lr)
    watch = watched(critic, optimizer, device)
    with TemporaryDirectory() as folder:
        kept = [*corpus.train_rows, *corpus.caption_rows, *corpus.head_rows]
        states = compute_states(Path(folder) / "states.tmp", kept, model.llama, device, 2 * rows)
        collate, extra = Collator(corpus.store, corpus.modalities, states), ExtraRows(corpus.caption_rows, corpus.head_rows)
        trained = train_one_epoch(model, optimizer, corpus.train_rows, collate, settings, device, Position(), critic, extra)
        next(trained)  # it warms up
        watch.spent.clear()
        done = len(list(islice(trained, steps)))
    if not done:
        raise ValueError(f"--run {run}: its epochs have a single step, which warms up; nothing is left to time")
    total = sum(watch.spent.values())
    lines = [[name, f"{s / done:.2f}", f"{100 * s / total:.0f}"] for name, s in watch.spent.items()]
    dtype = str(model.llama.tok_embeddings.weight.dtype).removeprefix("torch.")
    head = f"part of a step: {rows} clips, {settings.samples} samples each, {dtype}, {device}"
    return markdown.table([head, "s", "%"], [*lines, [f"all, mean of {done}", f"{total / done:.2f}", "100"]])


def watched(critic: Critic, optimizer: torch.optim.Optimizer, device: torch.device) -> Stopwatch:
    """Times the parts of every step from now on. A pass that samples nothing is that of the rows of the head."""
    watch = Stopwatch(device)
    critic.sample = watch.timed(  # type: ignore[method-assign]
        SAMPLING, critic.sample, lambda found: HEAD if found is None else SCORING
    )
    critic._judged = watch.timed(JUDGING, critic._judged)  # type: ignore[method-assign]
    critic.at_the_start = watch.timed(REFERENCE, critic.at_the_start)  # type: ignore[method-assign]
    optimizer.step = watch.timed(OPTIMIZER, optimizer.step, lambda _: REST)  # type: ignore[method-assign]
    return watch
