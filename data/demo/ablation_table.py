"""The ablation as one table and one plot: mean and spread over seeds of every run under OUTPUT_DIR/seed*/.

    python data/demo/ablation_table.py --output_dir runs/demo/ablation

The last rows need no model: the references, and one fixed sentence for each intent, which never looks. The last columns are
what a run has more than the supervised model of its seed: means over seeds, with 95 % intervals by paired bootstrap over
clips; below, what claim-wise credit has more than every other run. Where no cues are known a dash stands for what is said of
them. Reads answers.jsonl of each run (explain.py --batch); writes table.md, table.json and table.html beside the seeds.
"""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imagebind_llm import markdown
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.explain.scoring import (
    Judges,
    Rationale,
    ScoringSettings,
    cue_counts,
    load_references,
    read_rationales,
    score_rationales,
    templates,
)
from imagebind_llm.files import write_atomic, write_json
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.html import bars, figure, page, table
from imagebind_llm.metrics import bootstrap_interval, drawn_rows
from imagebind_llm.metrics import scores as intent_scores

ROWS = (
    *("supervised", "supervised with captions", "supervised longer", "captions mixed in", "contrast", "believed references"),
    *("claims", "claims with captions", "whole answer", "claims to go", "best of samples", "corrected", "local"),
    *("supervised best of 4", "supervised best of 8", "claims best of 4", "claims best of 8"),
    *("claims with captions best of 4", "claims with captions best of 8"),
    *("intent only", "rationale only", "greedy", "loo", "group"),
    *("without consistency", "rationale first supervised", "rationale first"),
)
COLUMNS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "cider_d": "CIDEr-D",
    "rouge_l": "ROUGE-L",
    "consistency": "reads gold",
    "consistency_predicted": "agrees with its intent",
    "cue_precision": "cue precision",
    "cue_recall": "cue recall",
    "cue_f1": "cue F1",
    "cue_skill": "cue skill",
    "atypical_precision": "atypical precision",
    "atypical_claims": "atypical claims",
    "claims": "claims an answer",
    "training_minutes": "CPU minutes of training",
    "answer_seconds": "CPU seconds an answer",
}
DRAWN = ("accuracy", "macro_f1", "rouge_l", "consistency", "cue_precision", "atypical_precision")
GAINED = ("accuracy", "cue precision", "atypical precision")
BASE, OURS = "supervised", "claims"
CLAIMED, TRUE, ATYPICAL, SEEN = 1, 2, 5, 6  # columns of cue_counts


@dataclass(frozen=True)
class Answers:
    """What one run says of N clips: its scores, which intents are right (N,), and counts of claims (N,9), see cue_counts."""

    scores: dict[str, float]
    right: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class TableSettings:
    """The flags of data/demo/ablation_table.py."""

    data_path: str = flag("data/demo/clips", "folder of the demo world")
    output_dir: str = flag("runs/demo/ablation", "folder with seed0, seed1 ... of the ablation, each with a folder per run")


def main() -> int:
    settings = parse(TableSettings, description=__doc__)
    return exit_code("ablation_table.py", lambda: print(write_table(Path(settings.output_dir), settings.data_path)))


def write_table(root: Path, data_path: str) -> str:
    """Score every run that is done; returns the table in Markdown. Raises DataError if there is none."""
    taxonomy, splits = load_references(ScoringSettings(data_path))
    told = {name: [row for row in rows if row.rationale] for name, rows in splits.items()}
    judges = Judges.fit(told["train"], taxonomy, told.get("dev", []))
    found: dict[str, dict[str, Answers]] = {}
    for name in ROWS:
        done = [folder for folder in sorted(root.glob("seed*")) if (folder / name / "done").exists()]
        found[name] = {folder.name: run_of(folder / name, splits["test"], judges) for folder in done}
    found = {name: runs for name, runs in found.items() if runs}
    if not found:
        raise DataError(f"{root}: no run is done; make them with data/demo/ablation.sh")
    scores = {name: [run.scores for run in runs.values()] for name, runs in found.items()}
    known = {name: [finite(run) for run in runs] for name, runs in scores.items()}
    write_json(root / "table.json", known)
    cells = {name: [spread([run[column] for run in runs]) for column in COLUMNS] for name, runs in scores.items()}
    rows: list[list[str]] = [
        [name, str(len(found[name])), *cells[name], *gains(found[name], found.get(BASE, {}), name)] for name in found
    ]
    rows += without_model(root, told, judges)
    head = ["run", "seeds", *COLUMNS.values(), *(f"{score} gained" for score in GAINED)]
    shown_as = [markdown.table(head, rows)]
    rivals = [[other, *gains(found[OURS], found[other], OURS)] for other in found if other != OURS and OURS in found]
    rivals_head = [f"what {OURS} has more than", *GAINED]
    if rivals:
        shown_as.append(markdown.table(rivals_head, rivals))
    write_atomic(root / "table.md", ("\n\n".join(shown_as) + "\n").encode())
    means = {COLUMNS[c]: [float(np.mean([run[c] for run in runs])) for runs in scores.values()] for c in DRAWN}
    ends = {COLUMNS[c]: [(min(v), max(v)) for runs in scores.values() if (v := [run[c] for run in runs])] for c in DRAWN}
    drawn = figure(bars(list(found), means, ends), "Means over seeds; whiskers from the lowest to the highest seed")
    shown = [drawn, table(head, rows), *([table(rivals_head, rivals)] if rivals else [])]
    write_atomic(root / "table.html", page("Ablation", [("Test split", shown)]).encode())
    return "\n\n".join(shown_as)


def without_model(root: Path, told: dict[str, list[Rationale]], judges: Judges) -> list[list[str]]:
    """Rows of the references and of one fixed text for each intent: the true ones, and those that the supervised runs name."""
    test, fixed = told.get("test", []), templates(told["train"])
    sources = {
        "references": [(test, [row.rationale for row in test])],
        "template of the gold intent": [(test, [fixed.get(row.intent, "") for row in test])],
        f"template of the intents of {BASE}": [],
    }
    for file in sorted(root.glob(f"seed*/{BASE}/answers.jsonl")):
        answers = read_rationales(file)
        asked = [row for row in test if row.key in answers]
        sources[f"template of the intents of {BASE}"] += [(asked, [fixed.get(answers[row.key].intent, "") for row in asked])]
    rows = []
    for name, runs in sources.items():
        scores = [score_rationales(texts, some, judges) for some, texts in runs if some]
        if scores:
            cells = [spread([as_number(one.get(column)) for one in scores]) for column in COLUMNS]
            rows.append([name, "–", *cells, *("" for _ in GAINED)])
    return rows


def run_of(folder: Path, references: list[Rationale], judges: Judges) -> Answers:
    """The answers of a run, with the processor time that its training and each answer took."""
    answers = answers_of(folder / "answers.jsonl", references, judges)
    minutes, seconds = (cpu_seconds(folder / f"{what}_times") for what in ("training", "answering"))
    took = {"training_minutes": minutes / 60, "answer_seconds": seconds / len(answers.right)}
    return replace(answers, scores=answers.scores | took)


def answers_of(path: Path, references: list[Rationale], judges: Judges) -> Answers:
    """One run's answers, scored."""
    answers = read_rationales(path)
    asked = [row for row in references if row.key in answers]
    gold, guesses = [row.intent for row in asked], [answers[row.key].intent for row in asked]
    texts = [answers[row.key].rationale for row in asked]
    scores = score_rationales(texts, asked, judges, guesses)
    right = np.array([a == b for a, b in zip(gold, guesses, strict=True)])
    scores |= intent_scores(np.array(gold), np.array(guesses))
    return Answers({name: as_number(value) for name, value in scores.items()}, right, cue_counts(texts, asked))


def cpu_seconds(path: Path) -> float:
    """The sum of what bash's `times` has written ("1m2.5s" each); not a number without the file."""
    if not path.is_file():
        return float("nan")
    return sum(60 * float(m) + float(s) for m, s in re.findall(r"(\d+)m([\d.]+)s", path.read_text()))


def as_number(value: float | None) -> float:
    """Not a number where nothing is known."""
    return float("nan") if value is None else value


def gains(runs: dict[str, Answers], base: dict[str, Answers], name: str) -> list[str]:
    """What runs have more than those they are compared with, by seed: in each of GAINED, in points."""
    pairs = [(run, base[seed]) for seed, run in runs.items() if seed in base]
    if name == BASE or not pairs:
        return ["" for _ in GAINED]
    n = len(pairs[0][0].right)
    draws = drawn_rows(n)
    own = np.arange(n)[None]  # as they are
    shown = []
    for score in (
        lambda run, drawn: run.right[drawn].mean(1),
        lambda run, drawn: share(run.counts[drawn].sum(1)[:, [CLAIMED, TRUE]]),
        lambda run, drawn: share(run.counts[drawn].sum(1)[:, [ATYPICAL, SEEN]]),
    ):
        value, drawn = (np.mean([score(a, rows) - score(b, rows) for a, b in pairs], axis=0) for rows in (own, draws))
        low, high = bootstrap_interval(drawn, float(value[0]))
        shown.append(f"{100 * value[0]:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" if np.isfinite(value[0]) else "")
    return shown


def share(sums: np.ndarray) -> np.ndarray:
    """(R,) the second column of (R,2) over the first; not a number where that is 0, as where nothing is known of cues."""
    with np.errstate(invalid="ignore"):
        return sums[:, 1] / sums[:, 0]


def finite(scores: dict[str, float]) -> dict[str, float | None]:
    """As JSON has it: null where nothing is known."""
    return {name: value if np.isfinite(value) else None for name, value in scores.items()}


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation; a dash for what is not known."""
    values = [value for value in values if np.isfinite(value)]
    if not values:
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
