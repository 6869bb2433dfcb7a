"""Media files to ImageBind's inputs: video frames and log-mel windows, decoded with PyAV (FFmpeg).

The rules (window times, frame choice, crops, resampling, filter bank) are those of the public ImageBind front end, found by
its behaviour and held to golden numbers; what it does at a cost is done differently. A file is opened and read once for all
modalities, pictures are kept undecoded-to-RGB until it is known that they are used, and windows that would give the encoder
the same input are returned once, with a count.

Damaged files are errors, not guesses: the decoder runs with its strictest checks, a frame that it had to conceal counts as
an error, and so does a stream that ends before the container says. The other modality of the file is kept.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from imagebind_llm.clips.container import MediaError, open_container, reason
from imagebind_llm.clips.crops import (
    N_WINDOWS,
    WINDOW_S,
    FramePicker,
    crop_offsets,
    frame_spans,
    spatial_crops,
    window_starts,
)
from imagebind_llm.clips.mel import FRAME, SAMPLE_RATE, log_mel, resample
from imagebind_llm.records import Windows

MIN_RATE, MAX_RATE = 1000, 768000  # Hz; anything else is a damaged header
MAX_PIXELS, MAX_ASPECT = 2**26, 200  # of one frame: twice 8K; beyond either, memory runs out before anything is seen


# --- A clip -----------------------------------------------------------------------------------------------------------


def load_clip(
    path: str | Path, modalities: Sequence[str], window_rule: str = "to_end", clean_audio: bool = False
) -> dict[str, Windows | MediaError]:
    """The encoder inputs of one file for each of `modalities` (audio, vision), or the MediaError why there are none.

    vision: (N, 3, 2, 224, 224) with counts summing to 15 (5 windows x 3 crops); audio: (N, 1, 128, 204), summing to 3.
    `window_rule`: "to_end" spreads the windows so that the last one ends with the clip (the public implementation today),
    "before_end" is the older sampler, whose last window ends early. `clean_audio`: see `audio_windows`.
    """
    makers = {"vision": lambda c: _Pictures(c, window_rule), "audio": lambda c: _Sound(c, window_rule, clean_audio)}
    window_starts(Fraction(0), 2, window_rule)  # an unknown rule is the caller's error, not the file's
    try:
        container = open_container(Path(path))
    except MediaError as error:
        return dict.fromkeys(modalities, error)
    with container:
        tracks: dict[str, _Track | MediaError] = {}
        for name in modalities:
            tracks[name] = _attempt(lambda name=name: makers[name](container))
        _read(container, [track for track in tracks.values() if isinstance(track, _Track)])
        return {name: _attempt(track.windows) if isinstance(track, _Track) else track for name, track in tracks.items()}


def _attempt(make):
    """What `make()` returns, or the MediaError that it raises; FFmpeg's own errors become MediaErrors."""
    try:
        return make()
    except MediaError as error:
        return error
    except av.FFmpegError as error:
        return MediaError(f"FFmpeg cannot decode it: {reason(error)}")


def _read(container, tracks: list["_Track"]) -> None:
    """Read the file once and pass each packet to its track. After a read error the tracks keep what they have read so far."""
    by_index = {track.stream.index: track for track in tracks}
    end = Fraction(0)  # seconds: the end of the last packet of any stream
    try:
        packets: Iterable = container.demux()
        if any(track.needs_all_packets for track in tracks):
            packets = list(packets)
            for index, track in by_index.items():
                track.measure([packet for packet in packets if packet.stream.index == index and packet.size])
        for packet in packets:
            if packet.pts is not None and packet.time_base:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index in by_index:  # (`stream_index` of the empty packets at the end is not set)
                by_index[packet.stream.index].feed(packet)
    except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV at a stream that appears midway, as damage makes them
        for track in tracks:
            track.error = track.error or MediaError(f"the file cannot be read to its end: {reason(error)}")
    for track in tracks:
        track.error = track.error or _cut_off(container, tracks, track, end)


def _cut_off(container, tracks: list["_Track"], track: "_Track", end: Fraction) -> MediaError | None:
    """The error of a track whose own header does not tell its true end, in a file that can be seen to be cut off."""
    if track.exact:
        return None
    if container.format.name != "mpegts" and any(other.incomplete for other in tracks):
        return MediaError("the file is cut off within a packet")
    whole = Fraction(container.duration or 0, av.time_base) if "matroska" in container.format.name else 0
    if end + max(Fraction(1, 40), track.tick) < whole:
        return MediaError(f"cut off: {float(whole):.2f} s announced, {float(end):.2f} s found")
    return None


class _Track:
    """One modality's stream of an open container: packets go in, windows come out. The first error ends it."""

    kind = ""  # "video" or "audio"
    needs_all_packets = False
    done = False  # nothing that is still to be decoded will be used
    incomplete = False  # the file ended within a packet

    def __init__(self, container):
        self.stream = self._stream(container)
        format = container.format.name
        self.exact = ("mp4" in format and self.stream.frames > 0) or format == "wav"  # the header tells the stream's true end
        self.announced = (self.stream.duration or 0) if self.exact or "mp4" in format else 0  # else an estimate
        self.start = self.stream.start_time or 0
        self.error: MediaError | None = None
        self.n_packets = self.n_expected = self.n_frames = self.end = 0
        codec = self.stream.codec_context
        if codec is None:
            raise MediaError(f"the {self.kind} stream's codec is unknown: damaged, cut off, or not supported")
        codec.thread_type = "NONE"  # clips are decoded in parallel, by processes
        codec.options = {"err_detect": "crccheck+bitstream+buffer+explode", "max_pixels": str(MAX_PIXELS)}

    def _stream(self, container):
        cover = av.stream.Disposition.attached_pic
        for stream in container.streams:
            if stream.type == self.kind and not stream.disposition & cover:
                return stream
        raise MediaError(f"no {self.kind} stream")

    @property
    def tick(self) -> Fraction:
        """Duration in seconds of a packet for which the file gives none."""
        return Fraction(1, 40)

    def feed(self, packet) -> None:
        """Decode one packet or, with the empty packet at the end, the frames that the decoder still holds."""
        self.incomplete |= packet.is_corrupt
        if packet.size:
            self.n_packets += 1
            self.n_expected += not packet.is_discard
            self.end = max(self.end, (packet.pts or 0) + (packet.duration or 0) - self.start)
        if self.error or self.done:
            return
        try:
            self._decode(packet)
        except MediaError as error:
            self.error = error
        except av.FFmpegError as error:
            at = float(((packet.pts or 0) - self.start) * self.stream.time_base)
            self.error = MediaError(f"the {self.kind} is damaged near {at:.2f} s: {reason(error)}")

    def _decode(self, packet) -> None:
        if packet.is_corrupt:
            raise MediaError("the file is damaged or cut off: a packet is incomplete")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise MediaError(f"the {self.kind} is damaged at {frame.time or 0:.2f} s")
            self.take(frame)
            self.n_frames += 1

    def check_complete(self) -> None:
        """Raises MediaError if decoding failed, or the stream ended before the time that its header announces."""
        if self.error:
            raise self.error
        if not self.n_frames:
            raise MediaError(f"the {self.kind} stream holds nothing that can be decoded")
        if self.end + self.tick / self.stream.time_base / 2 < self.announced:
            got, want = (float(ticks * self.stream.time_base) for ticks in (self.end, self.announced))
            raise MediaError(f"cut off: {want:.2f} s of {self.kind} announced, {got:.2f} s found")

    def measure(self, packets: list) -> None:
        """See all packets before the first is fed; only where some track `needs_all_packets`."""

    def take(self, frame) -> None:
        raise NotImplementedError

    def windows(self) -> Windows:
        raise NotImplementedError


class _Pictures(_Track):
    kind = "video"

    def __init__(self, container, rule: str):
        super().__init__(container)
        self.rule = rule
        # A header without a frame count (Matroska, fragmented mp4, raw streams) has no exact duration either.
        self.needs_all_packets = not (self.stream.frames and (self.stream.duration or 0) > 0)
        if not self.needs_all_packets:
            self._plan(self.stream.duration)

    @property
    def tick(self) -> Fraction:
        return 1 / (self.stream.average_rate or Fraction(25))

    def _plan(self, duration: int) -> None:
        self.picker = FramePicker(frame_spans(duration * self.stream.time_base, self.stream.time_base, self.rule))

    def measure(self, packets: list) -> None:
        tick = self.tick / self.stream.time_base
        if not packets or any(packet.pts is None for packet in packets):
            return self._plan(math.ceil(len(packets) * tick))
        self.start = min(packet.pts for packet in packets)
        self._plan(max(packet.pts + (packet.duration or math.ceil(tick)) for packet in packets) - self.start)

    def take(self, frame) -> None:
        pts = round(self.n_frames * self.tick / self.stream.time_base) if frame.pts is None else frame.pts - self.start
        self.picker.offer(pts, frame)
        self.done = self.picker.done

    def windows(self) -> Windows:
        self.check_complete()
        announced = self.stream.frames if self.exact else 0
        if self.n_packets < announced:
            raise MediaError(f"cut off: {announced} pictures announced, {self.n_packets} found")
        if announced and not self.done and self.n_frames < self.n_expected:
            raise MediaError(f"the video is damaged: {self.n_frames} of {self.n_expected} pictures could be decoded")
        return picture_windows(self.picker.pairs())


class _Sound(_Track):
    kind = "audio"

    def __init__(self, container, rule: str, clean: bool):
        super().__init__(container)
        self.rule, self.clean = rule, clean
        self.blocks: list[np.ndarray] = []
        self.layout: tuple[int, int] | None = None  # (Hz, channels)

    def take(self, frame) -> None:
        layout = (frame.sample_rate, frame.layout.nb_channels)
        if self.layout not in (None, layout):
            raise MediaError(f"the sound changes from {self.layout} to {layout} (Hz, channels) within the clip")
        if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
            raise MediaError(f"a sample rate of {frame.sample_rate} Hz; {MIN_RATE} to {MAX_RATE} are read")
        self.layout = layout
        block = frame.to_ndarray()
        self.blocks.append(block if frame.format.is_planar else block.reshape(-1, layout[1]).T)  # (C,n)

    def windows(self) -> Windows:
        self.check_complete()
        samples = torch.from_numpy(as_float(np.concatenate(self.blocks, axis=1)))
        assert self.layout is not None  # check_complete has seen a frame
        return audio_windows(samples, self.layout[0], self.rule, self.clean)


# --- Pictures -----------------------------------------------------------------------------------------------------------


def picture_windows(pairs: list[tuple]) -> Windows:
    """The distinct crops of ((pts, frame), (pts, frame)) pairs; each frame is converted to RGB once."""
    frames = dict(item for pair in pairs for item in pair)
    if len({(frame.width, frame.height) for frame in frames.values()}) > 1:
        raise MediaError("the picture size changes within the clip")
    frame = next(iter(frames.values()))
    if max(frame.width, frame.height) > MAX_ASPECT * min(frame.width, frame.height):
        raise MediaError(f"a picture of {frame.width} x {frame.height}: a side more than {MAX_ASPECT} times the other")
    offsets = Counter(crop_offsets(frame.height, frame.width))
    crops = {
        pts: spatial_crops(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1), list(offsets))
        for pts, frame in frames.items()
    }
    inputs, counts = [], []
    for (first, last), n_windows in Counter((pair[0][0], pair[1][0]) for pair in pairs).items():
        inputs.append(torch.stack((crops[first], crops[last]), dim=2))  # (n crops,3,2,224,224)
        counts += [n_windows * n_crops for n_crops in offsets.values()]
    return Windows(torch.cat(inputs), tuple(counts))


# --- Sound --------------------------------------------------------------------------------------------------------------


def as_float(samples: np.ndarray) -> np.ndarray:
    """PCM of any of FFmpeg's sample types as float32 with full scale 1."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    return samples.astype(np.float32)


def audio_windows(waveform: Tensor, rate: int, rule: str = "to_end", clean: bool = False) -> Windows:
    """The distinct log-mel windows of a waveform (C, N) at `rate` Hz. Raises MediaError under 25 ms, or where not finite.

    The default reproduces the public implementation with its defects: only the first channel is heard (the left one), and
    each window's mean is subtracted in place, so that windows that overlap see samples that were shifted already, with a
    step in them. `clean` mixes the channels to one and subtracts nothing twice; on mono that is the public front end
    without the in-place effect.
    """
    if not torch.isfinite(waveform).all():
        raise MediaError("the audio holds samples that are not numbers")
    length = math.ceil(waveform.shape[1] * SAMPLE_RATE / rate)
    if length < FRAME:
        raise MediaError(f"{1000 * length / SAMPLE_RATE:.1f} ms of audio; at least 25 ms are needed")
    if clean:
        waveform = waveform.mean(0, keepdim=True)
    mels: list[Tensor] = []
    for window in _centred(_window_samples(waveform, rate, length, rule), in_place=not clean):
        mels.append(log_mel(window[0]))
    return _merged(mels)


def _window_samples(waveform: Tensor, rate: int, length: int, rule: str) -> list[Tensor]:
    """The three windows (C, n) at 16 kHz, as views of one buffer where they overlap; one for a clip of at most 2 s.

    Only what the windows cover is resampled, which matters once they lie apart.
    """
    size = WINDOW_S * SAMPLE_RATE
    if length <= size:
        return [resample(waveform, rate)]
    seconds = window_starts(Fraction(length, SAMPLE_RATE), N_WINDOWS["audio"], rule)
    starts = [math.floor(start * SAMPLE_RATE) for start in seconds]
    if starts[1] >= size:
        return [resample(waveform, rate, start, start + size) for start in starts]
    whole = resample(waveform, rate, 0, starts[-1] + size)
    return [whole[:, start : start + size] for start in starts]


def _centred(windows: list[Tensor], in_place: bool) -> Iterable[Tensor]:
    """Each window without its mean; in place, a later window that overlaps this one sees it shifted."""
    for window in windows:
        yield window.sub_(window.mean()) if in_place else window - window.mean()


def _merged(mels: list[Tensor]) -> Windows:
    """Bit-identical mels once, with their counts; a single one stands for all three."""
    distinct: list[Tensor] = []
    counts: list[int] = []
    for mel in mels:
        same = next((i for i, other in enumerate(distinct) if torch.equal(mel, other)), None)
        if same is None:
            distinct.append(mel)
            counts.append(N_WINDOWS["audio"] // len(mels))
        else:
            counts[same] += 1
    return Windows(torch.stack(distinct)[:, None], tuple(counts))  # (N,1,128,204)
