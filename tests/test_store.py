"""The embedding store: what is written comes back, whatever happens in between, and never a mixture."""

import dataclasses
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from imagebind_llm.config import MODALITIES
from imagebind_llm.encoder.store import (
    Failure,
    Identity,
    PtFolders,
    Store,
    StoreError,
    StoreWriter,
    clear,
    export_pt,
    source_digest,
)

IDENTITY = Identity("imagebind_tiny", "ab" * 32, "float32", ("text", "audio", "vision"), "to_end", False, 8, "1")


def rows(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, 3, IDENTITY.width, generator=generator)
    present = torch.rand(n, 3, generator=generator) > 0.3
    return vectors * present[..., None], present


def fill(root, n: int, writer: int = 0, first: int = 0, **options) -> torch.Tensor:
    vectors, present = rows(n, seed=first)
    with StoreWriter(root, IDENTITY, writer, **options) as store:
        for i in range(n):
            store.append([f"clip {first + i}"], vectors[i : i + 1], present[i : i + 1], [first + i])
    return vectors


def test_rows_come_back_in_any_order_with_their_flags(tmp_path):
    vectors, present = rows(50)
    with StoreWriter(tmp_path, IDENTITY, shard_rows=7) as writer:
        for i in range(0, 50, 5):
            writer.append([f"k{j}" for j in range(i, i + 5)], vectors[i : i + 5], present[i : i + 5], list(range(i, i + 5)))
    store = Store(tmp_path)
    order = torch.randperm(50).tolist()
    got, flags = store.read([f"k{i}" for i in order])
    assert torch.equal(got, vectors[order]) and torch.equal(flags, present[order])
    assert len(store) == 50 and "k3" in store and "k50" not in store
    assert store.sources["k7"] == 7
    assert len(list(tmp_path.glob("shards/*"))) == 5  # bounded: 7 rows asked for, batches of 5 keep together


def test_two_writers_make_one_store(tmp_path):
    first, second = fill(tmp_path, 6, writer=0), fill(tmp_path, 4, writer=1, first=100)
    got, _ = Store(tmp_path).read(["clip 102", "clip 3"])
    assert torch.equal(got, torch.stack([second[2], first[3]]))


def test_the_later_row_of_a_key_counts(tmp_path):
    fill(tmp_path, 3)
    later = torch.full((1, 3, 8), 7.0)
    with StoreWriter(tmp_path, IDENTITY, writer=1) as writer:
        writer.append(["clip 1"], later, torch.ones(1, 3), [9])
    store = Store(tmp_path)
    assert torch.equal(store.read(["clip 1"])[0], later)
    assert store.sources["clip 1"] == 9 and len(store) == 3


def test_failures_are_kept_with_their_clip_and_replaced_with_it(tmp_path):
    failure = Failure("train", "a", "x/a.mp4", "audio", "no audio stream")
    for failures in ([failure], []):
        with StoreWriter(tmp_path, IDENTITY) as writer:
            writer.append(["a"], *rows(1), [0], failures)
        assert Store(tmp_path).failures("a") == failures


@pytest.mark.parametrize("field", ["encoder", "weights_sha256", "dtype", "modalities", "window_rule", "clean_audio", "code"])
def test_a_mixture_is_refused_with_the_difference_and_the_way_out(tmp_path, field):
    fill(tmp_path, 2)
    changed = dataclasses.replace(IDENTITY, **{field: ("text",) if field == "modalities" else "other"})
    with pytest.raises(StoreError, match=rf"{field}: .* -> .*--overwrite"):
        StoreWriter(tmp_path, changed)
    assert len(Store(tmp_path)) == 2


def test_a_second_run_into_the_same_store_is_refused_while_the_first_writes(tmp_path):
    with StoreWriter(tmp_path, IDENTITY):
        for attempt in (lambda: StoreWriter(tmp_path, IDENTITY), lambda: clear(tmp_path)):
            assert "another run is writing" in in_another_process(attempt)
    assert in_another_process(lambda: clear(tmp_path)) == ""


def in_another_process(action) -> str:
    """The message of the error that `action` raises there, or nothing."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def attempt():
        try:
            action()
            queue.put("")
        except ValueError as error:
            queue.put(str(error))

    process = context.Process(target=attempt)
    process.start()
    message = queue.get()
    process.join()
    return message


def _write_for_ever(root):
    with StoreWriter(root, IDENTITY, shard_rows=2) as writer:
        for i in range(10**6):
            vectors = torch.full((1, 3, 8), float(i))
            writer.append([f"k{i}"], vectors, torch.ones(1, 3), [i])


def test_killed_while_writing_the_store_holds_whole_rows_and_goes_on(tmp_path):
    context = multiprocessing.get_context("fork")
    seen = 0
    for _ in range(3):
        process = context.Process(target=_write_for_ever, args=(tmp_path,))
        process.start()
        while len(list(tmp_path.glob("shards/*.safetensors"))) < seen + 5:
            assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = Store(tmp_path)
        seen = len(list(tmp_path.glob("shards/*.safetensors")))
        assert len(store) > 0
        for key in store.keys:
            assert (store.read([key])[0] == float(key[1:])).all()


def test_a_full_disk_loses_nothing_that_was_durable(tmp_path, monkeypatch):
    fill(tmp_path, 4)

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), StoreWriter(tmp_path, IDENTITY, shard_rows=1) as writer:
        monkeypatch.setattr(os, "fsync", full)
        writer.append(["x"], *rows(1), [0])
    monkeypatch.undo()
    assert len(Store(tmp_path)) == 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_missing_keys_are_named_with_the_command_that_makes_them(tmp_path):
    fill(tmp_path, 2)
    with pytest.raises(StoreError, match=r"2 of 3 clips \(nope, neither\).*avt_get_emb.py"):
        Store(tmp_path).read(["clip 0", "nope", "neither"])


def test_no_store_and_damaged_store_say_so(tmp_path):
    with pytest.raises(StoreError, match="no embedding store here"):
        Store(tmp_path)
    fill(tmp_path, 2)
    (shard,) = tmp_path.glob("shards/*")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"cannot be read .*--overwrite"):
        Store(tmp_path)


def test_wrong_shape_is_refused_before_anything_is_written(tmp_path):
    with StoreWriter(tmp_path, IDENTITY) as writer, pytest.raises(ValueError, match="expected vectors"):
        writer.append(["a"], torch.zeros(1, 3, 9), torch.zeros(1, 3), [0])
    assert not list(tmp_path.glob("shards/*"))


def test_reading_does_not_hold_the_vectors_in_memory(tmp_path):
    wide = dataclasses.replace(IDENTITY, width=1024)
    n, block = 4000, 500
    with StoreWriter(tmp_path, wide, shard_rows=block) as writer:
        for i in range(0, n, block):
            keys = [f"k{j}" for j in range(i, i + block)]
            writer.append(keys, torch.zeros(block, 3, 1024), torch.ones(block, 3), [0] * block)
    before = own_memory_mb()
    store = Store(tmp_path)
    for key in store.keys[::97]:
        store.read([key])
    assert own_memory_mb() - before < 15  # the vectors are 49 MB


def own_memory_mb() -> float:
    """Anonymous memory of this process, without mapped files."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads Linux's /proc")
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def test_an_interruption_while_appending_leaves_whole_rows(tmp_path, monkeypatch):
    fill(tmp_path, 2)
    vectors, present = rows(1)

    class Interrupting(torch.Tensor):
        def cpu(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path, IDENTITY) as writer:
        writer.append(["a"], vectors, present, [0])
        writer.append(["b"], vectors.as_subclass(Interrupting), present, [0])
    assert Store(tmp_path).keys == ["clip 0", "clip 1", "a"]


def test_export_has_the_original_layout(tmp_path):
    vectors = fill(tmp_path / "store", 3)
    store = Store(tmp_path / "store")
    export_pt(store, ["clip 2", "clip 0"], tmp_path / "pt" / "train_emb")
    text, vision, audio = torch.load(tmp_path / "pt" / "train_emb" / "0.pt", weights_only=True)
    assert text.shape == vision.shape == audio.shape == (1, 8)
    assert torch.equal(torch.cat([text, audio, vision]), vectors[2])
    assert json.dumps(sorted(p.name for p in (tmp_path / "pt" / "train_emb").iterdir())) == '["0.pt", "1.pt"]'


def test_the_columns_of_a_store_are_text_audio_and_vision_and_what_was_added_later():
    assert MODALITIES[:3] == ("text", "audio", "vision"), "a store has no names of columns: another is added at the end"


def test_a_store_made_before_a_modality_was_added_is_read_as_lacking_it(tmp_path, monkeypatch):
    vectors, keys = fill(tmp_path / "store", 3), ["clip 2", "clip 0"]
    export_pt(Store(tmp_path / "store"), keys, tmp_path / "pt" / "train_emb")
    monkeypatch.setattr("imagebind_llm.encoder.store.MODALITIES", ("text", "audio", "vision", "depth"))
    old = Store(tmp_path / "store")
    for got, present in (old.read(keys), PtFolders(tmp_path / "pt", {"train": keys}).read(keys)):
        assert torch.equal(got[:, :3], vectors[[2, 0]]) and not got[:, 3].any() and not present[:, 3].any()
        assert torch.equal(present[:, :3], (vectors[[2, 0]] != 0).any(-1))
    assert old.count_present(keys, ("vision", "depth"))["depth"] == 0
    export_pt(old, keys, tmp_path / "again" / "train_emb")
    again, before = (torch.load(tmp_path / name / "train_emb" / "0.pt", weights_only=True) for name in ("again", "pt"))
    assert all(map(torch.equal, again, before))


def test_a_store_of_a_modality_that_is_not_known_is_refused(tmp_path):
    identity = dataclasses.replace(IDENTITY, modalities=("text", "depth"))
    vectors, present = rows(1)
    with StoreWriter(tmp_path, identity) as writer:
        writer.append(["a"], vectors, present, [0])
    with pytest.raises(StoreError, match="holds depth, expected only text audio vision"):
        Store(tmp_path)


def test_source_digest_tells_its_parts_apart():
    assert source_digest("ab", "c") != source_digest("a", "bc")
    assert 0 <= source_digest("x") < 2**63
