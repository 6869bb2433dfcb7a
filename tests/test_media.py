"""Sound and picture into ImageBind's inputs: golden numbers of the public front end, closed forms, merging of windows."""

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import write_clip, write_grey_clip, write_sound
from safetensors.torch import load_file

from imagebind_llm.clips.container import MediaError, clip_seconds
from imagebind_llm.clips.crops import (
    PIXEL_MEAN,
    PIXEL_STD,
    FramePicker,
    crop_offsets,
    frame_spans,
    pixels,
    scaled_size,
    spatial_crops,
    window_starts,
)
from imagebind_llm.clips.media import as_float, audio_windows, load_clip
from imagebind_llm.clips.mel import SAMPLE_RATE, bin_at, fbank, log_mel, mel_bank, resample

FOLDER = Path(__file__).parent / "golden" / "imagebind"
MEDIA = FOLDER / "media"
GOLDEN = load_file(FOLDER / "media.safetensors")
FRAME_LISTS = json.loads((FOLDER / "video_frames.json").read_text())
RULES = {"mel_n": "before_end", "mel_nm1": "to_end"}
PAD = 4.268 / 9.138  # a column of zeros, normalised


def expand(windows) -> torch.Tensor:
    """Every window as often as it counts, in the public order (which merging of neighbours keeps)."""
    return windows.inputs.repeat_interleave(torch.tensor(windows.counts), dim=0)


def read_wav(name: str) -> tuple[torch.Tensor, int]:
    import av

    with av.open(str(MEDIA / f"{name}.wav")) as file:
        blocks = [frame.to_ndarray().reshape(-1, frame.layout.nb_channels).T for frame in file.decode(audio=0)]
        return torch.from_numpy(as_float(np.concatenate(blocks, axis=1))), file.streams.audio[0].rate


# --- golden numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wav", ["bursts_dc_3p7s_16k", "short_1p3s_16k", "stereo_2p5s_44k1", "sweep_3p7s_16k"])
@pytest.mark.parametrize("name", RULES)
def test_the_mels_of_a_sound_file_are_the_public_ones(wav, name):
    golden = GOLDEN.get(f"{wav}.{name}", GOLDEN[f"{wav}.mel_n"])  # the short one has the same under both rules
    windows = load_clip(MEDIA / f"{wav}.wav", ["audio"], RULES[name])["audio"]
    error = (expand(windows)[:, 0, ::4, 1::7] - golden).abs()
    assert error.max() < 5e-3 and error.mean() < 5e-5


@pytest.mark.parametrize("wav", ["bursts_dc_3p7s_16k", "sweep_3p7s_16k"])
@pytest.mark.parametrize("name", RULES)
def test_clean_audio_of_a_mono_file_is_the_public_front_end_without_the_in_place_mean(wav, name):
    windows = load_clip(MEDIA / f"{wav}.wav", ["audio"], RULES[name], clean_audio=True)["audio"]
    error = (expand(windows)[:, 0, ::4, 1::7] - GOLDEN[f"{wav}.{name}_clean"]).abs()
    assert error.max() < 5e-3 and error.mean() < 5e-5
    assert (GOLDEN[f"{wav}.{name}_clean"] - GOLDEN[f"{wav}.{name}"]).abs().max() > 0.1  # not to be confused


def test_the_public_clean_numbers_of_a_stereo_file_are_its_left_channel():
    waveform, rate = read_wav("stereo_2p5s_44k1")
    left = expand(audio_windows(waveform[:1], rate, "to_end", clean=True))
    assert (left[:, 0, ::4, 1::7] - GOLDEN["stereo_2p5s_44k1.mel_nm1_clean"]).abs().max() < 5e-3
    both = expand(audio_windows(waveform, rate, "to_end", clean=True))
    assert torch.allclose(both, expand(audio_windows(waveform.mean(0, keepdim=True), rate, "to_end", clean=True)), atol=1e-4)
    assert (both - left).abs().max() > 0.1


def test_resampling_equals_the_public_one():
    waveform, rate = read_wav("stereo_2p5s_44k1")
    resampled = resample(waveform, rate)
    assert resampled.shape == (2, 40000)
    assert (resampled[:, ::8] - GOLDEN["stereo_2p5s_44k1.resampled"]).abs().max() < 1e-5


def test_the_mel_filters_are_kaldis():
    assert (mel_bank()[::8] - GOLDEN["mel_bank"]).abs().max() < 5e-5
    assert [b for b in range(128) if not mel_bank()[b].any()] == [3]


@pytest.mark.parametrize(("video", "kind"), [("landscape_320x180", "landscape"), ("portrait_176x304", "portrait")])
def test_the_crops_of_a_video_are_the_public_ones(video, kind):
    windows = load_clip(MEDIA / f"clip_{video}_25fps.mp4", ["vision"])["vision"]
    assert windows.inputs.shape == (15, 3, 2, 224, 224) and windows.counts == (1,) * 15
    first_window = windows.inputs[:3, :, :, 96:128:2, 96:160:4]
    assert (first_window - GOLDEN[f"crops.{kind}"]).abs().max() < 1e-5


# --- window times and frame choice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["to_end", "before_end"])
@pytest.mark.parametrize("clip", FRAME_LISTS)
@pytest.mark.parametrize("ticks", [1, 512])  # of the time base, per frame: AVI's and mp4's
def test_each_window_has_the_golden_first_and_last_frame(clip, rule, ticks):
    case = FRAME_LISTS[clip]
    times = [i * ticks for i in range(case["n_frames"])]
    assert picked_numbers(times, len(times) * ticks, Fraction(1, case["fps"] * ticks), rule) == case[rule]


def picked_numbers(times: list[int], duration: int, base: Fraction, rule: str) -> list[list[int]]:
    picker = FramePicker(frame_spans(duration * base, base, rule))
    for number, time in enumerate(times):
        picker.offer(time, number)
    return [[number for _, number in pair] for pair in picker.pairs()]


@given(duration=st.fractions(min_value=0, max_value=10**4), n=st.integers(2, 9), rule=st.sampled_from(["to_end", "before_end"]))
def test_window_starts_are_even_and_stay_inside_the_clip(duration, n, rule):
    starts = window_starts(duration, n, rule)
    room = max(duration - 2, Fraction(0))
    assert len(starts) == n and starts[0] == 0
    assert {b - a for a, b in itertools.pairwise(starts)} == {room / (n - 1 if rule == "to_end" else n)}
    assert starts[-1] == (room if rule == "to_end" else room * (n - 1) / n)


def test_an_unknown_window_rule_is_the_callers_error():
    with pytest.raises(ValueError, match=r"expected one of to_end, before_end, got 'middle'"):
        load_clip("nowhere.mp4", ["vision"], "middle")


@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    spans=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), min_size=1, max_size=5),
)
def test_the_picker_finds_first_and_last_frame_of_every_span(gaps, spans):
    times = np.cumsum(gaps).tolist()
    spans = [(low, low + length) for low, length in spans]
    picker = FramePicker(spans)
    for time in times:
        if not picker.done:
            picker.offer(time, time)
    for (low, high), pair in zip(spans, picker.pairs(), strict=True):
        inside = [time for time in times if low <= time < high]
        on_screen = max((time for time in times if time < low), default=times[0])
        first, last = (inside[0], inside[-1]) if inside else (on_screen, on_screen)
        assert pair == ((first, first), (last, last))


@pytest.mark.parametrize(
    ("name", "delay", "expected"),
    [
        ("plain.mp4", 0, FRAME_LISTS["3.7s_25fps"]["to_end"]),
        ("starts late.mp4", 1, FRAME_LISTS["3.7s_25fps"]["to_end"]),  # an edit list: times do not begin at 0
        ("matroska.mkv", 0, FRAME_LISTS["3.7s_25fps"]["to_end"]),  # no duration of the stream in the header
        ("bare.h264", 0, FRAME_LISTS["3.7s_25fps"]["to_end"]),  # no times at all
    ],
)
def test_frames_of_real_files_are_chosen_by_their_times(tmp_path, name, delay, expected):
    write_grey_clip(tmp_path / name, [Fraction(i, 25) + delay for i in range(92)])
    assert shown_frames(load_clip(tmp_path / name, ["vision"])["vision"]) == expected


def test_a_start_that_an_edit_list_cuts_away_is_not_seen(tmp_path):
    write_grey_clip(tmp_path / "trimmed.mp4", [Fraction(i - 10, 25) for i in range(80)])
    windows = load_clip(tmp_path / "trimmed.mp4", ["vision"])["vision"]
    assert shown_frames(windows) == [[10, 59], [15, 64], [20, 69], [25, 74], [30, 79]]


def test_one_reading_gives_what_decoding_every_window_for_itself_gives(tmp_path):
    from benchmarks.media import public_crops

    for name, size in (("wide.mp4", (96, 64)), ("square.mp4", (64, 64))):
        write_clip(tmp_path / name, seconds=3.7, size=size, fps=25)
        windows = load_clip(tmp_path / name, ["vision"])["vision"]
        assert torch.equal(expand(windows), public_crops(tmp_path / name))


def test_variable_frame_rate_goes_by_time_not_by_number(tmp_path):
    times = [Fraction(tenths, 10) for tenths in (0, 1, 10, 12, 30, 31, 39)]
    write_grey_clip(tmp_path / "vfr.mp4", times)
    # 3.94 s: windows start at 0, 0.485, 0.97, 1.455, 1.94; the third and the fourth differ in their first frame
    windows = load_clip(tmp_path / "vfr.mp4", ["vision"])["vision"]
    assert shown_frames(windows) == [[0, 3], [2, 3], [2, 3], [4, 5], [4, 6]]


def shown_frames(windows) -> list[list[int]]:
    """The numbers of the frames of a grey clip's five windows, read off their brightness."""
    levels = (windows.inputs * PIXEL_STD[:, None] + PIXEL_MEAN[:, None]).mean((1, 3, 4)) * 255  # (N,2)
    numbers = ((levels - 16) / 2 + 0.25).round().int()
    return numbers.repeat_interleave(torch.tensor(windows.counts), dim=0)[::3].tolist()


# --- crops ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scaled", "offsets"),
    [
        ((180, 320), (224, 398), [(0, 0), (0, 87), (0, 174)]),
        ((304, 176), (386, 224), [(0, 0), (81, 0), (162, 0)]),
        ((192, 192), (224, 224), [(0, 0)] * 3),
        ((270, 482), (224, 399), [(0, 0), (0, 88), (0, 175)]),  # 399.88
        ((224, 225), (224, 225), [(0, 0), (0, 1), (0, 1)]),
    ],
)
def test_three_crops_lie_along_the_long_side(size, scaled, offsets):
    assert scaled_size(*size) == scaled
    assert crop_offsets(*size) == offsets


def test_scaling_down_takes_the_four_nearest_pixels_without_anti_aliasing():
    picture = torch.randint(0, 256, (3, 896, 896), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blocks = picture.view(3, 224, 4, 224, 4)[:, :, 1:3, :, 1:3].float().mean((2, 4))  # the inner 2x2 of each 4x4
    expected = (blocks / 255 - PIXEL_MEAN) / PIXEL_STD
    assert (spatial_crops(picture, [(0, 0)])[0] - expected).abs().max() < 1e-5


def test_the_pixels_of_a_crop_are_those_of_the_picture():
    picture = torch.randint(0, 256, (3, 224, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crops = spatial_crops(picture, crop_offsets(224, 300))
    assert torch.equal(pixels(crops)[0], picture[:, :, :224].permute(1, 2, 0))
    assert torch.equal(pixels(crops)[2], picture[:, :, -224:].permute(1, 2, 0))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_the_length_of_a_clip_is_that_of_its_packets(tmp_path, name):
    write_clip(tmp_path / name, seconds=1.5)
    assert clip_seconds(tmp_path / name) == pytest.approx(1.5, abs=0.15)
    assert 0.4 < clip_seconds(tmp_path / name, at_most=0.4) < 0.8, "reading stops there"
    write_clip(tmp_path / "sound.mp4", seconds=0.7, video=False)
    assert clip_seconds(tmp_path / "sound.mp4") == pytest.approx(0.7, abs=0.15)
    (tmp_path / "broken.mp4").write_bytes(b"no media")
    with pytest.raises(MediaError, match="cannot be opened"):
        clip_seconds(tmp_path / "broken.mp4")


def test_equal_windows_and_equal_crops_are_returned_once(tmp_path):
    sizes = {"wide": ((96, 64), (5, 5, 5)), "square": ((64, 64), (15,)), "tall": ((64, 96), (5, 5, 5))}
    for name, (size, counts) in sizes.items():
        write_clip(tmp_path / f"{name}.mp4", seconds=1.5, size=size)
        clip = load_clip(tmp_path / f"{name}.mp4", ["vision", "audio"])
        assert clip["vision"].counts == counts and clip["vision"].inputs.shape == (len(counts), 3, 2, 224, 224)
        assert clip["audio"].counts == (3,) and clip["audio"].inputs.shape == (1, 1, 128, 204)
    write_clip(tmp_path / "longer.mp4", seconds=3, size=(64, 64))
    assert load_clip(tmp_path / "longer.mp4", ["vision"])["vision"].counts == (3,) * 5


# --- sound ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 44101, 48000])
def test_a_tone_resampled_is_the_tone_sampled_at_16_khz(rate):
    seconds = torch.arange(rate) / rate
    resampled = resample(torch.sin(2 * math.pi * 440 * seconds)[None], rate)
    assert resampled.shape == (1, 16000)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(16000) / 16000)
    assert (resampled[0] - expected)[200:-200].abs().max() < 5e-3


@settings(deadline=None, max_examples=40)
@given(rate=st.sampled_from([8000, 11025, 16000, 32000, 44100, 48000]), n=st.integers(600, 3000), data=st.data())
def test_a_part_resampled_is_that_part_of_the_whole(rate, n, data):
    waveform = torch.randn(2, n, generator=torch.Generator().manual_seed(n))
    length = math.ceil(n * SAMPLE_RATE / rate)
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    whole = resample(waveform, rate)
    assert whole.shape == (2, length)
    assert torch.allclose(resample(waveform, rate, start, stop), whole[:, start:stop], atol=1e-6)


@pytest.mark.parametrize("rule", ["to_end", "before_end"])
def test_windows_of_a_long_sound_equal_those_cut_from_the_whole(rule):
    waveform = torch.randn(1, 44100 * 9, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = resample(waveform, 44100)
    step = 7 * SAMPLE_RATE // (2 if rule == "to_end" else 3)
    expected = torch.stack([log_mel(part - part.mean()) for part in (whole[0, i * step : i * step + 32000] for i in range(3))])
    windows = audio_windows(waveform, 44100, rule)
    assert windows.counts == (1, 1, 1)
    assert (windows.inputs[:, 0] - expected).abs().max() < 1e-4


def test_silence_is_one_window_and_padding_is_louder_than_silence():
    windows = audio_windows(torch.zeros(1, 40000), SAMPLE_RATE)
    assert windows.counts == (3,)
    mel = windows.inputs[0, 0]
    assert torch.allclose(mel[:, :198], torch.tensor(-1.27756), atol=1e-4)
    assert torch.allclose(mel[:, 198:], torch.tensor(PAD))


def test_energies_of_a_tone_peak_where_its_frequency_lies():
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(32000) / SAMPLE_RATE)
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (20, 8000))
    nearest = round((1127 * math.log(1 + 1000 / 700) - low) / (high - low) * 129) - 1
    energies = fbank(tone)
    assert energies.shape == (198, 128)
    assert (energies.argmax(1) == nearest).all() and bin_at(1000) == nearest
    assert torch.allclose(fbank(tone + 0.05), energies, atol=0.02)  # a constant is removed in every frame


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 128, 255]], np.uint8), [-1, 0, 127 / 128]),
        (np.array([[-32768, 0, 32767]], np.int16), [-1, 0, 32767 / 32768]),
        (np.array([[-(2**31), 0, 2**30]], np.int32), [-1, 0, 0.5]),
        (np.array([[-1, 0, 0.5]], np.float64), [-1, 0, 0.5]),
    ],
)
def test_every_sample_type_has_full_scale_one(samples, expected):
    result = as_float(samples)
    assert result.dtype == np.float32
    assert np.allclose(result[0], expected, atol=1e-7)


def test_the_sample_format_of_a_file_does_not_matter(tmp_path):
    wave = 0.3 * np.sin(np.arange(48000) / 7)[None] * np.array([[1.0], [0.5]])
    formats = {
        "s16.wav": ("pcm_s16le", "s16", (wave * 2**15).astype(np.int16)),
        "s32.wav": ("pcm_s32le", "s32", (wave * 2**31).astype(np.int32)),
        "flt.wav": ("pcm_f32le", "flt", wave.astype(np.float32)),
        "planar.flac": ("flac", "s16", (wave * 2**15).astype(np.int16)),
    }
    mels = []
    for name, (codec, sample_format, samples) in formats.items():
        write_sound(tmp_path / name, samples, 48000, codec, sample_format)
        mels.append(load_clip(tmp_path / name, ["audio"])["audio"].inputs)
    # the quantisation of 16 bits shows in the silent bins; loud ones agree
    for mel in mels[1:]:
        assert ((mel - mels[0]).abs() * (mels[1] > 0)).max() < 0.01


# --- independent oracles, where they can be imported ------------------------------------------------------------------------


def oracle(name: str):
    try:
        return __import__(name, fromlist=["functional"])
    except (ImportError, OSError, RuntimeError) as error:  # builds for another machine fail in several ways
        pytest.skip(f"{name} cannot be imported here: {error}")


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_resampling_equals_torchaudio(rate):
    torchaudio = oracle("torchaudio.functional")
    waveform = torch.randn(2, rate, generator=torch.Generator().manual_seed(0)) * 0.2  # inside [-1, 1]
    assert (resample(waveform, rate) - torchaudio.resample(waveform, rate, SAMPLE_RATE)).abs().max() < 1e-5


def test_filter_bank_energies_equal_torchaudio():
    kaldi = oracle("torchaudio.compliance.kaldi")
    samples = torch.randn(1, 32000, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = kaldi.fbank(samples, sample_frequency=16000, window_type="hanning", num_mel_bins=128, dither=0.0)
    assert (fbank(samples[0]) - expected).abs().max() < 5e-3
