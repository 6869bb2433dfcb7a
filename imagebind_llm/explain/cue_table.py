"""Table of cues of a data set: the phrases that name them, and the typical values of each intent (cue_phrases.json).

The demo world writes such a file into its data folder (`python -m imagebind_llm.demo_world`). With it, every claim of a
rationale is counted as true or false of its clip. Without it there are no scores of cues.

*Typical value*: the most frequent value of a cue for an intent. *Atypical claim*: a claim about a cue whose true value in this
clip is not the typical one of its intent. A model that knows the intent but does not use the clip states typical values, so all
its atypical claims are wrong; a model that uses the clip is as often right on them as on others. A template (`templates`) is a
rationale with the typical values of an intent.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from imagebind_llm.datasets.readers import DataError
from imagebind_llm.files import write_json

FILE = "cue_phrases.json"
WORDS = "text"  # the modality whose cues are what a rationale says about the utterance

Cues = Mapping[str, str]  # cue -> value


@dataclass(frozen=True)
class CueTable:
    """The contents of cue_phrases.json."""

    # modality -> cue -> value -> the phrases that name it, in lower case; none contains another
    phrases: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]
    typical: Mapping[str, Cues]  # intent -> cue -> typical value
    templates: Mapping[str, str]  # intent -> a rationale with typical values only

    @classmethod
    def beside(cls, folder: Path) -> "CueTable | None":
        """Read the table of a data folder; None if there is none. Raises DataError if the file is not valid."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            table = cls(content["phrases"], content["typical"], content["templates"])
            if not table._values or not all(text.lower() == text for text in table._values):
                raise ValueError("no phrases in lower case")
            if not all(isinstance(table.templates[intent], str) for intent, _ in table.typical.items()):
                raise ValueError("a template that is no text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: expected phrases, typical values and templates of cues, got {error!r}") from error
        return table

    def write(self, folder: Path) -> None:
        """Write cue_phrases.json into a data folder."""
        write_json(folder / FILE, asdict(self))

    @cached_property
    def _values(self) -> dict[str, tuple[str, str]]:
        """From phrase to (cue, value), for the cues of sound and picture."""
        cues = [table for modality, tables in self.phrases.items() if modality != WORDS for table in tables.items()]
        return {text: (cue, value) for cue, values in cues for value, texts in values.items() for text in texts}

    @cached_property
    def _pattern(self) -> re.Pattern:
        longest_first = sorted(self._values, key=len, reverse=True)
        return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b", re.IGNORECASE)

    def cues_of(self, modality: str) -> tuple[str, ...]:
        """The cues of text, audio or vision."""
        return tuple(self.phrases.get(modality, ()))

    def modality_of(self, cue: str) -> str:
        """The modality of a cue: text, audio or vision."""
        return next(modality for modality, tables in self.phrases.items() if cue in tables)

    def claims(self, text: str) -> list[tuple[int, int, str, str]]:
        """Every claim about looks and sounds in a text, in order: (start, end, cue, value)."""
        return [(match.start(), match.end(), *self._values[match.group().lower()]) for match in self._pattern.finditer(text)]

    def cues_in(self, text: str) -> dict[str, str]:
        """The claims about looks and sounds by cue; the first of several claims about a cue counts."""
        values: dict[str, str] = {}
        for _, _, cue, value in self.claims(text):
            values.setdefault(cue, value)
        return values

    def claims_in(self, text: str) -> dict[str, str]:
        """The claims about every modality by cue: those of `cues_in` and those about the words."""
        lowered = text.lower()
        claims: dict[str, str] = {}
        for cue, table in self.phrases.get(WORDS, {}).items():
            if values := [value for value, texts in table.items() if any(phrase in lowered for phrase in texts)]:
                claims[cue] = values[0]
        return claims | self.cues_in(text)

    def claim_counts(self, claims: Cues, truth: Cues, intent: str) -> tuple[int, int, int, int]:
        """Numbers of claims, of true ones, of atypical ones, and of those that are both.

        A claim about a cue that `truth` lacks is not true; there are no atypical claims for an intent that the table lacks.
        """
        true_cues = {cue for cue, value in claims.items() if truth.get(cue) == value}
        typical = self.typical.get(intent, truth)
        atypical_cues = {cue for cue in claims if cue in truth and truth[cue] != typical.get(cue)}
        return len(claims), len(true_cues), len(atypical_cues), len(atypical_cues & true_cues)


def follows(claims: Cues, own: Cues, other: Cues, group: Sequence[str]) -> list[bool]:
    """For each claim about a cue of `group` in which two clips differ, whether it has the value of the `other` clip.

    claims: of a rationale after a swap; own and other: true cues of the clip and of the one that it was swapped with.
    """
    shared = [cue for cue in group if cue in claims and cue in own and cue in other]
    return [claims[cue] == other[cue] for cue in shared if own[cue] != other[cue]]
