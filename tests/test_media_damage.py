"""Files that cannot be right: every outcome is windows or a MediaError for a person, one modality's damage is its own."""

import random
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_files import write_clip, write_grey_clip, write_sound

from imagebind_llm.clips.container import MediaError
from imagebind_llm.clips.media import load_clip
from imagebind_llm.records import Windows

BOTH = ("vision", "audio")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """One clip of 3.7 s in several containers."""
    folder = tmp_path_factory.mktemp("clips")
    options = {
        "index_last.mp4": {},
        "index_first.mp4": {"movflags": "+faststart"},
        "fragments.mp4": {"movflags": "empty_moov", "frag_duration": "500000"},
        "matroska.mkv": {},
    }
    for name, container_options in options.items():
        write_clip(folder / name, seconds=3.7, size=(96, 64), fps=25, container_options=container_options)
    return {name.split(".")[0]: folder / name for name in options}


def outcome(path: Path, **settings) -> dict[str, Windows | MediaError]:
    """load_clip's result, checked to be one of the two things that it may be."""
    result = load_clip(path, BOTH, **settings)
    assert set(result) == set(BOTH)
    for modality, value in result.items():
        if isinstance(value, MediaError):
            assert len(str(value)) > 10
        else:
            assert sum(value.counts) == {"vision": 15, "audio": 3}[modality]
            assert torch.isfinite(value.inputs).all() and len(value.inputs) == len(value.counts)
    return result


def same(a: Windows | MediaError, b: Windows | MediaError) -> bool:
    return isinstance(a, Windows) and isinstance(b, Windows) and a.counts == b.counts and torch.equal(a.inputs, b.inputs)


# --- cut off --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["index_last", "index_first", "fragments", "matroska"])
def test_a_file_cut_off_anywhere_gives_errors_and_never_other_numbers(clips, tmp_path, kind):
    whole = clips[kind].read_bytes()
    expected = outcome(clips[kind])
    cut = tmp_path / clips[kind].name
    for length in [0, 1, 40, *(len(whole) * i // 25 for i in range(1, 24))]:
        cut.write_bytes(whole[:length])
        result = outcome(cut)
        assert isinstance(result["vision"], MediaError) or isinstance(result["audio"], MediaError)
        assert all(isinstance(result[name], MediaError) or same(result[name], expected[name]) for name in BOTH), length


def test_a_picture_missing_before_the_last_one_shown_is_noticed(tmp_path):
    """With B-frames the last packet of the file is not the last picture: the times look complete, the number is not."""
    n_cases = 0
    for n in range(52, 58):
        whole = tmp_path / f"{n}.mp4"
        write_grey_clip(whole, [Fraction(i, 25) for i in range(n)], container={"movflags": "+faststart"})
        with av.open(str(whole)) as file:
            order = [(packet.pos, packet.pts) for packet in file.demux(video=0) if packet.size]
        position, pts = order[-1]
        whole.write_bytes(whole.read_bytes()[:position])
        assert isinstance(outcome(whole)["vision"], MediaError)
        n_cases += pts < max(time for _, time in order)
    assert n_cases


def test_a_cut_off_file_says_how_much_is_there(clips, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clips["index_first"].read_bytes()[: clips["index_first"].stat().st_size // 2])
    messages = {str(error) for error in outcome(cut).values()}
    assert any("cut off: 3.70 s of" in message or "a packet is incomplete" in message for message in messages)


@pytest.mark.parametrize("kind", ["index_last", "index_first"])
def test_what_cannot_be_opened_fails_for_both_modalities(clips, tmp_path, kind):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clips[kind].read_bytes()[:300])
    assert all(isinstance(value, MediaError) for value in outcome(cut).values())


# --- flipped bits -----------------------------------------------------------------------------------------------------------


def packets(path: Path, kind: str) -> list[tuple[int, int]]:
    """(position in the file, size) of every packet of one stream."""
    with av.open(str(path)) as file:
        return [(packet.pos, packet.size) for packet in file.demux(**{kind: 0}) if packet.size]


def overwrite(path: Path, target: Path, position: int, size: int) -> None:
    data = bytearray(path.read_bytes())
    data[position : position + size] = random.Random(0).randbytes(size)
    target.write_bytes(data)


@pytest.mark.parametrize("which", [0, 30, -1])
def test_a_damaged_picture_is_an_error_of_vision_alone(clips, tmp_path, which):
    target = tmp_path / "damaged.mp4"
    position, size = packets(clips["index_last"], "video")[which]
    overwrite(clips["index_last"], target, position + 8, size - 8)
    result = outcome(target)
    assert isinstance(result["vision"], MediaError) and "damaged" in str(result["vision"])
    assert same(result["audio"], outcome(clips["index_last"])["audio"])


def test_a_picture_that_the_decoder_passes_over_is_an_error(clips, tmp_path):
    target = tmp_path / "damaged.mp4"
    data = bytearray(clips["index_last"].read_bytes())
    data[packets(clips["index_last"], "video")[-1][0] + 4] = 10  # its NAL unit says "end of sequence" now: valid, no picture
    target.write_bytes(data)
    assert "91 of 92 pictures could be decoded" in str(outcome(target)["vision"])


def test_damaged_sound_is_an_error_of_audio_alone(clips, tmp_path):
    target = tmp_path / "damaged.mp4"
    position, size = packets(clips["index_last"], "audio")[20]
    overwrite(clips["index_last"], target, position, size)
    result = outcome(target)
    assert isinstance(result["audio"], MediaError) and "damaged" in str(result["audio"])
    assert same(result["vision"], outcome(clips["index_last"])["vision"])


def test_pictures_after_the_last_one_used_are_not_decoded(clips, tmp_path):
    """The older window rule never reaches the end of a clip, so damage there is not seen; the current one does."""
    target = tmp_path / "damaged.mp4"
    position, size = packets(clips["index_last"], "video")[-1]
    overwrite(clips["index_last"], target, position + 8, size - 8)
    before = outcome(target, window_rule="before_end")
    assert same(before["vision"], outcome(clips["index_last"], window_rule="before_end")["vision"])
    assert isinstance(outcome(target, window_rule="to_end")["vision"], MediaError)


@pytest.mark.parametrize("kind", ["index_last", "index_first", "fragments", "matroska"])
def test_flipped_bits_anywhere_never_raise(clips, tmp_path, kind):
    whole = clips[kind].read_bytes()
    target = tmp_path / clips[kind].name
    draw = random.Random(kind)
    n_errors = 0
    for _ in range(60):
        data = bytearray(whole)
        ends = (0, draw.choice([len(data), 2500]))  # the whole file, or its header
        for _ in range(draw.choice([1, 3, 20])):
            data[draw.randrange(*ends)] ^= 1 << draw.randrange(8)
        target.write_bytes(data)
        n_errors += any(isinstance(value, MediaError) for value in outcome(target).values())
    assert n_errors > 10


# --- what a file may lack ---------------------------------------------------------------------------------------------------


def test_a_missing_stream_is_an_error_of_that_modality_alone(tmp_path):
    write_clip(tmp_path / "silent.mp4", audio=False)
    result = outcome(tmp_path / "silent.mp4")
    assert str(result["audio"]) == "no audio stream" and isinstance(result["vision"], Windows)
    write_clip(tmp_path / "sound.mp4", video=False)
    result = outcome(tmp_path / "sound.mp4")
    assert str(result["vision"]) == "no video stream" and isinstance(result["audio"], Windows)


def test_cover_art_is_no_video(tmp_path):
    write_sound(tmp_path / "song.flac", np.zeros((1, 32000), np.int16), 16000, "flac", "s16")
    picture = av.CodecContext.create("png", "w")
    picture.width, picture.height, picture.pix_fmt, picture.time_base = 64, 64, "rgb24", Fraction(1, 25)
    png = bytes(picture.encode(av.VideoFrame(64, 64, "rgb24"))[0])
    (tmp_path / "song_with_cover.flac").write_bytes(with_flac_picture((tmp_path / "song.flac").read_bytes(), png))
    with av.open(str(tmp_path / "song_with_cover.flac")) as file:
        assert [stream.type for stream in file.streams] == ["audio", "video"]
    result = outcome(tmp_path / "song_with_cover.flac")
    assert str(result["vision"]) == "no video stream" and isinstance(result["audio"], Windows)


def with_flac_picture(flac: bytes, png: bytes) -> bytes:
    """The file with a PICTURE block (type 3, front cover) after its STREAMINFO block, which is always 38 bytes from byte 4."""
    words = b"".join(n.to_bytes(4, "big") for n in (64, 64, 24, 0, len(png)))
    block = (3).to_bytes(4, "big") + (9).to_bytes(4, "big") + b"image/png" + bytes(4) + words + png
    head = bytes([flac[4] & 0x7F]) + flac[5:42]
    return flac[:4] + head + bytes([6]) + len(block).to_bytes(3, "big") + block + flac[42:]


@pytest.mark.parametrize(("n_samples", "enough"), [(1, False), (399, False), (400, True), (800, True)])
def test_sound_under_25_ms_is_an_error_with_its_length(tmp_path, n_samples, enough):
    write_sound(tmp_path / "short.wav", np.full((1, n_samples), 1000, np.int16), 16000, "pcm_s16le", "s16")
    value = outcome(tmp_path / "short.wav")["audio"]
    assert isinstance(value, Windows) if enough else f"{n_samples / 16:.1f} ms of audio; at least 25 ms" in str(value)


def test_samples_that_are_not_numbers_are_an_error(tmp_path):
    samples = np.zeros((1, 16000), np.float32)
    samples[0, 99] = np.nan
    write_sound(tmp_path / "nan.wav", samples, 16000, "pcm_f32le", "flt")
    assert "not numbers" in str(outcome(tmp_path / "nan.wav")["audio"])


def test_what_is_no_media_file_is_an_error_for_both(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.mp4").write_text("no film\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(20000))
    for name in ("empty.mp4", "notes.mp4", "noise.mp4"):
        assert all(isinstance(value, MediaError) for value in outcome(tmp_path / name).values()), name
    for missing in (tmp_path / "missing.mp4", tmp_path):
        assert all("no such file" in str(value) for value in outcome(missing).values())


def test_a_playlist_cannot_reach_another_place(tmp_path):
    (tmp_path / "list.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    assert all(isinstance(value, MediaError) for value in outcome(tmp_path / "list.mp4").values())


# --- what must work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mit Leerzeichen.mp4", "日本語 ütf.mp4", "http:colon.mp4", "100%d.mp4", "-dash.mp4"])
def test_any_file_name_works(clips, tmp_path, monkeypatch, name):
    shutil.copy(clips["index_last"], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, Path(name)):
        assert all(isinstance(value, Windows) for value in outcome(path).values())


@pytest.mark.parametrize(
    ("size", "pixels"),
    [((33, 47), "yuv444p"), ((2, 2), "yuv420p"), ((1600, 16), "yuv420p"), ((16, 1600), "yuv420p"), ((3840, 2160), "yuv420p")],
)
def test_odd_tiny_wide_tall_and_4k_pictures_work(tmp_path, size, pixels):
    write_grey_clip(tmp_path / "clip.mp4", [Fraction(0), Fraction(1, 25)], size=size, pixels=pixels)
    value = outcome(tmp_path / "clip.mp4")["vision"]
    assert isinstance(value, Windows) and value.inputs.shape[1:] == (3, 2, 224, 224)


def test_a_picture_too_narrow_to_be_seen_is_an_error(tmp_path):
    write_grey_clip(tmp_path / "clip.mp4", [Fraction(0)], size=(4000, 16))
    assert "4000 x 16" in str(outcome(tmp_path / "clip.mp4")["vision"])


def test_a_video_of_one_frame_shows_it_twice(tmp_path):
    write_grey_clip(tmp_path / "clip.mp4", [Fraction(0)])
    value = outcome(tmp_path / "clip.mp4")["vision"]
    assert isinstance(value, Windows) and value.counts == (5, 5, 5)
    assert torch.equal(value.inputs[:, :, 0], value.inputs[:, :, 1])
