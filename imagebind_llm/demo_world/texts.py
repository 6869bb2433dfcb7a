"""What the demo world's speakers say: utterances in nine families of meaning that intents share.

A family is what the words alone tell ("something stands out", "someone is in need"); which intent is behind them only the
face and the voice settle. Every split has its own phrasings: the complete sentence decides, by its checksum, in which
pool it lies, so no sentence of one split occurs in another, while the words are the same.
"""

import itertools
import string
import zlib
from functools import lru_cache

import numpy as np

SLOTS = {
    "name": ("mara", "theo", "ines", "omar", "june", "felix"),
    "thing": (
        "the window display",
        "the night shift",
        "the summer sale",
        "the front register",
        "the new freezer",
        "the car park",
    ),
    "work": ("stacking those boxes", "running the meeting", "that little speech", "fixing the printer", "your costume"),
    "plan": ("count the stock", "call the supplier", "move the shelves", "meet the manager", "paint the back room"),
    "time": ("tonight", "on friday", "before lunch", "after closing", "in ten minutes"),
    "feel": ("tired", "shaken", "lonely", "worn out", "under the weather"),
    "trouble": ("this form", "the heavy crate", "my login", "the alarm", "these keys"),
    "person": ("my cousin", "the new cashier", "our neighbour", "a friend of mine", "the man from upstairs"),
    "win": ("got the bonus", "sold forty lamps", "won the raffle", "made the front page", "finished first"),
    "place": ("in here", "at the gate", "by the lift", "on the roof", "near the door"),
}
TEMPLATES = {
    "admire": (
        "wow {name} you really outdid yourself with {work} {time}",
        "nobody else {place} could manage {work} quite like you {name}",
        "look at that {name} {work} was truly something special {place}",
        "i have never in my life seen anything like {work} {time} {name}",
    ),
    "fault": (
        "{name} this whole business with {thing} {place} is just wrong",
        "every single time {thing} turns into a mess {time} {name}",
        "why is {thing} always such a disaster {time} {name}",
        "no {name} this is not how {thing} was supposed to go {time}",
    ),
    "concern": (
        "hey {name} you look so {feel} sit down for a moment",
        "you have been {feel} since {thing} i can tell {name}",
        "you do not have to feel {feel} all alone {name}",
        "come here {name} anyone would be {feel} after {thing}",
    ),
    "news": (
        "so {name} it turns out i {win} {time}",
        "you should know that i {win} with {thing}",
        "they told everyone that we {win} {time} {name}",
        "did you hear {name} our team {win} {place}",
    ),
    "plan": (
        "we could {plan} {time} and then {plan2}",
        "{name} it would be best to {plan} {time}",
        "how about you {plan} first and i {plan2} {time}",
        "maybe {plan} {time} before anything else {name}",
    ),
    "going": (
        "that is enough {name} nobody stays {place} {time}",
        "all right stop everything {place} it is over {name}",
        "okay time is up {name} we are done {place}",
        "not another minute {place} i am serious {name}",
    ),
    "assent": (
        "yes {name} what you said about {thing} means a lot",
        "that is exactly right {name} you sorted out {thing}",
        "of course {name} i am with you on {thing} {time}",
        "oh absolutely {name} {thing} is just the way i wanted it",
    ),
    "meeting": (
        "well hello everybody {place} this is {name}",
        "hi {name} so good to have {person} {place}",
        "everyone here is {person} they came {time}",
        "oh hi there {name} it is {person} at last",
    ),
    "need": (
        "i am stuck with {trouble} {name} i can not do it",
        "um {name} i think i broke {trouble} {time}",
        "{name} there is a problem with {trouble} and it is on me",
        "oh no {trouble} went wrong {place} and i do not know what to do",
    ),
}
POOLS = {"train": range(0, 5), "dev": range(5, 6), "test": range(6, 8)}  # of eight parts of the sentences


def _fillings(template: str) -> list[str]:
    """Every sentence of a template; a slot `plan2` is a second, different filling of `plan`."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    choices = itertools.product(*(SLOTS[name.rstrip("2")] for name in names))
    return [template.format(**dict(zip(names, words, strict=True))) for words in choices if len(set(words)) == len(words)]


@lru_cache
def pool(family: str, split: str) -> tuple[str, ...]:
    """All sentences of a family that may occur in a split, in a fixed order."""
    sentences = [sentence for template in TEMPLATES[family] for sentence in _fillings(template)]
    return tuple(sentence for sentence in sentences if zlib.crc32(sentence.encode()) % 8 in POOLS[split])


def draw_text(family: str, split: str, rng: np.random.Generator, vocabulary: frozenset[str] | None = None) -> str:
    """One sentence of the family from the split's pool; with `known`, one made of these words only.

    If the known words make no sentence of the family (a train split of a few clips), any sentence of the pool is drawn.
    """
    sentences = pool(family, split)
    if vocabulary is not None:
        sentences = tuple(sentence for sentence in sentences if vocabulary.issuperset(sentence.split())) or sentences
    return sentences[rng.integers(len(sentences))]
