"""From clips on disk to a store: complete, resumable, equal over ranks, and no bad clip stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_ranks import on_two_ranks
from media_files import write_clip
from safetensors.torch import save_file

import avt_get_emb
from imagebind_llm.clips.media import load_clip
from imagebind_llm.config import MODALITIES, imagebind_tiny
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.encoder import extraction
from imagebind_llm.encoder.bpe import ClipBPE
from imagebind_llm.encoder.extraction import ExtractSettings, extract
from imagebind_llm.encoder.store import Store, StoreError
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.encoder.weights import load_imagebind
from imagebind_llm.weight_files import WeightsError

SCRIPT = Path(__file__).parent.parent / "avt_get_emb.py"
HEADER = "season\tepisode\tclip\ttext\tlabel\n"
N_CLIPS = 14


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(ImageBind(imagebind_tiny()).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A MIntRec folder of fourteen good clips of several lengths and shapes."""
    root = tmp_path_factory.mktemp("clips and ünicode")
    rows = []
    for i in range(N_CLIPS):
        path = root / "raw_data" / "S01" / "E01" / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, seconds=(0.8, 1.5, 2.6)[i % 3], size=((96, 64), (64, 96), (64, 64))[i % 3], seed=i)
        rows.append(f"S01\tE01\t{i}\tthis is utterance {i}\tInform\n")
    (root / "train.tsv").write_text(HEADER + "".join(rows[:9]))
    (root / "test.tsv").write_text(HEADER + "".join(rows[9:]))
    return root


@pytest.fixture
def settings(clips, weights, tmp_path) -> ExtractSettings:
    return ExtractSettings(
        data_path=str(clips),
        output_dir=str(tmp_path / "emb"),
        encoder="imagebind_tiny",
        encoder_weights=str(weights),
        batch_size=2,
        num_workers=0,
        device="cpu",
    )


def command(settings: ExtractSettings, *more: str) -> list[str]:
    flags = ["--data_path", settings.data_path, "--output_dir", settings.output_dir, "--encoder", settings.encoder]
    return [str(SCRIPT), *flags, "--encoder_weights", settings.encoder_weights, "--batch_size", "2", "--device", "cpu", *more]


def run(arguments: list[str], launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True, env=environment, timeout=300)


def everything(root: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    store = Store(Path(root))
    return {key: tuple(part[0] for part in store.read([key])) for key in store.keys}


def durable_shards(root: str) -> int:
    manifest = Path(root) / "manifest-0.json"
    return len(json.loads(manifest.read_text())["shards"]) if manifest.exists() else 0


def copied(clips: Path, root: Path) -> Path:
    """The data set under another path, to damage it there."""
    for path in sorted(clips.rglob("*")):
        if path.is_file():
            target = root / path.relative_to(clips)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return root


def test_store_holds_what_the_encoder_says_of_each_clip(settings, clips, weights):
    summary = extract(settings)
    assert (summary.n_clips, summary.n_embedded, summary.failures) == (N_CLIPS, N_CLIPS, [])
    assert summary.present == dict.fromkeys(MODALITIES, N_CLIPS)
    model = load_imagebind(weights, "imagebind_tiny")
    stored = everything(settings.output_dir)
    for i in (0, 2, 13):
        loaded = load_clip(clips / "raw_data" / "S01" / "E01" / f"{i}.mp4", ("audio", "vision"))
        vectors, present = stored[f"S01_E01_{i}"]
        assert present.all()
        for name, windows in loaded.items():
            # the whole schedule, every window as often as it counts
            schedule = windows.inputs.repeat_interleave(torch.tensor(windows.counts), dim=0)
            alone = model({name: schedule[None]})[name][0]
            torch.testing.assert_close(vectors[MODALITIES.index(name)], alone, rtol=0, atol=1e-5 * float(alone.norm()))
        text = model.encode("text", ClipBPE().encode([f"this is utterance {i}"]))[0]
        torch.testing.assert_close(vectors[0], text, rtol=0, atol=1e-5 * float(text.norm()))


def test_a_second_run_does_nothing_and_other_batches_or_workers_agree(settings, tmp_path):
    extract(settings)
    again = extract(settings)
    assert (again.n_done_before, again.n_embedded) == (N_CLIPS, 0)
    other = replace(settings, output_dir=str(tmp_path / "other"), batch_size=5, num_workers=2)
    extract(other)
    first, second = everything(settings.output_dir), everything(other.output_dir)
    assert first.keys() == second.keys()
    for key in first:
        distance = (first[key][0] - second[key][0]).norm(dim=-1)
        assert (distance <= 1e-5 * first[key][0].norm(dim=-1)).all()


def test_two_ranks_agree_with_one(settings, tmp_path):
    extract(settings)
    two = replace(settings, output_dir=str(tmp_path / "two"))
    done = run(command(two), launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    assert done.returncode == 0, done.stderr
    assert "14 embedded now" in done.stdout and done.stdout.count("present:") == 1
    first, second = everything(settings.output_dir), everything(two.output_dir)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key][1], second[key][1])
        assert ((first[key][0] - second[key][0]).norm(dim=-1) <= 1e-5 * first[key][0].norm(dim=-1)).all()


@pytest.fixture
def words(settings) -> ExtractSettings:
    return replace(settings, modalities=("text",), batch_size=1)


def test_the_main_rank_decides_which_clips_are_to_be_done(words, monkeypatch):
    """Machines may see dates and manifests of a shared disk at different times."""
    extract(replace(words, splits=("train",)))

    def second_sees_nothing_to_do(rank: int) -> tuple[int, int]:
        if rank:
            monkeypatch.setattr(extraction, "_unfinished", lambda *_: [])
        summary = extract(words)
        return summary.n_done_before, summary.n_embedded

    assert on_two_ranks(second_sees_nothing_to_do) == [(9, 5)] * 2
    assert len(everything(words.output_dir)) == N_CLIPS


def test_machines_that_read_other_rows_are_refused(words, clips, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in clips.glob("*.tsv"):
        (other / path.name).write_text("\n".join(path.read_text().splitlines()[:4]) + "\n")

    def read(rank: int) -> object:
        return extract(replace(words, data_path=str(other if rank else clips)))

    for error in on_two_ranks(read):
        assert isinstance(error, DataError) and "machines read different rows there" in str(error)
    assert not Path(words.output_dir).exists()


def test_killed_at_any_moment_it_continues_and_ends_with_the_same_bits(settings, clips, tmp_path):
    rows = [f"{path},utterance {i},{path.stem} {i}\n" for i in range(9) for path in sorted(clips.rglob("*.mp4"))]
    (tmp_path / "many.csv").write_text("path,text,key\n" + "".join(rows))  # long enough to be killed in the middle
    settings = replace(settings, data_path=str(tmp_path / "many.csv"))
    whole = replace(settings, output_dir=str(tmp_path / "whole"))
    assert run(command(whole)).returncode == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    interrupted = []
    for n_shards in (0, 1, 2):  # before the first row is durable, after some, after more
        process = subprocess.Popen([sys.executable, *command(settings)], env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and durable_shards(settings.output_dir) < n_shards:
            time.sleep(0.002)
        time.sleep(1.0 if n_shards == 0 else 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        interrupted.append(len(everything(settings.output_dir)) if n_shards else 0)
    assert 0 < interrupted[1] <= interrupted[2] < len(rows), "the kills must come in the middle of the work"
    done = run(command(settings))
    assert done.returncode == 0, done.stderr
    first, second = everything(whole.output_dir), everything(settings.output_dir)
    assert first.keys() == second.keys()
    assert all(torch.equal(a, b) for key in first for a, b in zip(first[key], second[key], strict=True))


def test_bad_clips_are_listed_and_their_other_modalities_kept(settings, clips, tmp_path):
    root = copied(clips, tmp_path / "damaged")
    folder = root / "raw_data" / "S01" / "E01"
    (folder / "0.mp4").unlink()
    (folder / "1.mp4").write_bytes((folder / "1.mp4").read_bytes()[:500])
    write_clip(folder / "2.mp4", seconds=1.0, audio=False)
    write_clip(folder / "3.mp4", seconds=1.0, video=False)
    table = (root / "test.tsv").read_text().replace("this is utterance 12", "").replace("utterance 13", "long " * 300)
    (root / "test.tsv").write_text(table)
    damaged = replace(settings, data_path=str(root))
    done = run(command(damaged))
    assert done.returncode == 0, done.stderr
    assert "could not be read: 7 (all in" in done.stdout and "longer than 77 tokens, cut there: 1" in done.stdout
    assert "  S01_E01_0 audio vision: no such file" in done.stdout
    listed = [line.split("\t") for line in (Path(settings.output_dir) / "failures.tsv").read_text().splitlines()]
    assert listed[0] == ["split", "key", "path", "modality", "reason"]
    failed = {(key, modality) for _, key, _, modality, _ in listed[1:]}
    gone = {("S01_E01_0", "audio"), ("S01_E01_0", "vision"), ("S01_E01_1", "audio"), ("S01_E01_1", "vision")}
    assert failed == gone | {("S01_E01_2", "audio"), ("S01_E01_3", "vision"), ("S01_E01_12", "text")}
    stored = everything(settings.output_dir)
    for key, (vectors, present) in stored.items():
        missing = {modality for name, modality in failed if name == key}
        assert present.tolist() == [name not in missing for name in MODALITIES]
        assert (vectors[~present] == 0).all() and (vectors[present].norm(dim=-1) > 0).all()
    assert run(command(damaged, "--strict")).returncode == 1


def test_too_little_memory_on_the_device_is_said_and_what_was_stored_stays(clips, weights, tmp_path, monkeypatch, capsys):
    calls, embed = [], extraction.embed

    def full(*given):
        calls.append(given)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return embed(*given)

    monkeypatch.setattr(extraction, "embed", full)
    given = {"data_path": clips, "output_dir": tmp_path / "emb", "encoder": "imagebind_tiny", "encoder_weights": weights}
    words = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["avt_get_emb.py", *words, "--modalities", "text", "--num_workers=0", "--device=cpu"])
    assert avt_get_emb.main() == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "avt_get_emb.py: CUDA out of memory.; nothing that was stored before is lost: lower --batch_size and start again"
    )
    assert len(Store(tmp_path / "emb")) == 8


def test_a_mended_clip_and_a_changed_text_are_embedded_again(settings, clips, tmp_path):
    root = copied(clips, tmp_path / "mended")
    clip = root / "raw_data" / "S01" / "E01" / "9.mp4"
    content = clip.read_bytes()
    clip.unlink()
    own = replace(settings, data_path=str(root), batch_size=1)
    assert [failure.key for failure in extract(own).failures] == ["S01_E01_9"] * 2
    clip.write_bytes(content)
    table = root / "train.tsv"
    table.write_text(table.read_text().replace("utterance 4", "another thing"))
    before = everything(own.output_dir)
    summary = extract(own)
    assert (summary.n_embedded, summary.failures) == (2, [])
    after = everything(own.output_dir)
    changed = {key for key in after if not torch.equal(before[key][0], after[key][0])}
    assert changed == {"S01_E01_9", "S01_E01_4"}


def test_bfloat16_keeps_the_public_scales(settings):
    extract(replace(settings, dtype="bfloat16"))
    vectors, _ = everything(settings.output_dir)["S01_E01_0"]
    assert abs(float(vectors[1].norm()) - 20) < 1e-4  # one window: norm = scale


def test_damage_of_the_same_size_is_embedded_again_when_mended(settings, clips, tmp_path):
    root = copied(clips, tmp_path / "flipped")
    clip = root / "raw_data" / "S01" / "E01" / "3.mp4"
    content = clip.read_bytes()
    clip.write_bytes(bytes(len(content)))
    own = replace(settings, data_path=str(root))
    assert len(extract(own).failures) == 2
    clip.write_bytes(content)
    assert extract(own).failures == []


def test_a_name_that_the_system_refuses_is_listed_like_any_bad_clip(settings, clips, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(f"path,text\n{'x' * 300}.mp4,hello\n{clips}/raw_data/S01/E01/0.mp4,hello\n")
    summary = extract(replace(settings, data_path=str(table)))
    assert [(failure.modality, failure.reason) for failure in summary.failures] == [
        ("audio", "cannot be opened: File name too long"),
        ("vision", "cannot be opened: File name too long"),
    ]


def test_a_subset_of_modalities_and_splits_is_possible(settings):
    summary = extract(replace(settings, modalities=("text", "audio"), splits=("test",)))
    assert (summary.n_clips, summary.present) == (5, {"text": 5, "audio": 5})
    _, present = Store(Path(settings.output_dir)).read(["S01_E01_10"])
    assert present.tolist() == [[True, True, False]]


def test_export_writes_the_original_layout_with_public_scales(settings, tmp_path):
    extract(replace(settings, export_pt=str(tmp_path / "pt")))
    text, vision, audio = torch.load(tmp_path / "pt" / "test_emb" / "1.pt", weights_only=True)
    vectors, _ = everything(settings.output_dir)["S01_E01_10"]
    assert torch.equal(torch.cat([text, audio, vision]), vectors)
    assert text.shape == (1, 1024) and abs(float(audio.norm()) - 20) < 0.5
    assert len(list((tmp_path / "pt" / "train_emb").iterdir())) == 9


def test_other_settings_into_the_same_store_are_refused_and_overwrite_rebuilds(settings):
    extract(settings)
    other = replace(settings, window_rule="before_end")
    with pytest.raises(StoreError, match=r"window_rule: to_end -> before_end.*--overwrite"):
        extract(other)
    assert extract(replace(other, overwrite=True)).n_embedded == N_CLIPS
    assert Store(Path(settings.output_dir)).identity.window_rule == "before_end"


def test_what_cannot_be_meant_stops_at_once(settings, clips, tmp_path):
    with pytest.raises(WeightsError, match=r"imagebind_huge.*checkpoints/README.md.*imagebind_tiny"):
        extract(replace(settings, encoder="imagebind_huge", encoder_weights=""))
    with pytest.raises(WeightsError, match=r"is not imagebind_huge: \d+ missing: .*imagebind_llm\.check"):
        extract(replace(settings, encoder="imagebind_huge"))
    with pytest.raises(WeightsError, match=r"expected a \.safetensors or \.pth file, got no such file"):
        extract(replace(settings, encoder_weights="nowhere.pth"))
    with pytest.raises(DataError, match="is the data's own folder"):
        extract(replace(settings, output_dir=str(clips)))
    (tmp_path / "gone.csv").write_text("path,text\ngone.mp4,hello\n")
    with pytest.raises(DataError, match=r"none of its 1 clips is there.*relative to the table"):
        extract(replace(settings, data_path=str(tmp_path / "gone.csv")))
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.tsv").write_text((clips / "train.tsv").read_text())
    with pytest.raises(DataError, match=r"raw_data.*--modalities text"):
        extract(replace(settings, data_path=str(texts)))
    assert extract(replace(settings, data_path=str(texts), modalities=("text",))).present == {"text": 9}
    done = run(command(replace(settings, data_path=str(tmp_path / "nowhere"))))
    assert done.returncode == 2 and "no such file or folder" in done.stderr and "Traceback" not in done.stderr
