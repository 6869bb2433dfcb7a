"""Readers: the layout is recognised by what is there, and what cannot be meant stops at once with the way out."""

import pytest

from imagebind_llm.datasets.readers import DataError, load_dataset

MINTREC_HEADER = "season\tepisode\tclip\ttext\tlabel\n"
MINTREC2_HEADER = "Dialogue_id\tUtterance_id\tText\tLabel\tStart_timestamp\tEnd_timestamp\tSource\tspeaker_name\n"


def mintrec(root, **splits):
    for name, rows in splits.items():
        (root / f"{name}.tsv").write_text(MINTREC_HEADER + "".join(rows), encoding="utf-8")
    return root


def test_mintrec_rows_become_examples_with_key_clip_and_canonical_label(tmp_path):
    (tmp_path / "raw_data").mkdir()
    mintrec(tmp_path, train=['S05\tE16\t329\tshe said "hi\tinform\n'], dev=["S05\tE16\t330\tça va?\tAsk for help\n"])
    dataset = load_dataset(tmp_path)
    (example,) = dataset.splits["train"]
    assert (dataset.layout, example.key, example.text, example.intent) == ("MIntRec", "S05_E16_329", 'she said "hi', "Inform")
    assert example.clip == tmp_path / "raw_data" / "S05" / "E16" / "329.mp4"
    assert dataset.splits["dev"][0].text == "ça va?"


def test_mintrec2_is_recognised_and_finds_clips_beside_its_folder(tmp_path):
    (tmp_path / "raw_data").mkdir()
    folder = tmp_path / "in-scope"
    folder.mkdir()
    (folder / "dev.tsv").write_text(MINTREC2_HEADER + "2\t0\they.\tPrevent\t0\t1\tfriends\tAmy\n")
    dataset = load_dataset(folder)
    (example,) = dataset.examples
    assert (dataset.layout, example.key, example.split) == ("MIntRec2.0", "dia2_utt0", "dev")
    assert example.clip == tmp_path / "raw_data" / "dia2_utt0.mp4"


def test_plain_folder_reads_csv_with_quotes_and_optional_columns(tmp_path):
    (tmp_path / "list.csv").write_text('path,text,split\n"a b/ü.mp4","well, no",train\nc.mp4,"",test\n', encoding="utf-8")
    dataset = load_dataset(tmp_path)
    first, second = dataset.examples
    assert (first.key, first.clip, first.text, first.split) == ("a b/ü", tmp_path / "a b" / "ü.mp4", "well, no", "train")
    assert (second.text, second.split, second.intent) == ("", "test", None)


def test_splits_can_be_chosen_and_must_exist(tmp_path):
    mintrec(tmp_path, train=["S\tE\t1\ta\tJoke\n"], test=["S\tE\t2\tb\tJoke\n"])
    assert list(load_dataset(tmp_path, ("test",)).splits) == ["test"]
    with pytest.raises(DataError, match="no split dev here; there are: train, test"):
        load_dataset(tmp_path, ("dev",))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected train.tsv/dev.tsv/test.tsv .* found: none"),
        ({"a.csv": "path,text\n", "b.csv": "path,text\n"}, "found: a.csv, b.csv; pass the table itself"),
        ({"a.csv": "file,text\nx,y\n"}, "column path is missing; got: file, text"),
        ({"a.csv": "path,text\n"}, "no rows"),
        ({"a.csv": "path,text\n,hello\n"}, "line 2: the path is empty"),
        ({"train.tsv": "season\tepisode\tclip\ttext\tintent\n"}, "expected the tab separated columns .* got: season"),
        ({"train.tsv": MINTREC_HEADER}, "split train has no rows"),
        ({"train.tsv": MINTREC_HEADER + "S\tE\t1\tJoke\n"}, r"train.tsv, line 2: expected 5 fields .* got 4"),
        ({"train.tsv": MINTREC_HEADER + "S\tE\t1\thi\tGreat\n"}, "line 2: label 'Great' is not one of .* did you mean 'Greet'"),
        ({"train.tsv": ""}, "got: nothing"),
        ({"in-scope/train.tsv": "x"}, "splits are in subfolders; pass one of them: .*in-scope"),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_what_was_found(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)


def test_duplicate_keys_are_refused_across_splits(tmp_path):
    mintrec(tmp_path, train=["S\tE\t1\ta\tJoke\n"], dev=["S\tE\t1\tb\tJoke\n"])
    with pytest.raises(DataError, match=r"key S_E_1 occurs twice \(train and dev\)"):
        load_dataset(tmp_path)


def test_missing_folder_and_foreign_encoding_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load_dataset(tmp_path / "nowhere")
    (tmp_path / "train.tsv").write_bytes(MINTREC_HEADER.encode() + "S\tE\t1\tcaf\xe9\tJoke\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_dataset(tmp_path)
