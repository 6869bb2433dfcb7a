"""Rows as the public program tokenises them where they fit; what does not fit loses context and never an answer token."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import load_corpus
from imagebind_llm.itsl.instructions import (
    LEAD,
    InstructionError,
    alpaca_prompt,
    answer_text,
    caption_exchange,
    clip_exchange,
    encode_exchange,
    encode_prompt,
    instruction_exchange,
    parse_answer,
)
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.records import IGNORE, Answer, Example, Exchange
from imagebind_llm.taxonomy import MINTREC, MINTREC2
from imagebind_llm.training.settings import TrainSettings

FOLDER = Path(__file__).parent / "golden" / "llama"
ROWS = json.loads((FOLDER / "h_rows.json").read_text())
TOKENIZER = load_tokenizer(FOLDER / "tiny.model")


def asked(row: dict) -> Exchange:
    return instruction_exchange("row", row["instruction"], row["input"], row["output"])


@pytest.mark.parametrize("row", [row for row in ROWS if "labels" in row], ids=lambda row: row["instruction"])
def test_rows_that_fit_have_the_public_ids_and_labels(row):
    found = encode_exchange(asked(row), TOKENIZER, 320)
    assert list(found.ids) == row["example"] and not found.cut
    ours = Collator(None, ())([found]).targets[0]
    assert ours.masked_fill(ours == IGNORE, 0).tolist() == row["labels"]  # the public program ignores label 0


def test_golden_rows_are_enough():
    assert sum("labels" in row for row in ROWS) == 4


def test_a_true_unknown_token_in_an_answer_is_counted():
    class Unknowing:
        def encode(self, text, bos=False, eos=False):
            return [1] * bos + [0 if word == "?" else 5 for word in text.split()] + [2] * eos

    found = encode_exchange(Exchange("row", "what is it\n", "", "", " a ? b"), Unknowing(), 100)
    assert Collator(None, ())([found]).targets[0].tolist() == [*[IGNORE] * 4, 5, 0, 5, 2]


def test_prompts_are_alpacas():
    assert alpaca_prompt("Count the coins.").endswith("### Instruction:\nCount the coins.\n\n### Response:")
    assert alpaca_prompt("Count.", "3, 4").endswith("### Instruction:\nCount.\n\n### Input:\n3, 4\n\n### Response:")


@pytest.mark.parametrize(("number", "max_len"), [(3, 400), (5, 320), (5, 200), (1, 230)])
def test_rows_that_are_too_long_lose_context_and_no_answer_token(number, max_len):
    whole = encode_exchange(asked(ROWS[number]), TOKENIZER, 10**6)
    found = encode_exchange(asked(ROWS[number]), TOKENIZER, max_len)
    assert found.cut and not whole.cut and len(found.ids) <= max_len
    assert found.ids[found.n_prompt :] == whole.ids[whole.n_prompt :]
    assert found.ids[0] == TOKENIZER.bos_id


def test_the_input_is_shortened_and_the_instruction_kept():
    words = " ".join(f"word{i}" for i in range(60))
    found = encode_exchange(instruction_exchange("row", "Count the coins.", words, "Sixty."), TOKENIZER, 300)
    text = TOKENIZER.decode(list(found.ids))
    assert "### Instruction:\nCount the coins.\n\n### Input:\n" in text and text.endswith("word59\n\n### Response:Sixty.")
    assert found.cut and "word0 " not in text


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=80),
    st.text("abcdef \n", max_size=300),
    st.text(max_size=20),
    st.text("xyz ", max_size=60),
    st.integers(4, 400),
)
def test_whatever_the_row_it_fits_with_its_whole_answer_or_is_refused(before, context, after, answer, max_len):
    exchange = Exchange("row", f"{before}:", context, f"{after}\n", answer)
    whole = encode_exchange(exchange, TOKENIZER, 10**6)
    own = whole.ids[whole.n_prompt :]
    try:
        found = encode_exchange(exchange, TOKENIZER, max_len)
    except InstructionError:
        assert len(own) + 2 > max_len
        return
    assert len(found.ids) <= max_len and found.ids[found.n_prompt :] == own and found.ids[0] == TOKENIZER.bos_id
    assert found.cut == (len(whole.ids) > max_len)


def test_an_answer_that_alone_is_too_long_is_refused_with_the_way_out():
    with pytest.raises(InstructionError, match=r"row: its answer has 306 tokens .* fit into 300; raise --max_seq_len"):
        encode_exchange(asked(ROWS[3]), TOKENIZER, 300)


def test_a_prompt_alone_is_the_prompt_of_the_whole_row():
    for row in ROWS:
        whole = encode_exchange(asked(row), TOKENIZER, 10**6)
        assert encode_prompt(asked(row), TOKENIZER, 10**6) == list(whole.ids[: whole.n_prompt])
        assert len(encode_prompt(asked(row), TOKENIZER, 100)) <= 100


def test_a_clips_prompt_ends_where_the_label_begins_and_its_words_are_there_only_if_wanted():
    example = Example("S01_E01_1", "train", None, "  I like it. ", "Praise", rationale="She smiles.")
    for order in ("label", "rationale"):
        exchange = clip_exchange(example, MINTREC, with_text=True, embedded=True, order=order)
        assert (exchange.context, exchange.intent, exchange.embedded) == ("I like it.", 1, True)
        prompt = exchange.before + exchange.context + exchange.after
        assert prompt.startswith('A person says: "I like it."\n') and prompt.endswith(LEAD[order])
        assert LEAD[order] + exchange.answer == answer_text("Praise", "She smiles.", order)
    silent = clip_exchange(example, MINTREC, with_text=False, embedded=True)
    assert "like" not in silent.before + silent.context + silent.after


def test_nothing_of_the_answer_is_in_a_clips_prompt():
    known = Example("k", "test", None, "I like it.", "Praise", rationale="She smiles.")
    bare = replace(known, intent=None, rationale=None)
    one, other = (clip_exchange(e, MINTREC, with_text=True, embedded=False) for e in (known, bare))
    assert (one.before, one.context, one.after) == (other.before, other.context, other.after)
    assert encode_prompt(one, TOKENIZER, 200) == encode_prompt(other, TOKENIZER, 200)


def test_a_caption_belongs_to_a_clip():
    exchange = caption_exchange("S01_E01_1", "Face: a smile.")
    assert exchange.embedded and exchange.answer == "Face: a smile." and exchange.intent is None


# --- answers and back ---

rationales = st.text(min_size=1).map(str.strip).filter(bool)


@given(st.sampled_from([*MINTREC.labels]), st.none() | rationales)
def test_parsing_undoes_writing_with_the_label_first(intent, rationale):
    assert parse_answer(answer_text(intent, rationale), MINTREC) == Answer(intent, rationale)


@given(st.sampled_from([*MINTREC2.labels]), rationales.filter(lambda text: "Intent:" not in text))
def test_parsing_undoes_writing_with_the_rationale_first(intent, rationale):
    assert parse_answer(answer_text(intent, rationale, "rationale"), MINTREC2) == Answer(intent, rationale)


@pytest.mark.parametrize("text", ["", "Intent Praise.", "The intent is Praise.", "Rationale: she smiles", "Praise"])
def test_what_is_no_answer_says_nothing(text):
    assert parse_answer(text, MINTREC) == Answer(None, None)


def test_a_label_that_the_taxonomy_does_not_have_is_none_and_letter_case_is_forgiven():
    assert parse_answer("Intent: Boast. Rationale: he boasts.", MINTREC) == Answer(None, "he boasts.")
    assert parse_answer("Intent: ask FOR help. Rationale: x", MINTREC) == Answer("Ask for help", "x")


def test_prompt_and_answer_of_every_label_are_joined_at_a_token_border():
    for label in MINTREC.labels:
        found = encode_exchange(clip_exchange(Example("k", "s", None, "hi", label), MINTREC, True, False), TOKENIZER, 400)
        assert TOKENIZER.decode(list(found.ids[found.n_prompt :])).strip() == f"{label}."
        assert torch.tensor(found.ids).max() < TOKENIZER.n_words


@pytest.mark.parametrize("order", ["label", "rationale"])
def test_intents_in_json_are_read_where_those_of_clips_are(order, tmp_path):
    """The prompt ends with what every answer begins with, so that labels can be scored and sampled answers parsed."""
    told = [
        {"instruction": "Why?", "intent": "praise", "rationale": "We see a smile."},
        {"instruction": "Why?", "intent": "Praise", "output": "It is praise."},
        {"instruction": "Name a fruit.", "output": "Intent: none of them."},
    ]
    (tmp_path / "told.json").write_text(json.dumps(told))
    found = load_corpus(TrainSettings(str(tmp_path / "told.json"), answer_order=order).corpus, TOKENIZER, 512).splits["train"]
    parts = [(TOKENIZER.decode(row.ids[1 : row.n_prompt]), TOKENIZER.decode(row.ids[row.n_prompt : -1])) for row in found]
    assert parts[0][0].endswith(f"### Response:{LEAD[order]}")
    assert parse_answer(LEAD[order] + parts[0][1], MINTREC) == Answer("Praise", "We see a smile.")
    assert all(prompt.endswith("### Response:") for prompt, _ in parts[1:])
    assert [answer.strip() for _, answer in parts[1:]] == [told[1]["output"], told[2]["output"]]
