"""The pictures and sounds of the demo world: every cue shows, and idle motion does not hide it."""

import itertools

import numpy as np
import pytest

from imagebind_llm.demo_world import cues, face, voice


@pytest.mark.parametrize("cue", cues.VISUAL)
def test_each_value_of_a_visual_cue_changes_the_centre_square(cue):
    look = face.draw_look(np.random.default_rng(3))
    typical = dict(cues.TYPICAL["Inform"])
    drawn = [np.array(face.frame(typical | {cue: v}, look, (320, 240), 0))[:, 40:280].astype(float) for v in cues.CUES[cue]]
    for a, b in itertools.combinations(drawn, 2):
        assert (np.abs(a - b).max(axis=2) > 40).sum() > 60  # pixels that plainly differ


def test_idle_motion_is_small_against_a_cue():
    look, typical = face.draw_look(np.random.default_rng(4)), dict(cues.TYPICAL["Thank"])
    still = [np.array(face.frame(typical, look, (240, 240), phase)).astype(float) for phase in range(face.PHASES)]
    other = np.array(face.frame(typical | {"head": "raised"}, look, (240, 240), 0)).astype(float)
    moved = max(np.abs(still[0] - picture).mean() for picture in still[1:])
    assert 0 < moved < 0.5 * np.abs(still[0] - other).mean()


def voiced(**changed):
    heard = {cue: cues.TYPICAL["Inform"][cue] for cue in cues.VOCAL} | changed
    return voice.speak(heard, 2.0, np.random.default_rng(5))


def test_louder_voices_have_more_power():
    power = [np.mean(voiced(loudness=level) ** 2) for level in ("soft", "normal", "loud")]
    assert power[0] * 5 < power[1] and power[1] * 5 < power[2]


def test_rate_is_syllables_per_second():
    def syllables(rate):
        envelope = np.convolve(np.abs(voiced(rate=rate)), np.ones(640) / 640, "same")
        on = envelope > 0.3 * envelope.max()
        return int(np.sum(on[1:] & ~on[:-1]))

    for rate, per_s in voice.SYLLABLES_PER_S.items():
        assert abs(syllables(rate) - 2 * per_s) <= 0.25 * 2 * per_s


def test_pitch_glides_the_way_the_cue_says():
    for contour, sign in (("rising", 1), ("falling", -1), ("flat", 0)):
        heard = {cue: cues.TYPICAL["Inform"][cue] for cue in cues.VOCAL} | {"pitch": contour}
        sound = voice._syllable(heard, 6400, 150.0, 1.0, np.random.default_rng(6))

        def pitch(part):
            spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 16000))
            return 80 + spectrum[80:240].argmax()  # Hz of the first harmonic

        assert np.sign(round((pitch(sound[4800:]) - pitch(sound[:1600])) / 15)) == sign


def test_breath_fills_the_gaps_between_harmonics():
    def gap(quality):
        spectrum = np.abs(np.fft.rfft(voiced(**{"voice quality": quality}))) ** 2
        return spectrum[12000:14000].sum() / spectrum.sum()  # 6-7 kHz, above the last harmonic

    assert gap("breathy") > 20 * gap("clear")
