"""The ablation as one table and one plot: mean and spread over seeds of every run under OUTPUT_DIR/seed*/.

    python data/demo/ablation_table.py --output_dir runs/demo/ablation

Reads answers.jsonl of each run (explain.py --batch); writes table.md, table.json and table.html beside the seeds' folders.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from imagebind_llm.config import flag, parse
from imagebind_llm.datasets import DataError
from imagebind_llm.report import bars, figure, page, table
from imagebind_llm.scoring import Judges, Rationale, load_references, read_rationales, score_rationales
from imagebind_llm.settings import ScoringSettings
from imagebind_llm.store import write_atomic

ROWS = (
    *("supervised", "supervised longer", "intent only", "rationale only", "greedy", "loo", "group"),
    *("without consistency", "summed rewards", "rationale first supervised", "rationale first"),
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
}
DRAWN = ("accuracy", "macro_f1", "rouge_l", "consistency", "cue_f1")


@dataclass(frozen=True)
class TableSettings:
    """The flags of data/demo/ablation_table.py."""

    data_path: str = flag("data/demo/clips", "the data set that was explained")
    output_dir: str = flag("runs/demo/ablation", "holds seed0, seed1 ... with a folder a run")


def main() -> int:
    settings = parse(TableSettings, description=__doc__)
    try:
        print(write_table(Path(settings.output_dir), settings.data_path))
    except (DataError, OSError) as error:
        print(f"ablation_table.py: {error}", file=sys.stderr)
        return 2
    return 0


def write_table(root: Path, data_path: str) -> str:
    """Score every run that is done; returns the table in Markdown. Raises DataError if there is none."""
    taxonomy, splits = load_references(ScoringSettings(data_path))
    told = {name: [row for row in rows if row.rationale] for name, rows in splits.items()}
    judges = Judges.fit(told["train"], taxonomy, told.get("dev", []))
    found: dict[str, list[dict[str, float]]] = {}
    for name in ROWS:
        runs = [folder / name / "answers.jsonl" for folder in sorted(root.glob("seed*"))]
        found[name] = [scores_of(path, splits["test"], judges) for path in runs if (path.parent / "done").exists()]
    found = {name: runs for name, runs in found.items() if runs}
    if not found:
        raise DataError(f"{root}: no run is done; make them with data/demo/ablation.sh")
    write_atomic(root / "table.json", json.dumps(found, indent=1).encode())
    cells = {name: [spread([run[column] for run in runs]) for column in COLUMNS] for name, runs in found.items()}
    seeds = {name: len(runs) for name, runs in found.items()}
    rows = [[name, seeds[name], *cells[name]] for name in found]
    head = ["run", "seeds", *COLUMNS.values()]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    write_atomic(root / "table.md", ("\n".join(lines) + "\n").encode())
    means = {COLUMNS[c]: [float(np.mean([run[c] for run in runs])) for runs in found.values()] for c in DRAWN}
    ends = {COLUMNS[c]: [(min(v), max(v)) for runs in found.values() if (v := [run[c] for run in runs])] for c in DRAWN}
    drawn = figure(bars(list(found), means, ends), "Means over seeds; whiskers from the lowest to the highest seed")
    write_atomic(root / "table.html", page("Ablation", [("Test split", [drawn, table(head, rows)])]).encode())
    return "\n".join(lines)


def scores_of(path: Path, references: list[Rationale], judges: Judges) -> dict[str, float]:
    """All scores of one run's answers."""
    answers = read_rationales(path)
    asked = [row for row in references if row.key in answers]
    gold, guesses = [row.intent for row in asked], [answers[row.key].intent for row in asked]
    scores = score_rationales([answers[row.key].rationale for row in asked], asked, judges, guesses)
    scores |= {
        "accuracy": float(np.mean([a == b for a, b in zip(gold, guesses, strict=True)])),
        "macro_f1": float(f1_score(gold, guesses, average="macro", zero_division=0)),
    }
    return {name: value if value is not None else float("nan") for name, value in scores.items()}


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
