"""explain.py on a trained checkpoint: one key, a whole split that continues, a clip of one's own, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from media_files import write_clip
from safetensors.torch import load_file, save_file
from toy_training import INTENTS, ROWS, Done, call, key_of, read_lines, write_judge, write_llama, write_store, write_world

import classifier
import explain
from imagebind_llm.config import MODALITIES
from imagebind_llm.critic.checked_claims import CheckedClaim
from imagebind_llm.explain import scoring
from imagebind_llm.intents import evaluation, methods
from imagebind_llm.itsl import assembly
from imagebind_llm.taxonomy import MINTREC


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


def test_with_a_judge_every_row_has_its_claims_checked_and_is_not_written_anew(world, tmp_path):
    file, judge = tmp_path / "answers.jsonl", write_judge(tmp_path / "judge", world / "emb")
    assert answers(world, **data_of(world), batch=file, limit=2).code == 0
    rows = [row | {"rationale": "We see a broad smile, and a deep frown; praise."} for row in read_lines(file)]
    assert not any("claims" in row for row in rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert answers(world, **data_of(world), batch=file, limit=2, judge=judge).code == 0
    again = read_lines(file)
    assert [row | {"claims": other["claims"]} for row, other in zip(rows, again, strict=True)] == again
    claims = [[CheckedClaim(**claim) for claim in row["claims"]] for row in again]
    said = [[rows[0]["rationale"][c.start : c.end] for c in own] for own in claims]
    assert said == [["We see a broad smile", "a deep frown"]] * 2
    assert claims[0] != claims[1] and all(0 <= c.p <= 1 and c.p != 0.5 for own in claims for c in own), "each of its own clip"


def test_one_answer_is_checked_where_a_judge_is_named_and_a_judge_that_is_not_there_is_refused(world, tmp_path):
    judge = write_judge(tmp_path / "judge", world / "emb")
    assert "Checked:    " in answers(world, **data_of(world), key=key_of("test", 1), judge=judge).out
    assert "Checked:" not in answers(world, **data_of(world), key=key_of("test", 1)).out
    said = refused(answers(world, **data_of(world), key=key_of("test", 1), judge=tmp_path / "none"))
    assert "no judge can be read" in said


def test_a_checkpoints_own_judge_is_no_reason_to_fail(world, tmp_path):
    """Embeddings in a store can be had without the weights of the encoder that made them."""
    folder = another_checkpoint(world, tmp_path)
    for path in write_judge(tmp_path / "judge", world / "emb").iterdir():
        shutil.copy(path, folder)
    flags = {"key": key_of("test", 1), "max_new_tokens": 4, "device": "cpu"} | data_of(world)
    assert "Checked:    " in call(explain.main, checkpoint=folder, **flags).out
    done = call(explain.main, checkpoint=folder, encoder_weights=tmp_path / "none", **flags)
    assert done.code == 0 and "claims are not checked: " in done.err and "Rationale:" in done.out


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


def test_moved_answers_are_never_overwritten(world, tmp_path):
    file = tmp_path / "answers.jsonl"
    assert answers(world, **data_of(world), batch=file, limit=2).code == 0
    mine = read_lines(file)
    for number, name in ((1, "old"), (2, "old2")):
        file.write_text("".join(json.dumps(row | {"model": f"another {number}"}) + "\n" for row in mine[:number]))
        with open(file, "a") as more:
            more.writelines(json.dumps(row) + "\n" for row in mine)
        assert answers(world, **data_of(world), batch=file, limit=2).code == 0
        assert f"another {number}" in (tmp_path / f"answers.{name}.jsonl").read_text()
        assert read_lines(file) == mine, "what this model wrote is kept"


@pytest.mark.parametrize("content", ["dev", "season\tepisode\n1\t2\n", "3\n", "no newline", b"\xff\xfe"], ids=repr)
def test_a_file_of_anything_but_this_splits_answers_is_refused_and_stays(world, content, tmp_path):
    file = tmp_path / "answers.jsonl"
    if content == "dev":
        assert answers(world, **data_of(world), batch=file, split="dev").code == 0
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = file.read_bytes()
    said = refused(answers(world, **data_of(world), batch=file, split="test"))
    assert f"{file}: " in said and "of its lines are no answers about clips of split test" in said
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_limit_answers_the_first_clips_of_a_split(world, tmp_path):
    done = answers(world, **data_of(world), batch=tmp_path / "few.jsonl", limit=2)
    assert done.code == 0 and "few (2 of 6)" in done.out
    assert [row["key"] for row in read_lines(tmp_path / "few.jsonl")] == [key_of("test", i) for i in range(2)]
    lines = (tmp_path / "few.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text(lines[1])
    done = answers(world, **data_of(world), batch=tmp_path / "few.jsonl", limit=1)
    assert done.code == 0 and (tmp_path / "few.jsonl").read_text() == "".join(lines), "what lies beyond the limit stays"


@pytest.mark.parametrize("left", [0, 1])
def test_too_few_rationales_to_judge_by_cost_scores_and_nothing_else(world, left, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "write_page", lambda *_: "")
    data = other_texts(world, tmp_path)
    rows = read_lines(data / "rationales.jsonl")
    train = [row for row in rows if row["key"].startswith("S01")][:left]
    kept = train + [row for row in rows if not row["key"].startswith("S01")]
    (data / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    said = f"a verifier needs train rationales of at least 2 intents, got {left} of {left}"
    done = answers(world, **data_of(world) | {"data_path": data}, batch=tmp_path / "answers.jsonl")
    assert done.code == 0 and "6 answers in" in done.out and said in done.out
    done = classified(world, data, tmp_path)
    assert done.code == 0 and said in done.out, done.err
    assert "rationales" in json.loads((tmp_path / "results.json").read_text())
    capture = call(lambda: scoring.main(["--data_path", str(data), "--candidates", str(tmp_path / "answers.jsonl")]))
    assert capture.code == 2 and said in capture.err


def other_texts(world: Path, root: Path) -> Path:
    """The data set with no text of train's or dev's in test."""
    shutil.copytree(world / "MIntRec", root / "MIntRec")
    table = root / "MIntRec" / "test.tsv"
    table.write_text(table.read_text().replace("say it", "say so"))
    return root / "MIntRec"


def classified(world: Path, data: Path, output: Path, *checkpoints: Path, **flags: object) -> Done:
    """classifier.py on checkpoints; the world's, if none is given."""
    folders = " ".join(map(str, checkpoints or [world / "run" / "best"]))
    told = {"method": "itsl", "checkpoint": folders, "output_dir": output, "device": "cpu"}
    return call(classifier.main, **(data_of(world) | {"data_path": data} | told | flags))


def another_checkpoint(world: Path, root: Path) -> Path:
    """One of another seed, with other prompts and a last norm of its own."""
    folder = shutil.copytree(world / "run" / "best", root / "another")
    info = json.loads((folder / "checkpoint.json").read_text())
    info["settings"]["seed"] = 1
    (folder / "checkpoint.json").write_text(json.dumps(info))
    tensors = {name: tensor + 0.3 for name, tensor in load_file(folder / "adapter.safetensors").items()}
    save_file(tensors | {"llama.norm.weight": torch.full((16,), 3.0)}, folder / "adapter.safetensors")
    return folder


def test_checkpoints_of_one_llama_load_it_once_and_answer_as_each_alone(world, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "write_page", lambda *_: "")
    monkeypatch.setattr(evaluation, "modality_subsets", lambda _: [("text",), MODALITIES])  # two of seven, for speed
    reads, read = [], assembly.load_llama
    monkeypatch.setattr(assembly, "load_llama", lambda *given: (reads.append(given), read(*given))[1])
    data, mine, other = other_texts(world, tmp_path), world / "run" / "best", another_checkpoint(world, tmp_path)
    done = classified(world, data, tmp_path / "both", mine, other, ablate="")
    assert done.code == 0 and len(reads) == 1, (len(reads), done.err)
    assert "explanations_0 (6 of 6)" in done.out and "explanations_1 (6 of 6)" in done.out
    tables = {name: predictions(tmp_path / name) for name in ("both",)}
    for name, folder in (("mine", mine), ("other", other)):
        assert classified(world, data, tmp_path / name, folder).code == 0
        tables[name] = predictions(tmp_path / name)
    assert tables["both"] == tables["mine"] + tables["other"]
    assert [row[2:] for row in tables["mine"]] != [row[2:] for row in tables["other"]]
    for seed, name in ((0, "mine"), (1, "other")):
        together, alone = (tmp_path / place / f"explanations_{seed}.jsonl" for place in ("both", name))
        assert together.read_text() == alone.read_text()


def predictions(folder: Path) -> list[list[str]]:
    with open(folder / "predictions.tsv", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


def test_what_classifier_cannot_do_is_said_before_a_llama_is_read(world, tmp_path, monkeypatch):
    def unread(*_):
        raise AssertionError("a LLaMA was read")

    monkeypatch.setattr(assembly, "load_llama", unread)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = other_texts(world, tmp_path)
    (tmp_path / "out").mkdir()
    cases = [
        ({"device": "cuda"}, "--device cuda: torch sees no CUDA device here"),
        ({"compare": tmp_path / "nowhere"}, "no predictions.tsv there"),
        ({"needed_modality": tmp_path / "nowhere"}, "no such file"),
    ]
    for flags, sentence in cases:
        done = classified(world, data, tmp_path / "out", **flags)
        assert done.code == 2 and done.err.splitlines()[-1].startswith("classifier.py: ") and sentence in done.err
    (tmp_path / "out" / "explanations_0.jsonl").write_text('{"key": "S02_E01_0"}\n')
    done = classified(world, data, tmp_path / "out")
    assert done.code == 2 and "1 of its lines are no answers about clips of split test" in done.err


def test_too_little_memory_on_the_device_is_said_with_what_to_lower(world, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(methods, "probabilities_of", full)
    done = classified(world, other_texts(world, tmp_path), tmp_path / "out")
    assert done.code == 2 and done.err.endswith("CUDA out of memory.; lower --batch_size, or pass --device cpu\n")
    monkeypatch.setattr(explain.Explainer, "explain", full)
    said = refused(answers(world, **data_of(world), batch=tmp_path / "answers.jsonl"))
    assert "CUDA out of memory.; lower --batch_size, or pass --device cpu" in said


def test_classifier_scores_what_a_checkpoint_writes_beside_references(world, tmp_path):
    done = classified(world, other_texts(world, tmp_path), tmp_path)
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
