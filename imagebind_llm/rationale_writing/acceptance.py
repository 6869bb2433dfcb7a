"""Which answers are taken as rationales. A rule is a function of the text that says what is wrong, in words for asking again.

The rules follow the prompt, rule by rule. They judge form and honesty (nothing invented, nothing copied, the label not given
away), not whether the reasoning is good: that is for the review page and for the verifier's agreement.
"""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from imagebind_llm.critic.rewards import MOST_REPETITION
from imagebind_llm.critic.verifier import label_mentions, mask_labels
from imagebind_llm.rationale_writing.prompt import LONGEST, RULES, SHORTEST, Item
from imagebind_llm.taxonomy import DEFINITIONS, Taxonomy
from imagebind_llm.text_metrics import n_grams, repetition4, words

LAST_CLAUSE = 12  # words
MOST_OTHER_LABELS = 2
COPIED_RUN = 8  # words in a row that are no accident
COMMON = frozenset(
    """a about an and are as at be because been but by do does for from had has have he her him his how if in is it its me more
    my no not of on or our she so that the their them then there they this to was we what when which while who with would
    you your""".split()  # noqa: SIM905
)
SEEN = re.compile(
    r"\b(?:facial|face|smil\w+|grin\w*|smirk\w*|frown\w*|scowl\w*|eyes?|eyebrows?|gaz\w+|glanc\w+|star(?:es|ed|ing)|nod(?:s|ded|ding)?"
    r"|gestur\w+|posture|body language|arms?|shrug\w*|blush\w*|tears?|head|lips|hands)\b",
    re.IGNORECASE,
)
HEARD = re.compile(
    r"\b(?:voice|tone|pitch|intonation|loud\w*|shout\w*|yell\w*|whisper\w*|murmur\w*|volume|sigh\w*|softly)\b",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"^\W*(?:i'?m sorry|sorry|i can(?:'|no)t|i am (?:unable|not able)|i'm (?:unable|not able)|as an ai)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Verdict:
    """rationale: the text as taken, None if it was not. rule and reason: what was wrong, the second in words for the model."""

    rationale: str | None
    rule: str = ""
    reason: str = ""


class Judge:
    """Applies the rules; remembers what was accepted, so that no item's rationale is a copy of another's. Thread-safe."""

    def __init__(self, taxonomy: Taxonomy, accepted: Mapping[str, str]):
        """`accepted`: the rationales that are there, by key."""
        self.taxonomy = taxonomy
        self._lock = threading.Lock()
        self._owner = {self._essence(text): key for key, text in accepted.items()}

    def verdict(self, answer: str, finish_reason: str, refused: bool, item: Item) -> Verdict:
        """The first rule that the answer breaks, or the rationale."""
        text = tidied(answer)
        if refused or REFUSAL.match(text):
            return Verdict(
                None, "refused", "it declines to answer; the task is harmless, a sentence of a TV series is explained"
            )
        if not text:
            return Verdict(None, "empty", "it is empty")
        if finish_reason == "length":
            return Verdict(None, "cut off", f"it was cut at the token limit; at most {LONGEST} words are wanted")
        for rule, broken in RULES_IN_ORDER:
            if reason := broken(text, item, self.taxonomy):
                return Verdict(None, rule, reason)
        with self._lock:
            key = item.example.key
            if self._owner.setdefault(self._essence(text), key) != key:
                return Verdict(None, "copy", "it is word for word the rationale of another utterance; refer to this one")
        return Verdict(text)

    def _essence(self, text: str) -> tuple[str, ...]:
        return tuple(words(mask_labels(text, self.taxonomy)))


def tidied(answer: str) -> str:
    """The answer without the wrapping that models add: a code fence, `Rationale:`, quotation marks around everything."""
    text = re.sub(r"^```\w*\n(.*?)\n?```$", r"\1", answer.strip(), flags=re.DOTALL).strip()
    text = re.sub(r"^[\s*_#]*rationale[\s*_]*:[\s*_]*", "", text, flags=re.IGNORECASE)
    inner = re.fullmatch(r'"([^"]*)"|“([^”]*)”', text, flags=re.DOTALL)
    return (inner[1] or inner[2] or "").strip() if inner else text


def unquoted(text: str, item: Item) -> str:
    """The text without quotations of the utterance, which may name the label ("thank you") or a face or a voice."""
    utterance = " ".join(words(item.example.text))

    def kept(match: re.Match) -> str:
        return " " if " ".join(words(match.group())) in utterance else match.group()

    return re.sub(r"\"[^\"]+\"|“[^”]+”|(?<!\w)'[^']+(?:'\w+[^']*)*'(?!\w)|‘[^’]+(?:’\w+[^’]*)*’(?!\w)", kept, text)


def _one_paragraph(text: str, item: Item, taxonomy: Taxonomy) -> str:
    listed = re.search(r"^\s*(?:[-*#]|\d+[.)])\s", text, re.MULTILINE)
    return "it is not one plain paragraph" if "\n" in text or listed or "**" in text or text.startswith("{") else ""


def _language(text: str, item: Item, taxonomy: Taxonomy) -> str:
    letters = [c for c in text if c.isalpha()]
    latin = sum(c.isascii() for c in letters) >= 0.95 * len(letters)
    text_words = words(text)
    common = sum(word in COMMON for word in text_words) >= 0.2 * len(text_words)
    return "" if letters and latin and common else "it is not in English"


def _length(text: str, item: Item, taxonomy: Taxonomy) -> str:
    n = len(text.split())
    return "" if SHORTEST <= n <= LONGEST else f"it has {n} words; {SHORTEST} to {LONGEST} are wanted"


def _repetition(text: str, item: Item, taxonomy: Taxonomy) -> str:
    return "it repeats itself" if repetition4(text) >= MOST_REPETITION else ""


def _prompt_copied(text: str, item: Item, taxonomy: Taxonomy) -> str:
    runs = set(n_grams(words(text), COPIED_RUN))
    given = {run for part in (RULES, *DEFINITIONS.values()) for run in n_grams(words(part), COPIED_RUN)}
    return "it repeats the instructions or a definition" if runs & given else ""


def _label_named(text: str, item: Item, taxonomy: Taxonomy) -> str:
    """The label exactly once, in the last clause, which is taken to be the last twelve words."""
    kept_words = unquoted(text, item).split()
    before, last = " ".join(kept_words[:-LAST_CLAUSE]), " ".join(kept_words[-LAST_CLAUSE:])
    if not label_mentions(" ".join(kept_words), item.intent):
        return f'it never names the intent; the last clause must name "{item.intent.lower()}"'
    if label_mentions(before, item.intent):
        return f'it uses "{item.intent.lower()}" or a form of it before the last clause'
    if label_mentions(last, item.intent) != 1:
        return f'it names "{item.intent.lower()}" more than once'
    return ""


def _labels_stuffed(text: str, item: Item, taxonomy: Taxonomy) -> str:
    kept = unquoted(text, item)
    others = [label for label in taxonomy.labels if label != item.intent and label_mentions(kept, label)]
    return f"it names other intents ({', '.join(others).lower()})" if len(others) > MOST_OTHER_LABELS else ""


def _invented(text: str, item: Item, taxonomy: Taxonomy) -> str:
    """Seen or heard cues where none were supplied; words of the utterance or the context are no claims."""
    kept, given = unquoted(text, item), set(words(" ".join((item.example.text, *item.context))))
    allowed = [item.evidence or item.n_frames, item.evidence]
    cues_named = [
        m.group() for cues, permitted in zip((SEEN, HEARD), allowed, strict=True) if not permitted for m in cues.finditer(kept)
    ]
    invented = [cue for cue in cues_named if not set(words(cue)) <= given]
    return f"it claims what nobody was told (“{invented[0]}”): nothing is known about that" if invented else ""


RULES_IN_ORDER = (
    ("form", _one_paragraph),
    ("language", _language),
    ("length", _length),
    ("repetition", _repetition),
    ("prompt copied", _prompt_copied),
    ("label", _label_named),
    ("label stuffing", _labels_stuffed),
    ("invented cue", _invented),
)
