"""The embedding store: a file format with one row per clip, appended by several processes and read in any order.

    STORE/manifest-0.json                 identity of encoder and settings, and the list of writer 0's shards
    STORE/shards/00000-0.safetensors      vectors (n,M,E) float32, present (n,M) bool, sources (n,) int64; keys in the header

Every writer (one per rank) has its own manifest, so no two processes write the same file. A shard is written under a temporary
name, synced and renamed, then added to the manifest in the same way, so that the store has complete rows only whenever a run is
killed. Shards are numbered in order of time; if a key was written twice, the later row is used.
Vectors are the encoder's output, not normalised again; readers normalise.
"""

import hashlib
import io
import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from imagebind_llm.config import MODALITIES
from imagebind_llm.files import locked, write_atomic

FORMAT = 1
FIRST_FLUSH_S = 0.25
ORIGINAL = ("text", "vision", "audio")  # the order in the original's files
OPEN_SHARDS = 32  # largest number of files that a reader keeps open


class StoreError(ValueError):
    """The store cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Identity:
    """Everything that an embedding's values depend on. Rows of different identities are never mixed."""

    encoder: str  # preset name
    weights_sha256: str
    dtype: str
    modalities: tuple[str, ...]
    window_rule: str
    clean_audio: bool
    width: int
    code: str  # version of the front end and towers

    def difference(self, other: "Identity") -> str:
        """The fields that differ, as `name: other -> self`; empty if none do."""
        new, old = ({n: " ".join(v) if isinstance(v, tuple) else v for n, v in asdict(i).items()} for i in (self, other))
        return ", ".join(f"{name}: {old[name]} -> {new[name]}" for name in new if new[name] != old[name])


def identity_of(fields: dict) -> Identity:
    """The identity from its JSON in a manifest or checkpoint.json."""
    values: dict = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Identity(**values)


@dataclass(frozen=True)
class Failure:
    """A modality of a clip that could not be embedded."""

    split: str
    key: str
    path: str
    modality: str
    reason: str


def source_digest(*parts: str) -> int:
    """A 63-bit digest of what a row was made from; a row whose source has changed is embedded again."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big") >> 1


class StoreWriter:
    """Appends rows to a store. They are written to disk when a shard is full, on exit, and at intervals that grow from a
    quarter second to `flush_s` seconds, so that neither short nor long runs lose much.

    Raises StoreError if the store's rows have another identity, LockedError if another process has the same `writer` number.
    """

    def __init__(self, root: Path, identity: Identity, writer: int = 0, shard_rows: int = 1024, flush_s: float = 30.0):
        self.root, self.identity, self.writer = Path(root), identity, writer
        self.shard_rows, self.flush_s = shard_rows, flush_s
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.root / f"writer-{writer}.lock")
        existing = _manifests(self.root)
        for manifest in existing.values():
            check_identity(self.root, identity_of(manifest["identity"]), identity)
        previous = existing.get(f"manifest-{writer}.json", {"shards": []})
        self._shards: list[str] = list(previous["shards"])
        numbers = [int(Path(name).name.split("-")[0]) for manifest in existing.values() for name in manifest["shards"]]
        self._next = max(numbers, default=-1) + 1
        self._flush_after = FIRST_FLUSH_S
        self._empty_buffer()

    def append(
        self, keys: Sequence[str], vectors: Tensor, present: Tensor, sources: Sequence[int], failures: Iterable[Failure] = ()
    ) -> None:
        """Add rows: vectors (n,M,E) float32, zero where `present` (n,M) is false; `sources` from `source_digest`."""
        expected = (len(keys), len(MODALITIES), self.identity.width)
        if tuple(vectors.shape) != expected or tuple(present.shape) != expected[:2] or len(sources) != len(keys):
            raise ValueError(f"expected vectors {expected} and present {expected[:2]}, got {tuple(vectors.shape)}")
        # a single append, so that an interruption leaves complete rows or none
        self._rows.append((list(keys), vectors.float().cpu(), present.bool().cpu(), list(sources), list(failures)))
        if (
            sum(len(rows[0]) for rows in self._rows) >= self.shard_rows
            or time.monotonic() - self._last_flush > self._flush_after
        ):
            self.flush()
            self._flush_after = min(2 * self._flush_after, self.flush_s)

    def flush(self) -> None:
        """Write all rows so far to disk."""
        if not self._rows:
            return
        keys, vectors, present, sources, failures = zip(*self._rows, strict=True)
        name = f"shards/{self._next:05d}-{self.writer}.safetensors"
        tensors = {
            "vectors": torch.cat(vectors),
            "present": torch.cat(present),
            "sources": torch.tensor(list(chain(*sources)), dtype=torch.int64),
        }
        metadata = {"keys": json.dumps(list(chain(*keys))), "failures": json.dumps([asdict(f) for f in chain(*failures)])}
        write_atomic(self.root / name, save(tensors, metadata=metadata))
        self._shards.append(name)
        self._next += 1
        manifest = {"format": FORMAT, "identity": asdict(self.identity), "shards": self._shards}
        write_atomic(self.root / f"manifest-{self.writer}.json", json.dumps(manifest, indent=1).encode())
        self._empty_buffer()

    def _empty_buffer(self) -> None:
        self._rows: list[tuple[list[str], Tensor, Tensor, list[int], list[Failure]]] = []
        self._last_flush = time.monotonic()

    def close(self) -> None:
        self.flush()
        self._lock.close()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, OSError):  # a disk that is full stays full: keep what is durable
            self._lock.close()
        else:
            self.close()


class Store:
    """Reads a store. Only keys and positions are in memory; vectors are read from disk on demand.

    Raises StoreError if there is no store, or if it is damaged.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        manifests = _manifests(self.root)
        if not manifests:
            raise StoreError(
                f"{self.root}: no embedding store here (no manifest-*.json); make one with: "
                f"python avt_get_emb.py --data_path DATA --output_dir {self.root}"
            )
        identities = [identity_of(manifest["identity"]) for manifest in manifests.values()]
        for other in identities[1:]:
            check_identity(self.root, other, identities[0])
        self.identity = identities[0]
        if unknown := [name for name in self.identity.modalities if name not in MODALITIES]:
            raise StoreError(
                f"{self.root}: holds {' '.join(unknown)}, expected only {' '.join(MODALITIES)}; add it to SENSES in "
                f"imagebind_llm/config.py, or embed the clips again without it"
            )
        self.sources: dict[str, int] = {}
        self._place: dict[str, tuple[str, int]] = {}
        self._failures: dict[str, list[Failure]] = {}
        self._open: OrderedDict[str, safe_open] = OrderedDict()
        for name in sorted(name for manifest in manifests.values() for name in manifest["shards"]):
            self._index(name)

    def _index(self, name: str) -> None:
        shard = self._shard(name)
        metadata = shard.metadata()
        keys = json.loads(metadata["keys"])
        for row, (key, source) in enumerate(zip(keys, shard.get_tensor("sources").tolist(), strict=True)):
            self._place[key] = (name, row)
            self.sources[key] = source
            self._failures[key] = []
        for failure in json.loads(metadata["failures"]):
            self._failures[failure["key"]].append(Failure(**failure))

    def _shard(self, name: str):
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.root / name, "pt")
            except (OSError, SafetensorError) as error:
                raise StoreError(
                    f"{self.root / name}: the manifest names this shard, but it cannot be read ({error}); "
                    f"rebuild with: python avt_get_emb.py --output_dir {self.root} --overwrite ..."
                ) from error
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    @property
    def keys(self) -> list[str]:
        """All keys, in the order in which they were first written."""
        return list(self._place)

    def failures(self, key: str) -> list[Failure]:
        """The failures of a clip when it was embedded."""
        return self._failures[key]

    def count_present(self, keys: Sequence[str], modalities: Sequence[str]) -> dict[str, int]:
        """Number of clips that have each modality."""
        rows: dict[str, list[int]] = {}
        for key in keys:
            name, row = self._place[key]
            rows.setdefault(name, []).append(row)
        counts = torch.zeros(len(MODALITIES))
        for name, places in rows.items():
            present = self._shard(name).get_tensor("present")[places].sum(0)
            counts[: len(present)] += present
        return {modality: int(counts[MODALITIES.index(modality)]) for modality in modalities}

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors (B,M,E) float32 and presence (B,M) bool of the clips `keys`, in this order.

        Raises StoreError for missing keys.
        """
        missing = [key for key in keys if key not in self._place]
        if missing:
            raise StoreError(
                f"{self.root}: no embedding for {len(missing)} of {len(keys)} clips ({', '.join(missing[:5])}); "
                f"make them with: python avt_get_emb.py --data_path DATA --output_dir {self.root}"
            )
        vectors = torch.zeros(len(keys), len(MODALITIES), self.identity.width)
        present = torch.zeros(len(keys), len(MODALITIES), dtype=torch.bool)
        for i in sorted(range(len(keys)), key=lambda i: self._place[keys[i]]):
            name, row = self._place[keys[i]]
            shard = self._shard(name)
            stored = shard.get_slice("vectors")[row]  # fewer columns than MODALITIES where it is older than the last of them
            vectors[i, : len(stored)] = stored
            present[i, : len(stored)] = shard.get_slice("present")[row]
        return vectors, present


def export_pt(store: Store, keys: Sequence[str], folder: Path) -> None:
    """Write the original's layout: FOLDER/0.pt, 1.pt ... in the order of `keys`, each a list [text, vision, audio] of (1,E).

    The vectors are not normalised; an absent modality is a zero vector.
    """
    columns = [MODALITIES.index(name) for name in ORIGINAL]
    for i, key in enumerate(keys):
        (row,), _ = store.read([key])
        buffer = io.BytesIO()
        torch.save([row[m].clone()[None] for m in columns], buffer)
        write_atomic(Path(folder) / f"{i}.pt", buffer.getvalue())


# What torch.load raises for a damaged or foreign file.
UNREADABLE = (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError)


class PtFolders:
    """Reads the original's layout with the interface of a Store: FOLDER/train_emb/0.pt ... each [text, vision, audio] of (1,E).

    keys: by split, the keys of its rows in file order; i.pt belongs to row i. A zero vector is an absent modality. Raises
    StoreError for a folder with more files than rows, or a file of another shape than the first.
    """

    def __init__(self, root: Path, keys: dict[str, list[str]]):
        self.root = Path(root)
        folders = {split: self.root / f"{split}_emb" for split in keys if (self.root / f"{split}_emb").is_dir()}
        self._files: dict[str, Path] = {}
        for split, folder in folders.items():
            files = {path.stem: path for path in folder.glob("*.pt")}
            if extra := sorted(set(files) - {str(i) for i in range(len(keys[split]))}):
                raise StoreError(
                    f"{folder}: expected 0.pt to {len(keys[split]) - 1}.pt, one per row of {split}, got also {extra[0]}.pt: "
                    f"these files belong to other rows; give the data set that they were made from as --data_path"
                )
            self._files |= {key: files[str(i)] for i, key in enumerate(keys[split]) if str(i) in files}
        if not self._files:
            raise StoreError(
                f"{self.root}: no {' or '.join(f'{split}_emb/0.pt' for split in keys)} here; give a store made by "
                f"avt_get_emb.py, or a folder with these files"
            )
        width = self._load(next(iter(self._files.values())), None).shape[1]
        # the original's encoder; the files do not record its weights
        modalities = tuple(name for name in MODALITIES if name in ORIGINAL)
        self.identity = Identity("imagebind_huge", "", "float32", modalities, "", False, width, "")

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors (B,M,E) float32 and presence (B,M) bool of the clips `keys`, in this order."""
        vectors = torch.zeros(len(keys), len(MODALITIES), self.identity.width)
        for i, key in enumerate(keys):
            vectors[i] = self._load(self._files[key], self.identity.width)
        return vectors, (vectors != 0).any(-1)

    def _load(self, path: Path, width: int | None) -> Tensor:
        """The vectors (M,E) of a file, in the order text, audio, vision."""
        try:
            stored = [part.detach().float().reshape(-1) for part in torch.load(path, "cpu", weights_only=True)]
            parts = dict(zip(ORIGINAL, stored, strict=True))
            row = torch.stack([parts.get(name, torch.zeros_like(stored[0])) for name in MODALITIES])
        except UNREADABLE as error:
            raise StoreError(f"{path}: expected [text, vision, audio], each (1, E), got something else ({error})") from error
        if width is not None and row.shape[1] != width:
            raise StoreError(f"{path}: expected vectors of width {width} as in the first file, got {row.shape[1]}")
        return row


def check_identity(root: Path, stored: Identity, expected: Identity) -> None:
    """Raise StoreError with every difference unless both identities are the same."""
    if difference := expected.difference(stored):
        raise StoreError(
            f"{root}: its embeddings were made in another way ({difference}); they are never mixed. "
            f"Give another --output_dir, or rebuild this one by the same command with --overwrite"
        )


def clear(root: Path) -> None:
    """Delete a store's manifests, shards and temporary files; other files in the folder stay.

    Raises LockedError while another run writes to it.
    """
    for lock in Path(root).glob("writer-*.lock"):
        locked(lock).close()
    for pattern in ("manifest-*.json", "shards/*.safetensors", "*.tmp", "shards/*.tmp"):
        for path in Path(root).glob(pattern):
            path.unlink()


def _manifests(root: Path) -> dict[str, dict]:
    manifests = {}
    for path in sorted(root.glob("manifest-*.json")):
        try:
            manifests[path.name] = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise StoreError(f"{path}: not a manifest ({error}); rebuild the store with --overwrite") from error
        if manifests[path.name].get("format") != FORMAT:
            raise StoreError(
                f"{path}: store format {manifests[path.name].get('format')}, this version reads {FORMAT}; rebuild it"
            )
    return manifests
