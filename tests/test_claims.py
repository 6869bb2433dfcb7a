"""Clauses of any text, and the tokens that write them."""

import pytest
from toy_training import TOKENIZER

from imagebind_llm.critic.claims import characters_of, claims_of, tokens_of
from imagebind_llm.demo_world.write import draw_world
from imagebind_llm.itsl.instructions import answer_spans, answer_text, parse_answer
from imagebind_llm.llama.gguf import smollm2_path
from imagebind_llm.llama.tokenizers import LlamaTokenizer, load_tokenizer
from imagebind_llm.taxonomy import DEMO
from imagebind_llm.weight_files import WeightsError

STRANGE = (
    "",
    "   ",
    "no",
    "…—, ;: and while",
    "une élève très émue, 日本語の 文と 絵文字 👩‍👩‍👧 ok",
    "tab\tand  two  spaces ,and\nlines",
    "we don't; it's 3.5 m/s (really) \"so they say\"",
    "and a smile with a frown while nothing",
    "naïve ﬁne Ⅷ ½, \u200bzero width, İstanbul ẞ",
)


def texts() -> list[str]:
    told = draw_world(0, {"train": 940, "dev": 1, "test": 1})[:940]
    mixed = [f"{STRANGE[4]} {row.rationale} {STRANGE[i % len(STRANGE)]}" for i, row in enumerate(told[:51])]
    return [*(row.rationale for row in told), *STRANGE, *mixed]


def tokenizers() -> list[LlamaTokenizer]:
    try:
        return [load_tokenizer(TOKENIZER), load_tokenizer(smollm2_path())]
    except WeightsError:
        return [load_tokenizer(TOKENIZER)]


def test_a_rationale_falls_into_its_clauses_with_the_label_masked():
    text = "We see a smile and open palms, while the words praise it; all of this points to someone who wants to complain."
    found = claims_of(text, DEMO)
    assert [claim.text for claim in found] == [
        "We see a smile",
        "open palms",
        "the words it",
        "all of this points to someone who wants to",
    ]
    assert [text[claim.start : claim.end] for claim in found][2:] == [
        "the words praise it",
        "all of this points to someone who wants to complain",
    ]
    assert [claim.start for claim in claims_of(text, DEMO, start=7)] == [claim.start + 7 for claim in found]


def test_clauses_of_one_word_are_none():
    assert [claim.text for claim in claims_of("Face: a smile, calm. Hands: still, with Praise and tears", DEMO)] == ["a smile"]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda tokenizer: type(tokenizer).__name__)
def test_a_thousand_texts_map_to_their_tokens_and_back(tokenizer):
    every = texts()
    assert len(every) == 1000
    whole = 0
    for text in every:
        ids = tokenizer.encode(text)
        written = tokenizer.decode(ids)
        characters = characters_of(ids, tokenizer)
        assert len(characters) == len(ids)
        assert all(a <= b for a, b in characters) and sorted(characters) == characters
        for claim in claims_of(written, DEMO):
            first, last = tokens_of((claim.start, claim.end), characters)
            assert first < last, claim
            start, end = characters[first][0], characters[last - 1][1]
            assert start <= claim.start and end >= claim.end, "no character of a claim is left out"
            assert first == 0 or characters[first - 1][1] <= claim.start, "the token before writes none of it"
            assert last == len(ids) or characters[last][0] >= claim.end, "nor does the one after"
            whole += written[start:end].strip() == written[claim.start : claim.end]
    assert whole > 4000


def test_spans_of_an_answer_are_its_label_and_its_rationale():
    for order in ("label", "rationale"):
        text = answer_text("Ask for help", "We see it.  And hear it, in a rush.", order)
        label, reason = answer_spans(text)
        assert text[slice(*label)] == "Ask for help" == parse_answer(text, DEMO).intent
        assert text[slice(*reason)] == "We see it.  And hear it, in a rush." == parse_answer(text, DEMO).rationale
    assert answer_spans("Intent: Praise.") == ((8, 14), (0, 0))
    assert answer_spans("nothing of the kind") == ((0, 0), (0, 0))
