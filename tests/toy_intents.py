"""A small data set in MIntRec's layout with a store of embeddings from which its intents can be told."""

from pathlib import Path

import torch

from imagebind_llm.encoder.store import Identity, StoreWriter, source_digest
from imagebind_llm.taxonomy import MINTREC

HEADER = "season\tepisode\tclip\ttext\tlabel\n"
WIDTH = 8
LABELS = ("Complain", "Praise", "Inform", "Leave")


def rows_of(split: str, n: int) -> list[tuple[str, str, str, str, str]]:
    """n rows (season, episode, clip, text, label), the labels in turn; the splits share their seven episodes."""
    shift = {"train": 0, "dev": 1000, "test": 2000}[split]
    return [("S04", f"E{i % 7}", str(shift + i), f"words {split} number {i}", LABELS[i % len(LABELS)]) for i in range(n)]


def write_tables(root: Path, splits: dict[str, list[tuple]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (root / f"{split}.tsv").write_text(HEADER + "".join("\t".join(row) + "\n" for row in rows))
    return root


def key(row: tuple) -> str:
    return "_".join(row[:3])


def vectors_of(rows: list[tuple], noise: float = 1.0, seed: int = 0) -> torch.Tensor:
    """(N,3,WIDTH): around a centre for each label and modality."""
    centres = 1.2 * torch.randn(len(MINTREC.labels), 3, WIDTH, generator=torch.Generator().manual_seed(5))
    drawn = noise * torch.randn(len(rows), 3, WIDTH, generator=torch.Generator().manual_seed(seed))
    return centres[[MINTREC.index(row[4]) for row in rows]] + drawn


def write_store(root: Path, keys: list[str], vectors: torch.Tensor, present: torch.Tensor | None = None, **changed) -> Path:
    """Through the store's own writer; `changed` fields of the identity."""
    fields = {"encoder": "toy", "weights_sha256": "0", "dtype": "float32", "modalities": ("text", "audio", "vision")}
    fields |= {"window_rule": "to_end", "clean_audio": False, "width": vectors.shape[-1], "code": "1"} | changed
    present = torch.ones(vectors.shape[:2], dtype=torch.bool) if present is None else present
    with StoreWriter(root, Identity(**fields)) as writer:
        writer.append(keys, vectors * present[..., None], present, [source_digest(one) for one in keys])
    return root


def toy_set(root: Path, n: dict[str, int] | None = None) -> tuple[Path, Path]:
    """The data set's folder and its store's."""
    splits = {split: rows_of(split, count) for split, count in (n or {"train": 60, "dev": 40, "test": 40}).items()}
    rows = [row for own in splits.values() for row in own]
    return write_tables(root / "data", splits), write_store(root / "emb", [key(row) for row in rows], vectors_of(rows))
