"""Splits a rationale into claims (clauses), and finds the tokens of an answer that each of them consists of.

A rationale is judged claim by claim, because a judge cannot tell whole texts that describe the clip from those that do not.
Clauses end at punctuation and at words that join statements ("and", "while", "with" ...), without any list of what a clip can
show. Words of intent labels are masked, so that no claim is judged by the intent that it names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from imagebind_llm.critic.verifier import MASK, mask_labels
from imagebind_llm.itsl.instructions import answer_spans
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.taxonomy import Taxonomy
from imagebind_llm.text_metrics import words

FEWEST_WORDS = 2
JOINTS = "and|while|with|but|because|since|so|or|whereas|although|though|which|then|as well as"
_BOUNDARY = re.compile(rf"[.,;:!?()\[\]{{}}\"“”«»—–\n]+|\b(?:{JOINTS})\b", re.IGNORECASE)
Span = tuple[int, int]


@dataclass(frozen=True)
class Claim:
    """A clause: its text without label words, and its characters [start, end) in the whole text."""

    text: str
    start: int
    end: int


def claims_of(text: str, taxonomy: Taxonomy | None = None, start: int = 0) -> list[Claim]:
    """The clauses of `text` that have at least two words without the taxonomy's labels, in order.

    `start` is added to their positions, if `text` is a part of a longer text.
    """
    claims = []
    begin = 0
    for end, following in [*(match.span() for match in _BOUNDARY.finditer(text)), (len(text), len(text))]:
        clause = text[begin:end]
        masked = mask_labels(clause, taxonomy).replace(MASK, " ") if taxonomy is not None else clause
        if len(words(masked)) >= FEWEST_WORDS:
            offset = start + begin + len(clause) - len(clause.lstrip())
            claims.append(Claim(" ".join(masked.split()), offset, offset + len(clause.strip())))
        begin = following
    return claims


def claims_of_answer(text: str, taxonomy: Taxonomy | None) -> list[Claim]:
    """The claims of an answer's rationale, with their positions in the whole answer."""
    start, end = answer_spans(text)[1]
    return claims_of(text[start:end], taxonomy, start)


def separator_end(text: str, end: int) -> int | None:
    """End of the punctuation or joining word after the clause that ends at `end`; None if there is none."""
    boundary = _BOUNDARY.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
    return boundary.end() if boundary else None


def claims_in_answer(
    ids: Sequence[int], text: str, lead: int, tokenizer: LlamaTokenizer, taxonomy: Taxonomy | None
) -> tuple[list[Claim], list[Span]]:
    """The claims of an answer's rationale, and the tokens [first, last) of each.

    `text` is the decoded `ids` after `lead` characters that are not among them.
    """
    claims = claims_of_answer(text, taxonomy)
    characters = [(a + lead, b + lead) for a, b in characters_of(ids, tokenizer)] if claims else []
    return claims, [tokens_of((claim.start, claim.end), characters) for claim in claims]


def label_in_answer(ids: Sequence[int], text: str, lead: int, tokenizer: LlamaTokenizer) -> Span:
    """The tokens [first, last) of an answer's label; (0, 0) if it has none."""
    characters = [(a + lead, b + lead) for a, b in characters_of(ids, tokenizer)]
    return tokens_of(answer_spans(text)[0], characters)


def characters_of(ids: Sequence[int], tokenizer: LlamaTokenizer) -> list[Span]:
    """The characters [start, end) of `tokenizer.decode(ids)` that each token adds to the text of those before it.

    If several tokens encode one character, each of them has that character. A token without text has start = end.
    """
    text = tokenizer.decode(list(ids))
    lengths = [_common(tokenizer.decode(list(ids[:i])), text) for i in range(len(ids) + 1)]
    spans: list[Span] = []
    end = len(text)
    for start, after in reversed(list(pairwise(lengths))):
        if after > start:
            end = after
        spans.append((start, end))
    return spans[::-1]


def tokens_of(span: Span, characters: Sequence[Span]) -> Span:
    """The tokens [first, last) that overlap the characters [start, end) of `span`; (0, 0) if none does."""
    start, end = span
    tokens = [i for i, (a, b) in enumerate(characters) if a < end and b > start]
    return (tokens[0], tokens[-1] + 1) if tokens else (0, 0)


def _common(prefix: str, text: str) -> int:
    """Length of the common beginning. `prefix` may differ at its end, where a character is not complete yet."""
    if text.startswith(prefix):
        return len(prefix)
    return next(i for i, (a, b) in enumerate(zip(prefix + "\0", text + "\1", strict=False)) if a != b)
