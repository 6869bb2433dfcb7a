"""JSON to train on: what no class, no field and no split stands for is refused before anything is loaded."""

import json
from pathlib import Path

import pytest
from toy_training import write_store

from imagebind_llm.corpus.sequences import Corpus, load_corpus
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.taxonomy import MINTREC2
from imagebind_llm.training.settings import TrainSettings

TOKENIZER = load_tokenizer(Path(__file__).parent / "golden" / "llama" / "tiny.model")
TRAIN = [
    {"instruction": "What is meant?", "intent": "Praise", "rationale": "A broad smile."},
    {"instruction": "What is meant?", "intent": "Warn"},
]
DEV = {"instruction": "Name a fruit.", "output": "A pear.", "split": "dev"}


def read(tmp_path: Path, rows: list[dict], **settings) -> Corpus:
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return load_corpus(TrainSettings(str(tmp_path / "rows.json"), **settings).corpus, TOKENIZER, 512)


def refused(tmp_path: Path, rows: list[dict], **settings) -> str:
    with pytest.raises(DataError) as error:
        read(tmp_path, rows, **settings)
    return str(error.value)


def test_an_intent_out_of_scope_is_refused_in_every_split(tmp_path):
    for split in ("train", "dev", "test"):
        said = refused(tmp_path, [*TRAIN, {"instruction": "?", "intent": "unk", "split": split}])
        assert "rows.json, row 2: intent unk is out of scope" in said and "take such rows out (1 of 3)" in said
    assert read(tmp_path, TRAIN).taxonomy == MINTREC2


def test_intents_that_train_has_none_of_are_refused(tmp_path):
    rows = [DEV | {"split": "train"}, *(row | {"split": "dev"} for row in TRAIN)]
    assert "none of the 1 rows to train on has an intent" in refused(tmp_path, rows)
    rows = [DEV | {"split": "train"}, *TRAIN]
    assert read(tmp_path, rows).taxonomy == MINTREC2
    assert "none of the 1 rows to train on has an intent" in refused(tmp_path, rows, limit=1), "the others are not trained on"


def test_captions_have_no_intents(tmp_path):
    """Else an intent head would be made, never trained, and asked for scores at the end."""
    rows = [{"key": "a", "caption": "A smile.", "intent": "Praise"}]
    found = read(tmp_path, rows, stage="pretrain", emb_path=str(write_store(tmp_path / "emb", ["a"])))
    assert found.taxonomy is None and len(found.train_rows) == 1


@pytest.mark.parametrize("field", ["instruction", "output", "key", "clip", "intent", "rationale", "split"])
def test_a_field_that_is_no_text_is_refused_with_its_row(field, tmp_path):
    said = refused(tmp_path, [*TRAIN, DEV | {field: 3}])
    assert f"rows.json, row 2: expected a text as {field}, got 3" in said


def test_a_split_that_nothing_reads_is_refused(tmp_path):
    said = refused(tmp_path, [*TRAIN, DEV | {"split": "validation"}])
    assert "rows of split validation, which nothing would read; expected train, dev, test" in said
    assert len(read(tmp_path, [*TRAIN, DEV | {"split": None}]).splits["train"]) == 3


def test_an_empty_output_is_an_answer_and_a_missing_one_is_not(tmp_path):
    """Alpaca's own file has rows whose output is empty; what is learnt of them is to say nothing."""
    [row] = read(tmp_path, [{"instruction": "Say nothing.", "input": "", "output": ""}]).train_rows
    assert row.ids[row.n_prompt :] == (TOKENIZER.eos_id,)
    assert "row 0: expected an output (or an intent), got neither" in refused(tmp_path, [{"instruction": "Say nothing."}])
