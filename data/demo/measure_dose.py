"""The dose test: what claim-wise training gains from a judge that is right, wrong now and then, wrong half the time, or deaf.

    python data/demo/measure_dose.py --checkpoint runs/demo/ablation/blind/seed0/supervised/best

From one supervised checkpoint the self-critical loss trains as in the row "claims" of ablation.sh, once for each dose: every
verdict of the judge that pays is turned round (P to 1 - P) with that probability, the same ones in every step. A deaf judge is
never turned round, but looks at another clip. Before and after, the greedy answers to dev clips are held against what is never
wrong here: the judge that watches, and the true cues. No guard stops a run: it is to be seen what it does. Gains are paired by
clip; standard errors: bootstrap over clips. Continues with the dose at which it was interrupted.
    OUTPUT_DIR/{supervised, deaf, 0, 0.1, ...}.json    what each model says of the clips, and what that is worth
    OUTPUT_DIR/table.md, dose.html
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_table import ATYPICAL, CLAIMED, SEEN, TRUE, share
from measure_critic import continued, critic_of, fitted_judges, language_and_corpus
from torch import Tensor
from tqdm import tqdm

from imagebind_llm import distributed, markdown
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.critic.best_of import BestOf, GivenClips
from imagebind_llm.critic.judge import Judge
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.datasets.readers import DataError, load_dataset
from imagebind_llm.explain.explainer import Explainer, Question
from imagebind_llm.explain.scoring import cue_counts, read_rationales, require_tables
from imagebind_llm.files import write_atomic, write_json
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.html import bars, figure, page, table
from imagebind_llm.itsl.assembly import Assembled, build
from imagebind_llm.itsl.generate import uniform
from imagebind_llm.metrics import drawn_rows
from imagebind_llm.training.epoch import ExtraRows, Position, train_one_epoch
from imagebind_llm.training.schedule import make_optimizer
from imagebind_llm.training.settings import TrainSettings

START, DEAF = "supervised", "deaf"
SCORES = ("truth, by the watching judge", "cue precision", "atypical precision")
PAID = "paid, watched: truth of the last epoch's samples by the judge that pays and by the one that watches"


@dataclass(frozen=True)
class DoseSettings:
    """The flags of data/demo/measure_dose.py."""

    checkpoint: str = flag(help="supervised checkpoint folder that every run starts from")
    output_dir: str = flag("runs/demo/dose", "folder for results by dose, table and page")
    data_path: str = flag("data/demo/clips", "folder of the demo world")
    emb_path: str = flag("runs/demo/emb", "embedding store of --data_path")
    rationales: str = flag("", "rationales to train on; if not given, those of the checkpoint")
    captions: str = flag("", "captions for the judges; if not given, captions.json in the data folder")
    doses: tuple[float, ...] = flag((0.0, 0.1, 0.3, 0.5), "shares of the verdicts that are inverted")
    limit: int = flag(200, "number of train clips")
    epochs: int = flag(3, "epochs; the self-critical loss has its full weight from the second on")
    dev_limit: int = flag(0, "number of dev clips to explain, from the first; 0: all")
    batch_size: int = flag(8, "clips per step")
    seed: int = flag(0, "seed of row order, answers, judges and inverted verdicts")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    dtype: str = flag("auto", "dtype of frozen weights; auto: bfloat16 on a GPU, else float32", ("auto", "float32", "bfloat16"))

    def __post_init__(self) -> None:
        if wrong := [dose for dose in self.doses if not 0 <= dose <= 1]:
            raise ValueError(f"--doses {wrong[0]:g}: expected probabilities, 0 to 1")


class FlippedJudge(Judge):
    """Another judge, whose verdicts are turned round with a probability: always the same ones of a claim, as it is read, and a
    clip, and those of a smaller dose among those of a larger one."""

    def __init__(self, judge: Judge, dose: float, seed: int):
        super().__init__(judge.vectors, judge.store, judge.kind, judge.tensors, judge.modalities, judge.source, judge.fitted)
        self.dose, self.seed = dose, seed

    def score(self, claims: Sequence[str], key: str) -> Tensor:
        p = super().score(claims, key)
        chance = [float(uniform((self.seed, key, self.read(claim)[0]), (1,))) for claim in claims]
        return torch.where(torch.tensor(chance) < self.dose, 1 - p, p)


class DeafJudge(Judge):
    """Another judge that is asked about clips and looks at others: these, dealt in turn."""

    def __init__(self, judge: Judge, keys: Sequence[str], seed: int):
        super().__init__(judge.vectors, judge.store, judge.kind, judge.tensors, judge.modalities, judge.source, judge.fitted)
        order = np.random.default_rng(seed).permutation(keys).tolist()
        self.dealt = dict(zip(order, [*order[1:], order[0]], strict=True))

    def score(self, claims: Sequence[str], key: str) -> Tensor:
        return super().score(claims, self.dealt[key])


def main() -> int:
    settings = parse(DoseSettings, description=__doc__)
    again = "interrupted; start again to continue with this dose"
    return exit_code("measure_dose.py", lambda: print(measure(settings)), interrupted=again)


def measure(settings: DoseSettings) -> str:
    """Train and ask at every dose that is not done; the table, in Markdown."""
    root, free = Path(settings.output_dir), ("output_dir", "doses", "device")
    made_with = json.loads(json.dumps({name: value for name, value in asdict(settings).items() if name not in free}))
    names = [START, DEAF, *(f"{dose:g}" for dose in settings.doses)]
    found = {name: _done(root / f"{name}.json", made_with) for name in names}
    world = World(settings) if None in found.values() else None
    for name in names:
        if world is not None and found[name] is None:
            found[name] = {"made_with": made_with} | world.result(name)
            write_json(root / f"{name}.json", found[name], indent=None)
    return write_table(root, found)


def _done(path: Path, made_with: dict[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    if other := [name for name, value in made_with.items() if found["made_with"].get(name) != value]:
        raise DataError(f"{path} was made with another --{' --'.join(other)}; give another --output_dir")
    return found


class World:
    """What all doses share: corpus, settings of the training, and the clips that are asked about."""

    def __init__(self, settings: DoseSettings):
        self.settings, self.device = settings, torch.device(distributed.choose_device(settings.device))
        self.train = training_settings(settings)
        self.tokenizer, self.corpus = language_and_corpus(self.train)
        known = read_rationales(Path(settings.data_path, "rationales.jsonl"))
        dev = load_dataset(settings.data_path, ("dev",)).splits.get("dev", [])
        self.clips = [clip for clip in dev if clip.key in known and known[clip.key].cues][: settings.dev_limit or None]
        if not self.clips or self.corpus.store is None:
            raise DataError(f"{settings.data_path}: no clips of dev with embeddings and known cues; the demo world's have both")
        self.truths = [known[clip.key] for clip in self.clips]
        require_tables(self.truths)
        self.judges = fitted_judges(self.train, self.corpus)

    def result(self, name: str) -> dict[str, Any]:
        """Train with the judge of a name, or not at all, and ask."""
        width = self.corpus.store.identity.width  # type: ignore[union-attr]
        assembled = build(self.train.build, self.corpus.taxonomy, width, self.device)
        judge, watch = self.judges
        if name == DEAF:
            judge = DeafJudge(judge, [row.key for row in self.corpus.splits["train"] if row.embedded], self.settings.seed)
        elif name != START:
            judge = FlippedJudge(judge, float(name), self.settings.seed)
        log = {}
        if name != START:
            critic = critic_of(self.train, self.tokenizer, self.corpus, assembled.model, (judge, watch))
            log = self.criticised(name, assembled, critic)
        return self.asked(name, assembled, watch) | {"last_epoch": log}

    def criticised(self, name: str, assembled: Assembled, critic: Critic) -> dict[str, float]:
        """Train; returns what the log says of the answers of the last epoch."""
        train, corpus, position = self.train, self.corpus, Position()
        optimizer = make_optimizer(assembled.model, train.weight_decay, train.gate_lr)
        collate, extra = Collator(corpus.store, corpus.modalities), ExtraRows(corpus.caption_rows, corpus.head_rows)
        steps = -(-len(corpus.train_rows) // train.batch_size)
        with tqdm(total=train.epochs * steps, desc=f"training, {name}", unit="step") as bar:
            for epoch in range(train.epochs):
                position = Position(epoch, 0, epoch * steps)
                for _ in train_one_epoch(
                    assembled.model, optimizer, corpus.train_rows, collate, train, self.device, position, critic, extra
                ):
                    bar.update()
        return position.critic.means()

    def asked(self, name: str, assembled: Assembled, watch: Judge) -> dict[str, Any]:
        """The greedy answers to dev clips, what the watching judge makes of each, and the counts of their claims."""
        corpus, train = self.corpus, self.train
        assert corpus.store is not None and corpus.taxonomy is not None
        question = Question(corpus.taxonomy, corpus.modalities, train.max_seq_len, train.answer_order)
        explainer = Explainer(assembled, self.tokenizer, question)
        told = explainer.explain(self.clips, *corpus.store.read([clip.key for clip in self.clips]))
        texts = [one.rationale for one in tqdm(told, total=len(self.clips), desc=f"asking, {name}", unit="clip")]
        worth = BestOf(watch, GivenClips(corpus.store.identity), 1, 1.0)
        truth = [worth.truth(text, clip.key, corpus.taxonomy) for text, clip in zip(texts, self.clips, strict=True)]
        return {"answers": texts, "truth": truth, "counts": cue_counts(texts, self.truths).tolist()}


def training_settings(settings: DoseSettings) -> TrainSettings:
    """As the row "claims" of ablation.sh."""
    taken = ("data_path", "emb_path", "rationales", "captions", "limit", "epochs", "batch_size", "seed", "dtype")
    row = {"warmup_epochs": 0.2, "lr": 3e-4, "w_critic": 8.0, "w_rationale": 0.2, "reward_weights": "truth=1"}
    return continued(settings, taken, row)


# --- the table ----------------------------------------------------------------------------------------------------------


def drawn_scores(result: dict[str, Any], rows: np.ndarray) -> np.ndarray:
    """SCORES (R,3) of the answers to the clips that rows (R,N) name; not a number where nothing is claimed."""
    sums = np.array(result["counts"])[rows].sum(1)  # (R,9)
    shares = [share(sums[:, columns]) for columns in ([CLAIMED, TRUE], [ATYPICAL, SEEN])]
    return np.stack([np.array(result["truth"])[rows].mean(1), *shares], axis=1)


def write_table(root: Path, found: dict[str, Any]) -> str:
    """The table in Markdown; also written to the folder, with a page."""
    n = len(found[START]["truth"])
    rows = np.vstack([np.arange(n), drawn_rows(n)])  # as they are, then drawn
    scores = {name: drawn_scores(result, rows) for name, result in found.items()}
    gains = {name: values - scores[START] for name, values in scores.items() if name != START}
    body = []
    for name, values in scores.items():
        after = [f"{value:.3f} ± {error:.3f}" for value, error in zip(values[0], values[1:].std(0), strict=True)]
        own = gains.get(name)
        gained = ["", "", ""] if own is None else [f"{v:+.3f} ± {e:.3f}" for v, e in zip(own[0], own[1:].std(0), strict=True)]
        log = found[name]["last_epoch"]
        paid = [f"{log[part]:.3f}" if part in log else "" for part in ("reward_truth", "watched_truth")]
        pairs = [cell.replace("nan", "–") for pair in zip(after, gained, strict=True) for cell in pair]
        body.append([{START: "(supervised)", DEAF: "none, deaf"}.get(name, name), *pairs, *paid])
    head = ["verdicts turned round", *(cell for score in SCORES for cell in (score, "gained")), "paid", "watched"]
    notes = f"{n} dev clips, greedy answers; ± standard error, gains paired by clip. {PAID}"
    text = f"{markdown.table(head, body)}\n\n{notes}"
    heights = {score: [float(np.nan_to_num(own[0, i])) for own in gains.values()] for i, score in enumerate(SCORES)}
    errors = [np.nan_to_num(own[1:].std(0)) for own in gains.values()]
    ends = {k: [(h - e[i], h + e[i]) for h, e in zip(heights[k], errors, strict=True)] for i, k in enumerate(SCORES)}
    drawn = figure(bars(list(gains), heights, ends, y="gained"), "Gained over the supervised model; whiskers: a standard error")
    whole = page("Dose of wrong verdicts", [("Dev clips", [drawn, table(head, body), notes])])
    write_atomic(root / "table.md", (text + "\n").encode())
    write_atomic(root / "dose.html", whole.encode())
    return text


if __name__ == "__main__":
    sys.exit(main())
