"""Sound to ImageBind's log-mel pictures: resampling to 16 kHz and Kaldi's filter bank, as pure functions of tensors.

Numbers of the public front end (AST's, arXiv:2104.01778): frames of 25 ms every 10 ms, 128 mel bins, 204 frames, normalised
by a fixed mean and deviation. Written out here because torchaudio cannot be imported on every machine.
"""

import functools
import math

import torch
from torch import Tensor

SAMPLE_RATE = 16000
N_MELS, N_FRAMES = 128, 204
MEL_MEAN, MEL_STD = -4.268, 9.138
FRAME, HOP, FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the transform's length
ROLLOFF, ZERO_CROSSINGS = 0.99, 6  # of the resampling kernel


def resample(waveform: Tensor, rate: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Samples start..stop of the waveform (C, N) at 16 kHz: windowed-sinc interpolation, (C, stop - start).

    The kernel is a sinc with a Hann window over 6 zero crossings, cut at 0.99 of the lower Nyquist frequency; the whole
    has ceil(N * 16000 / rate) samples. Each output sample is a sum of its own, so a part equals that part of the whole.
    """
    stop = math.ceil(waveform.shape[1] * SAMPLE_RATE / rate) if stop is None else stop
    if rate == SAMPLE_RATE:
        return waveform[:, start:stop].clone()
    kernel, n_in, n_out = _sinc_kernel(rate)  # (n_out,2 reach + 1)
    reach = kernel.shape[1] // 2
    out = torch.arange(start, stop)
    first = start * n_in // n_out - reach
    last = (stop - 1) * n_in // n_out + reach + 1
    padded = torch.nn.functional.pad(waveform[:, max(first, 0) : last], (max(-first, 0), max(last - waveform.shape[1], 0)))
    taps = padded.unfold(1, kernel.shape[1], 1)[:, out * n_in // n_out - reach - first]  # (C,n,2 reach + 1)
    return (taps * kernel[out % n_out]).sum(-1)


@functools.lru_cache(maxsize=8)
def _sinc_kernel(rate: int) -> tuple[Tensor, int, int]:
    """Weights of the input samples around each output phase, and the reduced ratio: n_in samples become n_out.

    In float32, since the public kernel is: its rounding is larger than the tolerance that it is compared with.
    """
    divisor = math.gcd(rate, SAMPLE_RATE)
    n_in, n_out = rate // divisor, SAMPLE_RATE // divisor
    cutoff = ROLLOFF * min(n_in, n_out)
    reach = math.ceil(ZERO_CROSSINGS * n_in / cutoff) + 1
    phase = torch.arange(n_out)[:, None]
    sample = phase * n_in // n_out + torch.arange(-reach, reach + 1)  # (n_out,2 reach + 1)
    t = ((sample / n_in - phase / n_out) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    kernel = torch.sinc(t) * torch.cos(t * (math.pi / 2 / ZERO_CROSSINGS)) ** 2 * (cutoff / n_in)
    return kernel, n_in, n_out


def log_mel(samples: Tensor) -> Tensor:
    """The normalised log-mel picture (128, 204) of one window (n,) at 16 kHz; the end is padded with 0 before normalising."""
    mel = torch.zeros(N_MELS, N_FRAMES)
    frames = fbank(samples)[:N_FRAMES]
    mel[:, : len(frames)] = frames.T
    return (mel - MEL_MEAN) / MEL_STD


def bin_at(hertz: float) -> int:
    """The mel bin that answers most to a tone of this frequency, which lies above 20 and below 8000 Hz."""
    return int(mel_bank()[:, round(hertz * FFT / SAMPLE_RATE)].argmax())


def fbank(samples: Tensor) -> Tensor:
    """Kaldi's log filter bank energies (frames, 128) of samples (n,) at 16 kHz, n >= 400; whole frames only, no dither."""
    frames = samples.unfold(0, FRAME, HOP)  # (T,400)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
    spectrum = torch.fft.rfft(frames * torch.hann_window(FRAME, periodic=False), n=FFT).abs() ** 2  # (T,257)
    return (spectrum[:, : FFT // 2] @ mel_bank().T).clamp(min=torch.finfo(torch.float32).eps).log()


@functools.cache
def mel_bank() -> Tensor:
    """128 triangles over FFT bins 0..255, evenly spaced in mel = 1127 ln(1 + f/700) from 20 to 8000 Hz: (128, 256)."""
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (20, SAMPLE_RATE / 2))
    step = (high - low) / (N_MELS + 1)
    left = low + step * torch.arange(N_MELS, dtype=torch.float64)[:, None]
    mel = 1127 * torch.log(1 + torch.arange(FFT // 2, dtype=torch.float64) * (SAMPLE_RATE / FFT) / 700)
    rising, falling = (mel - left) / step, (left + 2 * step - mel) / step
    return torch.minimum(rising, falling).clamp(min=0).float()
