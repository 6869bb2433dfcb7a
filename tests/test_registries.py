"""What is added in a line of a table works everywhere: a classifier, a data set with a layout of its own, a score."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_intents import toy_set
from toy_training import call, write_store

import classifier
from imagebind_llm import markdown, metrics
from imagebind_llm.check.datasets import check
from imagebind_llm.datasets import readers
from imagebind_llm.datasets.layouts import LAYOUTS, Layout
from imagebind_llm.explain import scoring
from imagebind_llm.intents.evaluation import Fitted
from imagebind_llm.intents.registry import METHODS, Entry
from imagebind_llm.taxonomy import Taxonomy

ROWS = {"train": 12, "dev": 6, "test": 6}
TOYS = Layout(
    "Toys",
    ("id", "utterance", "wish"),
    Taxonomy("Toys", ("play", "sleep", "eat")),
    key=lambda row: f"toy{row['id']}",
    clip=lambda row: f"{row['id']}.webm",
    text="utterance",
    label="wish",
)


def fit_commonest(protocol, modalities, settings, tick) -> Fitted:
    """Always the commonest intent of train; counts how often it is fitted."""
    counts = np.bincount(protocol.train.classes.numpy(), minlength=len(protocol.classes))
    tick()
    return Fitted(lambda rows: np.tile(counts / counts.sum(), (1, len(rows), 1)), (7,))


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_a_classifier_in_the_table_is_a_method_of_the_command(tmp_path, monkeypatch):
    data, emb = toy_set(tmp_path, {"train": 20, "dev": 8, "test": 12})
    given = {"data_path": data, "emb_path": emb, "method": "commonest", "ablate": ""}
    assert call(classifier.main, **given, output_dir=tmp_path / "before").code == 2
    monkeypatch.setitem(METHODS, "commonest", Entry(f"{__name__}:fit_commonest", each_subset=True))
    done = call(classifier.main, **given, output_dir=tmp_path / "out")
    assert done.code == 0, done.err
    found = results_of(tmp_path / "out")
    assert len(found["subsets"]) == 7 and found["settings"]["method"] == "commonest"
    rows = [line.split("\t") for line in (tmp_path / "out" / "predictions.tsv").read_text().splitlines()[1:]]
    assert len({row[4] for row in rows}) == 1 and len(rows) == 12 and {row[0] for row in rows} == {"7"}
    assert found["subsets"][-1]["scores"]["accuracy"]["mean"] == np.mean([row[3] == row[4] for row in rows])


@pytest.fixture
def toys(tmp_path, monkeypatch) -> Path:
    """A folder in the layout TOYS, which is in the table."""
    monkeypatch.setattr(readers, "LAYOUTS", [*LAYOUTS, TOYS])
    number = 0
    for split, count in ROWS.items():
        lines = ["id\tutterance\twish"]
        for i in range(count):
            lines.append(f"{number}\tsay {split} {i}\t{TOYS.taxonomy.labels[i % 3].upper()}")
            number += 1
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "raw_data").mkdir()
    return tmp_path


def test_a_layout_in_the_table_is_read_checked_and_evaluated(toys):
    dataset = readers.load_dataset(toys)
    assert (dataset.layout, dataset.taxonomy) == ("Toys", TOYS.taxonomy)
    example = dataset.splits["test"][1]
    assert (example.key, example.clip, example.intent) == ("toy19", toys / "raw_data" / "19.webm", "sleep")
    report = check(toys)
    assert report.facts["what"] == "Toys" and ("eat", "4", "2", "2") in report.intents
    store = write_store(toys / "emb", [example.key for example in dataset.examples])
    done = call(classifier.main, data_path=toys, emb_path=store, output_dir=toys / "out", seeds=0, epochs=2)
    assert done.code == 0, done.err
    assert results_of(toys / "out")["classes"] == ["play", "sleep", "eat"]


def test_a_layout_may_have_comma_separated_tables_of_any_name_and_keys_by_split(tmp_path, monkeypatch):
    numbers = Layout(
        "Numbers",
        ("Number", "Utterance", "Wish"),
        TOYS.taxonomy,
        key=lambda row: f"{row['split']}_{row['Number']}",
        clip=lambda row: f"{row['split']}_clips/{row['Number']}.mp4",
        text="Utterance",
        label="Wish",
        table="{split}_said.csv",
    )
    monkeypatch.setattr(readers, "LAYOUTS", [*LAYOUTS, numbers])
    for split in ("train", "dev"):
        (tmp_path / f"{split}_said.csv").write_text('Number,Utterance,Wish\n0,"no, not now",Sleep\n')
    (tmp_path / "raw_data").mkdir()
    train, dev = readers.load_dataset(tmp_path).examples
    assert (train.key, dev.key, dev.text, dev.intent) == ("train_0", "dev_0", "no, not now", "sleep")
    assert dev.clip == tmp_path / "raw_data" / "dev_clips" / "0.mp4"
    (tmp_path / "train_said.csv").write_text("Number\tUtterance\tWish\n")
    with pytest.raises(readers.DataError, match=r"expected the comma separated columns of .*Numbers: Number Utterance"):
        readers.load_dataset(tmp_path, ("train",))


def test_a_score_of_intents_in_the_table_is_among_the_scores(monkeypatch):
    gold, predicted = np.array([0, 1, 1, 2]), np.array([0, 0, 0, 2])
    errors = metrics.IntentScore("errors", lambda gold, predicted: np.sum(gold != predicted))
    monkeypatch.setitem(metrics.SCORES, "errors", errors)
    assert metrics.scores(gold, predicted)["errors"] == 2.0


def test_a_score_of_rationales_in_the_table_is_a_column(monkeypatch):
    longest = scoring.RationaleScore("longest", lambda compared: max(map(len, compared.candidates)), digits=0)
    monkeypatch.setitem(scoring.SCORES, "longest", longest)
    texts = [f"We see sign {i % 2} and hear a bell." for i in range(8)]
    rows = [scoring.Rationale(f"k{i}", ("play", "sleep")[i % 2], text) for i, text in enumerate(texts)]
    judges = scoring.Judges.fit(rows, replace(TOYS.taxonomy, labels=("play", "sleep")))
    found = scoring.score_rationales(texts, rows, judges)
    assert found["longest"] == len(texts[0]) and found["rouge_l"] == 1 and found["cue_precision"] is None
    header, _, line = markdown.table(*scoring.score_cells({"model": found})).splitlines()
    assert "| longest |" in header and f"| {len(texts[0])} |" in line
