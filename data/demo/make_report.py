"""runs/demo/report.html: what the demo made, on one page that needs nothing beside it.

    python data/demo/make_report.py

Clips that play, with intents, probabilities and rationales whose claims are coloured by a judge and underlined by the truth;
scores beside what anyone can reach; what self-criticism repairs; curves of the training; how long each stage took. What a stage
has not made yet is left out, and named.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clip_cards import STYLE, TRUTH, card
from repaired import FILES, N_SHOWN, section

from imagebind_llm.datasets.readers import DataError, load_dataset, rationale_rows
from imagebind_llm.demo_world import cues
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.explain.coloured_claims import LEGEND
from imagebind_llm.explain.cue_table import CueTable
from imagebind_llm.explain.faithfulness import change_cells
from imagebind_llm.explain.scoring import COLUMNS, Rationale, ScoringSettings, read_rationales, score_cells, side_by_side
from imagebind_llm.files import write_atomic
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.html import Html, bars, figure, link, page, paragraph, table, text
from imagebind_llm.intents.report import subset_table
from imagebind_llm.records import Example
from imagebind_llm.training.curves import pictures


@dataclass(frozen=True)
class ReportSettings:
    """The flags of data/demo/make_report.py."""

    data_path: str = flag("data/demo/clips", "folder of the demo world")
    runs: str = flag("runs/demo", "output folder of the demo, for report.html")


def main() -> int:
    settings = parse(ReportSettings, description=__doc__)
    return exit_code("make_report.py", lambda: print(f"written: {write(settings)}"))


def write(settings: ReportSettings) -> Path:
    """Make the page. Raises DataError if there is no demo world of this version, or no answers to show."""
    runs, data = Path(settings.runs), Path(settings.data_path)
    if not (cues.is_world(data) and CueTable.beside(data)):
        raise DataError(
            f"{data}: expected the demo world of version {cues.VERSION} with its tables; make it, if an older one is removed, "
            f"or what it lacks, with: python -m imagebind_llm.demo_world --output_dir {data}"
        )
    test = load_dataset(settings.data_path, ("test",)).splits["test"]
    truth = read_rationales(Path(settings.data_path, "rationales.jsonl"))
    answers = read_answers(runs / "answers.jsonl")
    sections: list[tuple[str, Iterable[object]]] = [
        ("In numbers", headline(runs, len(test))),
        ("Clips and answers", cards(test, answers, truth)),
        ("Are the explanations true?", rationale_scores(settings, runs / "answers.jsonl")),
        ("Repaired by self-criticism", repaired(settings, runs, test, truth)),
        ("Do they follow what is seen and heard?", swaps(runs / "swaps.json")),
        ("Intents from embeddings alone", classifier(runs / "probe")),
        *((f"Training: {name}", training(runs / folder)) for name, folder in TRAININGS.items()),
        ("Time", times(runs / "stages.json")),
    ]
    subtitle = "Clips drawn and voiced by program: the best reachable accuracy and every true cue are known"
    content = page("ITSL: the demo", sections, subtitle).replace("</head>", f"{STYLE}\n</head>")
    write_atomic(runs / "report.html", content.encode())
    return runs / "report.html"


TRAININGS = {
    "captions": "pretrain",
    "intent and rationale": "supervised",
    "self-critical": "itsl",
}


def read_answers(path: Path) -> dict[str, dict]:
    """Rows of explain.py --batch by key."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with explain.py --batch, or all of the demo with: make demo")
    return rationale_rows(path)


# --- sections ---------------------------------------------------------------------------------------------------------


def headline(runs: Path, n_test: int) -> list[object]:
    """Accuracy and macro F1 on test of everything that was trained, beside the best that anyone can reach."""
    reachable = 100 * cues.bayes_accuracy(("text", "audio", "vision"))
    rows: list[list[object]] = []
    if (probe := runs / "probe" / "results.json").is_file():
        scores = json.loads(probe.read_text())["subsets"][-1]["scores"]
        rows.append(["classifier on embeddings", *(100 * scores[name]["mean"] for name in ("accuracy", "macro_f1"))])
    for name, folder in TRAININGS.items():
        if (results := runs / folder / "results.json").is_file():
            scores = json.loads(results.read_text())["test"]["mixed"]
            rows.append([f"ITSL, {name}", *(100 * scores[score] for score in ("accuracy", "macro_f1"))])
    if not rows:
        return ["nothing was trained yet"]
    heights = {name: [float(str(row[i])) for row in rows] for i, name in enumerate(("accuracy", "macro F1"), 1)}
    drawn = bars([str(row[0]) for row in rows], heights, y="%")
    note = f"{n_test} test clips, three modalities; nobody does better than {reachable:.1f} % on average. One seed: no spread."
    return [note, table(["", "accuracy, %", "macro F1, %"], rows), figure(drawn, "Test split")]


def cards(test: list[Example], answers: dict[str, dict], truth: dict[str, Rationale]) -> list[object]:
    """The first clips of the test split, then the first with a wrong intent, then those with most false claims."""
    asked = [example for example in test if example.key in answers]

    def false_claims(example: Example) -> int:
        known = truth[example.key].cues or {}
        return sum(known.get(cue) != value for cue, value in CUE_TABLE.cues_in(answers[example.key]["rationale"]).items())

    shown: set[str] = set()
    parts: list[object] = [LEGEND, TRUTH] if any("claims" in answer for answer in answers.values()) else [TRUTH]
    kinds = {
        "The first of the test split": asked,
        "The first whose intent is wrong": [e for e in asked if answers[e.key]["intent"] != e.intent],
        "Most false claims": sorted(filter(false_claims, asked), key=lambda e: -false_claims(e)),
    }
    for title, examples in kinds.items():
        chosen = [example for example in examples if example.key not in shown][:N_SHOWN]
        shown |= {example.key for example in chosen}
        if chosen:
            body = "".join(card(example, answers[example.key], truth[example.key]) for example in chosen)
            parts += [Html(f"<h3>{text(title)}</h3>"), Html(f'<div class="clips">{body}</div>')]
    return parts


def rationale_scores(settings: ReportSettings, answers: Path) -> list[object]:
    """Every score of the rationales beside references, shuffled ones and templates."""
    scores, check = side_by_side(ScoringSettings(settings.data_path, candidates=(str(answers),)))
    drawn = bars(
        list(scores),
        {COLUMNS[n]: [row[n] or 0.0 for row in scores.values()] for n in ("cue_precision", "atypical_precision", "cue_recall")},
    )
    return [
        "Beside the model's own: the references, the references dealt to other clips, and one fixed sentence for each intent "
        "(the true one, and the one that the model names), which never looks at the clip. Atypical claims are those about a "
        "cue that is not as the intent usually has it: who never looks is always wrong about them. Skill is the share of the "
        "fixed sentence's errors that is avoided.",
        table(*score_cells(scores)),
        figure(drawn, "Claims that are true, claims about atypical cues that are true, cues of the reference that are named"),
        check,
    ]


def repaired(settings: ReportSettings, runs: Path, test: list[Example], truth: dict[str, Rationale]) -> list[object]:
    """The model before and after it criticised itself."""
    if not all((runs / file).is_file() for file in FILES.values()):
        return ["not made yet"]
    before, after = (read_answers(runs / file) for file in FILES.values())
    return section(settings.data_path, runs, test, before, after, truth)


def swaps(path: Path) -> list[object]:
    """What the claims do when a sense is given another clip's sounds or pictures."""
    if not path.is_file():
        return ["not made yet"]
    changes = json.loads(path.read_text(encoding="utf-8"))
    note = (
        f"The first {changes[0]['n_clips']} test clips, each with the words, sound or pictures of another clip. Of the claims "
        "about what was swapped, in which the two clips differ, the share is shown that now states the other clip's value: all "
        "of them if the model looks. The references and the fixed sentences would stay as they are."
    )
    return [note, table(*change_cells(changes))]


def classifier(folder: Path) -> list[object]:
    """The table of classifier.py, and where its own report is."""
    if not (folder / "results.json").is_file():
        return ["not made yet"]
    results = json.loads((folder / "results.json").read_text())
    caption = "In %: mean ± s.d. over seeds [95 % interval over clips]"
    more = link("probe/report.html", "its own report")
    return [table(*subset_table(results), caption), Html(paragraph(Html(f"Slices, confusion, calibration: {more}.")))]


def training(folder: Path) -> list[object]:
    """The curves of one run."""
    return list(pictures(folder)) or ["not made yet"]


def times(record: Path) -> list[object]:
    """How long the stages took."""
    if not record.is_file():
        return ["not recorded: the stages were not run by data/demo/run.py"]
    stages = json.loads(record.read_text())
    rows = [[name, f"{one['seconds'] / 60:.1f}", f"python {one['command']}"] for name, one in stages.items()]
    total = sum(one["seconds"] for one in stages.values())
    return [table(["stage", "minutes", "command"], rows), f"Together {total / 60:.1f} minutes, interruptions not counted."]


if __name__ == "__main__":
    sys.exit(main())
