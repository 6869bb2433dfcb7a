"""Cues in words: captions and reference rationales.

Every phrase belongs to one value of one cue and none contains another, so a CueTable of them (published.py) recovers exactly
what was written, in our references and in a model's own sentences alike.
"""

import numpy as np

from imagebind_llm.demo_world.cues import CUES, INTENTS, VISUAL, VOCAL, Scene, likelihood, posterior

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "expression": {
        "neutral": ("a neutral face", "a calm and even face", "a face without emotion"),
        "smile": ("a broad smile", "a smiling mouth", "a bright and cheerful smile"),
        "frown": ("an angry frown", "knitted brows and bared teeth", "a fierce scowl"),
        "sad": ("a sad face", "a tear on the cheek", "a mouth turned down in sorrow"),
        "surprised": ("a surprised face", "wide eyes and an open mouth", "brows raised in surprise"),
    },
    "gaze": {
        "viewer": ("eyes on the viewer", "a direct look", "a straight gaze"),
        "aside": ("eyes turned aside", "a sideways look", "a gaze off to the side"),
        "down": ("downcast eyes", "a look at the floor", "a gaze that drops to the ground"),
    },
    "head": {
        "upright": ("an upright head", "a head held straight", "a level head"),
        "tilted": ("a tilted head", "a head leaning to one side", "a head tipped over"),
        "raised": ("a raised head", "a lifted chin", "a chin held high"),
        "lowered": ("a lowered head", "a bowed head", "a chin tucked in"),
    },
    "gesture": {
        "at rest": ("arms at rest", "hands left hanging", "hands that stay still"),
        "open palms": ("open palms", "both hands spread wide", "hands held open"),
        "pointing finger": ("a pointing finger", "an outstretched finger", "one finger aimed across"),
        "raised palm": ("a raised palm", "one hand held up", "an upheld hand"),
        "hand on heart": ("a hand on the heart", "a hand laid on the chest", "a palm pressed to the breast"),
        "crossed arms": ("crossed arms", "folded arms", "arms locked in front"),
    },
    "pitch": {
        "rising": ("a rising pitch", "a melody that climbs", "an upward lilt"),
        "falling": ("a falling pitch", "a melody that drops", "a downward cadence"),
        "flat": ("a flat pitch", "a melody that never moves", "a monotone"),
    },
    "loudness": {
        "soft": ("a soft volume", "hushed speech", "words barely above a murmur"),
        "normal": ("an ordinary volume", "speech of medium loudness", "words neither loud nor quiet"),
        "loud": ("a loud volume", "booming speech", "words at full force"),
    },
    "rate": {
        "slow": ("a slow pace", "drawn-out syllables", "a leisurely tempo"),
        "normal": ("an ordinary pace", "evenly timed syllables", "a moderate tempo"),
        "fast": ("a fast pace", "rapid syllables", "a hurried tempo"),
    },
    "voice quality": {
        "clear": ("a clear voice", "a clean timbre", "a ringing tone"),
        "breathy": ("a breathy voice", "an airy timbre", "a whispery tone"),
    },
}
GISTS = {
    "admire": ("remark on something that stands out", "single out something unusual"),
    "fault": ("dwell on what is wrong", "name something that went badly"),
    "concern": ("turn to how someone feels", "address a person who feels low"),
    "news": ("report what happened", "bring news of an event"),
    "plan": ("deal with what to do next", "lay out a next step"),
    "going": ("call for an end right now", "declare that this is over"),
    "assent": ("go along with what was said", "receive something gladly"),
    "meeting": ("bring people together", "open an encounter"),
    "need": ("speak of a difficulty", "own up to a problem"),
}
TEMPLATES = (
    "The speaker shows {seen}, and we hear {heard}. The words {gist}, and taken together this means the intent is to {intent}.",
    "We see {seen} and hear {heard} while the words {gist}; all of this points to someone who wants to {intent}.",
    "There is {seen}, joined by {heard}. Since the words {gist} as well, the speaker most likely means to {intent}.",
    "Looking at {seen} and listening to {heard}, we notice that the words {gist}, so the aim must be to {intent}.",
)
REMARKS = (
    "The speaker shows {seen}, and we hear {heard}.",
    "We see {seen} and hear {heard}.",
    "There is {seen}, joined by {heard}.",
    "We are looking at {seen} and listening to {heard}.",
)


def caption(cues: dict[str, str], rng: np.random.Generator | None = None) -> str:
    """All given cues in one line, `Face: ... Head: ... Gesture: ... Voice: ...`; without `rng`, in their first wording."""
    wordings = {cue: _phrase(cue, value, rng) for cue, value in cues.items()}
    groups = {"Face": ("expression", "gaze"), "Head": ("head",), "Gesture": ("gesture",), "Voice": VOCAL}
    parts = ((title, [wordings[cue] for cue in names if cue in wordings]) for title, names in groups.items())
    return " ".join(f"{title}: {', '.join(phrases)}." for title, phrases in parts if phrases)


def remark(cues: dict[str, str], rng: np.random.Generator) -> str:
    """Some of the given cues in a sentence, as a person would tell them: one to three that are seen, one to three heard."""

    def listed(group: tuple[str, ...]) -> str:
        count = int(rng.integers(1, 4))
        picked = sorted(rng.choice(len(group), count, replace=False).tolist())
        return " and ".join(_phrase(group[i], cues[group[i]], rng) for i in picked)

    return REMARKS[rng.integers(len(REMARKS))].format(seen=listed(VISUAL), heard=listed(VOCAL))


def _phrase(cue: str, value: str, rng: np.random.Generator | None) -> str:
    phrases = PHRASES[cue][value]
    return phrases[0 if rng is None else rng.integers(len(phrases))]


def evidence(scene: Scene) -> dict[str, float]:
    """How far each cue speaks for the intent against the others that fit the words: log P(v|intent) / P(v|others)."""
    row = INTENTS.index(scene.intent)
    others = posterior({"family": scene.family})
    others[row] = 0
    others /= others.sum()
    scores = {}
    for cue, value in scene.cues.items():
        column = likelihood(cue)[:, CUES[cue].index(value)]
        scores[cue] = float(np.log(column[row] / (others @ column)))
    return scores


def deciding_cues(scene: Scene) -> dict[str, str]:
    """The cues a rationale names: of the seen and of the heard, the best and, if it speaks for the intent, the next."""
    scores = evidence(scene)
    named: set[str] = set()
    for group in (VISUAL, VOCAL):
        best, second = sorted(group, key=lambda cue: -scores[cue])[:2]
        named |= {best, second} if scores[second] > 0 else {best}
    return {cue: value for cue, value in scene.cues.items() if cue in named}


def reference_text(scene: Scene, rng: np.random.Generator) -> str:
    """A reference rationale: what is seen and heard, what the words do, and last, once, the intent."""
    named = deciding_cues(scene)

    def listed(group: tuple[str, ...]) -> str:
        return " and ".join(_phrase(cue, named[cue], rng) for cue in group if cue in named)

    template, gist = TEMPLATES[rng.integers(len(TEMPLATES))], GISTS[scene.family][rng.integers(2)]
    return template.format(seen=listed(VISUAL), heard=listed(VOCAL), gist=gist, intent=scene.intent.lower())
