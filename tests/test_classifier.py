"""classifier.py from the command to its three files: subsets, slices, comparison, the page, and every way it says no."""

import csv
import html
import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_intents import LABELS, WIDTH, key, rows_of, toy_set, vectors_of, write_store, write_tables

from imagebind_llm.config import MODALITIES, modality_subsets
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.demo_world import cues, published
from imagebind_llm.encoder.bpe import ClipBPE
from imagebind_llm.encoder.store import Store
from imagebind_llm.encoder.weights import CHECKPOINTS, file_sha256, load_imagebind
from imagebind_llm.intents.evaluation import (
    Predictions,
    ceilings,
    collect_results,
    evaluate_subsets,
    predictions_table,
    read_needed,
    score_summary,
    slices,
)
from imagebind_llm.intents.methods import fit_probe
from imagebind_llm.intents.protocol import load_protocol
from imagebind_llm.intents.report import PUBLISHED_F1, project
from imagebind_llm.intents.settings import ClassifierSettings
from imagebind_llm.taxonomy import MINTREC
from imagebind_llm.weight_files import WeightsError

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "data" / "demo")]
classifier, measure_leak = (importlib.import_module(name) for name in ("classifier", "measure_leak"))
ROWS = {"train": 320, "dev": 40, "test": 40}
TINY = CHECKPOINTS / "imagebind_tiny.safetensors"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> ClassifierSettings:
    root = tmp_path_factory.mktemp("toy")
    data, emb = toy_set(root, ROWS)
    return ClassifierSettings(str(data), str(emb), str(root / "out"), seeds=(0, 4), hidden=(32,), epochs=40)


@pytest.fixture(scope="module")
def ablation(toy):
    """A whole run in this process: its settings, its results.json and what lies in its folder."""
    settings = replace(toy, ablate=True, output_dir=str(Path(toy.output_dir) / "ablation"))
    classifier.run(settings)
    return settings, json.loads((Path(settings.output_dir) / "results.json").read_text())


def flags(settings: ClassifierSettings, *more: str) -> list[str]:
    where = ["--data_path", settings.data_path, "--emb_path", settings.emb_path, "--output_dir", settings.output_dir]
    return [*where, "--epochs", "3", "--hidden", "8", "--seeds", "0", *more]


def predictions(folder: str) -> list[dict[str, str]]:
    with open(Path(folder) / "predictions.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


# --- what a run writes


def test_all_seven_subsets_are_trained_and_masked(ablation):
    _, found = ablation
    assert [tuple(one["modalities"]) for one in found["subsets"]] == modality_subsets(MODALITIES)
    for one in found["subsets"]:
        assert len(one["scores"]["accuracy"]["values"]) == 2 and one["best_reachable"] is None
        low, high = one["scores"]["macro_f1"]["interval"]
        assert 0 <= low <= one["scores"]["macro_f1"]["mean"] <= high <= 1
        assert one["logistic_regression"]["accuracy"]["sd"] is None and len(one["epochs"]) == 2
    whole = found["subsets"][-1]
    assert whole["masked_in_test"] == whole["scores"]
    assert whole["scores"]["accuracy"]["mean"] > 0.6  # of four classes in turn
    assert found["subsets"][0]["masked_in_test"] != found["subsets"][0]["scores"]


def test_scores_are_those_of_the_answers_in_predictions_tsv(ablation):
    settings, found = ablation
    rows = predictions(settings.output_dir)
    assert len(rows) == 2 * 40 and [row["seed"] for row in rows] == ["0"] * 40 + ["4"] * 40
    scores = found["subsets"][-1]["scores"]
    right = [np.mean([row["gold"] == row["predicted"] for row in rows if row["seed"] == seed]) for seed in ("0", "4")]
    assert scores["accuracy"]["values"] == pytest.approx(right)
    for row in rows:
        p = {name: float(row[f"p({name})"]) for name in MINTREC.labels}
        assert (
            sum(p.values()) == pytest.approx(1, abs=2e-3) and float(row["confidence"]) == max(p.values()) == p[row["predicted"]]
        )
    assert {row["key"] for row in rows} == {key(row) for row in rows_of("test", 40)}
    assert np.array(found["confusion"]).sum() == pytest.approx(40)
    assert sum(one["rows"] for one in found["per_class"].values()) == 40


def test_the_page_stands_alone_and_says_what_the_numbers_say(ablation):
    settings, found = ablation
    page = (Path(settings.output_dir) / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)[a-z]+:', page) and "<script" not in page
    assert page.count("<img") == 6  # subsets, classes, confusion, reliability, selective, projection
    accuracy = f"{100 * found['subsets'][-1]['scores']['accuracy']['mean']:.1f}"
    assert accuracy in page and "text + audio + vision" in page
    wrong = [row for row in predictions(settings.output_dir) if row["gold"] != row["predicted"]]
    assert wrong and any(html.escape(row["text"]) in page for row in wrong)


def test_the_same_command_gives_the_same_bytes(toy, tmp_path):
    for name in ("one", "two"):
        classifier.run(replace(toy, output_dir=str(tmp_path / name)))
    for name in ("predictions.tsv",):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["subsets"] == two["subsets"] and one["confusion"] == two["confusion"]


def test_what_the_reported_rows_are_labelled_changes_no_answer(toy, tmp_path):
    """The strongest proof against a leak: gold labels of the reported split can be anything."""
    splits = {split: rows_of(split, n) for split, n in ROWS.items()}
    splits["test"] = [(*row[:4], LABELS[(i + 1) % 4]) for i, row in enumerate(splits["test"])]
    other = replace(toy, data_path=str(write_tables(tmp_path / "relabelled", splits)))
    ours, theirs = (evaluate_subsets(load_protocol(one), one, fit_probe)[0] for one in (toy, other))
    assert np.array_equal(ours.answers.probabilities, theirs.answers.probabilities)
    assert np.array_equal(ours.baseline.probabilities, theirs.baseline.probabilities)
    assert ours.epochs == theirs.epochs and not np.array_equal(ours.answers.gold, theirs.answers.gold)


def test_reported_vectors_change_the_answers_to_their_own_rows_alone(toy):
    """Scaling, training and the choice of an epoch see none of them."""
    protocol = load_protocol(toy)
    vectors = protocol.report.vectors.clone()
    vectors[:5] = 3 * torch.randn(5, 3, WIDTH, generator=torch.Generator().manual_seed(6))
    other = replace(protocol, report=replace(protocol.report, vectors=vectors))
    ours, theirs = (evaluate_subsets(one, toy, fit_probe)[0] for one in (protocol, other))
    assert ours.epochs == theirs.epochs
    for one, two in ((ours.answers, theirs.answers), (ours.baseline, theirs.baseline)):
        assert np.array_equal(one.probabilities[:, 5:], two.probabilities[:, 5:])
        assert not np.allclose(one.probabilities[:, :5], two.probabilities[:, :5])


def test_predictions_have_a_column_for_each_class_in_order(toy):
    protocol = load_protocol(toy)
    answers = evaluate_subsets(protocol, toy, fit_probe)[0]
    head = predictions_table(answers, protocol).splitlines()[0]
    assert head.split("\t")[6:] == [f"p({name})" for name in protocol.classes]
    assert score_summary(answers.baseline, protocol)["accuracy"]["mean"] > 0.6


def test_coarse_labels_are_a_task_of_their_own(toy):
    coarse = replace(toy, labels="coarse")
    protocol = load_protocol(coarse)
    scores = score_summary(evaluate_subsets(protocol, coarse, fit_probe)[0].answers, protocol)
    assert scores["accuracy"]["mean"] > 0.6 and "coarse_accuracy" not in scores


def test_coarse_scores_forgive_what_stays_in_the_class(toy):
    protocol = load_protocol(toy)
    gold = protocol.report.classes.numpy()  # Complain Praise Inform Leave in turn
    partner = {MINTREC.index(a): MINTREC.index(b) for a, b in (("Complain", "Praise"), ("Inform", "Leave"))}
    partner |= {b: a for a, b in partner.items()}
    confused = np.eye(20)[[partner[one] for one in gold]][None]
    scores = score_summary(Predictions(confused, gold), protocol)
    assert scores["accuracy"]["mean"] == 0 and scores["coarse_accuracy"]["mean"] == 1


# --- slices


def test_slices_partition_the_rows_and_follow_what_people_say(toy, tmp_path):
    rows = rows_of("test", 40)
    needs = {2: "Video", 3: "", 4: "Audio+Text"}
    table = tmp_path / "needed.tsv"
    body = "".join(f"S04\t{row[1]}\t{row[2]}\t{row[3]}\t{row[4]}\t{needs.get(i, 'Text')}\n" for i, row in enumerate(rows[:10]))
    table.write_text("season\tepisode\tclip\ttext\tlabel\tModality\n" + body)
    protocol = load_protocol(toy)
    found = slices(protocol, str(table))
    assert found["people need the text alone"].nonzero()[0].tolist() == [0, 1, 5, 6, 7, 8, 9]
    assert found["people need more, or something else"].nonzero()[0].tolist() == [2, 4]
    assert found["1 to 4 words"].all() and "5 to 8 words" not in found  # "words test number 7"
    assert found["text does not occur in training"].all() and "text occurs in training" not in found
    settings = replace(toy, needed_modality=str(table))
    numbers = collect_results(protocol, evaluate_subsets(protocol, settings, fit_probe), settings)["subsets"][0]["slices"]
    assert numbers["1 to 4 words"]["n"] == 40 and numbers["people need more, or something else"]["n"] == 2


def test_a_table_of_needs_that_cannot_be_meant_is_refused(toy, tmp_path):
    protocol = load_protocol(toy)
    with pytest.raises(DataError, match="no such file"):
        read_needed(tmp_path / "nowhere.tsv")
    (tmp_path / "bare.tsv").write_text("season\tepisode\tclip\nS04\tE1\t1\n")
    with pytest.raises(DataError, match=r"expected the tab separated columns .* got none called Modality"):
        read_needed(tmp_path / "bare.tsv")
    (tmp_path / "other.tsv").write_text("season\tepisode\tclip\tModality\nS09\tE1\t1\tText\n")
    with pytest.raises(DataError, match="none of its 1 clips is among the reported rows"):
        slices(protocol, str(tmp_path / "other.tsv"))


# --- beside another run


def test_a_run_is_compared_with_another_on_the_same_rows(ablation, tmp_path):
    settings, found = ablation
    text = replace(settings, ablate=False, modalities=("text",), compare=settings.output_dir, output_dir=str(tmp_path / "text"))
    classifier.run(text)
    comparison = json.loads((tmp_path / "text" / "results.json").read_text())["comparison"]
    whole, alone = (found["subsets"][i]["scores"]["accuracy"]["mean"] for i in (-1, 0))
    assert comparison["difference"]["accuracy"]["value"] == pytest.approx(alone - whole)
    ours, theirs = predictions(text.output_dir), predictions(settings.output_dir)
    for test, start in zip(comparison["mcnemar"], (0, 40), strict=True):
        pairs = [(a["predicted"] == a["gold"], b["predicted"] == b["gold"]) for a, b in zip(ours, theirs, strict=True)]
        own = pairs[start : start + 40]
        assert test["only_ours_right"] == own.count((True, False)) and test["only_theirs_right"] == own.count((False, True))
    assert "paired bootstrap p" in (tmp_path / "text" / "report.html").read_text()


def test_runs_on_other_rows_are_not_compared(ablation, toy, tmp_path):
    settings, _ = ablation
    dev = replace(toy, report_split="dev", select_split="none", compare=settings.output_dir, output_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"80 rows are not the same or not labelled the same in both runs"):
        classifier.run(dev)
    with pytest.raises(DataError, match=r"no predictions.tsv there"):
        classifier.run(replace(toy, compare=str(tmp_path / "nowhere")))
    assert not (tmp_path / "results.json").exists()


# --- zero-shot


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> ClassifierSettings:
    """Clips whose sound is embedded as the sentence of their label: zero-shot must be right on every one."""
    root = tmp_path_factory.mktemp("tiny")
    rows = rows_of("test", 12)
    sentences = load_imagebind(TINY, "imagebind_tiny").encode("text", ClipBPE().encode([row[4] for row in rows])).detach()
    vectors = torch.zeros(12, 3, sentences.shape[1])
    vectors[:, 1] = sentences
    present = torch.tensor([False, True, False]).expand(12, 3)
    identity = {"encoder": "imagebind_tiny", "weights_sha256": file_sha256(TINY)}
    emb = write_store(root / "emb", [key(row) for row in rows], vectors, present, **identity)
    data = write_tables(root / "data", {"test": rows})
    return ClassifierSettings(str(data), str(emb), str(root / "out"), method="zeroshot")


def test_zeroshot_needs_no_training_split_and_finds_the_nearest_sentence(tiny):
    classifier.run(tiny)
    found = json.loads((Path(tiny.output_dir) / "results.json").read_text())
    assert found["subsets"][0]["scores"]["accuracy"]["mean"] == 1
    assert found["subsets"][0]["logistic_regression"] is None
    assert not any("training" in name for name in found["subsets"][0]["slices"])
    assert len(predictions(tiny.output_dir)) == 12


def test_zeroshot_takes_the_encoder_that_made_the_store_and_no_other(tiny, toy, tmp_path):
    with pytest.raises(WeightsError, match=r"made by toy, width 8: their encoder is needed, expected one of imagebind_huge"):
        classifier.run(replace(toy, method="zeroshot"))
    narrow = {"encoder": "imagebind_tiny", "weights_sha256": file_sha256(TINY)}
    rows = rows_of("test", 12)
    emb = write_store(tmp_path / "narrow", [key(row) for row in rows], vectors_of(rows), **narrow)
    with pytest.raises(WeightsError, match=r"made by imagebind_tiny, width 8: .* \(width 1024\)"):
        classifier.run(replace(tiny, emb_path=str(emb)))
    other = Store(Path(tiny.emb_path))
    vectors, present = other.read(other.keys)
    emb = write_store(tmp_path / "other", other.keys, vectors, present, encoder="imagebind_tiny", weights_sha256="00ff")
    with pytest.raises(WeightsError, match=r"not the weights that made the embeddings \(sha256 00ff\.\.\.\)"):
        classifier.run(replace(tiny, emb_path=str(emb)))


def test_labels_of_ones_own_have_no_definitions_and_that_is_a_sentence(tmp_path, monkeypatch, capsys):
    keys = [f"k{i}" for i in range(4)]
    lines = [f"{key}.mp4,words {key},test,{label}" for key, label in zip(keys, ("yes", "no", "yes", "no"), strict=True)]
    (tmp_path / "own.csv").write_text("\n".join(["path,text,split,label", *lines]) + "\n")
    emb = write_store(tmp_path / "emb", keys, torch.randn(4, 3, WIDTH))
    settings = ClassifierSettings(str(tmp_path / "own.csv"), str(emb), str(tmp_path / "out"), method="zeroshot")
    monkeypatch.setattr(sys, "argv", ["c", *flags(settings, "--method", "zeroshot", "--sentences", "definitions")])
    assert classifier.main() == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "classifier.py: no definition of the label no, yes; use --sentences names"


# --- the command


def test_the_command_prints_the_table_and_writes_three_files(toy, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, classifier.__file__, *flags(replace(toy, output_dir=str(tmp_path / "out")))]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "text + audio + vision" in done.stdout and "macro F1" in done.stdout and "report.html" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "predictions.tsv", "report.html"}


def test_the_command_refuses_with_one_sentence(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["classifier.py", *flags(toy, "--train_splits", "train", "test")])
    with pytest.raises(SystemExit) as refused:
        classifier.main()
    assert refused.value.code == 2 and "what was remembered" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["classifier.py", *flags(replace(toy, emb_path=str(tmp_path / "nowhere")))])
    assert classifier.main() == 2
    assert capsys.readouterr().err.startswith(f"classifier.py: {tmp_path}/nowhere: no embedding store here")


# --- the demo world, and what a leak would be worth


def test_a_training_runs_folder_is_left_alone(toy, tmp_path, monkeypatch, capsys):
    (tmp_path / "last").mkdir()
    monkeypatch.setattr(sys, "argv", ["classifier.py", *flags(replace(toy, output_dir=str(tmp_path)))])
    assert classifier.main() == 2
    assert "holds a training run" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["last"]


def test_the_demo_worlds_ceilings_stand_beside_the_scores(toy, tmp_path):
    splits = {split: rows_of(split, n) for split, n in ROWS.items()}
    root = write_tables(tmp_path / "demo", splits)
    published.publish_tables(root)
    settings = replace(toy, data_path=str(root), ablate=True, modalities=("text", "vision"))
    protocol = load_protocol(settings)
    found = collect_results(protocol, evaluate_subsets(protocol, settings, fit_probe), settings)
    assert [one["best_reachable"] for one in found["subsets"]] == [
        cues.bayes_accuracy(subset) for subset in (("text",), ("vision",), ("text", "vision"))
    ]
    (root / "ceilings.json").write_text("[0.5]")
    with pytest.raises(DataError, match=r"ceilings.json: expected \{"):
        ceilings(root)
    (root / "ceilings.json").unlink()
    assert not ceilings(root)


def test_a_leak_lifts_the_score_above_what_can_be_known(tmp_path):
    splits = {split: rows_of(split, n) for split, n in ROWS.items()}
    rows = [row for own in splits.values() for row in own]
    data = write_tables(tmp_path / "data", splits)
    noise = torch.randn(len(rows), 3, 64, generator=torch.Generator().manual_seed(1))  # nothing to be known
    emb = write_store(tmp_path / "emb", [key(row) for row in rows], noise)
    protocol = load_protocol(ClassifierSettings(str(data), str(emb), ""))
    settings = measure_leak.LeakSettings(str(data), str(emb), seeds=(0, 1), epochs=100)
    honest, chosen, trained = (
        measure_leak.test_accuracy(protocol, MODALITIES, *rule, settings)
        for rule in ((False, False), (False, True), (True, False))
    )
    assert honest < 0.45 and chosen >= honest and trained > 0.8
    table = measure_leak.measure(replace(settings, epochs=2))
    assert table.count("\n") == 6 and "| train and test train, dev chooses |" in table


def test_published_figures_name_every_intent_and_the_projection_every_row(toy):
    assert set(PUBLISHED_F1) == set(MINTREC.labels)
    protocol = load_protocol(toy)
    assert project(protocol.report, protocol.train).shape == (40, 2)
    assert protocol.store.identity.width == WIDTH
