"""Intent taxonomies: the 20 intents of MIntRec and the 30 (+ out of scope) of MIntRec2.0, in their official order.

The order is the class index of every published result, so a test freezes it. Sources: MIntRec (ACM MM 2022,
doi 10.1145/3503161.3547906), MIntRec2.0 (ICLR 2024, arXiv:2403.10943).
"""

import difflib
from dataclasses import dataclass

EXPRESS = "Express emotions or attitudes"
ACHIEVE = "Achieve goals"


@dataclass(frozen=True)
class Taxonomy:
    """Intent labels in class order, each with its coarse class; `out_of_scope` (if any) is the index after the last."""

    name: str
    labels: tuple[str, ...]
    express: frozenset[str]
    out_of_scope: str | None = None

    def canonical(self, label: str) -> str:
        """The official spelling of `label`; letter case and the debiased files' `ask_help` are forgiven.

        Raises ValueError, naming the nearest label, if it is none of this taxonomy's.
        """
        wanted = label.strip().lower().replace("_", " ")
        known = {name.lower(): name for name in (*self.labels, *filter(None, [self.out_of_scope]))}
        found = known.get({"ask help": "ask for help"}.get(wanted, wanted))
        if found is None:
            near = difflib.get_close_matches(wanted, known, n=1)
            hint = f"; did you mean {known[near[0]]!r}?" if near else ""
            raise ValueError(f"label {label!r} is not one of {self.name}'s {len(self.labels)} intents{hint}")
        return found

    def index(self, label: str) -> int:
        """Class index of a label, 0-based in official order; the out-of-scope label comes after the last."""
        name = self.canonical(label)
        return len(self.labels) if name == self.out_of_scope else self.labels.index(name)

    def coarse(self, label: str) -> str:
        """'Express emotions or attitudes' or 'Achieve goals'."""
        return EXPRESS if self.canonical(label) in self.express else ACHIEVE


MINTREC = Taxonomy(
    "MIntRec",
    (
        *("Complain", "Praise", "Apologise", "Thank", "Criticize", "Agree", "Taunt", "Flaunt", "Joke", "Oppose"),
        *("Comfort", "Care", "Inform", "Advise", "Arrange", "Introduce", "Leave", "Prevent", "Greet", "Ask for help"),
    ),
    frozenset(
        ("Complain", "Praise", "Apologise", "Thank", "Criticize", "Care", "Agree", "Taunt", "Flaunt", "Joke", "Oppose")
    ),
)

MINTREC2 = Taxonomy(
    "MIntRec2.0",
    (
        *("Acknowledge", "Advise", "Agree", "Apologise", "Arrange", "Ask for help", "Asking for opinions", "Care"),
        *("Comfort", "Complain", "Confirm", "Criticize", "Doubt", "Emphasize", "Explain", "Flaunt", "Greet", "Inform"),
        *("Introduce", "Invite", "Joke", "Leave", "Oppose", "Plan", "Praise", "Prevent", "Refuse", "Taunt", "Thank", "Warn"),
    ),
    frozenset(
        (
            *("Doubt", "Acknowledge", "Refuse", "Warn", "Emphasize", "Complain", "Praise", "Apologise", "Thank"),
            *("Criticize", "Care", "Agree", "Oppose", "Taunt", "Flaunt", "Joke"),
        )
    ),
    out_of_scope="UNK",
)

DEMO = MINTREC  # the demo world shows the same 20 intents
