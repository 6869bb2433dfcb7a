"""A training run on disk: start or resume, save, and the state of the self-critical loss.

OUTPUT_DIR/{last, best} (checkpoint.py)   reference.safetensors, judges/   log.txt, steps.jsonl, curves.html (log.py)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors

from imagebind_llm import distributed
from imagebind_llm.corpus.seen import save_stages, summary
from imagebind_llm.corpus.sequences import Corpus
from imagebind_llm.critic.judge import Judge
from imagebind_llm.critic.judge_fit import NAMES, open_judges
from imagebind_llm.critic.verifier import Verifier, VerifierError, fit_verifier
from imagebind_llm.files import write_atomic
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import Assembled
from imagebind_llm.training import resume
from imagebind_llm.training.epoch import Moment, Position
from imagebind_llm.training.frozen_states import FrozenStates, cached_states
from imagebind_llm.training.log import Log, say, shown_scores
from imagebind_llm.training.progress import Progress
from imagebind_llm.training.settings import TrainSettings

REFERENCE = "reference.safetensors"
JUDGES = "judges"  # a folder


class Run:
    """A run in its output folder, with its `progress`, its `log` and its checkpoints."""

    def __init__(self, settings: TrainSettings, assembled: Assembled, optimizer: torch.optim.Optimizer, corpus: Corpus):
        """Resume from OUTPUT_DIR/last if it exists and --resume is auto. Raises CheckpointError if that is another run."""
        self.settings, self.assembled, self.optimizer, self.corpus = settings, assembled, optimizer, corpus
        self.root = Path(settings.output_dir)
        explained = any(row.rationale for row in corpus.splits.get("dev", []))
        self.progress = Progress(settings, likelihood_decides=bool(settings.w_rationale and explained))
        self._about = resume.describe(settings, assembled, corpus)
        self._judges: tuple[Judge, Judge] | None = None
        resume.refuse_folders_apart(self.root)
        if distributed.is_main():
            checkpoint.probe(self.root)
        if settings.resume == "no":
            self._start_over()
        elif name := distributed.from_main(checkpoint.linked(self.root / "last")):
            self._continue(name)
        resume.refuse_steps_apart(self.root, self.position)
        self.log = Log(self.root, settings, self.position)

    def _start_over(self) -> None:
        if distributed.is_main():
            checkpoint.clear(self.root)
        distributed.barrier()

    def _continue(self, name: str) -> None:
        info = resume.read_info(self.root, name, self._about)
        resume.read_weights(self.assembled.model, self.root / name)
        resume.read_moments(self.assembled.model, self.optimizer, self.root / name)
        self.progress.read(info)
        say(f"continuing {self.root / 'last'}: epoch {info['epoch']}, step {info['step']}")

    @property
    def position(self) -> Position:
        return self.progress.position

    # --- steps and epochs ---------------------------------------------------------------------------------------------

    def end_step(self, moment: Moment) -> None:
        """Log a step, and save after every --save_steps within an epoch. Collective."""
        self.progress.end_step()
        self.log.step(moment)
        if self.position.step % self.settings.save_steps == 0 and self.position.step < moment.steps:
            self.save()

    def end_epoch(self, scores: dict[str, dict[str, float]], right: list[bool]) -> None:
        """Record an epoch's scores {"train": ..., "dev": ...}, save, and write the log. Collective.

        right: for each dev row, whether the head is right.
        """
        best, warning = self.progress.end_epoch(scores, right)
        if warning:
            say(warning)
        self.save(best)
        self.log.epoch(self.progress.history, best, self.position)

    def save(self, best: bool = False) -> None:
        """Write a checkpoint on the main rank. Collective."""
        progress = self.progress.saved()
        if distributed.is_main():
            info = self._about | progress | {"commit": checkpoint.code_commit(), **summary(self.corpus.stages)}
            moments = resume.moments(self.assembled.model, self.optimizer)
            step = self.position.total
            checkpoint.save(self.root, step, self.assembled.adapter(), moments, info, best, self._write_beside)
        distributed.barrier()

    def _write_beside(self, folder: Path) -> None:
        """Write further files of a checkpoint: the rows that were seen, the verifier and the judges."""
        save_stages(folder, self.corpus.stages)
        if self.verifier is not None:
            self.verifier.save(folder)
        for name, judge in zip(NAMES, self._judges or (), strict=False):
            judge.save(folder, name)

    @contextmanager
    def frozen_states(self, device: torch.device) -> Iterator[FrozenStates | None]:
        """The cached states below the adapted layers of every row, or None, see `cached_states`."""
        head_rows = self.corpus.head_rows if self.settings.w_critic else []
        rows = [*self.corpus.train_rows, *self.corpus.caption_rows, *head_rows, *self.corpus.splits.get("dev", [])]
        cache_gb = 0.0 if self.progress.finished else self.settings.cache_gb
        llama, batch_size = self.assembled.model.llama, 2 * self.settings.batch_size
        with cached_states(self.root, rows, llama, cache_gb, device, batch_size) as states:
            self.log.start_clock(self.position)
            yield states

    # --- the self-critical loss ---------------------------------------------------------------------------------------

    def begin_criticism(self, evaluate_dev: Callable[[], tuple[dict[str, float], list[bool]]]) -> None:
        """Load the best supervised model, store it as the reference of the self-critical loss, and record its dev scores.

        evaluate_dev: evaluates the model on dev, as `evaluate` does.
        """
        best, last = distributed.from_main([checkpoint.linked(self.root / name) for name in ("best", "last")])
        if best and best != last:
            resume.read_weights(self.assembled.model, self.root / best)
            self.optimizer.state.clear()  # its moments belong to the last weights, not to the best
        if distributed.is_main():
            frozen = {name: p.detach().cpu().contiguous() for name, p in self.trained().items()}
            write_atomic(self.root / REFERENCE, save_tensors(frozen))
        scores, right = evaluate_dev()
        self.progress.begin_criticism(scores, right)
        dev = f"dev before it: {shown_scores(scores)}" if scores else "there is no dev split to guard it by"
        say(f"self-critical loss from here on; {dev}")
        self.save(best=True)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.assembled.model.named_parameters() if p.requires_grad}

    def reference(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name as they were when the self-critical loss began."""
        tensors = checkpoint.read_tensors(self.root, REFERENCE)
        return {name: tensors[name].to(p.device) for name, p in self.trained().items()}

    def judges(self, device: torch.device) -> tuple[Judge, Judge] | None:
        """The rewarding and the watching judge, or None if no judge is needed. Prints their figures once. Collective."""
        settings = self.settings
        if self._judges is None and settings.critic.judges and self.corpus.store is not None:
            folder = self.root / JUDGES
            self._judges = open_judges(folder, self.corpus, settings.encoder_weights, settings.seed, device, say)
        return self._judges

    @cached_property
    def verifier(self) -> Verifier | None:
        """The verifier, fitted on train's reference rationales; None if there are none. Prints its check on dev.

        With too few rationales it is None too, or VerifierError is raised if the self-critical loss needs it.
        """
        taxonomy = self.corpus.taxonomy
        train, dev = (self._rationales(split) for split in ("train", "dev"))
        if taxonomy is None or not train[0]:
            return None
        try:
            verifier = fit_verifier(*train, taxonomy, dev if dev[0] else None)
        except VerifierError as error:
            if self.settings.w_critic:
                raise
            say(f"no verifier: {error}")
            return None
        if verifier.dev:
            say(verifier.dev.sentence())
        return verifier

    def _rationales(self, split: str) -> tuple[list[str], list[str]]:
        """Reference rationales of a split and their intents."""
        rows = [row for row in self.corpus.splits.get(split, []) if row.rationale and row.intent is not None]
        labels = self.corpus.taxonomy.labels if self.corpus.taxonomy else ()
        return [row.rationale or "" for row in rows], [labels[row.intent or 0] for row in rows]
