"""One training run on disk: continue or start, save, log; and what it ends with.

OUTPUT_DIR/{last, best} (checkpoint.py)   log.txt: one JSON an epoch   steps.jsonl   curves.html   tensorboard/
"""

import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from imagebind_llm import distributed
from imagebind_llm.corpus.seen import save_stages, summary
from imagebind_llm.corpus.sequences import Corpus
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.judge import Judge
from imagebind_llm.critic.judge_fit import NAMES, open_judges
from imagebind_llm.critic.rewards import TRUTH, column
from imagebind_llm.critic.verifier import Verifier, VerifierError, fit_verifier
from imagebind_llm.files import write_atomic
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import Assembled
from imagebind_llm.itsl.checkpoint import CheckpointError
from imagebind_llm.training.choice import Choice, Guard
from imagebind_llm.training.console import clock, epoch_line, memory, shown_scores
from imagebind_llm.training.continuation import differences, digest_of_rationales, digest_of_vectors, sums_of_rank
from imagebind_llm.training.curves import STEPS, draw
from imagebind_llm.training.engine import Moment, Position, Sums
from imagebind_llm.training.frozen_states import FrozenStates, compute_states, states_size
from imagebind_llm.training.settings import TrainSettings

REFERENCE = "reference.safetensors"
JUDGES = "judges"  # a folder
QUIET = {"advantage", "distinct_2", "reward_format"}  # in the log, not on the console
FREE = {
    "resume",
    "num_workers",
    "device",
    "log_steps",
    "save_steps",
    "output_dir",
    "patience",
    "cache_gb",
    "checkpoint_activations",
}  # may change on the way


class Run:
    """A run in its output folder: its position, its best epoch so far, its history."""

    def __init__(self, settings: TrainSettings, assembled: Assembled, optimizer: torch.optim.Optimizer, corpus: Corpus):
        """Continues from OUTPUT_DIR/last if there is one and --resume allows it. Raises CheckpointError if it does not fit."""
        self.settings, self.assembled, self.optimizer, self.corpus = settings, assembled, optimizer, corpus
        self.root = Path(settings.output_dir)
        self.position, self.choice, self.guard = Position(), Choice(), Guard()
        self.history: list[dict[str, Any]] = []
        self._about = self._describe()
        self._refuse_folders_apart()
        if distributed.is_main():
            checkpoint.probe(self.root)
        if settings.resume == "no":
            if distributed.is_main():
                checkpoint.clear(self.root)
            distributed.barrier()
        elif name := distributed.from_main(checkpoint.linked(self.root / "last")):
            self._continue(self.root / name)
        self._refuse_steps_apart()
        self._board = None
        self._judges: tuple[Judge, Judge] | None = None
        self._spoken = (time.perf_counter(), self.position.total)  # when the last line was, and after which step
        self._summed = (Sums(self.position.sums), CriticSums(self.position.critic))  # and the sums of the epoch by then
        self._noted = CriticSums(self.position.critic)  # and those by the last step

    @property
    def finished(self) -> bool:
        """All epochs are done, or dev has not become better for --patience of them and nothing else is to begin."""
        waiting = self.settings.w_critic and self.guard.began is None
        return self.position.epoch >= self.settings.epochs or self.guard.stops or (self._stale and not waiting)

    @property
    def criticises(self) -> bool:
        """Whether it is time for the self-critical loss: after --critic_start epochs, or once dev becomes no better."""
        begins = self.settings.w_critic and (self.position.epoch >= self.settings.critic_start or self._stale)
        return self.guard.began is not None or bool(begins)

    @property
    def _stale(self) -> bool:
        return bool(self.settings.patience and self.choice.stale >= self.settings.patience)

    @contextmanager
    def frozen_states(self, device: torch.device) -> Iterator[FrozenStates | None]:
        """States below the adapted layers of every row, if they fit into --cache_gb and save time; gone afterwards."""
        headed = self.corpus.headed if self.settings.w_critic else []
        rows = [*self.corpus.taught, *self.corpus.mixed, *headed, *self.corpus.splits.get("dev", [])]
        llama = self.assembled.model.llama
        size = states_size(rows, llama)
        if not 0 < size <= self.settings.cache_gb * 1e9 or self.finished:
            if size and self.settings.cache_gb and not self.finished:
                needed = math.ceil(size / 1e8) / 10
                self.say(
                    f"--cache_gb {self.settings.cache_gb:g} is too little for the states below the adapted layers: every pass "
                    f"computes them again; --cache_gb {needed:g} would hold them"
                )
            yield None
            return
        path = self.root / f"frozen-states-{distributed.node()}.tmp"
        try:
            states = compute_states(path, rows, llama, device, 2 * self.settings.batch_size)
            self._spoken = (time.perf_counter(), self.position.total)
            yield states
        finally:
            if distributed.node_rank() == 0:
                path.unlink(missing_ok=True)

    def reference(self) -> dict[str, torch.Tensor]:
        """The frozen copy of the trained tensors as they were when criticism began."""
        found = checkpoint.read_tensors(self.root, REFERENCE)
        return {name: found[name].to(p.device) for name, p in self.trained().items()}

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.assembled.model.named_parameters() if p.requires_grad}

    @cached_property
    def verifier(self) -> Verifier | None:
        """Fitted on train's reference rationales alone; None if there are none, or too few and nothing depends on it. Says
        whether it is to be trusted. Raises VerifierError if they are too few for the self-critical loss."""
        taxonomy = self.corpus.taxonomy
        train, dev = (self._told(split) for split in ("train", "dev"))
        if taxonomy is None or not train[0]:
            return None
        try:
            verifier = fit_verifier(*train, taxonomy, dev if dev[0] else None)
        except VerifierError as error:
            if self.settings.w_critic:
                raise
            self.say(f"no verifier: {error}")
            return None
        if verifier.dev:
            self.say(verifier.dev.sentence())
        return verifier

    def judges(self, device: torch.device) -> tuple[Judge, Judge] | None:
        """The judge that pays and the one that watches, where anything depends on them; said how good they are. Collective."""
        if self._judges is None and self.settings.critic.judges and self.corpus.store is not None:
            settings = self.settings
            self._judges = open_judges(
                self.root / JUDGES, self.corpus, settings.encoder_weights, settings.seed, device, self.say
            )
        return self._judges

    def _told(self, split: str) -> tuple[list[str], list[str]]:
        """Reference rationales of a split and the intents that they argue for."""
        rows = [row for row in self.corpus.splits.get(split, []) if row.rationale and row.intent is not None]
        labels = self.corpus.taxonomy.labels if self.corpus.taxonomy else ()
        return [row.rationale or "" for row in rows], [labels[row.intent or 0] for row in rows]

    def _write_beside(self, folder: Path) -> None:
        """What belongs to the weights: the rows that they have seen, and the verifier."""
        save_stages(folder, self.corpus.seen)
        if self.verifier is not None:
            self.verifier.save(folder)
        for name, judge in zip(NAMES, self._judges or (), strict=False):
            judge.save(folder, name)

    # --- saving and continuing ----------------------------------------------------------------------------------------

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of this moment (on the main rank). Collective: every rank calls it."""
        sums = distributed.gather_objects([dict(self.position.sums), dict(self.position.critic)])
        if distributed.is_main():
            info = self._about | {
                "epoch": self.position.epoch,
                "step": self.position.step,
                "total": self.position.total,
                "sums": sums,
                "choice": vars(self.choice),
                "guard": asdict(self.guard),
                "history": self.history,
                "commit": checkpoint.code_commit(),
                **summary(self.corpus.seen),
            }
            checkpoint.save(
                self.root,
                self.position.total,
                self.assembled.adapter(),
                self._optimizer_tensors(),
                info,
                best,
                self._write_beside,
            )
        distributed.barrier()

    def begin_criticism(self, look: Callable[[], tuple[dict[str, float], list[bool]]]) -> None:
        """Go back to the best supervised model and remember it as the one to be criticised: its weights, and what `look` says
        of it on dev, as `evaluate` does."""
        best, last = distributed.from_main([checkpoint.linked(self.root / name) for name in ("best", "last")])
        if best and best != last:
            self._read_weights(self.root / best)
            self.optimizer.state.clear()  # its moments are of the weights that are left behind
        if distributed.is_main():
            frozen = {name: p.detach().cpu().contiguous() for name, p in self.trained().items()}
            write_atomic(self.root / REFERENCE, save_tensors(frozen))
        scores, right = look()
        self.guard = Guard(self.position.epoch, right)
        self.choice = Choice()
        self._offer(scores)
        known = f"dev before it: {shown_scores(scores)}" if scores else "there is no dev split to guard it by"
        self.say(f"self-critical loss from here on; {known}")
        self.save(best=True)

    def _read_weights(self, folder: Path) -> None:
        parameters = dict(self.assembled.model.named_parameters())
        with torch.no_grad():
            for name, tensor in checkpoint.read_tensors(folder).items():
                parameters[name].copy_(tensor)

    def end_epoch(self, scores: dict[str, dict[str, float]], right: list[bool]) -> None:
        """Record an epoch's scores ({"train": ..., "dev": ...}), keep it if it is the best, and write the log.

        `right`: for each dev row, whether the head was. Once answers are criticised, an epoch is kept unless the guard objects,
        since what they gain does not show in the head's score.
        """
        self.history.append({"epoch": self.position.epoch, "step": self.position.total, **scores})
        better = self._offer(scores.get("dev", {}))
        if self.guard.began is not None:
            better = self.guard.passes(right)
            if not self.guard.agrees():
                better = False
                self.say("the paying judge has seen answers get truer and the watching one has not: what rises is not truth")
        self.position = Position(self.position.epoch + 1, 0, self.position.total)
        self._summed, self._noted = (Sums(), CriticSums()), CriticSums()
        self.save(best=better)
        if distributed.is_main():
            write_atomic(self.root / "log.txt", "".join(json.dumps(row) + "\n" for row in self.history).encode())
            self.say(epoch_line(self.history[-1], better))
            draw(self.root, self.history)
            for split, found in scores.items():
                for name, value in found.items():
                    self.board.add_scalar(f"{split}/{name}", value, self.position.total)
            self.board.flush()
        self._spoken = (time.perf_counter(), self.position.total)

    def _offer(self, scores: dict[str, float]) -> bool:
        """Whether these dev scores are the best. Without rationales macro F1 alone decides: the answer is but a label."""
        reasons = self.settings.w_rationale and any(row.rationale for row in self.corpus.splits.get("dev", []))
        return self.choice.offer(scores, likelihood_decides=bool(reasons))

    def _continue(self, folder: Path) -> None:
        seen = distributed.gather_objects((folder / checkpoint.INFO).is_file())
        if any(seen) and not all(seen):
            raise CheckpointError(f"{folder}: only some of the machines see it; wait until all do, then start again")
        info = checkpoint.read_info(folder)
        self._refuse_other_settings(self.root / "last", info)
        self._read_weights(folder)
        state = checkpoint.read_tensors(folder, checkpoint.OPTIMIZER)
        for name, parameter in self.assembled.model.named_parameters():
            if f"{name}.exp_avg" in state:
                moments = {part: state[f"{name}.{part}"].to(parameter.device) for part in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = moments
        losses, critic = sums_of_rank(info, distributed.rank(), distributed.world_size())
        self.position = Position(info["epoch"], info["step"], info["total"], Sums(losses), CriticSums(critic))
        self.guard = Guard(**info["guard"])
        self.choice, self.history = Choice(**info["choice"]), info["history"]
        self.say(f"continuing {self.root / 'last'}: epoch {info['epoch']}, step {info['step']}")

    def _refuse_folders_apart(self) -> None:
        """Raise CheckpointError if --output_dir is not one folder for all ranks, as on disks that machines have each."""
        if distributed.world_size() == 1:
            return
        token = self.root / f".{distributed.gather_objects(uuid.uuid4().hex)[0]}.tmp"
        if distributed.is_main():
            self.root.mkdir(parents=True, exist_ok=True)
            token.touch()
        distributed.barrier()
        seen = distributed.gather_objects(token.exists())
        if distributed.is_main():
            token.unlink()
        if not all(seen):
            raise CheckpointError(
                f"--output_dir {self.root}: expected a folder that all machines see; give one on a shared disk"
            )

    def _refuse_steps_apart(self) -> None:
        """Raise CheckpointError if ranks would go on from different steps: a machine may see an older state of the disk."""
        at = self.position
        steps = distributed.gather_objects((at.epoch, at.step, at.total))
        apart = next((rank for rank, step in enumerate(steps) if step != steps[0]), None)
        if apart is not None:
            seen = ", ".join("rank {}: epoch {}, step {}, {} in all".format(rank, *steps[rank]) for rank in (0, apart))
            raise CheckpointError(
                f"{self.root}: expected one checkpoint for all ranks, got different ones ({seen}); "
                "wait until all machines see the same files there, then start again"
            )

    def _refuse_other_settings(self, folder: Path, info: dict[str, Any]) -> None:
        other = differences(info, self._about, FREE)
        if other:
            raise CheckpointError(
                f"{folder} was made with other settings ({', '.join(other)});"
                " give another --output_dir, or start over with --resume no"
            )

    def _describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for split, rows in self.corpus.splits.items():
            digest.update(repr((split, [(row.key, row.ids, row.intent) for row in rows])).encode())
        if self.corpus.captions:
            digest.update(repr(self.corpus.captions).encode())
        store = self.corpus.store
        return {
            "settings": json.loads(json.dumps(asdict(self.settings))),
            "model": checkpoint.config_to_json(self.assembled.config),
            "llama": self.assembled.llama,
            "start": self.assembled.start,
            "data": digest.hexdigest()[:16],
            "rationales": digest_of_rationales(self.corpus),
            "vectors": digest_of_vectors(self.corpus),
            "taxonomy": self.corpus.taxonomy.described() if self.corpus.taxonomy else None,
            "modalities": list(self.settings.modalities),
            "store": json.loads(json.dumps(asdict(store.identity))) if store else None,
            "world_size": distributed.world_size(),
        }

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{part}": value.detach().cpu().contiguous()
            for name, parameter in self.assembled.model.named_parameters()
            for part, value in self.optimizer.state.get(parameter, {}).items()
        }

    # --- what a person sees -------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """One line, on the main rank."""
        if distributed.is_main():
            print(text, flush=True)

    @property
    def board(self):
        """TensorBoard's writer, made when it is first needed."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.root / "tensorboard"), purge_step=self.position.total)
        return self._board

    def _note(self, critic: CriticSums) -> None:
        """What both judges said in the last step, for the guard. Collective."""
        if not self.settings.critic.judges or self.guard.began is None:
            return
        step, self._noted = critic.since(self._noted).over_ranks(), CriticSums(critic)
        if step["judged"]:
            self.guard.note(step[column(TRUTH)] / step["judged"], step["watched"] / step["judged"])

    def line(self, moment: Moment) -> None:
        """The console line of a step, every --log_steps of them: means since the line before."""
        at = moment.position
        self._note(at.critic)
        if at.step % self.settings.log_steps and at.step != moment.steps:
            return
        losses, critic = at.sums.since(self._summed[0]), at.critic.since(self._summed[1])
        self._summed = (Sums(at.sums), CriticSums(at.critic))
        means = losses.over_ranks().means() | critic.over_ranks().means()
        if not distributed.is_main():
            return
        now = time.perf_counter()
        seconds = (now - self._spoken[0]) / max(at.total - self._spoken[1], 1)  # a step
        self._spoken = (now, at.total)
        left = ((self.settings.epochs - at.epoch) * moment.steps - at.step) * seconds
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items() if name not in QUIET)
        print(
            f"epoch {at.epoch} [{at.step}/{moment.steps}]  {shown}  lr {moment.lr:.2e}  grad {moment.norm:.2f}  "
            f"{moment.tokens_per_s:.0f} tokens/s  {memory()}  left {clock(left)}",
            flush=True,
        )
        values = means | {"lr": moment.lr, "grad_norm": moment.norm, "tokens_per_s": moment.tokens_per_s}
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / STEPS, "a") as file:
            file.write(json.dumps({"step": at.total, "epoch": at.epoch, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"step/{name}", value, at.total)
