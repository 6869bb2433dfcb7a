"""Opens media files and reads their streams and length without decoding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av


class MediaError(ValueError):
    """A file, or one modality of it, cannot be encoded; the message gives the reason."""


def reason(error: Exception) -> str:
    """FFmpeg's message, without its number and file name."""
    return getattr(error, "strerror", None) or str(error)


def open_container(path: Path):
    """PyAV's container of a file, to be closed by the caller. Raises MediaError if it is none.

    "file:" keeps FFmpeg from reading a name such as `http:x.mp4` as an address.
    """
    try:
        if not path.is_file():
            raise MediaError(f"no such file: {path}")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise MediaError(f"cannot be opened: {error.strerror}") from error
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")
    except av.FFmpegError as error:
        raise MediaError(f"cannot be opened as a media file ({reason(error)}): damaged, cut off, or another format") from error
    if not container.streams:
        raise MediaError("the file announces no streams: damaged or cut off")
    return container


def clip_seconds(path: str | Path, at_most: float = math.inf) -> float:
    """How long a clip lasts, in seconds, by its packets: the header may lie, and nothing is decoded.

    Reading stops where `at_most` is passed. A file that is damaged further on counts up to there; one that cannot be opened
    raises MediaError.
    """
    longest = 0.0
    with open_container(Path(path)) as container:
        try:
            for longest in _lengths(container):
                if longest > at_most:
                    break
        except MediaError:  # load_clip says what is wrong
            pass
    return longest


@dataclass(frozen=True)
class Contents:
    """The streams of a media file, and the length of the longest in seconds, found without decoding."""

    video: bool
    audio: bool
    duration_s: float


def look_into(path: str | Path) -> Contents:
    """Open a file and read it to its end, without decoding. Raises MediaError if it cannot be opened, or is cut off.

    `load_clip` sees more: damage inside a picture or a sound shows only when it is decoded.
    """
    with open_container(Path(path)) as container:
        cover = av.stream.Disposition.attached_pic
        kinds = {stream.type for stream in container.streams if not stream.disposition & cover}
        return Contents("video" in kinds, "audio" in kinds, max(_lengths(container), default=0.0))


def _lengths(container) -> Iterator[float]:
    """Packet by packet, the seconds that the longest stream has lasted so far. Raises MediaError where the file is damaged."""
    first: dict[int, Fraction] = {}
    longest = Fraction(0)
    try:
        for packet in container.demux():
            if packet.size and packet.is_corrupt:
                raise MediaError("the file is cut off within a packet")
            if packet.pts is None or not packet.time_base or packet.stream.type not in ("video", "audio"):
                continue
            start = first.setdefault(packet.stream.index, packet.pts * packet.time_base)
            longest = max(longest, (packet.pts + (packet.duration or 0)) * packet.time_base - start)
            yield float(longest)
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"the file cannot be read to its end: {reason(error)}") from error
