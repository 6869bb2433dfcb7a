"""All scores of rationales side by side: against references, against the label with its words masked, against known cues.

    python -m imagebind_llm.explain.scoring --data_path data/demo/clips --candidates answers.jsonl

No score means anything alone, so a table has three rows that need no model: the references themselves (what is best), the
references dealt out to other clips (what a fluent text about something else gets) and one fixed rationale for each intent
(what is got by knowing the label without looking). A score that does not fall from the first to the others measures nothing.
The fixed rationale is made of the intent's typical cues where the data set has a table of cues (cue_table.py, which also says
what an atypical claim is), else the train rationale most like the others; it stands beside every file for the intents that the
file predicts.
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
    """What `python -m imagebind_llm.explain.scoring` takes."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder with reference rationales")
    references: str = flag("", "JSONL of reference rationales; if not given, rationales.jsonl in the data folder")
    candidates: tuple[str, ...] = flag((), "JSONL files of rationales to score: key, intent (as predicted), rationale")
    split: str = flag("test", "split to score; the judges are fitted on train alone", ("dev", "test"))
    sentence_encoder: str = flag("", "folder of a local Hugging Face encoder, for the similarity of sentences")
    seed: int = flag(0, "seed of the shuffled references")
    output: str = flag("", "also write the scores here, as JSON")


@dataclass(frozen=True)
class Judges:
    """What is fitted on the train split's reference rationales, once: document frequencies and the verifier."""

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
        """Raises VerifierError where there are too few rationales."""
        held_out = ([row.rationale for row in dev], [row.intent for row in dev]) if dev else None
        texts = [row.rationale for row in train]
        verifier = fit_verifier(texts, [row.intent for row in train], taxonomy, held_out)  # raises, also for a single one
        return cls(CiderD(texts), verifier, encode)


@dataclass(frozen=True)
class ScoringInput:
    """What a score of rationales is computed from: a candidate (a text, empty where there is none) for each reference, the
    judges, and the intents that the candidates name, where they are known."""

    candidates: Sequence[str]
    references: Sequence[Rationale]
    judges: Judges
    predicted: Sequence[str] | None = None

    @cached_property
    def texts(self) -> tuple[list[str], list[str]]:
        """Candidates and references of the clips that have a reference."""
        pairs = [(ours, row.rationale) for ours, row in zip(self.candidates, self.references, strict=True) if row.rationale]
        return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]

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
    """A column of the table: its title, its value (None where unknown), and the digits behind the point that are shown."""

    title: str
    of: Callable[[ScoringInput], float | None]
    digits: int = 3


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
    """Every score of `candidates` (a text a clip, empty where there is none) under the names of SCORES; None where unknown.

    references: the gold intent of each clip, its faithful reference rationale (empty if there is none) and its true cues. All
    but CIDEr-D (0 to 10), skill (at most 1) and the numbers of claims and words lie in [0, 1]. Clips without a reference count
    for no score that needs one.
    """
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"expected a candidate for each of {len(references)} references, got {len(candidates)}")
    compared = ScoringInput(candidates, references, judges, predicted)
    return {name: score.of(compared) for name, score in SCORES.items()}


def _masked_consistency(
    candidates: Sequence[str], gold: Sequence[str], predicted: Sequence[str] | None, verifier: Verifier
) -> dict[str, float | None]:
    """How often, and how surely, the label is read from a text whose label words are masked; an empty text tells nothing."""
    q = verifier.predict_proba(candidates)
    labels = verifier.taxonomy.labels
    read = [labels[i] if text.strip() else None for i, text in zip(q.argmax(1).tolist(), candidates, strict=True)]
    gold_shares = [
        float(row[labels.index(label)]) if text.strip() else 0.0 for row, label, text in zip(q, gold, candidates, strict=True)
    ]
    return {
        "consistency": _mean([a == b for a, b in zip(read, gold, strict=True)]),
        "q_gold": _mean(gold_shares),
        "consistency_predicted": _mean([a == b for a, b in zip(read, predicted, strict=True)]) if predicted else None,
    }


def cue_scores(candidates: Sequence[str], references: Sequence[Rationale]) -> dict[str, float | None]:
    """Claims about looks and sounds over all clips together.

    Precision: the share that is true of the clip. Recall: of what the reference names, the share that is named, truly. Skill:
    the share of the errors of the clip-blind template of the gold intents that is avoided. Then the precision of atypical
    claims, how many there are, and how many claims of any kind an answer makes. None where nothing is claimed, or the table of
    cues (skill, atypical) does not know the intents.
    """
    return cue_scores_of(cue_counts(candidates, references).sum(0))


def cue_scores_of(counts: np.ndarray) -> dict[str, float | None]:
    """The same from (9,) sums of cue_counts."""
    answers, claimed, true, named, recalled, atypical, seen, of_template, true_of_template = counts.tolist()
    pairs = ((true, claimed), (recalled, named), (seen, atypical), (true_of_template, of_template))
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
    """Raises DataError where a data set says what is true of its clips but not how texts name it."""
    if bare := [row.key for row in references if row.table is None]:
        raise DataError(
            f"{bare[0]} and {len(bare) - 1} others: expected {TABLE} beside rationales.jsonl, to read claims by; add it to a "
            "demo world with: python -m imagebind_llm.demo_world --output_dir DATA_PATH (no clip is drawn again)"
        )


def cue_counts(candidates: Sequence[str], references: Sequence[Rationale]) -> np.ndarray:
    """(N,9) by clip: 1; claims about looks and sounds, the true ones; cues that the reference names, those named truly;
    atypical claims, the true ones; claims of the template of the gold intent, the true ones. Raises DataError for references
    without a table of cues."""
    require_tables(references)
    rows = []
    for text, row in zip(candidates, references, strict=True):
        table = row.table
        assert table is not None
        claims, truth, wanted = table.cues_in(text), row.cues or {}, set(table.cues_in(row.rationale))
        claimed, true, atypical, seen = table.claim_counts(claims, truth, row.intent)
        recalled = sum(claims.get(cue) == truth.get(cue) for cue in wanted if cue in claims)
        blind = table.claim_counts(table.cues_in(table.templates.get(row.intent, "")), truth, row.intent)[:2]
        rows.append((1, claimed, true, len(wanted), recalled, atypical, seen, *blind))
    return np.array(rows, dtype=np.int64).reshape(-1, 9)


def claim_rows(
    candidates: Sequence[str], predicted: Sequence[str], references: Sequence[Rationale]
) -> dict[str, dict[str, float | None]]:
    """cue_scores of a model's rationales beside those of the references and of the clip-blind template, for the true intents
    and for the predicted ones. Empty where the truth or the table of cues does not cover every clip."""
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
    """The share of the clip-blind template's errors that is avoided: 0 as the template, 1 all true, below 0 worse than it."""
    if precision is None or of_template is None or of_template == 1:
        return None
    return (precision - of_template) / (1 - of_template)


# --- rows that need no model ------------------------------------------------------------------------------------------------


def shuffled(references: Sequence[Rationale], seed: int = 0) -> list[str]:
    """The references dealt out to other clips: nobody keeps their own."""
    order = np.random.default_rng(seed).permutation(len(references))
    dealt = {int(mine): int(other) for mine, other in zip(order, np.roll(order, 1), strict=True)}
    return [references[dealt[i]].rationale for i in range(len(references))]


def templates(train: Sequence[Rationale]) -> dict[str, str]:
    """By intent, one fixed text: label known, clip unseen. Where there is a table of cues, its typical values in a sentence;
    elsewhere the train rationale that is most like the others of its intent (mean ROUGE-L)."""
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
    """The data set's taxonomy, and by split its clips that have an intent, with reference rationale and cues where known."""
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
    """Header and rows: sources down, scores across. Scores that no source has are left out, but for what needs a table of cues:
    a dash there says that nothing is known of the truth."""
    filled = {name for scores in rows.values() for name, value in scores.items() if value is not None}
    names = [name for name in SCORES if name in filled or name in CUE_SCORES]
    cells = [
        [source, *("–" if (value := scores.get(name)) is None else f"{value:.{SCORES[name].digits}f}" for name in names)]
        for source, scores in rows.items()
    ]
    return ["", *(SCORES[name].title for name in names)], cells


def side_by_side(settings: ScoringSettings) -> tuple[dict[str, dict[str, float | None]], str]:
    """The scores of every source on one split, and what the verifier is worth. Raises DataError, VerifierError."""
    taxonomy, splits = load_references(settings)
    written = {split: [row for row in rows if row.rationale] for split, rows in splits.items()}
    if gone := [name for name in ("train", settings.split) if name not in splits]:
        raise DataError(f"{settings.data_path}: no split {gone[0]}, which scoring needs; there are: {', '.join(splits)}")
    encode = sentence_encoder(settings.sentence_encoder) if settings.sentence_encoder else None
    dev = written.get("dev", []) if settings.split != "dev" else []
    judges = Judges.fit(written["train"], taxonomy, dev, encode)
    rows, fixed = written[settings.split], templates(written["train"])
    scores = {}
    if rows:
        sources = {
            "reference": [row.rationale for row in rows],
            "reference, shuffled": shuffled(rows, settings.seed),
            "template of the gold intent": [fixed.get(row.intent, "") for row in rows],
        }
        scores = {name: score_rationales(texts, rows, judges) for name, texts in sources.items()}
    warned = []
    for file in settings.candidates:
        answers = read_rationales(Path(file))
        asked = [row for row in splits[settings.split] if row.key in answers]
        if not asked:
            raise DataError(f"--candidates {file}: none of its {len(answers)} keys is in split {settings.split}")
        lines = [answers[row.key] for row in asked]
        name = f"{Path(file).stem} ({len(asked)} of {len(splits[settings.split])})"
        guesses = [answer.intent for answer in lines]
        scores[name] = score_rationales([answer.rationale for answer in lines], asked, judges, guesses)
        if seen := sum(answer.seen for answer in lines):
            warned.append(f"{name}: not a result, its model was trained or chosen on {seen} of these {len(lines)} clips")
        if any(guesses):
            fixed_texts = [fixed.get(intent, "") for intent in guesses]
            scores[f"template of the intents of {Path(file).stem}"] = score_rationales(fixed_texts, asked, judges, guesses)
    check = judges.verifier.dev
    return scores, "\n".join([*warned, check.sentence() if check else "the verifier was not checked: no dev rationales"])


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON where --output says so."""
    settings = parse(ScoringSettings, argv, "Score rationales: references, shuffled, templates and candidates side by side.")

    def run() -> None:
        scores, check = side_by_side(settings)
        print(f"{markdown.table(*score_cells(scores))}\n\n{check}")
        if settings.output:
            write_json(Path(settings.output), scores)

    return exit_code("imagebind_llm.explain.scoring", run)


if __name__ == "__main__":
    sys.exit(main())
