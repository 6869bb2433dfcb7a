"""A split that is reported on is neither trained on nor selected on, under any name; what is missing is said or refused."""

from dataclasses import replace

import pytest
import torch
from toy_intents import WIDTH, key, rows_of, toy_set, vectors_of, write_store, write_tables

from imagebind_llm.corpus.seen import vector_marks
from imagebind_llm.datasets.readers import DataError, load_dataset
from imagebind_llm.encoder.store import PtFolders, Store, StoreError, export_pt
from imagebind_llm.flags import parse
from imagebind_llm.intents.protocol import episode_splits, load_protocol
from imagebind_llm.intents.settings import ClassifierSettings
from imagebind_llm.taxonomy import MINTREC


@pytest.fixture
def settings(tmp_path) -> ClassifierSettings:
    data, emb = toy_set(tmp_path)
    return ClassifierSettings(str(data), str(emb), str(tmp_path / "out"))


def with_rows(settings, tmp_path, splits, name="other"):
    """The settings for these rows and embeddings of their own."""
    data = write_tables(tmp_path / name, splits)
    rows = {key(row): row for own in splits.values() for row in own}
    emb = write_store(tmp_path / f"{name}_emb", list(rows), vectors_of(list(rows.values())))
    return replace(settings, data_path=str(data), emb_path=str(emb))


def three(n=40, **changed):
    return {split: rows_of(split, n) for split in ("train", "dev", "test")} | changed


# --- leaks by name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--train_splits", "train", "test"],
            "--report_split test is also in --train_splits: a score on rows that were trained on",
        ),
        (["--select_split", "test"], "--report_split test is also --select_split: the best of 100 looks"),
        (["--train_splits", "train", "dev"], "--select_split dev is also in --train_splits"),
        (["--method", "itsl", "--train_splits", "test"], "--report_split test is also in --train_splits"),
        (["--method", "itsl"], "--method itsl needs --checkpoint FOLDER"),
        (["--checkpoint", "runs/x"], "no other method takes one"),
        (["--seeds", "1", "1"], "--seeds 1 1: name each once"),
        (["--hidden", "0"], "at least 1"),
        (["--episode_fold", "5"], "0 to 4"),
    ],
)
def test_what_would_leak_or_cannot_be_meant_is_refused_with_the_reason(given, message, capsys):
    with pytest.raises(SystemExit):
        parse(ClassifierSettings, ["--data_path", "a", "--emb_path", "b", "--output_dir", "c", *given])
    assert message in capsys.readouterr().err


def test_there_is_no_flag_that_allows_it(capsys):
    with pytest.raises(SystemExit):
        parse(ClassifierSettings, ["--help"])
    page = capsys.readouterr().out
    assert not any(word in page for word in ("allow", "force", "ignore", "unsafe"))


def test_train_and_dev_may_train_together_where_nothing_selects(settings):
    protocol = load_protocol(replace(settings, train_splits=("train", "dev"), select_split="none"))
    assert (len(protocol.train), protocol.select, len(protocol.report)) == (100, None, 40)


# --- leaks by other names


def test_the_same_key_in_two_splits_is_refused(settings, tmp_path):
    splits = three()
    splits["train"] += splits["test"][:1]
    with pytest.raises(DataError, match="key S04_E0_2000 occurs twice"):
        load_protocol(with_rows(settings, tmp_path, splits))


def with_twins(settings, tmp_path, twins, modalities):
    """The settings for three splits and `twins`, (split, number of the test row, words): rows of other keys, words and text
    embeddings, whose `modalities` (1: sound, 2: picture) are a test row's."""
    splits = three()
    copies = {}
    for number, (split, of, words) in enumerate(twins):
        row = ("S04", "E0", str(9000 + number), words, splits["test"][of][4])
        copies[key(row)] = key(splits["test"][of])
        splits[split].append(row)
    rows = [row for own in splits.values() for row in own]
    keys, vectors = [key(row) for row in rows], vectors_of(rows)
    for twin, original in copies.items():
        vectors[keys.index(twin), modalities] = vectors[keys.index(original), modalities]
    data, emb = write_tables(tmp_path / "twin", splits), write_store(tmp_path / "twin_emb", keys, vectors)
    return replace(settings, data_path=str(data), emb_path=str(emb))


@pytest.mark.parametrize("modalities", [[1, 2], [1], [2]], ids=["both", "sound", "picture"])
@pytest.mark.parametrize("part", ["train", "dev"])
def test_a_clip_under_a_second_key_and_with_other_words_is_known_by_its_sound_or_picture(settings, tmp_path, part, modalities):
    name = {"train": "train", "dev": "select"}[part]
    with pytest.raises(
        DataError, match=rf"1 of 40 rows to report are also rows to {name}, by key, file or embedding \(S04_E3_2003\)"
    ):
        load_protocol(with_twins(settings, tmp_path, [(part, 3, "other words, written otherwise")], modalities))


def test_a_clip_that_is_copied_twice_is_known_as_well(settings, tmp_path):
    twins = [("train", 3, "other words"), ("train", 3, "other words still")]
    with pytest.raises(DataError, match=r"1 of 40 rows to report are also rows to train, .* \(S04_E3_2003\)"):
        load_protocol(with_twins(settings, tmp_path, twins, [1, 2]))


@pytest.mark.parametrize("modality", [1, 2])
def test_silence_and_black_frames_are_no_clips(settings, tmp_path, modality):
    """Two train clips of different pictures that sound alike are silent, and so is the test clip that sounds like them."""
    twins = [("train", 3, "other words"), ("train", 3, "and others")]
    assert len(load_protocol(with_twins(settings, tmp_path, twins, [modality])).report) == 40


def test_the_same_words_are_no_clip(settings, tmp_path):
    assert len(load_protocol(with_twins(settings, tmp_path, [("train", 3, "words test number 3")], [0])).report) == 40


def test_what_stands_in_an_absent_slot_is_no_mark():
    vectors, present = torch.ones(1, 3, WIDTH), torch.tensor([[True, True, False]])
    assert [set(marks) for marks in vector_marks(vectors, present)] == [{"sound"}]


def test_a_vector_that_is_absent_or_zero_is_no_clip(settings, tmp_path):
    splits = three()
    rows = [row for own in splits.values() for row in own]
    vectors, present = vectors_of(rows), torch.ones(len(rows), 3, dtype=torch.bool)
    train, test = (next(i for i, row in enumerate(rows) if row is splits[split][0]) for split in ("train", "test"))
    vectors[[train, test], 2], vectors[[train, test], 1] = vectors[train, 2].clone(), 0
    present[[train, test], 2] = False
    found = with_rows(settings, tmp_path, splits)
    emb = write_store(tmp_path / "absent_emb", [key(row) for row in rows], vectors, present)
    assert len(load_protocol(replace(found, emb_path=str(emb))).report) == 40


def test_a_file_under_two_names_is_known(settings, tmp_path):
    table = tmp_path / "list.csv"
    rows = [row for own in three().values() for row in own]
    split = {key(row): name for name, own in three().items() for row in own}
    lines = [f"{key(row)}.mp4,{row[3]},{split[key(row)]},{row[4]},{key(row)}" for row in rows]
    lines[0] = lines[0].replace(f"{key(rows[0])}.mp4", "again.mp4")
    table.write_text("path,text,split,label,key\n" + "\n".join(lines) + "\n")
    (tmp_path / "S04_E0_2000.mp4").write_bytes(b"")
    (tmp_path / "again.mp4").symlink_to(tmp_path / "S04_E0_2000.mp4")
    emb = write_store(tmp_path / "list_emb", [key(row) for row in rows], vectors_of(rows))
    with pytest.raises(DataError, match="also rows to train, by key, file or embedding"):
        load_protocol(replace(settings, data_path=str(table), emb_path=str(emb)))


@pytest.mark.parametrize("part", ["train", "dev"])
def test_a_copied_table_is_refused_though_every_key_is_new(settings, tmp_path, part):
    copied = [("S05", *row[1:3], f"{row[3].title()}!", row[4]) for row in rows_of("test", 40)]
    with pytest.raises(DataError, match=r"40 of 40 rows to report are also rows to \w+, by text and label"):
        load_protocol(with_rows(settings, tmp_path, three(**{part: copied})))


def test_a_text_said_again_is_no_leak_but_is_counted(settings, tmp_path):
    splits = three()
    splits["test"][2] = (*splits["test"][2][:3], "  Words TRAIN number 5 ", "Praise")
    splits["test"][7] = (*splits["test"][7][:3], "words dev number 5", "Praise")
    protocol = load_protocol(with_rows(settings, tmp_path, splits))
    assert protocol.repeated.nonzero()[0].tolist() == [2]
    assert "reported texts that occur in training too: 1 of 40 (2 with the rows that select)" in protocol.notes


# --- episodes


def test_split_by_episode_shares_no_episode_and_reports_every_row_once(settings):
    dataset = load_dataset(settings.data_path)
    reported = []
    for fold in range(5):
        splits = episode_splits(dataset, fold)
        episodes = [{one.key.rsplit("_", 1)[0] for one in rows} for rows in splits.values()]
        assert all(episodes) and not (episodes[0] & episodes[1] or episodes[0] & episodes[2] or episodes[1] & episodes[2])
        assert sum(map(len, splits.values())) == 140
        assert all(one.split == split for split, rows in splits.items() for one in rows)
        reported += [one.key for one in splits["test"]]
    assert sorted(reported) == sorted(one.key for one in dataset.examples)
    assert episode_splits(dataset, 0) == episode_splits(dataset, 0)


def test_split_by_episode_is_for_data_with_episodes(settings, tmp_path):
    (tmp_path / "list.csv").write_text("path,text,split,label\na.mp4,hello,train,Praise\n")
    with pytest.raises(DataError, match="--split_by episode is for MIntRec"):
        load_protocol(replace(settings, data_path=str(tmp_path / "list.csv"), split_by="episode"))
    few = {split: [("S04", "E0", *row[2:]) for row in rows] for split, rows in three().items()}
    with pytest.raises(DataError, match="at least 5 episodes, got 1"):
        load_protocol(replace(with_rows(settings, tmp_path, few), split_by="episode"))


# --- labels


def test_fine_and_coarse_labels(settings):
    fine = load_protocol(settings)
    assert fine.classes == MINTREC.labels
    assert [fine.classes[i] for i in fine.report.classes] == [one.intent for one in fine.report.examples]
    assert (fine.coarse == 0).sum() == 11 and fine.coarse[MINTREC.labels.index("Leave")] == 1
    coarse = load_protocol(replace(settings, labels="coarse"))
    assert coarse.classes == ("Express emotions or attitudes", "Achieve goals")
    assert coarse.report.classes[:4].tolist() == [0, 0, 1, 1]  # Complain Praise Inform Leave


def test_a_table_of_ones_own_has_labels_of_its_own(settings, tmp_path):
    rows = [row for own in three().values() for row in own]
    split = {key(row): name for name, own in three().items() for row in own}
    own = {"Complain": "zeta", "Praise": "alpha", "Inform": "beta", "Leave": "gamma"}
    lines = [f"{key(row)}.mp4,{row[3]},{split[key(row)]},{own[row[4]]}" for row in rows]
    (tmp_path / "list.csv").write_text("path,text,split,label\n" + "\n".join(lines) + "\n")
    emb = write_store(tmp_path / "own_emb", [key(row) for row in rows], vectors_of(rows))
    own = replace(settings, data_path=str(tmp_path / "list.csv"), emb_path=str(emb))
    protocol = load_protocol(own)
    assert protocol.classes == ("alpha", "beta", "gamma", "zeta") and protocol.coarse is None
    with pytest.raises(DataError, match="no coarse classes"):
        load_protocol(replace(own, labels="coarse"))
    (tmp_path / "list.csv").write_text("path,text,split,label\n" + "\n".join([*lines[:-1], lines[-1][:-5]]) + "\n")
    with pytest.raises(DataError, match=r"1 of 120 rows have no label \(S04_E4_2039\)"):
        load_protocol(own)


def test_out_of_scope_is_a_class_of_its_own_and_has_no_coarse_one(settings, tmp_path):
    root = tmp_path / "m2"
    root.mkdir()
    keys = []
    for d, split in enumerate(("train", "dev", "test")):
        keys += [f"dia{d}_utt{i}" for i in range(12)]
        body = [f"{d}\t{i}\tsaid {d} {i}\t{('Doubt', 'Warn', 'UNK')[i % 3]}\n" for i in range(12)]
        (root / f"{split}.tsv").write_text("Dialogue_id\tUtterance_id\tText\tLabel\n" + "".join(body))
    emb = write_store(tmp_path / "m2_emb", keys, torch.randn(36, 3, WIDTH))
    total = replace(settings, data_path=str(root), emb_path=str(emb))
    protocol = load_protocol(total)
    assert len(protocol.classes) == 31 and protocol.classes[30] == "UNK" and protocol.report.classes.max() == 30
    with pytest.raises(DataError, match="UNK has no coarse class"):
        load_protocol(replace(total, labels="coarse"))


def test_labels_of_another_taxonomy_are_refused(settings, tmp_path):
    splits = three()
    splits["test"][0] = (*splits["test"][0][:4], "Doubt")
    with pytest.raises(DataError, match=r"test.tsv, line 2: label 'Doubt' is not one of MIntRec's 20 intents"):
        load_protocol(replace(settings, data_path=str(write_tables(tmp_path / "doubt", splits))))


def test_a_class_that_was_never_trained_on_is_refused_and_one_never_asked_for_is_said(settings, tmp_path):
    splits = three()
    splits["test"][1] = (*splits["test"][1][:4], "Joke")
    with pytest.raises(DataError, match=r"no training row has the label Joke \(1 rows\) of the rows to report"):
        load_protocol(with_rows(settings, tmp_path, splits))
    splits = three(dev=[row for row in rows_of("dev", 40) if row[4] != "Leave"])
    notes = load_protocol(with_rows(settings, tmp_path, splits, "leave")).notes
    assert any(note.startswith("classes without a row to select") and "Leave" in note for note in notes)


def test_one_class_alone_is_refused(settings, tmp_path):
    splits = {split: [(*row[:4], "Praise") for row in rows] for split, rows in three().items()}
    with pytest.raises(DataError, match="all 40 training rows are Praise: one class leaves nothing to tell apart"):
        load_protocol(with_rows(settings, tmp_path, splits))


def test_a_split_that_is_not_there_is_named(settings, tmp_path):
    with pytest.raises(DataError, match="no split valid here; there are: train, dev, test"):
        load_protocol(replace(settings, report_split="valid"))
    splits = three()
    del splits["dev"]
    with pytest.raises(DataError, match="no split dev here; there are: train, test; --select_split none keeps"):
        load_protocol(with_rows(settings, tmp_path, splits))


# --- embeddings


def test_few_missing_rows_are_listed_and_reported_as_unknown(settings, tmp_path):
    rows = [row for split, n in {"train": 60, "dev": 40, "test": 40}.items() for row in rows_of(split, n)]
    kept = [row for row in rows if row[2] not in ("3", "2001", "2002")]
    emb = write_store(tmp_path / "gaps", [key(row) for row in kept], vectors_of(kept))
    protocol = load_protocol(replace(settings, emb_path=str(emb)))
    assert protocol.missing == ["S04_E1_2001", "S04_E2_2002", "S04_E3_3"]
    assert len(protocol.train) == 59 and len(protocol.report) == 40
    assert not protocol.report.present[1:3].any() and protocol.report.present[3:].all()
    assert protocol.notes[1].startswith("no embedding for 3 rows (S04_E1_2001, S04_E2_2002, S04_E3_3; all in results.json)")


def test_more_than_a_tenth_missing_stops_with_the_command(settings, tmp_path):
    rows = [row for split, n in {"train": 60, "dev": 40, "test": 35}.items() for row in rows_of(split, n)]
    emb = write_store(tmp_path / "gaps", [key(row) for row in rows], vectors_of(rows))
    with pytest.raises(StoreError, match=r"no embedding for 5 of the 40 rows to report .*avt_get_emb.py --data_path"):
        load_protocol(replace(settings, emb_path=str(emb)))


def test_embeddings_that_are_not_finite_are_named(settings, tmp_path):
    rows = [row for split, n in {"train": 60, "dev": 40, "test": 40}.items() for row in rows_of(split, n)]
    vectors = vectors_of(rows)
    vectors[4, 1, 2] = float("nan")
    emb = write_store(tmp_path / "nan", [key(row) for row in rows], vectors)
    with pytest.raises(StoreError, match=r"of 1 clips are not finite \(S04_E4_4\); rebuild with: .*--overwrite"):
        load_protocol(replace(settings, emb_path=str(emb)))


def test_modalities_that_were_never_embedded_are_named(settings, tmp_path):
    rows = [row for split, n in {"train": 60, "dev": 40, "test": 40}.items() for row in rows_of(split, n)]
    present = torch.tensor([True, False, False]).expand(len(rows), 3)
    emb = write_store(tmp_path / "texts", [key(row) for row in rows], vectors_of(rows), present, modalities=("text",))
    texts = replace(settings, emb_path=str(emb))
    with pytest.raises(
        StoreError, match=r"made with --modalities text, this run needs audio vision too; give --modalities text"
    ):
        load_protocol(texts)
    assert len(load_protocol(replace(texts, modalities=("text",))).report) == 40


def test_absent_modalities_of_reported_rows_are_counted(settings, tmp_path):
    rows = [row for split, n in {"train": 60, "dev": 40, "test": 40}.items() for row in rows_of(split, n)]
    present = torch.ones(len(rows), 3, dtype=torch.bool)
    present[-3:, 1] = False
    emb = write_store(tmp_path / "mute", [key(row) for row in rows], vectors_of(rows), present)
    notes = load_protocol(replace(settings, emb_path=str(emb))).notes
    assert "reported rows without a modality (it counts as absent): audio 3" in notes


def test_masked_rows_are_rows_whose_other_modalities_are_absent(settings):
    report = load_protocol(settings).report
    masked = report.only(("audio",))
    assert masked.present.tolist() == [[False, True, False]] * 40
    assert torch.equal(masked.vectors[:, 1], report.vectors[:, 1]) and (masked.vectors[:, [0, 2]] == 0).all()


# --- the original's layout


def exported(settings, tmp_path):
    dataset, store = load_dataset(settings.data_path), Store(settings.emb_path)
    for split, rows in dataset.splits.items():
        export_pt(store, [one.key for one in rows], tmp_path / "pt" / f"{split}_emb")
    return replace(settings, emb_path=str(tmp_path / "pt"))


def test_the_originals_files_give_the_rows_of_the_store(settings, tmp_path):
    ours, theirs = load_protocol(settings), load_protocol(exported(settings, tmp_path))
    for one, other in ((ours.train, theirs.train), (ours.select, theirs.select), (ours.report, theirs.report)):
        assert torch.equal(one.vectors, other.vectors) and torch.equal(one.present, other.present)
        assert [row.key for row in one.examples] == [row.key for row in other.examples]


def test_the_originals_files_follow_their_rows_when_split_by_episode(settings, tmp_path):
    by_episode = replace(settings, split_by="episode")
    ours, theirs = load_protocol(by_episode), load_protocol(replace(exported(settings, tmp_path), split_by="episode"))
    assert torch.equal(ours.report.vectors, theirs.report.vectors)


def test_a_zero_vector_in_the_originals_files_is_an_absent_modality(settings, tmp_path):
    pt = exported(settings, tmp_path)
    torch.save([torch.ones(1, WIDTH), torch.zeros(1, WIDTH), torch.ones(1, WIDTH)], tmp_path / "pt" / "test_emb" / "2.pt")
    assert load_protocol(pt).report.present[2].tolist() == [
        True,
        True,
        False,
    ]  # text, vision, audio there; text, audio, vision here


def test_the_originals_files_are_refused_where_they_cannot_be_meant(settings, tmp_path):
    pt = exported(settings, tmp_path)
    folder = tmp_path / "pt" / "test_emb"
    (folder / "40.pt").write_bytes((folder / "0.pt").read_bytes())
    with pytest.raises(StoreError, match=r"expected 0.pt to 39.pt, one per row of test, got also 40.pt"):
        load_protocol(pt)
    (folder / "40.pt").unlink()
    torch.save([torch.ones(1, 5)] * 3, folder / "1.pt")
    with pytest.raises(StoreError, match=r"1.pt: expected vectors of width 8 as in the first file, got 5"):
        load_protocol(pt)
    for damage in (b"", b"not a file of torch", (folder / "0.pt").read_bytes()[:200]):
        (folder / "1.pt").write_bytes(damage)
        with pytest.raises(StoreError, match=r"1.pt: expected \[text, vision, audio\], each \(1, E\)"):
            load_protocol(pt)
    torch.save({"text": torch.ones(3)}, folder / "1.pt")
    with pytest.raises(StoreError, match="expected"):
        load_protocol(pt)
    with pytest.raises(StoreError, match=r"no train_emb/0\.pt here"):
        PtFolders(tmp_path, {"train": ["a"]})
    with pytest.raises(StoreError, match="no embedding store here"):
        load_protocol(replace(settings, emb_path=str(tmp_path / "nowhere")))
