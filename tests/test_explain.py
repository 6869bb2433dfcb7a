"""explain.py on a trained checkpoint: one key, a whole split that continues, a clip of one's own, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from media_files import write_clip
from toy_training import INTENTS, ROWS, Done, call, key_of, read_lines, write_llama, write_store, write_world

import classifier
import explain
from imagebind_llm.labels import MINTREC


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a LLaMA, data, embeddings and an epoch of training."""
    return write_world(tmp_path_factory.mktemp("world"))


def answers(world: Path, **flags: object) -> Done:
    return call(explain.main, checkpoint=world / "run" / "best", max_new_tokens=4, device="cpu", **flags)


def data_of(world: Path) -> dict[str, object]:
    return {"data_path": world / "MIntRec", "emb_path": world / "emb"}


def intent_in(page: str) -> str:
    """The intent that a printed answer begins with."""
    first = page.splitlines()[0]
    assert first.startswith("Intent:  "), page
    return first.removeprefix("Intent:").strip().rpartition(" (")[0]


def test_one_key_is_explained_as_training_predicted_it(world):
    done = answers(world, **data_of(world), key=key_of("test", 1))
    assert done.code == 0, done.err
    predicted = read_lines(world / "run" / "predictions_test.jsonl")[1]
    assert intent_in(done.out) == predicted["predicted"]
    assert [line.split(":")[0] for line in done.out.splitlines() if line[:1].isalpha()][:3] == ["Intent", "Or", "Rationale"]
    assert f"Labelled:   {INTENTS[1]}" in done.out


def test_a_split_is_answered_line_by_line_and_continues(world, tmp_path):
    file = tmp_path / "answers.jsonl"
    done = answers(world, **data_of(world), batch=file)
    assert done.code == 0 and f"6 answers in {file}" in done.out
    rows = read_lines(file)
    assert [row["key"] for row in rows] == [key_of("test", i) for i in range(ROWS["test"])]
    assert [row["gold"] for row in rows] == [*INTENTS, *INTENTS] and all(row["intent"] in MINTREC.labels for row in rows)
    kept = [rows[0] | {"rationale": "kept"}, *rows[1:-1]]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept) + json.dumps(rows[-1])[:20])  # cut off in the last line
    assert answers(world, **data_of(world), batch=file).code == 0
    again = read_lines(file)
    assert again[:-1] == kept and again[-1]["key"] == rows[-1]["key"] and again[-1]["intent"] == rows[-1]["intent"]


def test_answers_of_another_model_are_moved_and_not_lost(world, tmp_path):
    file = tmp_path / "answers.jsonl"
    assert answers(world, **data_of(world), batch=file, limit=2).code == 0
    other = [row | {"model": "another"} for row in read_lines(file)]
    file.write_text("".join(json.dumps(row) + "\n" for row in other))
    done = answers(world, **data_of(world), batch=file, limit=2)
    assert done.code == 0 and "held 2 answers of another model" in done.out
    assert read_lines(tmp_path / "answers.old.jsonl") == other
    assert [row["key"] for row in read_lines(file)] == [
        key_of("test", i) for i in range(2)
    ] and "another" not in file.read_text()


def test_a_limit_answers_the_first_clips_of_a_split(world, tmp_path):
    done = answers(world, **data_of(world), batch=tmp_path / "few.jsonl", limit=2)
    assert done.code == 0 and "few (2 of 6)" in done.out
    assert [row["key"] for row in read_lines(tmp_path / "few.jsonl")] == [key_of("test", i) for i in range(2)]


def test_classifier_scores_what_a_checkpoint_writes_beside_references(world, tmp_path):
    shutil.copytree(world / "MIntRec", tmp_path / "MIntRec")
    table = tmp_path / "MIntRec" / "test.tsv"
    table.write_text(table.read_text().replace("say it", "say so"))  # no text of train's or dev's
    told = {"method": "itsl", "checkpoint": world / "run" / "best", "output_dir": tmp_path, "device": "cpu"}
    done = call(classifier.main, **(data_of(world) | {"data_path": tmp_path / "MIntRec"}), **told)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "results.json").read_text())["rationales"]
    blind = ["template of the gold intent", "template of the intents of explanations_0"]
    assert list(found) == ["reference", "reference, shuffled", blind[0], "explanations_0 (6 of 6)", blind[1]]
    assert found["reference"]["rouge_l"] == 1 > found["explanations_0 (6 of 6)"]["rouge_l"]
    assert "| explanations_0 (6 of 6) |" in done.out and "explanations_0" in (tmp_path / "report.html").read_text()
    assert [row["key"] for row in read_lines(tmp_path / "explanations_0.jsonl")] == [key_of("test", i) for i in range(6)]


def test_a_clip_of_ones_own_is_embedded_and_explained(world, tmp_path):
    write_clip(tmp_path / "own.mp4", seconds=0.6)
    done = answers(world, clip=tmp_path / "own.mp4", text="hello")
    assert done.code == 0, done.err
    assert intent_in(done.out) in MINTREC.labels and "not used" not in done.out
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    done = answers(world, clip=tmp_path / "bad.mp4", text="hello")
    assert done.code == 0 and "not used, vision: cannot be opened" in done.out, "its words alone are left"
    assert "gone.mp4: no such file" in refused(answers(world, clip=tmp_path / "gone.mp4", text="hello"))


def refused(done: Done) -> str:
    assert done.code == 2 and "Traceback" not in done.err and "explain.py: " in done.err, done.err
    return done.err


def test_what_does_not_belong_together_is_refused(world, tmp_path):
    key = {"key": key_of("test", 0)}
    said = refused(answers(world, **data_of(world), **key, llama_model_path=write_llama(tmp_path / "other", 4, seed=1)))
    assert "trained on another LLaMA of the same sizes" in said and "--llama_model_path" in said
    said = refused(answers(world, **data_of(world), **key, llama_model_path=write_llama(tmp_path / "deeper", 5)))
    assert "trained on a LLaMA of other sizes" in said
    foreign = write_store(tmp_path / "foreign", encoder="imagebind_huge")
    said = refused(answers(world, **data_of(world) | {"emb_path": foreign}, **key))
    assert "encoder: imagebind_huge, expected imagebind_tiny" in said and "avt_get_emb.py" in said


def test_what_is_not_there_is_refused(world):
    said = refused(answers(world, **data_of(world), key="S09_E01_1"))
    assert "no clip with the key S09_E01_1" in said
    said = refused(answers(world, data_path=world / "MIntRec", key=key_of("test", 0)))
    assert "pass --emb_path" in said and "avt_get_emb.py" in said
    said = refused(call(explain.main, checkpoint=world / "run", text="hello"))
    assert f"did you mean {world / 'run' / 'best'}?" in said
