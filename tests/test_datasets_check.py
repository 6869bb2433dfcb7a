"""python -m imagebind_llm.check: everything that is wrong is listed, at once, and only what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from media_files import write_clip

from imagebind_llm.check.__main__ import main
from imagebind_llm.check.datasets import INTENTS, ROWS, Report, check
from imagebind_llm.datasets.readers import SPLITS, DataError, load_dataset
from imagebind_llm.taxonomy import MINTREC

HEADER = "season\tepisode\tclip\ttext\tlabel\n"


def write_rows(root: Path, split: str, *rows: str) -> None:
    root.mkdir(exist_ok=True)
    (root / f"{split}.tsv").write_text(HEADER + "".join("\t".join(row.split("|")) + "\n" for row in rows))


def clip_of(root: Path, key: str) -> Path:
    path = root / "raw_data" / Path(*key.split("_")).with_suffix(".mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def good(tmp_path) -> Path:
    """A MIntRec folder without a fault: a row and a clip in each split."""
    root = tmp_path / "MIntRec"
    for number, split in enumerate(SPLITS):
        write_rows(root, split, f"S04|E11|{204 + number}|utterance {number}|Praise")
        write_clip(clip_of(root, f"S04_E11_{204 + number}"), seconds=0.4, seed=number)
    return root


def found(report: Report, kind: str) -> dict[str, tuple[str, ...]]:
    return {finding.what: finding.where for finding in report.findings if finding.kind == kind}


def test_official_counts_agree_with_each_other_and_with_the_taxonomy():
    assert set(INTENTS["MIntRec"]) == set(MINTREC.labels)
    assert [sum(column) for column in zip(*INTENTS["MIntRec"].values(), strict=True)] == list(ROWS["MIntRec"].values())
    assert sum(ROWS["MIntRec"].values()) == 2224 and sum(ROWS["MIntRec2.0"].values()) == 9304


def test_a_good_folder_is_usable_and_the_next_command_is_named(good):
    report = check(good)
    assert (report.exit_code, found(report, "loss"), found(report, "problem")) == (0, {}, {})
    assert report.facts["rows"] == "train 1 (official: 1334), dev 1 (official: 445), test 1 (official: 445)"
    assert report.facts["clips"].startswith("3 of 3 can be opened; 0.4")
    assert ("Praise", "1 (127)", "1 (43)", "1 (43)") in report.intents
    assert list(found(report, "note")) == [
        "not the official MIntRec (train, dev, test): no result compares with the published ones"
    ]
    assert report.next_step == f"python avt_get_emb.py --data_path {good} --output_dir runs/mintrec/emb"
    assert "usable      yes\n" in report.text()


def test_what_is_lost_is_listed_and_nothing_stops(good):
    write_rows(good, "train", *(f"S04|E11|{n}|thank you|Thank" for n in range(1, 6)), "S04|E11|6||Thank")
    clip_of(good, "S04_E11_2").write_bytes(b"not a video")
    write_clip(clip_of(good, "S04_E11_3"), seconds=0.4, audio=False)
    write_clip(clip_of(good, "S04_E11_4"), seconds=0.4, video=False)
    index_first = {"movflags": "faststart"}  # a download that stopped opens like a whole file
    write_clip(clip_of(good, "S04_E11_5"), seconds=0.4, container_options=index_first)
    clip_of(good, "S04_E11_6").write_bytes(clip_of(good, "S04_E11_5").read_bytes()[:-2000])
    write_rows(good, "test", "S04|E11|206|Thank  you|Praise")
    (good / "rationales.jsonl").write_text(
        json.dumps({"key": "S04_E11_1", "rationale": "why"}) + '\n{"key": "x", "rationale": ""}'
    )
    report = check(good)
    loss = {what: [place.split(": ")[0] for place in where] for what, where in found(report, "loss").items()}
    assert report.exit_code == 1
    assert loss == {
        "no row in train has the intent Praise: it is never named; classifier.py refuses that": [],
        "1 of 8 clips are not there: their rows keep their words alone": ["S04_E11_1"],
        "2 of 8 clips cannot be read: their rows keep their words alone": ["S04_E11_2", "S04_E11_6"],
        "1 of 8 clips have no sound": ["S04_E11_3"],
        "1 of 8 clips have no picture": ["S04_E11_4"],
        "1 rows have no words": ["S04_E11_6"],
    }
    note = found(report, "note")
    assert note["1 clips that no row names"] == (str(clip_of(good, "S04_E11_204")),)
    assert note["1 of 1 texts of test occur in train too"] == ("S04_E11_206: Thank  you",)
    assert note["1 rationales of keys that no row has"] == ("x",)
    assert report.facts["rationales"] == "train 1 of 6, dev 0 of 1, test 0 of 1"
    load_dataset(good)  # what is only lost, the commands accept


def test_every_problem_is_listed_that_the_reader_stops_at_the_first_of(good):
    write_rows(good, "train", "S04|E11|1|a|Great", "S04|E11|2|b", "S04|E11|3|c|Joke", "S04|E11|205|d|Joke")
    (good / "test.tsv").write_text("season\tepisode\tclip\ttext\tintent\nS\tE\t1\ta\tJoke\n")
    report = check(good)
    assert report.exit_code == 2 and report.next_step == f"python -m imagebind_llm.check {good}"
    problems = [(what, where[0]) for what, where in found(report, "problem").items()]
    assert [what for what, _ in problems] == [
        "labels outside the taxonomy",
        "rows that are malformed",
        "2 a table that cannot be read as it is",
        "keys that occur twice",
    ]
    said = " ".join(where for _, where in problems)
    assert "train.tsv, line 2: label 'Great' is not one of" in said and "train.tsv, line 3: expected 5 fields" in said
    assert "test.tsv: column label is missing" in said and "key S04_E11_205 occurs twice (train and dev)" in said
    with pytest.raises(DataError, match=rf"line 2: label 'Great'(.|\n)*python -m imagebind_llm.check {good}"):
        load_dataset(good)


def test_nothing_to_read_is_a_problem_with_the_readers_words(tmp_path):
    write_rows(tmp_path / "in-scope", "train", "S|E|1|a|Joke")
    ((what, _),) = found(check(tmp_path), "problem").items()
    assert f"the splits are in subfolders; pass one of them: {tmp_path / 'in-scope'}" in what
    ((what, _),) = found(check(tmp_path / "nowhere"), "problem").items()
    assert "no such file or folder" in what


def test_words_without_clips_are_usable_for_their_words(good):
    (good / "raw_data").rename(good / "videos")
    report = check(good)
    ((what, _),) = found(report, "loss").items()
    assert "there are videos" in what and "must be called raw_data" in what
    assert report.exit_code == 1 and "engine_finetune.py" in report.next_step and "--modalities none" in report.next_step


def test_out_of_scope_rows_are_told_apart(tmp_path):
    (tmp_path / "raw_data").mkdir()
    write_clip(tmp_path / "raw_data" / "dia0_utt1.mp4", seconds=0.4)
    total = tmp_path / "total"
    total.mkdir()
    for split, label in (("train", "UNK"), ("dev", "Doubt"), ("test", "Doubt")):
        row = f"{len(label)}{split}\t1\thm {split}\t{label}\n".replace("3train", "0")
        (total / f"{split}.tsv").write_text("Dialogue_id\tUtterance_id\tText\tLabel\n" + row)
    report = check(total)
    assert report.facts["clips in"] == str(tmp_path / "raw_data") and report.facts["clips"].startswith("1 of 3")
    assert "1 rows are out of scope: engine_finetune.py takes the in-scope release only" in found(report, "loss")


def test_a_plain_table_names_its_clips_and_lacks_labels(tmp_path):
    write_clip(tmp_path / "a.mp4", seconds=0.4)
    (tmp_path / "list.csv").write_text("path,text,key\na.mp4,hello,1\na.mp4,hello there,2\n")
    report = check(tmp_path)
    assert report.exit_code == 0 and report.facts["rows"] == "all 2"
    assert list(found(report, "note")) == [
        "2 rows have no label: they can be embedded and explained, not trained on or scored",
        "1 rows name the clip of another row",
    ]


def test_long_lists_are_cut_unless_asked(good, capsys):
    write_rows(good, "train", *(f"S04|E11|{n}|text {n}|Praise" for n in range(1, 10)))
    assert main([str(good)]) == 1
    out = capsys.readouterr().out
    assert out.count("/raw_data/S04/E11/") == 6 and "and 4 more (--all names them)" in out  # 5 missing, 1 unnamed
    assert main([str(good), "--all"]) == 1
    assert capsys.readouterr().out.count("/raw_data/S04/E11/") == 10
    assert main([]) == 2 and main(["--help"]) == 0
    assert "exit code 0" in capsys.readouterr().out


def test_module_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "imagebind_llm.check", str(tmp_path / "absent")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "usable      no" in result.stdout, result.stderr
