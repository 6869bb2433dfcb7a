"""Small real clips for tests, written by PyAV: h264 + aac in mp4, with a moving picture and a changing tone."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path,
    seconds: float = 1.0,
    size: tuple[int, int] = (96, 64),
    fps: int = 10,
    rate: int = 16000,
    channels: int = 1,
    video: bool = True,
    audio: bool = True,
    seed: int = 0,
    container_options: dict[str, str] | None = None,
) -> None:
    """Write one clip; `size` is (width, height), `seed` changes picture and sound."""
    random = np.random.default_rng(seed)
    with av.open(str(path), "w", options=container_options or {}) as container:
        if video:
            stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if audio:
            sound = container.add_stream("aac", rate=rate, layout="stereo" if channels == 2 else "mono")
        if video:
            picture = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            for i in range(round(seconds * fps)):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * i, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if audio:
            time = np.arange(round(seconds * rate)) / rate
            tone = 0.4 * np.sin(2 * np.pi * (200 + 50 * seed) * time * (1 + 0.2 * time))
            samples = np.repeat(tone[:, None], channels, axis=1).reshape(1, -1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="stereo" if channels == 2 else "mono")
            frame.sample_rate = rate
            container.mux(sound.encode(frame))
            container.mux(sound.encode())


def write_grey_clip(
    path: Path,
    times: Sequence[Fraction],
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    container: dict[str, str] | None = None,
) -> None:
    """A silent clip whose frame i is grey of level `grey(i)` and starts at times[i] seconds: a frame tells its number."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=25, options={"crf": "1"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, 600)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), grey(i), np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * 600), Fraction(1, 600)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def grey(i: int) -> int:
    return 16 + 2 * i


def write_sound(path: Path, samples: np.ndarray, rate: int, codec: str, sample_format: str) -> None:
    """PCM of shape (channels, n), in the codec's own numbers, as a sound file."""
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout, format=sample_format)
        packed = samples if sample_format.endswith("p") else samples.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format=sample_format, layout=layout)
        frame.sample_rate = rate
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
