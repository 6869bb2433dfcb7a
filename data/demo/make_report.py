"""runs/demo/report.html: what the demo made, on one page that needs nothing beside it.

    python data/demo/make_report.py

Clips that play, with intents, probabilities and rationales in which true and false claims are marked; scores beside what
anyone can reach; curves of the training; how long each stage took. What a stage has not made yet is left out, and named.
"""

import base64
import html
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from imagebind_llm.config import flag, parse
from imagebind_llm.container import open_container
from imagebind_llm.curves import pictures
from imagebind_llm.datasets import DataError, load_dataset
from imagebind_llm.demo_world import cues
from imagebind_llm.demo_world.phrases import claims, cues_in
from imagebind_llm.faithfulness import change_cells
from imagebind_llm.intent_report import subset_table
from imagebind_llm.records import Example
from imagebind_llm.report import Html, bars, figure, jpeg, link, page, paragraph, table, text
from imagebind_llm.scoring import COLUMNS, Rationale, read_rationales, score_cells, side_by_side
from imagebind_llm.settings import ScoringSettings
from imagebind_llm.store import write_atomic

N_SHOWN = 3  # clips of each kind
POSTER = 240  # pixels, the longer side
CARD_STYLE = """<style>
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
.clip { border: 1px solid #d9dee5; border-radius: .5rem; padding: .8rem; font-size: .92rem }
.clip video { width: 100%; max-height: 15rem; background: #10151c; border-radius: .3rem }
.clip p { margin: .4rem 0 } .bar { display: grid; grid-template-columns: 7rem 1fr 3rem; gap: .5rem; align-items: center }
.bar div { background: #e6eaef; border-radius: .2rem } .bar div div { background: #3b6ea5; height: .7rem }
mark { border-radius: .2rem; padding: 0 .15rem } mark.true { background: #cfead6 } mark.false { background: #f6cfc9 }
figure { display: inline-block; width: min(34rem, 48%); margin-right: 1%; vertical-align: top }
.wrong { color: #a3341f } .right { color: #2d7a43 }
</style>"""


@dataclass(frozen=True)
class ReportSettings:
    """The flags of data/demo/make_report.py."""

    data_path: str = flag("data/demo/clips", "the demo world")
    runs: str = flag("runs/demo", "holds what the stages of the demo made; report.html goes there")


def main() -> int:
    settings = parse(ReportSettings, description=__doc__)
    try:
        print(f"written: {write(settings)}")
    except (ValueError, OSError) as error:
        print(f"make_report.py: {error}", file=sys.stderr)
        return 2
    return 0


def write(settings: ReportSettings) -> Path:
    """Make the page. Raises DataError if there is no demo world of this version, or no answers to show."""
    runs = Path(settings.runs)
    if not cues.is_world(Path(settings.data_path)):
        raise DataError(
            f"{settings.data_path}: expected the demo world of version {cues.VERSION}; make it, once an older one is removed, "
            f"with: python -m imagebind_llm.demo_world --output_dir {settings.data_path}"
        )
    test = load_dataset(settings.data_path, ("test",)).splits["test"]
    truth = read_rationales(Path(settings.data_path, "rationales.jsonl"))
    answers = read_answers(runs / "answers.jsonl")
    sections: list[tuple[str, Iterable[object]]] = [
        ("In numbers", headline(runs, len(test))),
        ("Clips and answers", cards(test, answers, truth)),
        ("Are the explanations true?", rationale_scores(settings, runs / "answers.jsonl")),
        ("Do they follow what is seen and heard?", swaps(runs / "swaps.json")),
        ("Intents from embeddings alone", classifier(runs / "probe")),
        *((f"Training: {name}", training(runs / folder)) for name, folder in TRAININGS.items()),
        ("Time", times(runs / "stages.json")),
    ]
    subtitle = "Clips drawn and voiced by program: the best reachable accuracy and every true cue are known"
    content = page("ITSL: the demo", sections, subtitle).replace("</head>", f"{CARD_STYLE}\n</head>")
    write_atomic(runs / "report.html", content.encode())
    return runs / "report.html"


TRAININGS = {"captions": "pretrain", "intent and rationale": "itsl", "self-critical": "critic"}


def read_answers(path: Path) -> dict[str, dict]:
    """Rows of explain.py --batch by key."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with explain.py --batch, or all of the demo with: make demo")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return {row["key"]: row for row in rows}


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
        return sum(known.get(cue) != value for cue, value in cues_in(answers[example.key]["rationale"]).items())

    shown: set[str] = set()
    parts: list[object] = [Html(LEGEND)]
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


LEGEND = (
    '<p>In a rationale, <mark class="true">what is true of the clip</mark> and <mark class="false">what is not</mark> are '
    "marked: the cues that each clip was drawn and voiced from are known.</p>"
)


def card(example: Example, answer: dict, known: Rationale) -> str:
    """One clip: it plays; what is said in it; intents with probabilities; the rationale, its claims marked."""
    assert example.clip is not None
    video = base64.b64encode(example.clip.read_bytes()).decode()
    said = [(answer["intent"], answer["probability"]), *answer["runners_up"]]
    bars_shown = "".join(
        f'<div class="bar"><span>{text(label)}</span><div><div style="width:{100 * p:.1f}%"></div></div>'
        f"<span>{p:.2f}</span></div>"
        for label, p in said
    )
    right = answer["intent"] == example.intent
    verdict = f'<span class="{"right" if right else "wrong"}">{"right" if right else f"labelled {text(example.intent)}"}</span>'
    lines = [
        f'<video controls preload="none" poster="{poster(example.clip)}" src="data:video/mp4;base64,{video}"></video>',
        f"<p>“{text(example.text)}”</p>",
        f"<p><b>{text(answer['intent'])}</b> {verdict} <code>{text(example.key)}</code></p>",
        bars_shown,
        f"<p>{marked(answer['rationale'], known.cues or {})}</p>",
    ]
    if not answer["consistent"]:
        lines.append(f'<p class="wrong">Careful: the rationale speaks for {text(answer["criticised"])}.</p>')
    return f'<div class="clip">{"".join(lines)}</div>'


def marked(rationale: str, truth: dict[str, str]) -> Html:
    """A rationale with every claim about a cue marked as true or false."""
    shown, at = "", 0
    for start, end, cue, value in claims(rationale):
        right = truth.get(cue) == value
        hint = html.escape(f"{cue}: {value}" if right else f"{cue} is {truth.get(cue)}", quote=True)
        phrase = html.escape(rationale[start:end])
        shown += html.escape(rationale[at:start]) + f'<mark class="{str(right).lower()}" title="{hint}">{phrase}</mark>'
        at = end
    return Html(shown + html.escape(rationale[at:]))


def poster(clip: Path) -> str:
    """A frame from the middle of a clip, as a data address."""
    with open_container(clip) as container:
        frames = [frame for frame in container.decode(video=0)]
    picture: Image.Image = frames[len(frames) // 2].to_image()
    picture.thumbnail((POSTER, POSTER))
    return jpeg(picture)


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
