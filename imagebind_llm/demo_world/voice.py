"""Synthesises the demo world's voices: a source and a filter, syllable after syllable, that show the four vocal cues.

No words are spoken: vowels and breaks at the cue's rate, a voice to see in a spectrogram and to hear, not to understand.
Each syllable carries the pitch contour anew, so that every window of a clip, down to one syllable, shows every cue.
Loudness is read against the room's constant noise (ImageBind's filter banks are not normalised for gain).
The harmonics follow sin(k x) = 2 cos(x) sin((k-1) x) - sin((k-2) x); formants weigh them (Fant, Acoustic Theory of
Speech Production, 1960: voiced speech as a source filtered by the resonances of the tract).
"""

import numpy as np
from scipy.signal import lfilter

SAMPLE_RATE = 16000
SYLLABLES_PER_S = {"slow": 2.4, "normal": 4.2, "fast": 7.2}
GLIDE_SEMITONES = {"rising": 7.0, "falling": -7.0, "flat": 0.0}
LEVEL_DB = {"soft": -40.0, "normal": -27.0, "loud": -13.0}  # RMS of the voiced part, of full scale
ROOM_DB = -62.0
VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (390, 1990, 2550), (570, 840, 2410), (300, 870, 2240))  # Hz: a e i o u
HIGHEST_HZ = 5000.0


def speak(cues: dict[str, str], duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """A voice with these cues in a quiet room. Returns (samples,) float32 in [-1, 1] at SAMPLE_RATE."""
    pitch_hz, tract = rng.uniform(95, 220), rng.uniform(0.9, 1.15)
    voice = np.zeros(round(duration_s * SAMPLE_RATE))
    step = SAMPLE_RATE / (SYLLABLES_PER_S[cues["rate"]] * rng.uniform(0.92, 1.08))
    position = rng.uniform(0.0, 0.04) * SAMPLE_RATE
    while position + 0.5 * step < len(voice):
        length = int(min(step * rng.uniform(0.68, 0.8), len(voice) - position))
        start = int(position)
        voice[start : start + length] = _syllable(cues, length, pitch_hz * rng.uniform(0.94, 1.06), tract, rng)
        position += step * rng.uniform(0.93, 1.07)
    level = 10 ** ((LEVEL_DB[cues["loudness"]] + rng.uniform(-2, 2)) / 20)
    spoken = voice[voice != 0]
    voice *= level / np.sqrt(np.mean(spoken**2))
    room = 10 ** ((ROOM_DB + rng.uniform(-1.5, 1.5)) / 20) * rng.standard_normal(len(voice))
    return np.clip(voice + room, -0.99, 0.99).astype(np.float32)


def _syllable(cues: dict[str, str], length: int, pitch_hz: float, tract: float, rng: np.random.Generator) -> np.ndarray:
    """One vowel of `length` samples gliding through the pitch contour, at any level."""
    formants = np.array(VOWELS[rng.integers(len(VOWELS))]) * tract
    glide = (GLIDE_SEMITONES[cues["pitch"]] + rng.uniform(-1, 1)) * np.linspace(-0.5, 0.5, length)
    f0 = pitch_hz * 2 ** (glide / 12)
    breathy = cues["voice quality"] == "breathy"
    sound = _harmonics(f0, formants, tilt=1.6 if breathy else 0.9)
    if breathy:
        sound = 0.75 * sound / sound.std() + 0.75 * _breath(length, formants, rng)
    edge = min(length // 4, int(0.02 * SAMPLE_RATE))
    envelope = np.ones(length)
    envelope[:edge] = np.sin(np.linspace(0, np.pi / 2, edge)) ** 2
    envelope[length - edge :] = envelope[:edge][::-1]
    return sound / sound.std() * envelope


def _harmonics(f0: np.ndarray, formants: np.ndarray, tilt: float) -> np.ndarray:
    """The voiced source through the formants: harmonic k of f0 (Hz, a value a sample) at gain(k f0) / k**tilt."""
    phase = 2 * np.pi * np.cumsum(f0) / SAMPLE_RATE
    twice_cos, before, now = 2 * np.cos(phase), np.zeros_like(phase), np.sin(phase)
    total, mean_f0 = np.zeros_like(phase), float(f0.mean())
    for k in range(1, int(HIGHEST_HZ / f0.max()) + 1):
        total += _gain(k * mean_f0, formants) / k**tilt * now
        before, now = now, twice_cos * now - before
    return total


def _gain(frequency_hz: float, formants: np.ndarray) -> float:
    """Resonances of the vocal tract as bells of 90-250 Hz over a floor."""
    widths = np.array([90.0, 130.0, 250.0])
    return float(0.08 + np.sum(np.array([1.0, 0.7, 0.4]) / (1 + ((frequency_hz - formants) / widths) ** 2)))


def _breath(length: int, formants: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of the breath: white, lifted towards high frequencies and around the upper formants; unit variance."""
    noise = rng.standard_normal(length)
    noise = np.append(noise[0], noise[1:] - 0.7 * noise[:-1])
    for formant in formants[1:]:
        radius, angle = 0.93, 2 * np.pi * formant / SAMPLE_RATE
        noise = noise + lfilter([0.15], [1, -2 * radius * np.cos(angle), radius**2], noise)
    return noise / noise.std()
