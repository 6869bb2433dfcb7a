"""Clauses of open text, and which tokens of an answer write each of them.

A rationale is judged clause by clause: whole texts that never looked at the clip score like those that did, while single
clauses do not. Clauses end at punctuation and at words that join statements ("and", "while", "with" ...); nothing here knows
what a clip can show. Words of intent labels are masked, so that no clause is judged by the intent that it names.
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
    """A clause: its text with label words left out, and the characters [start, end) that it takes in the whole text."""

    text: str
    start: int
    end: int


def claims_of(text: str, taxonomy: Taxonomy | None = None, start: int = 0) -> list[Claim]:
    """The clauses of `text` that have two words or more once the taxonomy's labels are masked, in order.

    `start` is added to their positions: where `text` begins in a longer one.
    """
    claims = []
    begin = 0
    for end, following in [*(match.span() for match in _BOUNDARY.finditer(text)), (len(text), len(text))]:
        clause = text[begin:end]
        masked = mask_labels(clause, taxonomy).replace(MASK, " ") if taxonomy is not None else clause
        if len(words(masked)) >= FEWEST_WORDS:
            left = begin + len(clause) - len(clause.lstrip())
            claims.append(Claim(" ".join(masked.split()), start + left, start + left + len(clause.strip())))
        begin = following
    return claims


def claims_of_answer(text: str, taxonomy: Taxonomy | None) -> list[Claim]:
    """The claims of a whole answer's rationale, at their places in the answer."""
    start, end = answer_spans(text)[1]
    return claims_of(text[start:end], taxonomy, start)


def separator_end(text: str, end: int) -> int | None:
    """Where the punctuation or joint stops that closes the clause before `end`; None if the text stops or goes on otherwise."""
    boundary = _BOUNDARY.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
    return boundary.end() if boundary else None


def claims_in_answer(
    ids: Sequence[int], text: str, lead: int, tokenizer: LlamaTokenizer, taxonomy: Taxonomy | None
) -> tuple[list[Claim], list[Span]]:
    """The claims of an answer's rationale, and the tokens [first, last) that write each. `text`: what `ids` say, behind `lead`
    characters that they do not."""
    claims = claims_of_answer(text, taxonomy)
    characters = [(a + lead, b + lead) for a, b in characters_of(ids, tokenizer)] if claims else []
    return claims, [tokens_of((claim.start, claim.end), characters) for claim in claims]


def label_in_answer(ids: Sequence[int], text: str, lead: int, tokenizer: LlamaTokenizer) -> Span:
    """The tokens [first, last) that write an answer's label; (0, 0) without one."""
    characters = [(a + lead, b + lead) for a, b in characters_of(ids, tokenizer)]
    return tokens_of(answer_spans(text)[0], characters)


def characters_of(ids: Sequence[int], tokenizer: LlamaTokenizer) -> list[Span]:
    """The characters [start, end) of `tokenizer.decode(ids)` that each token adds to those before it.

    Of several tokens that make one character together, each has that character. Tokens that write nothing have start = end.
    """
    text = tokenizer.decode(list(ids))
    written = [_common(tokenizer.decode(list(ids[:i])), text) for i in range(len(ids) + 1)]
    spans: list[Span] = []
    end = len(text)
    for start, after in reversed(list(pairwise(written))):
        if after > start:
            end = after
        spans.append((start, end))
    return spans[::-1]


def tokens_of(span: Span, characters: Sequence[Span]) -> Span:
    """The tokens [first, last) that write some of the characters [start, end); (0, 0) if none does."""
    start, end = span
    tokens = [i for i, (a, b) in enumerate(characters) if a < end and b > start]
    return (tokens[0], tokens[-1] + 1) if tokens else (0, 0)


def _common(prefix: str, text: str) -> int:
    """How many characters both begin with: a character that is not whole yet decodes to something else."""
    if text.startswith(prefix):
        return len(prefix)
    return next(i for i, (a, b) in enumerate(zip(prefix + "\0", text + "\1", strict=False)) if a != b)
