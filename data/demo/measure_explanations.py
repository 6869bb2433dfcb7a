"""How true a trained model's explanations of the demo world are, cue by cue, and what they are when its senses are swapped.

    python data/demo/measure_explanations.py --checkpoint runs/demo/itsl/best

Test split. Precision: the share of the claims about looks and sounds that is true of the clip, also for what is seen and what
is heard alone; recall: of the cues that the reference names, the share that is named truly; skill: the share of the
template's errors that is avoided; atypical precision: of the claims about cues that are not what the intent usually shows,
where whoever never looks is always wrong; intervals by bootstrap over clips. Rows: the references; the template, one fixed
sentence for each intent that names what is typical of it, for the true intents and for those that the model predicts; the
model, and the same model with every clip's pictures, sounds or all embeddings dealt to another clip. "Follows": of the claims
about what was dealt in which the two clips differ, the share that states the other clip's value. Below, what linear probes
read off the same embeddings (the same cues, weighted as they are claimed).
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from measure_encoder import probe_accuracy
from torch import Tensor
from tqdm import tqdm

from imagebind_llm import distributed, markdown
from imagebind_llm.config import MODALITIES
from imagebind_llm.corpus.seen import read_stages, refuse_seen, row_marks, stored_marks
from imagebind_llm.datasets.readers import load_dataset
from imagebind_llm.demo_world import cues
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain.cue_table import follows
from imagebind_llm.explain.explainer import Explainer, Explanation
from imagebind_llm.explain.faithfulness import another_clip, perturbed
from imagebind_llm.explain.loading import load_explainer
from imagebind_llm.explain.scoring import Rationale, cue_counts, cue_scores_of, read_rationales, require_tables
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.metrics import drawn_rows
from imagebind_llm.metrics import scores as intent_scores
from imagebind_llm.records import Example

RESAMPLES = 1000
SHOWN = {
    "cue_precision": "cue precision",
    "cue_recall": "cue recall",
    "cue_f1": "cue F1",
    "cue_skill": "skill",
    "atypical_precision": "atypical precision",
}
COLUMNS = ("", "accuracy, %", "macro F1", *SHOWN.values(), "claims an answer", "P of seen", "P of heard", "follows")


@dataclass(frozen=True)
class MeasureSettings:
    """The flags of data/demo/measure_explanations.py."""

    checkpoint: str = flag(help="checkpoint folder, such as runs/demo/itsl/best")
    data_path: str = flag("data/demo/clips", "folder of the demo world")
    emb_path: str = flag("runs/demo/emb", "embedding store of --data_path")
    limit: int = flag(0, "number of clips of the test split, from the first; 0: all")
    swapped: int = flag(100, "number of clips to explain also with another clip's pictures, sounds and both; 0: none")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))


def main() -> int:
    settings = parse(MeasureSettings, description=__doc__)

    def run() -> None:
        explainer = load_explainer(Path(settings.checkpoint), device=distributed.choose_device(settings.device))
        print(measure(explainer, settings))

    return exit_code("measure_explanations.py", run)


def measure(explainer: Explainer, settings: MeasureSettings) -> str:
    """The table, in Markdown."""
    dataset, store = load_dataset(settings.data_path), Store(Path(settings.emb_path))
    references = read_rationales(Path(settings.data_path, "rationales.jsonl"))
    test = dataset.splits["test"][: settings.limit or None]
    explainer.check_store(store)
    marks = row_marks(test, stored_marks(test, store))
    refuse_seen(settings.checkpoint, read_stages(Path(settings.checkpoint)), test, marks)
    vectors, present = store.read([example.key for example in test])
    told = [references[example.key] for example in test]
    require_tables(told)
    own = answers(explainer, test, vectors, present, "explaining")
    guesses = [answer.intent for answer in own]
    rows = [
        row("references", [one.rationale for one in told], None, told),
        row("template of the gold intent", [CUE_TABLE.templates[one.intent] for one in told], None, told),
        row("template of the model's intents", [CUE_TABLE.templates[intent] for intent in guesses], guesses, told),
        row("the model", [answer.rationale for answer in own], guesses, told),
    ]
    if (count := min(settings.swapped, len(test))) > 1:
        rows += swapped(explainer, test[:count], vectors[:count], present[:count], told[:count])
    probe = probe_precision(own, dataset.splits, store, references)
    allowed = cues.bayes_accuracy([name for name in explainer.modalities if name in MODALITIES])
    best = f"{100 * allowed:.1f} %" if cues.is_world(dataset.root) else "not known of this version of the world"
    notes = f"Best reachable accuracy {best}; linear probes on these cues: precision {100 * probe:.1f} %"
    doubtful = sum(not answer.consistent for answer in own)
    doubt = f"Answers whose rationale speaks for another intent: {doubtful} of {len(own)}"
    return f"{markdown.table(COLUMNS, rows)}\n\n{notes}\n{doubt}"


def answers(explainer: Explainer, examples: list[Example], vectors: Tensor, present: Tensor, title: str) -> list[Explanation]:
    """One a clip, in order."""
    return list(tqdm(explainer.explain(examples, vectors, present), total=len(examples), desc=title, unit="clip"))


def swapped(
    explainer: Explainer, examples: list[Example], vectors: Tensor, present: Tensor, told: list[Rationale]
) -> list[list[str]]:
    """Rows of the model with pictures, sounds and all of another clip, and how far its claims follow."""
    others, n = another_clip(len(examples), seed=0), len(examples)
    dealt = {
        f"another clip's {what} ({n} clips)": (perturbed(examples, vectors, present, modality, "swap", others), sense)
        for modality, what, sense in (("vision", "pictures", cues.VISUAL), ("audio", "sounds", cues.VOCAL))
        if modality in explainer.modalities
    }
    everything = (examples, vectors[others], present[others])
    dealt[f"another clip's embeddings ({n} clips)"] = (everything, tuple(cues.CUES))
    rows = []
    for name, (changed, sense) in dealt.items():
        found = answers(explainer, *changed, name)
        texts = [answer.rationale for answer in found]
        rows.append(row(name, texts, [answer.intent for answer in found], told, followed(texts, told, others, sense)))
    return rows


def followed(texts: list[str], told: list[Rationale], others: list[int], sense: tuple[str, ...]) -> str:
    """The share of claims about these cues that follow the swap, where the two clips differ."""
    hits = [
        hit
        for text, own, other in zip(texts, told, others, strict=True)
        for hit in follows(CUE_TABLE.cues_in(text), own.cues or {}, told[other].cues or {}, sense)
    ]
    return f"{100 * np.mean(hits):.1f} of {len(hits)}" if hits else "–"


def row(name: str, texts: list[str], guesses: list[str] | None, told: list[Rationale], follow: str = "–") -> list[str]:
    """Scores of rationales, and of the intents that go with them if they are somebody's; 95 % intervals of the cue scores."""
    gold = [one.intent for one in told]
    counts = cue_counts(texts, told)
    scores, spread = cue_scores_of(counts.sum(0)), intervals(counts)
    shown = ["–", "–"]
    if guesses is not None:
        of_intents = intent_scores(np.array(gold), np.array(guesses))
        shown = [f"{100 * of_intents[score]:.1f}" for score in ("accuracy", "macro_f1")]
    for score in SHOWN:
        low, high = spread[score]
        value = scores[score]
        number = "" if score != "atypical_precision" else f" of {scores['atypical_claims']}"
        shown.append("–" if value is None else f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f}){number}")
    shown.append(f"{scores['claims']:.2f}")
    for sense in (cues.VISUAL, cues.VOCAL):
        true, claimed = claims_of(sense, texts, told)
        shown.append(f"{100 * true / max(claimed, 1):.1f} of {claimed}")
    return [name, *shown, follow]


def claims_of(sense: tuple[str, ...], texts: list[str], told: list[Rationale]) -> tuple[int, int]:
    """How many claims about these cues are true, and how many are made."""
    claims = [
        (row.cues or {}).get(cue) == value
        for text, row in zip(texts, told, strict=True)
        for cue, value in CUE_TABLE.cues_in(text).items()
        if cue in sense
    ]
    return sum(claims), len(claims)


def intervals(counts: np.ndarray) -> dict[str, tuple[float, float]]:
    """Bootstrap over clips, counts (N,9) as cue_counts has them: the middle 95 % of each cue score."""
    found = [cue_scores_of(counts[draw].sum(0)) for draw in drawn_rows(len(counts), RESAMPLES)]
    return {name: tuple(np.percentile([one[name] or 0.0 for one in found], [2.5, 97.5])) for name in found[0]}


def probe_precision(
    found: list[Explanation], splits: dict[str, list[Example]], store: Store, references: dict[str, Rationale]
) -> float:
    """Accuracy of linear probes for single cues, averaged over the claims that the model makes."""
    claims = Counter(cue for answer in found for cue in CUE_TABLE.cues_in(answer.rationale))
    vectors = {name: F.normalize(store.read([one.key for one in rows])[0], dim=-1) for name, rows in splits.items()}  # (n,M,E)
    total = 0.0
    for cue, count in claims.items():
        column = MODALITIES.index("vision" if cue in cues.VISUAL else "audio")
        truth = {name: np.array([(references[one.key].cues or {})[cue] for one in rows]) for name, rows in splits.items()}
        total += count * probe_accuracy({name: x[:, column].numpy() for name, x in vectors.items()}, truth)
    return total / max(sum(claims.values()), 1)


if __name__ == "__main__":
    sys.exit(main())
