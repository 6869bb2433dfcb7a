"""Faithfulness of rationales: how they change when one modality is dropped or replaced by that of another clip.

    python -m imagebind_llm.explain.faithfulness --checkpoint runs/itsl/best --data_path data/demo/clips --emb_path runs/emb

A faithful rationale changes its claims about that modality (with another clip's picture it describes the other clip) and keeps
its claims about the others. If true cues are known (the demo world), both are counted by claim; in any case, how much the text
changes and whether the intent does. Phrases about the words count as claims about the text (cue_table.py).
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

# such as `Explainer.explain`: examples, embeddings (N,M,E), present (N,M) -> N answers with .intent and .rationale
Explain = Callable[[Sequence[Example], Tensor, Tensor], Iterable]


@dataclass(frozen=True)
class FaithfulnessSettings:
    """The flags of `python -m imagebind_llm.explain.faithfulness`."""

    checkpoint: str = flag(help="checkpoint folder of engine_finetune.py, such as runs/demo/itsl/best")
    data_path: str = flag(help="data set; if its rationales.jsonl has true cues, claims are compared with them")
    emb_path: str = flag(help="embedding store of --data_path, made by avt_get_emb.py")
    llama_model_path: str = flag("", "path of the LLaMA; if not given, the one that the checkpoint names")
    split: str = flag("test", "split to explain", ("train", "dev", "test"))
    limit: int = flag(100, "number of clips of the split, from the first; 0: all")
    how: tuple[str, ...] = flag(PERTURBATIONS, "drop: leave the modality out; swap: use that of another clip", PERTURBATIONS)
    max_new_tokens: int = flag(MAX_NEW_TOKENS, "largest number of tokens of a rationale")
    batch_size: int = flag(32, "clips per batch")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    seed: int = flag(0, "seed of the random swaps")
    output: str = flag("", "JSON file to write the numbers to")


@dataclass(frozen=True)
class Change:
    """The effect of changing one modality. Shares in [0, 1]; None if there are no claims to count."""

    modality: str
    how: str  # drop or swap
    n_clips: int
    n_claims: int  # about the modality, before the change
    own_changed: float | None  # share of these claims that are missing or different afterwards
    own_follows: float | None  # of claims about cues in which the clips differ, the share with the other clip's value
    others_kept: float | None  # share of the claims about other modalities that stay the same
    intent_changed: float  # share of clips
    text_moved: float  # 1 - ROUGE-L between the two texts, mean over clips


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
    """Explain every clip unchanged, then with each of `modalities` changed in each of the ways `hows` (drop, swap).

    truth: references with true cues and their table; without them no claims are counted.
    """
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
    """A random other clip for each of n clips. Raises ValueError for fewer than 2."""
    if n < 2:
        raise ValueError(f"swapping needs at least 2 clips, got {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other.tolist()


def perturbed(
    examples: Sequence[Example], embeddings: Tensor, present: Tensor, modality: str, how: str, others: Sequence[int]
) -> tuple[list[Example], Tensor, Tensor]:
    """The clips without a modality (drop), or with that of the clips `others` (swap); with "text" also their words."""
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
    """Of the claims after a swap about cues in which the two clips differ, the share with the value of the clip in `others`.

    None if there are no such claims.
    """
    hits = [
        hit
        for text, own, other in zip(rationales, truth, others, strict=True)
        if own.table is not None
        for hit in follows(own.table.claims_in(text), true_cues(own), true_cues(truth[other]), own.table.cues_of(modality))
    ]
    return _share(hits)


def true_cues(reference: Rationale) -> dict[str, str]:
    """The true cues of a clip, and the reference's claims about its words."""
    table = reference.table
    words = table.cues_of("text") if table else ()
    claims = table.claims_in(reference.rationale) if table else {}
    return {cue: value for cue, value in claims.items() if cue in words} | dict(reference.cues or {})


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def change_cells(changes: Iterable[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each change, from its fields."""
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
        raise CheckpointError(
            f"{settings.checkpoint}: trained on text only, so there is no modality to drop or swap; take a checkpoint that was "
            f"trained with embeddings"
        )
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
