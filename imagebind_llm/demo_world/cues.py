"""What each intent of the demo world looks, sounds and reads like: the published table, and exactly what it allows.

The generative model is naive Bayes: an intent is drawn from PRIOR; given the intent, the meaning of the utterance (one of
nine families that intents share) and eight cues (four seen, four heard) are drawn independently. So the best reachable
accuracy of every subset of {text, audio, vision} is a finite sum, computed here by enumeration.

The table is not random: one kind of cue stands for one trait, so that intents can be learnt by rule.
    expression = how the speaker feels          pitch   = rising: open, asking; falling: settled; flat: cold or factual
    gaze       = whom it is about               loudness = force: soft is gentle, loud is forceful
    head       = raised: above; lowered: below; tilted: close    rate = urgency
    gesture    = what the hands do              voice quality = breathy: near and private; clear: public
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagebind_llm import markdown
from imagebind_llm.config import MODALITIES, modality_subsets
from imagebind_llm.taxonomy import DEMO

CUES: dict[str, tuple[str, ...]] = {
    "expression": ("neutral", "smile", "frown", "sad", "surprised"),
    "gaze": ("viewer", "aside", "down"),
    "head": ("upright", "tilted", "raised", "lowered"),
    "gesture": ("at rest", "open palms", "pointing finger", "raised palm", "hand on heart", "crossed arms"),
    "pitch": ("rising", "falling", "flat"),
    "loudness": ("soft", "normal", "loud"),
    "rate": ("slow", "normal", "fast"),
    "voice quality": ("clear", "breathy"),
}
VISUAL, VOCAL = tuple(CUES)[:4], tuple(CUES)[4:]
CUES_OF = {"text": ("family",), "audio": VOCAL, "vision": VISUAL}
FAMILIES = ("admire", "fault", "concern", "news", "plan", "going", "assent", "meeting", "need")
VALUES = {"family": FAMILIES} | CUES  # every observed variable and its values

WORLD = "world.json"  # version, seed, digest of the tables, version of the drawings, files of reference rationales by kind
VERSION = 2  # of the world; in 1 the cues were reliable to 0.80 to 0.90, and who knew the intent needed no eyes
# How often an intent shows its typical value; the other values share the rest equally.
RELIABILITY = {"family": 0.95, "expression": 0.65, "gaze": 0.62, "head": 0.62, "gesture": 0.65}
RELIABILITY |= {"pitch": 0.68, "loudness": 0.66, "rate": 0.66, "voice quality": 0.72}

# intent | weight | family | expression gaze head gesture | pitch loudness rate voice-quality
TABLE = """
Complain     | 3 | fault   | sad       aside  tilted  open palms      | falling normal slow   breathy
Praise       | 3 | admire  | smile     viewer upright open palms      | rising  loud   normal clear
Apologise    | 2 | need    | sad       down   lowered hand on heart   | falling soft   slow   breathy
Thank        | 2 | assent  | smile     down   lowered hand on heart   | rising  soft   slow   breathy
Criticize    | 2 | fault   | frown     viewer raised  pointing finger | flat    normal normal clear
Agree        | 2 | assent  | neutral   viewer upright at rest         | falling normal fast   clear
Taunt        | 2 | admire  | frown     aside  raised  crossed arms    | flat    soft   slow   breathy
Flaunt       | 2 | news    | smile     aside  raised  pointing finger | rising  loud   fast   clear
Joke         | 2 | admire  | surprised viewer tilted  pointing finger | rising  normal fast   clear
Oppose       | 2 | fault   | frown     viewer upright crossed arms    | falling loud   fast   clear
Comfort      | 2 | concern | smile     down   tilted  hand on heart   | falling soft   slow   breathy
Care         | 2 | concern | sad       viewer lowered open palms      | rising  normal normal clear
Inform       | 3 | news    | neutral   viewer upright at rest         | flat    normal normal clear
Advise       | 2 | plan    | neutral   viewer tilted  pointing finger | falling soft   slow   clear
Arrange      | 2 | plan    | smile     aside  upright open palms      | rising  normal fast   clear
Introduce    | 2 | meeting | smile     aside  upright open palms      | falling normal slow   clear
Leave        | 2 | going   | neutral   down   lowered raised palm     | falling soft   normal breathy
Prevent      | 2 | going   | frown     viewer raised  raised palm     | flat    loud   fast   clear
Greet        | 2 | meeting | surprised viewer raised  raised palm     | rising  loud   fast   breathy
Ask for help | 2 | need    | surprised viewer tilted  open palms      | rising  loud   fast   breathy
"""


def _typical() -> tuple[dict[str, int], dict[str, dict[str, str]]]:
    """TABLE as intent -> weight, and intent -> {variable: typical value}."""
    weights, typical = {}, {}
    for line in TABLE.strip().splitlines():
        intent, weight, family, seen, heard = (part.strip() for part in line.split("|"))
        expression, gaze, head, gesture = seen.split(maxsplit=3)
        weights[intent] = int(weight)
        values = (family, expression, gaze, head, gesture, *heard.split())
        typical[intent] = dict(zip(VALUES, values, strict=True))
    return weights, typical


_WEIGHTS, TYPICAL = _typical()
INTENTS = DEMO.labels
PRIOR = np.array([_WEIGHTS[intent] for intent in INTENTS], dtype=float) / sum(_WEIGHTS.values())  # (C,)


def likelihood(variable: str) -> np.ndarray:
    """P(value | intent) of one variable ('family' or a cue): (C, number of values), rows sum to 1."""
    values, reliability = VALUES[variable], RELIABILITY[variable]
    table = np.full((len(INTENTS), len(values)), (1 - reliability) / (len(values) - 1))
    for row, intent in enumerate(INTENTS):
        table[row, values.index(TYPICAL[intent][variable])] = reliability
    return table


def _joint(variables: Sequence[str]) -> np.ndarray:
    """P(intent, values of `variables`) for every combination of values: (C, product of the numbers of values)."""
    joint = PRIOR[:, None]
    for variable in variables:
        joint = (joint[:, :, None] * likelihood(variable)[:, None, :]).reshape(len(INTENTS), -1)  # (C, combinations)
    return joint


def bayes_accuracy(modalities: Sequence[str]) -> float:
    """The best accuracy that anyone can reach from these modalities (of text, audio, vision); () gives the majority's."""
    return variables_accuracy([variable for name in modalities for variable in CUES_OF[name]])


def variables_accuracy(variables: Sequence[str]) -> float:
    """The same from named variables ('family' and cues): the sum over their values of the largest joint probability."""
    return float(_joint(variables).max(axis=0).sum())


def posterior(observed: dict[str, str]) -> np.ndarray:
    """P(intent | the observed variables): (C,)."""
    weights = PRIOR.copy()
    for variable, value in observed.items():
        weights *= likelihood(variable)[:, VALUES[variable].index(value)]
    return weights / weights.sum()


@dataclass(frozen=True)
class Scene:
    """One drawn situation: what is meant, the family of the utterance, and the eight cues."""

    intent: str
    family: str
    cues: dict[str, str]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw an intent, then everything else independently given it."""
    intent = INTENTS[rng.choice(len(INTENTS), p=PRIOR)]
    drawn = draw_values(intent, tuple(VALUES), rng)
    return Scene(intent, drawn.pop("family"), drawn)


def draw_values(intent: str, variables: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Draw each variable ('family' or a cue) independently, given the intent."""
    row = INTENTS.index(intent)
    return {name: VALUES[name][rng.choice(len(VALUES[name]), p=likelihood(name)[row])] for name in variables}


def is_world(root: Path) -> bool:
    """Whether a folder holds a demo world of this version: what the table says is not true of another's clips."""
    file = root / WORLD
    return file.is_file() and json.loads(file.read_text()).get("version") == VERSION


def bayes_table() -> str:
    """The ceilings as Markdown: every subset of modalities, then every single cue."""
    rows = [("+".join(subset), bayes_accuracy(subset)) for subset in modality_subsets(MODALITIES)]
    rows += [(f"{name} alone", variables_accuracy([name])) for name in CUES]
    rows += [("nothing (the commonest intent)", bayes_accuracy(()))]
    header = ("what is known", "best reachable accuracy, %")
    return markdown.table(header, [(name, f"{100 * accuracy:.1f}") for name, accuracy in rows])
