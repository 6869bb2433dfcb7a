"""How texts name the cues of a data set, and what its intents usually show: cue_phrases.json in the data folder, if it has one.

The demo world writes such a file (`python -m imagebind_llm.demo_world`). With it, every claim of a rationale is counted as true
or false of its clip. Without it no claim is read, and the scores of cues are left out.

*Typical value*: what an intent shows most often. *Atypical claim*: a claim about a cue whose true value in this clip is not its
intent's typical one. Whoever knows the intent and never looks says the typical value, and is wrong on every atypical claim by
construction; who looks is as right on them as on the others. The clip-blind template (`templates`) says nothing else.
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
    """phrases: modality -> cue -> value -> the phrases that name it, in lower case; none contains another.
    typical: intent -> cue -> value. templates: intent -> a rationale that claims nothing but typical values."""

    phrases: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]
    typical: Mapping[str, Cues]
    templates: Mapping[str, str]

    @classmethod
    def beside(cls, folder: Path) -> "CueTable | None":
        """The table in a data folder; None if it has none. Raises DataError for a file that is no such table."""
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
        """Phrase -> (cue, value) of what is seen and heard."""
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
        """text, audio or vision: where a cue is to be seen or heard."""
        return next(modality for modality, tables in self.phrases.items() if cue in tables)

    def claims(self, text: str) -> list[tuple[int, int, str, str]]:
        """Every phrase about looks and sounds, in order: where it starts and ends, the cue and the value that it claims."""
        return [(match.start(), match.end(), *self._values[match.group().lower()]) for match in self._pattern.finditer(text)]

    def cues_in(self, text: str) -> dict[str, str]:
        """The claims about looks and sounds: cue -> value; of two claims about one cue the first counts."""
        values: dict[str, str] = {}
        for _, _, cue, value in self.claims(text):
            values.setdefault(cue, value)
        return values

    def claims_in(self, text: str) -> dict[str, str]:
        """The claims about every modality: `cues_in`, and what the text says that the words do."""
        lowered = text.lower()
        values: dict[str, str] = {}
        for cue, table in self.phrases.get(WORDS, {}).items():
            if named := [value for value, texts in table.items() if any(phrase in lowered for phrase in texts)]:
                values[cue] = named[0]
        return values | self.cues_in(text)

    def claim_counts(self, claims: Cues, truth: Cues, intent: str) -> tuple[int, int, int, int]:
        """How many claims are made, are true, are atypical, are atypical and true. A claim about a cue that `truth` does not
        name is not true; nothing is atypical of an intent that the table does not have."""
        right = {cue for cue, value in claims.items() if truth.get(cue) == value}
        usual = self.typical.get(intent, truth)
        atypical = {cue for cue in claims if cue in truth and truth[cue] != usual.get(cue)}
        return len(claims), len(right), len(atypical), len(atypical & right)


def follows(claims: Cues, own: Cues, other: Cues, group: Sequence[str]) -> list[bool]:
    """After something was swapped with another clip's: of the claims about cues of `group` in which the two clips are known to
    differ, which state the other clip's value."""
    shared = [cue for cue in group if cue in claims and cue in own and cue in other]
    return [claims[cue] == other[cue] for cue in shared if own[cue] != other[cue]]
