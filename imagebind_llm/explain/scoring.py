"""Scores of rationales: against references, against the label with its words masked, and against known cues.

    python -m imagebind_llm.explain.scoring --data_path data/demo/clips --candidates answers.jsonl

For comparison every table has three rows that need no model: the references themselves (an upper bound), the references
assigned to other clips (a fluent text about something else), and one fixed rationale per intent, the template (the label is
known, the clip is not used). A score that is not lower for the last two measures nothing. The template is made of the intent's
typical cues if the data set has a table of cues (cue_table.py, which also defines atypical claims), else it is the train
rationale most similar to the others. For every file of answers there is a row of templates of the intents that it predicts.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from imagebind_llm import markdown
from imagebind_llm.critic.verifier import Verifier, fit_verifier
from imagebind_llm.datasets.readers import DataError, load_dataset
from imagebind_llm.explain.cue_table import FILE as TABLE
from imagebind_llm.explain.cue_table import CueTable
from imagebind_llm.explain.rationales import Rationale, read_rationales
from imagebind_llm.explain.sentences import Encode, sentence_encoder
from imagebind_llm.files import write_json
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.taxonomy import Taxonomy
from imagebind_llm.text_metrics import CiderD, bleu4, distinct2, meteor, repetition4, rouge_l, similarity, words


@dataclass(frozen=True)
class ScoringSettings:
    """The flags of `python -m imagebind_llm.explain.scoring`."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder with reference rationales")
    references: str = flag("", "JSONL file of reference rationales; if not given, rationales.jsonl in the data folder")
    candidates: tuple[str, ...] = flag((), "JSONL files to score: key, predicted intent, rationale")
    split: str = flag("test", "split to score; verifier and document frequencies are fitted on train", ("dev", "test"))
    sentence_encoder: str = flag("", "folder of a local Hugging Face encoder, for the similarity of sentences")
    seed: int = flag(0, "seed of the shuffled references")
    output: str = flag("", "JSON file to write the scores to")


@dataclass(frozen=True)
class Judges:
    """Document frequencies and the verifier, fitted on the train split's reference rationales, and a sentence encoder."""

    cider: CiderD
    verifier: Verifier
    encode: Encode | None = None

    @classmethod
    def fit(
        cls,
        train: Sequence[Rationale],
        taxonomy: Taxonomy,
        dev: Sequence[Rationale] = (),
        encode: Encode | None = None,
    ) -> "Judges":
        """Fit on rationales of train; `dev` checks the verifier. Raises VerifierError for too few rationales."""
        held_out = ([row.rationale for row in dev], [row.intent for row in dev]) if dev else None
        texts = [row.rationale for row in train]
        verifier = fit_verifier(texts, [row.intent for row in train], taxonomy, held_out)  # raises, also for a single one
        return cls(CiderD(texts), verifier, encode)


@dataclass(frozen=True)
class ScoringInput:
    """Inputs of a score of rationales."""

    candidates: Sequence[str]  # a text for each reference, "" if there is none
    references: Sequence[Rationale]
    judges: Judges
    predicted: Sequence[str] | None = None  # intents that the candidates name, if they are known

    @cached_property
    def texts(self) -> tuple[list[str], list[str]]:
        """Candidates and references of the clips that have a reference."""
        pairs = [(text, row.rationale) for text, row in zip(self.candidates, self.references, strict=True) if row.rationale]
        return [text for text, _ in pairs], [reference for _, reference in pairs]

    @cached_property
    def readings(self) -> dict[str, float | None]:
        gold = [row.intent for row in self.references]
        return _masked_consistency(self.candidates, gold, self.predicted, self.judges.verifier)

    @cached_property
    def cues(self) -> dict[str, float | None]:
        complete = all(row.cues and row.table for row in self.references)
        return cue_scores(self.candidates, self.references) if complete else {}


@dataclass(frozen=True)
class RationaleScore:
    """A column of the table of scores."""

    title: str
    of: Callable[[ScoringInput], float | None]  # the value; None if unknown
    digits: int = 3  # after the decimal point


def _against_references(score: Callable) -> Callable[[ScoringInput], float | None]:
    """A score of lists of texts, the candidates and their references; None without references."""
    return lambda compared: score(*compared.texts) if compared.texts[0] else None


def _mean_against_references(score: Callable) -> Callable[[ScoringInput], float | None]:
    """The mean of a score of two texts."""
    return _against_references(lambda ours, theirs: _mean([score(*pair) for pair in zip(ours, theirs, strict=True)]))


def _cider(compared: ScoringInput) -> float | None:
    return _mean_against_references(compared.judges.cider.score)(compared)


def _similarity(compared: ScoringInput) -> float | None:
    encode = compared.judges.encode
    return similarity(*compared.texts, encode) if encode and compared.texts[0] else None


def _reading(name: str, title: str) -> dict[str, RationaleScore]:
    return {name: RationaleScore(title, lambda compared: compared.readings[name])}


def _cue(name: str, title: str, digits: int = 3) -> dict[str, RationaleScore]:
    return {name: RationaleScore(title, lambda compared: compared.cues.get(name), digits)}


SCORES = {  # in the order of the table; another score of rationales is a line here
    "bleu4": RationaleScore("BLEU-4", _against_references(bleu4)),
    "rouge_l": RationaleScore("ROUGE-L", _mean_against_references(rouge_l)),
    "cider_d": RationaleScore("CIDEr-D", _cider, digits=2),
    "meteor": RationaleScore("METEOR", _against_references(meteor)),
    "similarity": RationaleScore("similarity", _similarity),
    **_reading("consistency", "reads gold"),
    **_reading("q_gold", "q(gold)"),
    **_reading("consistency_predicted", "reads predicted"),
    **_cue("cue_precision", "cue P"),
    **_cue("cue_recall", "cue R"),
    **_cue("cue_f1", "cue F1"),
    **_cue("cue_skill", "cue skill"),
    **_cue("atypical_precision", "atypical P"),
    **_cue("atypical_claims", "atypical claims", digits=0),
    **_cue("claims", "claims an answer", digits=2),
    "distinct2": RationaleScore("distinct-2", lambda compared: distinct2(compared.candidates)),
    "repetition4": RationaleScore("repeated", lambda compared: _mean([repetition4(text) for text in compared.candidates])),
    "words": RationaleScore("words", lambda compared: _mean([len(words(text)) for text in compared.candidates]), digits=1),
}
COLUMNS = {name: score.title for name, score in SCORES.items()}
CUE_SCORES = ("claims", *(name for name in COLUMNS if name.startswith(("cue_", "atypical_"))))


def score_rationales(
    candidates: Sequence[str],
    references: Sequence[Rationale],
    judges: Judges,
    predicted: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Every score of SCORES by name; None if unknown. Scores that need a reference are over the clips that have one.

    All scores but CIDEr-D (0 to 10), skill (at most 1) and the numbers of claims and words are in [0, 1].

    Args:
        candidates: a text for each clip, "" if there is none.
        references: gold intent, faithful reference rationale ("" if there is none) and true cues of each clip.
        predicted: intents that the candidates name.
    """
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"expected a candidate for each of {len(references)} references, got {len(candidates)}")
    compared = ScoringInput(candidates, references, judges, predicted)
    return {name: score.of(compared) for name, score in SCORES.items()}


def _masked_consistency(
    candidates: Sequence[str], gold: Sequence[str], predicted: Sequence[str] | None, verifier: Verifier
) -> dict[str, float | None]:
    """Accuracy and mean probability of the verifier's predictions from masked texts; an empty text counts as wrong."""
    q = verifier.predict_proba(candidates)
    labels = verifier.taxonomy.labels
    read_labels = [labels[i] if text.strip() else None for i, text in zip(q.argmax(1).tolist(), candidates, strict=True)]
    gold_probabilities = [
        float(row[labels.index(label)]) if text.strip() else 0.0 for row, label, text in zip(q, gold, candidates, strict=True)
    ]
    return {
        "consistency": _mean([a == b for a, b in zip(read_labels, gold, strict=True)]),
        "q_gold": _mean(gold_probabilities),
        "consistency_predicted": _mean([a == b for a, b in zip(read_labels, predicted, strict=True)]) if predicted else None,
    }


def cue_scores(candidates: Sequence[str], references: Sequence[Rationale]) -> dict[str, float | None]:
    """Scores of the claims about looks and sounds, over all clips together.

    Precision: share of claims that are true of the clip. Recall: share of the reference's cues that are claimed, and truly.
    Skill: share of the errors of the gold intents' templates that is avoided. Then precision and number of atypical claims, and
    claims per answer. None if there are no claims, or (skill, atypical) if the table of cues lacks the intents.
    """
    return cue_scores_of(cue_counts(candidates, references).sum(0))


def cue_scores_of(counts: np.ndarray) -> dict[str, float | None]:
    """`cue_scores` from the sums (9,) of `cue_counts`."""
    answers, claimed, true, named, recalled, atypical, true_atypical, of_template, true_of_template = counts.tolist()
    pairs = ((true, claimed), (recalled, named), (true_atypical, atypical), (true_of_template, of_template))
    precision, recall, atypical_precision, blind = (part / whole if whole else None for part, whole in pairs)
    both = precision is not None and recall is not None
    return {
        "cue_precision": precision,
        "cue_recall": recall,
        "cue_f1": 2 * precision * recall / max(precision + recall, 1e-9) if both else None,  # type: ignore[operator]
        "cue_skill": skill(precision, blind),
        "atypical_precision": atypical_precision,
        "atypical_claims": atypical if of_template else None,
        "claims": claimed / answers if answers else None,
    }


def require_tables(references: Iterable[Rationale]) -> None:
    """Raise DataError if references have true cues but no table of the phrases that name them."""
    if without_table := [row.key for row in references if row.table is None]:
        raise DataError(
            f"{without_table[0]} and {len(without_table) - 1} others: expected {TABLE} beside rationales.jsonl, to read claims "
            "by; add it to a "
            "demo world with: python -m imagebind_llm.demo_world --output_dir DATA_PATH (no clip is drawn again)"
        )


def cue_counts(candidates: Sequence[str], references: Sequence[Rationale]) -> np.ndarray:
    """Counts (N,9) for each clip.

    The columns: 1; claims about looks and sounds, true ones; cues of the reference, those claimed truly; atypical claims, true
    ones; claims of the template of the gold intent, true ones. Raises DataError for references without a table of cues.
    """
    require_tables(references)
    rows = []
    for text, row in zip(candidates, references, strict=True):
        table = row.table
        assert table is not None
        claims, truth, named = table.cues_in(text), row.cues or {}, set(table.cues_in(row.rationale))
        claimed, true, atypical, true_atypical = table.claim_counts(claims, truth, row.intent)
        recalled = sum(claims.get(cue) == truth.get(cue) for cue in named if cue in claims)
        of_template = table.claim_counts(table.cues_in(table.templates.get(row.intent, "")), truth, row.intent)[:2]
        rows.append((1, claimed, true, len(named), recalled, atypical, true_atypical, *of_template))
    return np.array(rows, dtype=np.int64).reshape(-1, 9)


def claim_rows(
    candidates: Sequence[str], predicted: Sequence[str], references: Sequence[Rationale]
) -> dict[str, dict[str, float | None]]:
    """`cue_scores` of a model's rationales, of the references, and of the templates of the gold and of the predicted intents.

    Empty if not every clip has true cues, or if the table of cues lacks an intent.
    """
    gold = [row.intent for row in references]
    table = references[0].table if references else None
    if table is None or not all(row.cues for row in references) or not {*gold, *predicted} <= set(table.typical):
        return {}
    sources = {
        "model": candidates,
        "references": [row.rationale for row in references],
        "template of the gold intent": [table.templates[intent] for intent in gold],
        "template of the predicted intent": [table.templates[intent] for intent in predicted],
    }
    return {name: cue_scores(texts, references) for name, texts in sources.items()}


def skill(precision: float | None, of_template: float | None) -> float | None:
    """Share of the template's errors that is avoided: 0 like the template, 1 if all claims are true, negative if worse."""
    if precision is None or of_template is None or of_template == 1:
        return None
    return (precision - of_template) / (1 - of_template)


# --- rows that need no model ------------------------------------------------------------------------------------------------


def shuffled(references: Sequence[Rationale], seed: int = 0) -> list[str]:
    """The references in an order in which no clip keeps its own."""
    order = np.random.default_rng(seed).permutation(len(references))
    sources = {int(clip): int(other) for clip, other in zip(order, np.roll(order, 1), strict=True)}
    return [references[sources[i]].rationale for i in range(len(references))]


def templates(train: Sequence[Rationale]) -> dict[str, str]:
    """The template of each intent: from the table of cues, if there is one, else the train rationale that is most similar to
    the others of its intent (mean ROUGE-L)."""
    table = train[0].table if train else None
    if table is not None and all(row.cues and row.intent in table.templates for row in train):
        return dict(table.templates)
    by_intent: dict[str, list[str]] = {}
    for row in train:
        by_intent.setdefault(row.intent, []).append(row.rationale)
    return {
        intent: max(texts, key=lambda text: sum(rouge_l(text, other) for other in texts)) for intent, texts in by_intent.items()
    }


# --- files ------------------------------------------------------------------------------------------------------------------


def load_references(settings: ScoringSettings) -> tuple[Taxonomy, dict[str, list[Rationale]]]:
    """The data set's taxonomy, and by split its clips that have an intent, with reference rationales and true cues if known."""
    dataset = load_dataset(settings.data_path)
    if dataset.taxonomy is None:
        raise DataError(f"{dataset.root}: a plain folder has no intents to score against")
    rationales = read_rationales(Path(settings.references or dataset.root / "rationales.jsonl"))
    table = CueTable.beside(dataset.root)
    splits: dict[str, list[Rationale]] = {}
    for split, examples in dataset.splits.items():
        labelled = [example for example in examples if example.intent in dataset.taxonomy.labels]
        rows = [(rationales.get(e.key), e) for e in labelled]
        splits[split] = [
            Rationale(e.key, e.intent or "", row.rationale if row else "", row.cues if row else None, table=table)
            for row, e in rows
        ]
    return dataset.taxonomy, splits


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def score_cells(rows: Mapping[str, Mapping[str, float | None]]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each source. Scores that no source has are left out, except those that need a table of cues: a dash
    shows that true cues are unknown."""
    filled = {name for scores in rows.values() for name, value in scores.items() if value is not None}
    names = [name for name in SCORES if name in filled or name in CUE_SCORES]
    cells = [
        [source, *("–" if (value := scores.get(name)) is None else f"{value:.{SCORES[name].digits}f}" for name in names)]
        for source, scores in rows.items()
    ]
    return ["", *(SCORES[name].title for name in names)], cells


def side_by_side(settings: ScoringSettings) -> tuple[dict[str, dict[str, float | None]], str]:
    """The scores of every source on one split, and sentences on the verifier. Raises DataError, VerifierError."""
    taxonomy, splits = load_references(settings)
    with_reference = {split: [row for row in rows if row.rationale] for split, rows in splits.items()}
    if gone := [name for name in ("train", settings.split) if name not in splits]:
        raise DataError(f"{settings.data_path}: no split {gone[0]}, which scoring needs; there are: {', '.join(splits)}")
    encode = sentence_encoder(settings.sentence_encoder) if settings.sentence_encoder else None
    dev = with_reference.get("dev", []) if settings.split != "dev" else []
    judges = Judges.fit(with_reference["train"], taxonomy, dev, encode)
    rows, fixed = with_reference[settings.split], templates(with_reference["train"])
    scores = {}
    if rows:
        sources = {
            "reference": [row.rationale for row in rows],
            "reference, shuffled": shuffled(rows, settings.seed),
            "template of the gold intent": [fixed.get(row.intent, "") for row in rows],
        }
        scores = {name: score_rationales(texts, rows, judges) for name, texts in sources.items()}
    warnings = []
    for file in settings.candidates:
        answers = read_rationales(Path(file))
        answered = [row for row in splits[settings.split] if row.key in answers]
        if not answered:
            raise DataError(f"--candidates {file}: none of its {len(answers)} keys is in split {settings.split}")
        lines = [answers[row.key] for row in answered]
        name = f"{Path(file).stem} ({len(answered)} of {len(splits[settings.split])})"
        guesses = [answer.intent for answer in lines]
        scores[name] = score_rationales([answer.rationale for answer in lines], answered, judges, guesses)
        if n_seen := sum(answer.seen for answer in lines):
            warnings.append(f"{name}: not a result, its model was trained or chosen on {n_seen} of these {len(lines)} clips")
        if any(guesses):
            fixed_texts = [fixed.get(intent, "") for intent in guesses]
            scores[f"template of the intents of {Path(file).stem}"] = score_rationales(fixed_texts, answered, judges, guesses)
    check = judges.verifier.dev
    return scores, "\n".join([*warnings, check.sentence() if check else "the verifier was not checked: no dev rationales"])


def main(argv: list[str] | None = None) -> int:
    """Print the table, and write it as JSON with --output."""
    settings = parse(ScoringSettings, argv, "Score rationales: references, shuffled, templates and candidates side by side.")

    def run() -> None:
        scores, check = side_by_side(settings)
        print(f"{markdown.table(*score_cells(scores))}\n\n{check}")
        if settings.output:
            write_json(Path(settings.output), scores)

    return exit_code("imagebind_llm.explain.scoring", run)


if __name__ == "__main__":
    sys.exit(main())
