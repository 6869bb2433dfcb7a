"""Embeds the clips of a data set into a store: several decoding processes, one encoder per rank, resumable.

A batch is always the same `batch_size` neighbouring rows of one split, for any number of ranks and interruptions, so that the
result is the same to the last bit. A batch is done if every row of it is in the store and was made from the same text and file;
otherwise all of it is computed again. Rank r computes every world_size-th of the remaining batches.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from imagebind_llm import distributed
from imagebind_llm.config import MODALITIES, WINDOW_RULES
from imagebind_llm.datasets.readers import DataError, load_dataset
from imagebind_llm.encoder.interface import Encoder, Tokenizer
from imagebind_llm.encoder.registry import ENCODERS
from imagebind_llm.encoder.store import Failure, Identity, Store, StoreWriter, check_identity, clear, export_pt, source_digest
from imagebind_llm.encoder.weights import file_sha256, find_weights
from imagebind_llm.files import write_atomic
from imagebind_llm.flags import flag
from imagebind_llm.records import Example, Windows
from imagebind_llm.weight_files import WeightsError

EMPTY_TEXT = "the text is empty"
NOT_FINITE = "the encoder returned values that are not finite"


@dataclass(frozen=True)
class ExtractSettings:
    """The flags of avt_get_emb.py."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder, or a folder of clips with a CSV/TSV of path and text")
    output_dir: str = flag(help="folder for the embedding store; an interrupted run continues when it is started again")
    splits: tuple[str, ...] = flag((), "splits to embed; if not given, all")
    encoder: str = flag(
        "imagebind_huge", "imagebind_huge: the public model; imagebind_tiny: a small one for the demo", tuple(ENCODERS)
    )
    encoder_weights: str = flag("", "weight file; if not given, checkpoints/ENCODER.safetensors or .pth")
    modalities: tuple[str, ...] = flag((), "modalities to embed; if not given, all that the encoder has", MODALITIES)
    batch_size: int = flag(8, "clips per batch")
    num_workers: int = flag(2, "decoding processes per rank; 0: decode in the main process")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    dtype: str = flag("float32", "dtype of the encoder's weights; bfloat16 is faster and less exact", ("float32", "bfloat16"))
    window_rule: str = flag(
        "to_end", "to_end: the last window ends with the clip (public code today); before_end: pytorchvideo 0.1.5", WINDOW_RULES
    )
    clean_audio: bool = flag(False, "use all channels and subtract means once; the public code uses one and subtracts twice")
    overwrite: bool = flag(False, "delete the store first")
    strict: bool = flag(False, "exit with status 1 if any modality of any clip failed")
    export_pt: str = flag("", "folder for a copy in the original's layout: train_emb/0.pt ... = [text, vision, audio]")

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(f"--batch_size {self.batch_size} --num_workers {self.num_workers}: at least 1 and at least 0")
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"--modalities {' '.join(self.modalities)}: name each once")


@dataclass
class Inputs:
    """The encoder inputs of one modality of a batch."""

    clips: list[int]  # numbers of the clips that have the modality
    windows: Tensor  # distinct windows of all these clips, concatenated
    counts: list[tuple[int, ...]]  # for each clip, how often each of its windows counts


@dataclass
class Batch:
    """A batch from a decoding process."""

    examples: list[Example]
    inputs: dict[str, Inputs]  # by modality
    failures: list[tuple[int, str, str]]  # number of the clip, modality, reason
    n_cut_texts: int  # texts that are longer than the encoder's context
    sources: list[int]  # `source_digest` of each clip

    def pin_memory(self) -> "Batch":
        for inputs in self.inputs.values():
            inputs.windows = inputs.windows.pin_memory()
        return self


@dataclass
class Summary:
    """The result of a run; counts and failures are of all requested clips, also of those that earlier runs embedded."""

    n_clips: int
    n_done_before: int
    n_embedded: int
    n_cut_texts: int
    context_length: int  # tokens at which a text is cut
    seconds: float
    is_main: bool  # this process is the one that reports
    present: dict[str, int]
    failures: list[Failure]


class BatchReader(TorchDataset):
    """Loads whole batches; runs in the decoding processes."""

    def __init__(self, batches: list[list[Example]], settings: ExtractSettings):
        self.batches, self.settings = batches, settings

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        examples = self.batches[index]
        tokenizer = ENCODERS[self.settings.encoder].tokenizer()
        sources = [_source(example) for example in examples]  # before reading: a file that changes meanwhile is embedded again
        loaded = [self._load(example, tokenizer) for example in examples]
        n_cut_texts = sum(tokenizer.n_tokens(example.text) > tokenizer.context_length for example in examples)
        batch = Batch(examples, {}, [], n_cut_texts if "text" in self.settings.modalities else 0, sources)
        for modality in self.settings.modalities:
            results = {i: clip[modality] for i, clip in enumerate(loaded)}
            readable = {i: item for i, item in results.items() if isinstance(item, Windows)}
            batch.failures += [(i, modality, str(item)) for i, item in results.items() if i not in readable]
            if readable:
                windows = torch.cat([item.inputs for item in readable.values()])
                batch.inputs[modality] = Inputs(list(readable), windows, [item.counts for item in readable.values()])
        return batch

    def _load(self, example: Example, tokenizer: Tokenizer) -> dict:
        settings = self.settings
        media = tuple(m for m in settings.modalities if m != "text")
        loaded: dict = {}
        if media and example.clip is not None:
            load_clip = ENCODERS[settings.encoder].load_clip
            loaded |= load_clip(example.clip, media, settings.window_rule, settings.clean_audio)
        if "text" in settings.modalities:
            text = example.text.strip()
            loaded["text"] = Windows(tokenizer.encode([text]), (1,)) if text else EMPTY_TEXT
        return loaded


def extract(settings: ExtractSettings) -> Summary:
    """Embed a data set into a store, as avt_get_emb.py does.

    Raises DataError, WeightsError or StoreError for invalid settings before anything is decoded. A clip that cannot be read is
    recorded as a failure, and the run continues.
    """
    started = time.monotonic()
    settings = _with_modalities(settings)
    dataset = load_dataset(settings.data_path, settings.splits)
    _refuse_missing_clips(dataset, settings)
    if Path(settings.output_dir).resolve() == dataset.root.resolve():
        raise DataError(f"--output_dir {settings.output_dir} is the data's own folder; give the store a folder of its own")
    weights = find_weights(settings.encoder, settings.encoder_weights)
    root = Path(settings.output_dir)
    with distributed.process_group(distributed.choose_device(settings.device)) as device:
        distributed.warn_of_emulation(settings.dtype, device)
        identity = _identity(settings, _shared_sha256(weights))
        _refuse_rows_apart(dataset, settings)
        load, dtype = ENCODERS[settings.encoder].load, getattr(torch, settings.dtype)
        encoder = load(weights, dtype=dtype, device=device, towers=settings.modalities)
        if settings.overwrite and distributed.is_main():
            clear(root)
        distributed.barrier()
        batches = [rows for examples in dataset.splits.values() for rows in _batched(examples, settings.batch_size)]
        unfinished = distributed.from_main(_unfinished(batches, root, identity) if distributed.is_main() else [])
        pending = [batches[number] for number in unfinished]
        n_done_before = len(dataset.examples) - sum(map(len, pending))
        rank_batches = pending[distributed.rank() :: distributed.world_size()]
        with StoreWriter(root, identity, writer=distributed.rank()) as writer:
            n_cut = _embed_all(encoder, rank_batches, settings, device, writer)
        n_cut_texts = sum(distributed.gather_objects(n_cut))  # also waits until every rank has written
        is_main = distributed.is_main()
    store = Store(root)
    summary = Summary(
        n_clips=len(dataset.examples),
        n_done_before=n_done_before,
        n_embedded=len(dataset.examples) - n_done_before,
        n_cut_texts=n_cut_texts,
        context_length=ENCODERS[settings.encoder].tokenizer().context_length,
        seconds=time.monotonic() - started,
        is_main=is_main,
        present=store.count_present([example.key for example in dataset.examples], identity.modalities),
        failures=[failure for example in dataset.examples for failure in store.failures(example.key)],
    )
    if is_main:
        _write_results(summary, dataset.splits, store, settings.export_pt)
    return summary


def _with_modalities(settings: ExtractSettings) -> ExtractSettings:
    """Naming all that the encoder has, where none is given. Raises DataError for one that it has not."""
    has = ENCODERS[settings.encoder].modalities
    if lacking := [name for name in settings.modalities if name not in has]:
        raise DataError(
            f"--modalities {' '.join(lacking)}: expected some of {' '.join(has)}, which --encoder {settings.encoder} embeds; "
            f"leave the others out, or name another encoder"
        )
    return replace(settings, modalities=settings.modalities or has)


def _embed_all(encoder: Encoder, batches: list[list[Example]], settings: ExtractSettings, device: torch.device, writer) -> int:
    """Decode, encode and store this rank's batches; returns the number of texts that were cut."""
    loader = DataLoader(
        BatchReader(batches, settings),
        batch_size=None,
        num_workers=min(settings.num_workers, len(batches)),
        pin_memory=device.type == "cuda",
    )
    n_cut = 0
    hidden = not distributed.is_main() or not batches
    with tqdm(total=sum(map(len, batches)), unit="clip", desc=_bar_title(), disable=hidden, smoothing=0.1) as bar:
        for batch in _watched(loader):
            vectors, present, failures = embed(encoder, batch, writer.identity.width)
            writer.append([example.key for example in batch.examples], vectors, present, batch.sources, failures)
            n_cut += batch.n_cut_texts
            bar.update(len(batch.examples))
    return n_cut


def _watched(loader: DataLoader) -> Iterator[Batch]:
    """Yield the loader's batches. Raises DataError if a decoding process is killed, usually for lack of memory."""
    try:
        yield from loader
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("exited unexpectedly", "is killed by signal")):
            raise
        raise DataError(
            f"a decoding process died ({error}); most often memory is short: start again with a smaller --batch_size or "
            f"--num_workers 0, the run continues where it was"
        ) from error


@torch.inference_mode()
def embed(encoder: Encoder, batch: Batch, width: int) -> tuple[Tensor, Tensor, list[Failure]]:
    """Vectors (B,M,E) float32 on the CPU, presence (B,M), and failures."""
    vectors = torch.zeros(len(batch.examples), len(MODALITIES), width)
    present = torch.zeros(len(batch.examples), len(MODALITIES), dtype=torch.bool)
    failures = list(batch.failures)
    for modality, inputs in batch.inputs.items():
        rows = encoder.encode_clips(modality, inputs.windows, inputs.counts).cpu()
        finite = rows.isfinite().all(dim=1)
        failures += [(clip, modality, NOT_FINITE) for clip, good in zip(inputs.clips, finite.tolist(), strict=True) if not good]
        column = MODALITIES.index(modality)
        vectors[inputs.clips, column] = rows.where(finite[:, None], 0.0)
        present[inputs.clips, column] = finite
    return vectors, present, [_failure(batch.examples[clip], modality, reason) for clip, modality, reason in failures]


def _failure(example: Example, modality: str, reason: str) -> Failure:
    return Failure(example.split, example.key, str(example.clip or ""), modality, reason)


def _bar_title() -> str:
    ranks = distributed.world_size()
    return "embedding" if ranks == 1 else f"embedding (1 of {ranks} ranks)"


def _refuse_missing_clips(dataset, settings: ExtractSettings) -> None:
    if not set(settings.modalities) - {"text"}:
        return
    clips = [example.clip for example in dataset.examples if example.clip is not None]
    if not clips:
        raise DataError(
            f"{dataset.root}: expected the clips in {dataset.root / 'raw_data'}, found no such folder; "
            f"put them there, or embed the texts only with --modalities text"
        )
    if not any(os.path.exists(clip) for clip in clips):
        raise DataError(
            f"{dataset.root}: none of its {len(clips)} clips is there, {clips[0]} for one (paths are relative to the table); "
            f"put them there, or embed the texts only with --modalities text"
        )


def _refuse_rows_apart(dataset, settings: ExtractSettings) -> None:
    """Raise DataError if machines read different rows at --data_path, since rows are assigned to ranks by number."""
    if len(set(distributed.gather_objects(source_digest(*(example.key for example in dataset.examples))))) > 1:
        raise DataError(
            f"--data_path {settings.data_path}: machines read different rows there; give a folder that all of them see"
        )


def _shared_sha256(weights: Path) -> str:
    """The weight file's SHA-256, computed by one rank per machine. Raises WeightsError if machines have different files."""
    digests = distributed.gather_objects(file_sha256(weights) if distributed.node_rank() == 0 else None)
    distinct = sorted({digest for digest in digests if digest is not None})
    if len(distinct) > 1:
        raise WeightsError(
            f"{weights}: expected the same file on every machine, got {len(distinct)} (sha256 "
            f"{', '.join(f'{digest[:12]}...' for digest in distinct)}); copy one of them to all"
        )
    return distinct[0]


def _identity(settings: ExtractSettings, weights_sha256: str) -> Identity:
    return Identity(
        encoder=settings.encoder,
        weights_sha256=weights_sha256,
        dtype=settings.dtype,
        modalities=tuple(m for m in MODALITIES if m in settings.modalities),
        window_rule=settings.window_rule,
        clean_audio=settings.clean_audio,
        width=ENCODERS[settings.encoder].width,
        code=ENCODERS[settings.encoder].version,
    )


def _batched(examples: list[Example], size: int) -> list[list[Example]]:
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def _source(example: Example) -> int:
    """Digest of the text and of the clip's size and date; when it changes, the clip is embedded again."""
    try:
        status = example.clip.stat() if example.clip is not None else None
    except OSError:
        status = None
    return source_digest(example.text, f"{status.st_size} {status.st_mtime_ns}" if status else "no file")


def _unfinished(batches: list[list[Example]], root: Path, identity: Identity) -> list[int]:
    """Numbers of the batches that are not done. Called on the main rank, since machines may see a disk differently."""
    if not any(root.glob("manifest-*.json")):
        return list(range(len(batches)))
    store = Store(root)
    check_identity(root, store.identity, identity)
    return [
        number
        for number, rows in enumerate(batches)
        if any(store.sources.get(example.key) != _source(example) for example in rows)
    ]


def _write_results(summary: Summary, splits: dict[str, list[Example]], store: Store, export: str) -> None:
    lines = ["split\tkey\tpath\tmodality\treason"]
    lines += ["\t".join(" ".join(part.split()) for part in vars(failure).values()) for failure in summary.failures]
    write_atomic(store.root / "failures.tsv", ("\n".join(lines) + "\n").encode())
    if export:
        for split, examples in splits.items():
            export_pt(store, [example.key for example in examples], Path(export) / f"{split}_emb")
