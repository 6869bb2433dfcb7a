"""The report's section on what self-criticism is for: references that are often wrong, and the model before and after it.

Before: trained on references by one who never saw the clips. After: the same model once it has criticised its own answers,
claim by claim, by what a judge sees. Both explain the same first test clips; the truth about these clips paid for nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ablation_table import GAINED, answers_of, gains
from clip_cards import TRUTH, turned
from measure_explanations import intervals

from imagebind_llm.config import SENSES
from imagebind_llm.critic.judge import Figures
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.explain.coloured_claims import LEGEND, judged_by
from imagebind_llm.explain.scoring import Judges, Rationale, ScoringSettings, load_references
from imagebind_llm.html import Html, bars, figure, paragraph, table
from imagebind_llm.itsl.checkpoint import resolve
from imagebind_llm.metrics import share_interval
from imagebind_llm.records import Example

FILES = {"before": "before.jsonl", "after": "answers.jsonl"}
SCORES = {"cue_precision": "claims true", "atypical_precision": "atypical claims true", "cue_recall": "cues named"}
N_SHOWN = 3  # clips of each kind
Answers = Mapping[str, dict]  # rows of explain.py --batch by key


def section(
    data_path: str, runs: Path, test: Sequence[Example], before: Answers, after: Answers, truth: Mapping[str, Rationale]
) -> list[object]:
    """Scores before and after, three clips, and how good the judge is. `before`, `after`: answers, about the same clips."""
    asked = [example for example in test if example.key in before and example.key in after]
    if not asked:
        return ["not made yet"]
    chosen, rule = picked(asked, before, after, truth)
    cards = [Html(turned(one, before[one.key], after[one.key], truth[one.key])) for one in chosen]
    return [
        "Rationales are mostly written by a language model that never saw the clip. Here about a third of the claims in the "
        "references of train and dev is false. The model learns them beside captions of what is seen and heard (before). Then "
        "it criticises itself (after): of several answers of its own to a train clip, each claim is paid for what a judge sees "
        "and hears in the clip, whatever the reference says. The true cues of no clip are used.",
        *scores(data_path, runs, {example.key for example in asked}),
        Html("<h3>Three clips, before and after</h3>"),
        rule,
        LEGEND,
        TRUTH,
        *cards,
        Html("<h3>The judge</h3>"),
        *judge(runs / "itsl" / "best"),
    ]


def picked(
    asked: Sequence[Example], before: Answers, after: Answers, truth: Mapping[str, Rationale]
) -> tuple[list[Example], str]:
    """The first clips whose false claims about atypical cues became true ones; where they are too few, then the first others
    whose rationale changed. And the rule in words, with how many there are."""
    mended = [e for e in asked if turns(e, before, after, truth)]
    spoilt = [e for e in asked if turns(e, after, before, truth)]
    changed = [e for e in asked if before[e.key]["rationale"] != after[e.key]["rationale"]]
    if not changed:
        return [], f"All {len(asked)} rationales are the same before and after: self-criticism has changed nothing."
    others = [e for e in changed if e not in mended]
    rule = (
        f"Of these {len(asked)} clips, {len(changed)} got another rationale. In {len(mended)} what was claimed of atypical "
        f"cues was false at least once before, and is true throughout after (in {len(spoilt)} the other way round). Shown are "
        f"the first of the {len(mended)}" + (", then the first others that changed." if len(mended) < N_SHOWN else ".")
    )
    return [*mended, *others][:N_SHOWN], rule


def turns(example: Example, before: Answers, after: Answers, truth: Mapping[str, Rationale]) -> bool:
    """Whether of the cues that are not as the clip's intent usually has them, one was claimed falsely before, and after some
    are claimed, and all of them truly."""
    known = truth[example.key].cues or {}
    said = (CUE_TABLE.cues_in(answers[example.key]["rationale"]) for answers in (before, after))
    first, then = (CUE_TABLE.claim_counts(claims, known, example.intent or "")[2:] for claims in said)  # (atypical, true ones)
    return first[1] < first[0] and 0 < then[1] == then[0]


def scores(data_path: str, runs: Path, keys: set[str]) -> list[object]:
    """Table and bars of both, on the clips with these keys, and what was gained: 95 % intervals over clips."""
    taxonomy, splits = load_references(ScoringSettings(data_path))
    test = [row for row in splits["test"] if row.key in keys]
    judges = Judges.fit([row for row in splits["train"] if row.rationale], taxonomy)
    found = {name: answers_of(runs / file, test, judges) for name, file in FILES.items()}
    rows: list[list[str]] = []
    heights: dict[str, list[float]] = {label: [] for label in SCORES.values()}
    ends: dict[str, list[tuple[float, float]]] = {label: [] for label in SCORES.values()}
    for name, own in found.items():
        spread = intervals(own.counts)
        right = int(own.right.sum())
        cells = [with_interval(own.right.mean(), share_interval(right, len(test)))]
        for score, label in SCORES.items():
            cells.append(with_interval(own.scores[score], spread[score]))
            heights[label].append(np.nan_to_num(own.scores[score]))
            ends[label].append(spread[score])
        rows.append([name, *cells, str(int(np.nan_to_num(own.scores["atypical_claims"]))), f"{own.scores['claims']:.1f}"])
    gained = gains({"": found["after"]}, {"": found["before"]}, "after")
    told = ", ".join(f"{score} {gain}" for score, gain in zip(GAINED, gained, strict=True) if gain)
    head = ["", "right intent, %", *(f"{label}, %" for label in SCORES.values()), "atypical claims", "claims an answer"]
    note = (
        f"The first {len(test)} test clips. Atypical claims are those about a cue that is not as the intent usually has it: "
        f"who never looks is wrong about all of them. In brackets: 95 % over clips. Gained, in points, paired by clip: {told}."
    )
    return [table(head, rows), note, figure(bars(list(found), heights, ends), "Before and after, with 95 % intervals")]


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """In %; a dash where nothing is claimed."""
    if not np.isfinite(value):
        return "–"
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def judge(folder: Path) -> list[object]:
    """How far to trust the judge that paid, by what training measured on dev."""
    file = resolve(folder) / "judge.json"
    if not file.is_file():
        return ["not made yet"]
    state = json.loads(file.read_text())
    dev = Figures(**state["dev"])
    same = dev.same_intent is not None  # else the areas of single modalities are against any clip, too
    alone = [
        [f"by {SENSES[name]} alone", *((None, area) if same else (area, None))]
        for name, area in dev.alone.items()
        if name in state["modalities"]
    ]
    off = [SENSES[name] for name in dev.alone if name not in state["modalities"]]
    rows = [["all it looks at", dev.any_clip, dev.same_intent], *alone]
    cells = [[name, *("–" if area is None else f"{area:.3f}" for area in areas)] for name, *areas in rows]
    switched = f" It tells nothing by {', '.join(off)}, which is switched off." if off else ""
    caption = f"AUC on {dev.n} dev clauses: a clip's own against those of"
    return [
        judged_by(state["kind"], state["source"], state["modalities"], dev) + switched,
        table(["", "any other clip", "others of the same intent"], cells, caption),
        paragraph(
            f"Its mean P is {dev.own:.2f} for a clip's own clauses and {dev.dealt:.2f} for others'. It is the judge that paid; "
            "what it believes of the answers that it has trained says less than the underlining above.",
            note=True,
        ),
    ]
