"""The classifier's html.html and what it prints: the numbers of evaluation.collect_results, as a person wants to see them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from imagebind_llm import html, markdown, metrics
from imagebind_llm.explain.scoring import score_cells
from imagebind_llm.html import Html
from imagebind_llm.intents.evaluation import Predictions, Subset
from imagebind_llm.intents.probe import Scaling
from imagebind_llm.intents.protocol import EmbeddedClips, Protocol

N_ERRORS = 30
MINTREC_SEASONS = ("S04", "S05", "S06")  # the demo world, in the same layout, has others

# F1 of every intent on MIntRec's test split, people / Text-BERT / MulT (results.md of the data set's repository).
PUBLISHED_F1 = {
    **{"Complain": (80.08, 64.36, 65.48), "Praise": (93.44, 85.69, 84.72), "Apologise": (96.15, 97.93, 97.93)},
    **{"Thank": (96.90, 97.22, 96.83), "Criticize": (72.21, 47.06, 49.72), "Care": (96.09, 87.42, 88.12)},
    **{"Agree": (87.21, 94.26, 92.23), "Taunt": (65.55, 15.53, 26.12), "Flaunt": (78.10, 46.12, 48.91)},
    **{"Oppose": (69.04, 32.32, 34.68), "Joke": (72.22, 27.42, 33.95), "Inform": (79.69, 67.74, 70.85)},
    **{"Advise": (87.14, 67.68, 69.43), "Arrange": (81.40, 64.67, 65.44), "Introduce": (84.09, 68.64, 71.19)},
    **{"Comfort": (95.95, 77.05, 76.44), "Leave": (97.06, 73.37, 75.58), "Prevent": (86.43, 82.47, 81.68)},
    **{"Greet": (94.15, 84.90, 86.65), "Ask for help": (88.54, 66.20, 69.12)},
}
PUBLISHED_BY = ("people", "Text-BERT", "MulT")

NAMES = {name: score.title for name, score in metrics.SCORES.items()} | {
    "coarse_accuracy": "accuracy, coarse classes",
    "coarse_macro_f1": "macro F1, coarse classes",
    "accuracy_of_surest_half": "accuracy of the surest half",
    "calibration_error": "expected calibration error",
}


# --- tables, for the console and the page -----------------------------------------------------------------------------


def percent(score: dict | None) -> str | None:
    """'71.3 ± 1.2 [67.1, 75.4]': mean, s.d. over seeds if there are several, 95 % interval over rows if it was computed."""
    if score is None:
        return None
    spread = f" ± {100 * score['sd']:.1f}" if score.get("sd") is not None else ""
    bounds = score.get("interval")
    return f"{100 * score['mean']:.1f}{spread}" + (f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else "")


def subset_table(results: dict) -> tuple[list[str], list[list]]:
    """Header and rows: a row a subset of modalities; a column that no subset fills is left out."""
    columns = {
        "best reachable": lambda subset: None if subset["best_reachable"] is None else f"{100 * subset['best_reachable']:.1f}",
        "accuracy": lambda subset: percent(subset["scores"]["accuracy"]),
        "macro F1": lambda subset: percent(subset["scores"]["macro_f1"]),
        "others masked in test": lambda subset: percent((subset["masked_in_test"] or {}).get("accuracy")),
        "logistic regression": lambda subset: percent((subset["logistic_regression"] or {}).get("accuracy")),
    }
    cells = {name: [column(subset) for subset in results["subsets"]] for name, column in columns.items()}
    kept = [name for name, values in cells.items() if any(values)]
    names = [" + ".join(subset["modalities"]) for subset in results["subsets"]]
    rows = [[name, *(cells[column][i] for column in kept)] for i, name in enumerate(names)]
    return ["modalities", *kept], rows


def slice_table(results: dict) -> tuple[list[str], list[list]]:
    """Header and rows: a row a slice of the reported rows, a column a subset of modalities."""
    by_subset = [subset["slices"] for subset in results["subsets"]]
    whole = results["subsets"][-1]["slices"]
    names = [f"accuracy, {' + '.join(subset['modalities'])}" for subset in results["subsets"]]
    rows = [
        [name, part["n"], *(percent(subset[name]["accuracy"]) for subset in by_subset), percent(part["macro_f1"])]
        for name, part in whole.items()
    ]
    return ["rows", "n", *names, names[-1].replace("accuracy", "macro F1")], rows


def comparison_sentences(comparison: dict) -> list[str]:
    """What --compare found, in words."""
    lines = [
        f"{NAMES[name]}: {100 * test['value']:+.1f} points against {comparison['with']} "
        f"[{100 * test['low']:+.1f}, {100 * test['high']:+.1f}], paired bootstrap p = {test['p']:.4f}"
        for name, test in comparison["difference"].items()
    ]
    return lines + [
        f"McNemar, seed {test['our_seed']} against seed {test['their_seed']}: {test['only_ours_right']} rows right here alone, "
        f"{test['only_theirs_right']} there alone, p = {test['p']:.4f}"
        for test in comparison["mcnemar"]
    ]


def console(results: dict) -> str:
    """What the run prints: notes, one table, slices of the largest subset, the comparison."""
    header, rows = subset_table(results)
    title = "in %: mean ± s.d. over seeds [95 % interval over rows]"
    lines = [*results["notes"], "", title, *_columns([header, *rows]), ""]
    header, rows = slice_table(results)
    lines += _columns([["rows", "n", "accuracy", "macro F1"], *([*row[:2], *row[-2:]] for row in rows)])
    if results.get("rationales"):
        lines += ["", markdown.table(*score_cells(results["rationales"]))]
    if results.get("verifier"):
        lines += ["", results["verifier"]]
    return "\n".join(lines + (comparison_sentences(results["comparison"]) if "comparison" in results else []))


def _columns(rows: list[list]) -> list[str]:
    cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(protocol: Protocol, subsets: list[Subset], results: dict, path: Path) -> str:
    """The whole report as HTML; `path` is where it will be, so that links to clips are relative to it."""
    whole = subsets[-1]
    settings = results["settings"]
    sections = [
        ("Result", _result(results)),
        ("Slices", [_slices(results)]),
        ("Intents", _intents(protocol, results)),
        ("Confusion", [_confusion(protocol, results)]),
        ("Can its confidence be believed?", _confidence(whole.answers, results)),
        ("Embeddings", [_projection(protocol, whole)]),
        *([("Rationales", [_rationales(results), results["verifier"]])] if results.get("rationales") else []),
        ("The worst errors", [_errors(protocol, whole.answers, path)]),
        (
            "How this was made",
            [html.table(["setting", "value"], [[name, _typed(value)] for name, value in settings.items()])],
        ),
    ]
    title = f"Intents: {settings['method']} on {settings['report_split']}"
    return html.page(title, sections, f"data {settings['data_path']}, embeddings {settings['emb_path']}")


def _typed(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _slices(results: dict) -> Html:
    header, rows = slice_table(results)
    unbroken = [[row[0], row[1], *(cell.replace(" ", "\u00a0") for cell in row[2:])] for row in rows]
    return html.table(header, unbroken, "In %: mean ± s.d. over seeds [95 % interval over rows]")


def _result(results: dict) -> list:
    head = "% of the reported rows: mean ± s.d. over seeds [95 % bootstrap interval over rows]"
    parts = [*results["notes"], html.table(*subset_table(results), head)]
    if len(results["subsets"]) > 1:
        parts.append(html.figure(_subset_figure(results), "Accuracy by subset of modalities; lines: 95 % intervals"))
    names = [name for name in NAMES if name in results["subsets"][-1]["scores"]]
    numbers = [results["subsets"][-1][kind] for kind in ("scores", "logistic_regression")]
    rows = [[NAMES[name], *(percent(kind_scores[name]) for kind_scores in numbers if kind_scores)] for name in names]
    header = ["score", results["settings"]["method"], *(["logistic regression"] if numbers[1] else [])]
    parts.append(html.table(header, rows, f"All scores, {' + '.join(results['subsets'][-1]['modalities'])}"))
    return parts + (comparison_sentences(results["comparison"]) if "comparison" in results else [])


def _subset_figure(results: dict):
    kinds = {"trained without the others": "scores", "others masked in test": "masked_in_test"}
    series, bounds = {}, {}
    if results["subsets"][0]["best_reachable"] is not None:
        series["best reachable"] = [100 * subset["best_reachable"] for subset in results["subsets"]]
    for name, kind in kinds.items():
        if results["subsets"][0][kind]:
            series[name] = [100 * subset[kind]["accuracy"]["mean"] for subset in results["subsets"]]
            bounds[name] = [tuple(100 * b for b in subset[kind]["accuracy"]["interval"]) for subset in results["subsets"]]
    return html.bars([" + ".join(subset["modalities"]) for subset in results["subsets"]], series, bounds, "accuracy, %")


def _intents(protocol: Protocol, results: dict) -> Iterator[Html]:
    """F1 of every class, beside the published ones where the data are MIntRec's."""
    numbers = results["per_class"]
    published = _is_mintrec(protocol) and set(numbers) == set(PUBLISHED_F1)
    series = {"this run": [100 * scores["f1"] for scores in numbers.values()]}
    if published:
        for i, name in enumerate(PUBLISHED_BY):
            series[name] = [PUBLISHED_F1[intent][i] for intent in numbers]
    caption = "F1 of every class, %, mean over seeds" + "; the others as published, on the official test split" * published
    yield html.figure(html.bars(list(numbers), series, y="F1, %"), caption)
    header = ["class", "rows", "precision", "recall", "F1", *(PUBLISHED_BY if published else ())]
    rows = [
        [name, int(scores["rows"]), *(100 * scores[kind] for kind in ("precision", "recall", "f1"))]
        for name, scores in numbers.items()
    ]
    yield html.table(header, [[*row, *(PUBLISHED_F1[row[0]] if published else ())] for row in rows])


def _is_mintrec(protocol: Protocol) -> bool:
    named = all(example.key.startswith(MINTREC_SEASONS) for example in protocol.report.examples)
    return protocol.dataset.layout == "MIntRec" and named


def _confusion(protocol: Protocol, results: dict) -> Html:
    drawn = html.heatmap(np.array(results["confusion"]), protocol.classes, protocol.classes, "predicted", "gold")
    return html.figure(drawn, "Rows by gold and predicted class, mean over seeds; colours are shares of a gold class")


def _confidence(answers: Predictions, results: dict) -> list[Html]:
    correct, confidence = answers.correct.ravel(), answers.confidence.ravel()
    confident, right, _ = metrics.reliability(correct, confidence).T
    curve = html.lines({"answers": (confident, right)}, "confidence", "share right", diagonal=True)
    error = results["subsets"][-1]["scores"]["calibration_error"]
    kept = [metrics.selective_accuracy(*run) for run in zip(answers.correct, answers.confidence, strict=True)]
    coverage = np.arange(1, correct.size // len(kept) + 1) / (correct.size // len(kept))
    shown = coverage >= 0.05  # fewer rows say nothing
    selective = html.lines({"": (coverage[shown], np.mean(kept, axis=0)[shown])}, "share answered, surest first", "accuracy")
    return [
        html.figure(curve, f"Reliability, all seeds together; expected calibration error {percent(error)} %"),
        html.figure(selective, "Accuracy if only the surest answers are given, mean over seeds"),
    ]


def _rationales(results: dict) -> Html:
    return html.table(*score_cells(results["rationales"]), "Beside references, references of other clips, one text an intent")


def _projection(protocol: Protocol, whole: Subset) -> Html:
    rows = protocol.report
    names = [protocol.classes[i] for i in rows.classes.tolist()]
    drawn = html.scatter(project(rows, protocol.train or rows), names, protocol.classes)
    return html.figure(drawn, "Reported rows by gold class: all their embeddings in two dimensions (t-SNE, seed 0)")


def project(rows: EmbeddedClips, reference: EmbeddedClips) -> np.ndarray:
    """(N, 2): t-SNE of the embeddings as the probe sees them."""
    inputs = Scaling.of(reference.vectors, reference.present).apply(rows.vectors, rows.present).numpy()
    if len(rows) < 4:
        return inputs[:, :2]
    inputs = PCA(min(50, *inputs.shape), random_state=0).fit_transform(inputs)
    return TSNE(perplexity=min(30, (len(rows) - 1) / 3), random_state=0, init="pca").fit_transform(inputs)


def _errors(protocol: Protocol, answers: Predictions, path: Path) -> Html:
    """Rows whose right answer got the least probability, averaged over seeds, with a link to the clip where there is one."""
    mean = answers.probabilities.mean(0)  # (N,C)
    of_gold = mean[np.arange(len(mean)), answers.gold]
    guesses = mean.argmax(1)
    worst = [i for i in np.argsort(of_gold, kind="stable") if guesses[i] != answers.gold[i]][:N_ERRORS]
    rows = []
    for i in worst:
        example = protocol.report.examples[i]
        file, clip = example.clip, example.key
        if file and file.exists():
            clip = html.link(os.path.relpath(file, path.parent), example.key)
        wrong = f"{int((~answers.correct[:, i]).sum())} of {len(answers.correct)}"
        names = (protocol.classes[answers.gold[i]], protocol.classes[guesses[i]])
        rows.append([clip, example.text, *names, f"{mean[i, guesses[i]]:.2f}", f"{of_gold[i]:.3f}", wrong])
    header = ["clip", "text", "gold", "predicted", "p(predicted)", "p(gold)", "seeds wrong"]
    return html.table(header, rows, "Probabilities are means over seeds")
