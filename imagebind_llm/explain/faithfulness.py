"""Does a rationale speak of what the model was given? One modality is dropped, or taken from another clip, and we read again.

    python -m imagebind_llm.explain.faithfulness --checkpoint runs/itsl/best --data_path data/demo/clips --emb_path runs/emb

A faithful rationale changes its claims about that modality (with another clip's picture it describes the other clip) and keeps
its claims about the others. Where cues are known (the demo world), both are counted claim by claim; everywhere, how far the
text moves and whether the intent changes. Phrases about the words count as claims about the text (cue_table.py).
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm import distributed, markdown
from imagebind_llm.config import MODALITIES, PERTURBATIONS
from imagebind_llm.corpus.seen import keys_seen
from imagebind_llm.datasets.readers import load_dataset
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain.cue_table import follows
from imagebind_llm.explain.explainer import MAX_NEW_TOKENS
from imagebind_llm.explain.loading import load_explainer
from imagebind_llm.explain.rationales import Rationale, read_rationales
from imagebind_llm.files import write_json
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.itsl.checkpoint import CheckpointError
from imagebind_llm.records import Example
from imagebind_llm.text_metrics import rouge_l

# `Explainer.explain`, say: examples, embeddings (N,M,E), present (N,M) -> N answers with .intent and .rationale
Explain = Callable[[Sequence[Example], Tensor, Tensor], Iterable]


@dataclass(frozen=True)
class FaithfulnessSettings:
    """What `python -m imagebind_llm.explain.faithfulness` takes."""

    checkpoint: str = flag(help="folder of a trained model, e.g. runs/demo/itsl/best")
    data_path: str = flag(help="the data set; if its rationales.jsonl has cues, claims are compared with them")
    emb_path: str = flag(help="its embedding store")
    llama_model_path: str = flag("", "the LLaMA it was trained with, if it is elsewhere now")
    split: str = flag("test", "split to explain", ("train", "dev", "test"))
    limit: int = flag(100, "the first clips of the split; 0: all")
    how: tuple[str, ...] = flag(PERTURBATIONS, "drop: leave the modality out; swap: use that of another clip", PERTURBATIONS)
    max_new_tokens: int = flag(MAX_NEW_TOKENS, "most tokens of an answer")
    batch_size: int = flag(32, "clips in a batch")
    device: str = flag("auto", "auto is cuda where there is one", ("auto", "cpu", "cuda"))
    seed: int = flag(0, "seed of the random swaps")
    output: str = flag("", "also write the numbers here, as JSON")


@dataclass(frozen=True)
class Change:
    """What changing one modality does. Shares in [0, 1]; None where no claim was there to count.

    own_changed: of the claims about it, how many are withdrawn or differ. own_follows: of those about cues in which the other
    clip differs, how many now state the other clip's. others_kept: of the claims about other modalities, how many stay.
    """

    modality: str
    how: str
    n_clips: int
    n_claims: int
    own_changed: float | None
    own_follows: float | None
    others_kept: float | None
    intent_changed: float
    text_moved: float  # 1 - ROUGE-L between the two texts


def faithfulness(
    explain: Explain,
    examples: Sequence[Example],
    embeddings: Tensor,
    present: Tensor,
    truth: Sequence[Rationale] | None = None,
    modalities: Sequence[str] = MODALITIES,
    seed: int = 0,
    hows: Sequence[str] = PERTURBATIONS,
) -> list[Change]:
    """Explain every clip as it is, then with each of `modalities` changed in each of `hows` (drop, swap). `truth`: the
    references, with cues and their table; without them no claim is counted."""
    answers = list(explain(examples, embeddings, present))
    changes = []
    for modality in modalities:
        for how in hows:
            others = another_clip(len(examples), seed)
            changed = perturbed(examples, embeddings, present, modality, how, others)
            now = list(explain(*changed))
            changes.append(_change(modality, how, answers, now, truth, others))
    return changes


def another_clip(n: int, seed: int) -> list[int]:
    """For every clip another one, drawn; nobody gets their own."""
    if n < 2:
        raise ValueError(f"swapping needs at least 2 clips, got {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other.tolist()


def perturbed(
    examples: Sequence[Example], embeddings: Tensor, present: Tensor, modality: str, how: str, others: Sequence[int]
) -> tuple[list[Example], Tensor, Tensor]:
    """The clips without a modality, or with that of the clips `others`; the words go with the text."""
    m, embeddings, present = MODALITIES.index(modality), embeddings.clone(), present.clone()
    texts = [example.text for example in examples]
    if how == "drop":
        embeddings[:, m], present[:, m] = 0, False
        texts = [""] * len(texts) if modality == "text" else texts
    else:
        embeddings[:, m], present[:, m] = embeddings[list(others), m], present[list(others), m]
        texts = [texts[i] for i in others] if modality == "text" else texts
    return [replace(example, text=text) for example, text in zip(examples, texts, strict=True)], embeddings, present


def _change(
    modality: str, how: str, before: Sequence, after: Sequence, truth: Sequence[Rationale] | None, others: Sequence[int]
) -> Change:
    """Count claims before and after, clip by clip."""
    changed, kept = [], []
    for i, (was, now) in enumerate(zip(before, after, strict=True)):
        if truth is None or (table := truth[i].table) is None:
            break
        claims, claims_now = table.claims_in(was.rationale), table.claims_in(now.rationale)
        for cue, value in claims.items():
            if table.modality_of(cue) != modality:
                kept.append(claims_now.get(cue) == value)
                continue
            changed.append(claims_now.get(cue) != value)
    pairs, texts = list(zip(before, after, strict=True)), [now.rationale for now in after]
    return Change(
        modality,
        how,
        n_clips=len(pairs),
        n_claims=len(changed),
        own_changed=_share(changed),
        own_follows=share_following(texts, truth, others, modality) if truth and how == "swap" else None,
        others_kept=_share(kept),
        intent_changed=sum(was.intent != now.intent for was, now in pairs) / len(pairs),
        text_moved=1 - sum(rouge_l(now.rationale, was.rationale) for was, now in pairs) / len(pairs),
    )


def share_following(
    rationales: Sequence[str], truth: Sequence[Rationale], others: Sequence[int], modality: str
) -> float | None:
    """Of what rationales written after a swap claim about cues in which the two clips differ, the share that is true of the
    clip `others` whose modality was given; None without such claims."""
    hits = [
        hit
        for text, own, other in zip(rationales, truth, others, strict=True)
        if own.table is not None
        for hit in follows(own.table.claims_in(text), true_cues(own), true_cues(truth[other]), own.table.cues_of(modality))
    ]
    return _share(hits)


def true_cues(reference: Rationale) -> dict[str, str]:
    """The truth about a clip: its cues, and what its words do as the reference puts it."""
    table = reference.table
    words = table.cues_of("text") if table else ()
    claims = table.claims_in(reference.rationale) if table else {}
    return {cue: value for cue, value in claims.items() if cue in words} | dict(reference.cues or {})


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def change_cells(changes: Iterable[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and a row a change, from the fields of each."""
    names = {
        "own_changed": "own claims changed",
        "own_follows": "now say the other clip's",
        "others_kept": "other claims kept",
        "intent_changed": "intent changed",
        "text_moved": "text moved",
    }
    rows = []
    for change in changes:
        shares = ["–" if change[name] is None else f"{change[name]:.3f}" for name in names]
        rows.append([change["modality"], change["how"], str(change["n_claims"]), *shares])
    return ["modality", "change", "claims", *names.values()], rows


def measure_faithfulness(settings: FaithfulnessSettings) -> list[Change]:
    """`faithfulness` of a trained model on the first clips of a split. Raises CheckpointError, DataError, StoreError."""
    explainer = load_explainer(Path(settings.checkpoint), settings.llama_model_path, distributed.choose_device(settings.device))
    if not explainer.needs_embeddings:
        raise CheckpointError(f"{settings.checkpoint}: trained on the words alone; there is no modality to drop or swap")
    dataset = load_dataset(settings.data_path, (settings.split,))
    examples = dataset.splits[settings.split][: settings.limit or None]
    store = Store(Path(settings.emb_path))
    explainer.check_store(store)
    if seen := keys_seen(Path(settings.checkpoint), examples, store):
        print(f"{settings.checkpoint}: was trained or chosen on {len(seen)} of these {len(examples)} clips")
    file = dataset.root / "rationales.jsonl"
    rationales = read_rationales(file) if file.is_file() else {}
    truth = [row for example in examples if (row := rationales.get(example.key)) and row.cues]
    explain = partial(explainer.explain, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size)
    vectors, present = store.read([example.key for example in examples])
    references = truth if len(truth) == len(examples) else None
    return faithfulness(explain, examples, vectors, present, references, explainer.modalities, settings.seed, settings.how)


def main(argv: list[str] | None = None) -> int:
    settings = parse(FaithfulnessSettings, argv, "What a model's rationales say when a modality is dropped or swapped.")

    def run() -> None:
        changes = [asdict(change) for change in measure_faithfulness(settings)]
        print(markdown.table(*change_cells(changes)))
        if settings.output:
            write_json(Path(settings.output), changes)

    return exit_code("imagebind_llm.explain.faithfulness", run)


if __name__ == "__main__":
    sys.exit(main())
