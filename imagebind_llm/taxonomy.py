"""Intent taxonomies: MIntRec's 20 intents and MIntRec2.0's 30 (+ out of scope) in their official order, and a table's own.

The official order is the class index of every published result, so a test freezes it. Sources: MIntRec (ACM MM 2022,
doi 10.1145/3503161.3547906), MIntRec2.0 (ICLR 2024, arXiv:2403.10943).
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

EXPRESS = "Express emotions or attitudes"
ACHIEVE = "Achieve goals"


@dataclass(frozen=True)
class Taxonomy:
    """Intent labels in class order; `out_of_scope` (if any) is the index after the last. `coarse_of`: label -> coarse class, if
    there are coarse classes."""

    name: str
    labels: tuple[str, ...]
    coarse_of: Mapping[str, str] | None = field(default=None, hash=False)
    out_of_scope: str | None = None

    def canonical(self, label: str) -> str:
        """The official spelling of `label`; letter case and the debiased files' `ask_help` are forgiven.

        Raises ValueError, naming the nearest label, if it is none of this taxonomy's.
        """
        wanted = plain_label(label)
        labels_by_plain = {plain_label(name): name for name in (*self.labels, *filter(None, [self.out_of_scope]))}
        label_name = labels_by_plain.get(wanted) or labels_by_plain.get({"ask help": "ask for help"}.get(wanted, wanted))
        if label_name is None:
            near = difflib.get_close_matches(wanted, labels_by_plain, n=1)
            hint = f"; did you mean {labels_by_plain[near[0]]!r}?" if near else ""
            raise ValueError(f"label {label!r} is not one of {self.name}'s {len(self.labels)} intents{hint}")
        return label_name

    def knows(self, label: str) -> bool:
        """Whether `canonical` accepts the label."""
        try:
            return bool(self.canonical(label))
        except ValueError:
            return False

    def index(self, label: str) -> int:
        """Class index of a label, 0-based in official order; the out-of-scope label comes after the last."""
        name = self.canonical(label)
        return len(self.labels) if name == self.out_of_scope else self.labels.index(name)

    def coarse(self, label: str) -> str | None:
        """Such as 'Achieve goals'; None out of scope and without coarse classes."""
        return self.coarse_of.get(self.canonical(label)) if self.coarse_of else None

    @property
    def coarse_classes(self) -> tuple[str, ...]:
        """The coarse classes, in the order in which the labels come to them; empty without."""
        return tuple(dict.fromkeys(self.coarse_of[label] for label in self.labels)) if self.coarse_of else ()

    def described(self) -> str | dict[str, Any]:
        """What a checkpoint holds, as JSON has it: the name of a published taxonomy, all of another. `taxonomy_of` reads it."""
        if PUBLISHED.get(self.name) == self:
            return self.name
        coarse = {"coarse_of": dict(self.coarse_of)} if self.coarse_of else {}
        return {"name": self.name, "labels": list(self.labels), "express": None, "out_of_scope": self.out_of_scope} | coarse


def plain_label(label: str) -> str:
    """What labels are told apart by: without letter case and underscores."""
    return label.strip().lower().replace("_", " ")


def own_taxonomy(labels: Iterable[str], coarse_of: Mapping[str, str] | None = None) -> Taxonomy:
    """The labels of a table of one's own, in alphabetical order; of labels that differ in letter case or underscores alone, the
    first spelling in that order. `coarse_of`: label -> coarse class, in any spelling of the labels."""
    distinct: dict[str, str] = {}
    for label in sorted({label.strip() for label in labels}, key=lambda label: (label.lower(), label)):
        distinct.setdefault(plain_label(label), label)
    coarse = {distinct[plain_label(label)]: name for label, name in (coarse_of or {}).items()}
    return Taxonomy("the table's own labels", tuple(distinct.values()), coarse or None)


def taxonomy_of(described: str | dict[str, Any] | None) -> Taxonomy | None:
    """What `Taxonomy.described` has written; None for None."""
    if described is None or isinstance(described, str):
        return PUBLISHED[described] if described else None
    return Taxonomy(described["name"], tuple(described["labels"]), described.get("coarse_of"), described["out_of_scope"])


def _coarse_of(labels: tuple[str, ...], express: tuple[str, ...]) -> dict[str, str]:
    return {label: EXPRESS if label in express else ACHIEVE for label in labels}


_MINTREC_LABELS = (
    *("Complain", "Praise", "Apologise", "Thank", "Criticize", "Agree", "Taunt", "Flaunt", "Joke", "Oppose"),
    *("Comfort", "Care", "Inform", "Advise", "Arrange", "Introduce", "Leave", "Prevent", "Greet", "Ask for help"),
)
_MINTREC_EXPRESS = (
    *("Complain", "Praise", "Apologise", "Thank", "Criticize", "Care", "Agree", "Taunt", "Flaunt", "Joke", "Oppose"),
)
MINTREC = Taxonomy("MIntRec", _MINTREC_LABELS, _coarse_of(_MINTREC_LABELS, _MINTREC_EXPRESS))

_MINTREC2_LABELS = (
    *("Acknowledge", "Advise", "Agree", "Apologise", "Arrange", "Ask for help", "Asking for opinions", "Care"),
    *("Comfort", "Complain", "Confirm", "Criticize", "Doubt", "Emphasize", "Explain", "Flaunt", "Greet", "Inform"),
    *("Introduce", "Invite", "Joke", "Leave", "Oppose", "Plan", "Praise", "Prevent", "Refuse", "Taunt", "Thank", "Warn"),
)
_MINTREC2_EXPRESS = (
    *("Doubt", "Acknowledge", "Refuse", "Warn", "Emphasize", "Complain", "Praise", "Apologise", "Thank"),
    *("Criticize", "Care", "Agree", "Oppose", "Taunt", "Flaunt", "Joke"),
)
MINTREC2 = Taxonomy("MIntRec2.0", _MINTREC2_LABELS, _coarse_of(_MINTREC2_LABELS, _MINTREC2_EXPRESS), out_of_scope="UNK")

PUBLISHED = {taxonomy.name: taxonomy for taxonomy in (MINTREC, MINTREC2)}

DEMO = MINTREC  # the demo world shows the same 20 intents

# What a speaker with each intent does, one sentence each, our own words: instructions to rationale writers, sentences for
# zero-shot classification, help. The two data sets share the sentences of the labels that they share.
DEFINITIONS = {
    "Acknowledge": "The speaker shows that the other person was heard and understood, without yet agreeing.",
    "Advise": "The speaker suggests what someone else should do, as a recommendation and not as an order.",
    "Agree": "The speaker accepts or shares another person's opinion, request or plan.",
    "Apologise": "The speaker expresses regret for a mistake or for harm that they caused.",
    "Arrange": "The speaker organises what is going to happen: who does what, when and where.",
    "Ask for help": "The speaker cannot manage something alone and requests that someone do something for them.",
    "Asking for opinions": "The speaker wants to hear what someone else thinks about a matter.",
    "Care": "The speaker shows concern for how another person feels or fares and attends to their needs.",
    "Comfort": "The speaker tries to ease another person's sadness, fear or worry.",
    "Complain": "The speaker expresses displeasure about something that happened to them or bothers them.",
    "Confirm": "The speaker makes sure that something is true or was understood correctly.",
    "Criticize": "The speaker points out what someone did wrong or finds fault with them.",
    "Doubt": "The speaker is not convinced that something is true, possible or sensible.",
    "Emphasize": "The speaker stresses a point, so that it is taken as important or certain.",
    "Explain": "The speaker gives reasons or makes clear how or why something is so.",
    "Flaunt": "The speaker shows off something of their own to impress others.",
    "Greet": "The speaker opens an encounter by saying hello or welcoming someone.",
    "Inform": "The speaker tells someone a fact or a piece of news that they may not know.",
    "Introduce": "The speaker presents a person, a thing or themselves to someone who does not know them.",
    "Invite": "The speaker asks someone to come along or to take part in something.",
    "Joke": "The speaker says something that is not meant seriously, to make people laugh.",
    "Leave": "The speaker ends the encounter and announces that they are going.",
    "Oppose": "The speaker objects to another person's opinion, request or plan.",
    "Plan": "The speaker says what they themselves intend to do.",
    "Praise": "The speaker expresses admiration or approval of someone or of what they did.",
    "Prevent": "The speaker tries to stop someone from doing something.",
    "Refuse": "The speaker declines a request, an offer or a demand.",
    "Taunt": "The speaker mocks or provokes someone, often by saying the opposite of what is meant.",
    "Thank": "The speaker expresses gratitude for something that was done or given.",
    "Warn": "The speaker alerts someone to a danger or to an unwelcome consequence.",
}
