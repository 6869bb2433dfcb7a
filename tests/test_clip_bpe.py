"""CLIP's tokenizer against golden ids, and the properties that ImageBind's text tower relies on."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebind_llm.encoder.bpe import CLIP_VOCABULARY, ClipBPE, clean

GOLDEN = json.loads((Path(__file__).parent / "golden" / "imagebind" / "text_tokens.json").read_text())
BPE = ClipBPE()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: ascii(case["text"][:30]))
def test_golden_text_gets_golden_ids(case):
    assert clean(case["text"]) == case["cleaned"]
    assert BPE.ids(case["text"]) == case["bpe_ids"]
    row = BPE.encode([case["text"]])[0]
    assert row.tolist() == case["ids"] + [0] * (77 - len(case["ids"]))
    assert row.argmax() == case["eot_index"]


def test_the_shipped_vocabulary_is_the_published_file_and_has_its_licence():
    digest = hashlib.sha256(CLIP_VOCABULARY.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert "Permission is hereby granted" in (CLIP_VOCABULARY.parent / "LICENSE.open_clip").read_text()


def test_a_batch_is_its_texts_one_by_one():
    texts = [case["text"] for case in GOLDEN]
    rows = BPE.encode(texts)
    assert rows.shape == (len(texts), 77)
    assert all(row.tolist() == BPE.encode([text])[0].tolist() for row, text in zip(rows, texts, strict=True))
    assert BPE.encode([]).shape == (0, 77)


@pytest.mark.parametrize(("n_words", "cut"), [(75, False), (76, True), (300, True)])
def test_a_text_that_does_not_fit_keeps_its_end_token_and_can_be_told(n_words, cut):
    text = "word " * n_words
    row = BPE.encode([text])[0]
    assert row[0] == BPE.start and row[76] == BPE.end and (row[1:76] == BPE.ids("word")[0]).all()
    assert BPE.n_tokens(text) == n_words + 2
    assert (BPE.n_tokens(text) > BPE.context_length) is cut


def test_a_literal_end_token_becomes_the_end_token():
    assert BPE.ids("a <|endoftext|> b")[1] == BPE.end
    assert BPE.encode(["a <|endoftext|> b"])[0].argmax() == 2


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_becomes_a_row_that_starts_ends_and_pads(text):
    row = BPE.encode([text])[0].tolist()
    length = min(BPE.n_tokens(text), 77)
    assert row[0] == BPE.start and row[length - 1] == BPE.end
    assert not any(row[length:]) and max(row) <= BPE.end


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", categories=["L"]), min_size=1, max_size=12))
def test_the_pieces_of_a_word_spell_its_bytes(word):
    word = clean(word)
    assert b"".join(_bytes_of(i) for i in BPE.ids(word)) == word.replace(" ", "").encode("utf-8")


def _bytes_of(token: int) -> bytes:
    """Undo the merges by the file's own order: an independent reading of the vocabulary."""
    from imagebind_llm.encoder.bpe import _tables

    byte_ids, merges = _tables()
    if token < 512:
        return bytes([byte_ids.index(token % 256)])
    left, right = next(pair for pair, new in merges.items() if new == token)
    return _bytes_of(left) + _bytes_of(right)


def test_importing_the_module_loads_neither_ftfy_nor_regex():
    code = "import sys, imagebind_llm.llama.tokenizers; assert not {'ftfy', 'regex', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
