"""A checkpoint carries what every stage of its training saw; no report goes around it, wherever the data are by then."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from toy_training import (
    CUES,
    INTENTS,
    ROWS,
    TOKENIZER,
    Done,
    call,
    key_of,
    read_lines,
    write_intents,
    write_llama,
    write_store,
)

import classifier
import engine_finetune
import explain
from imagebind_llm.corpus.seen import (
    Stage,
    joined,
    json_example,
    keys_seen,
    read_stages,
    row_key,
    row_marks,
    save_stages,
    summary,
)
from imagebind_llm.corpus.sequences import load_corpus
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.encoder.store import Store, StoreWriter
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.checkpoint import CheckpointError
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.records import Example
from imagebind_llm.training.settings import TrainSettings

SMALL = {"epochs": 1, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4, "adapter_layer": 2, "adapter_len": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A LLaMA, intents and their embeddings."""
    root = tmp_path_factory.mktemp("world")
    write_llama(root / "LLAMA", 4)
    write_intents(root / "MIntRec")
    write_store(root / "emb")
    return root


def train(world: Path, out: Path, **flags: object) -> Done:
    places = {"emb_path": world / "emb", "llama_model_path": world / "LLAMA", "output_dir": out}
    return call(engine_finetune.main, **SMALL | places | flags)


def report(world: Path, folder: Path, out: Path, **flags: object) -> Done:
    """classifier.py on the test split."""
    data = {"data_path": world / "MIntRec", "emb_path": world / "emb"} | flags
    return call(classifier.main, **data, method="itsl", checkpoint=folder, output_dir=out, device="cpu")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def renamed(world: Path, root: Path, names: dict[str, str]) -> Path:
    """The world's store, and in it under other keys (new -> old) clips that it has."""
    store = Store(world / "emb")
    with StoreWriter(root, store.identity) as writer:
        for keys, read in ((store.keys, store.keys), (list(names), list(names.values()))):
            writer.append(keys, *store.read(read), list(range(len(keys))))
    return root


def clip_rows(split: str, name: str = "{}.mp4", text: str = "say it {}") -> list[dict]:
    """Rows of a JSON about the clips of a split, all to be trained on."""
    return [
        {"clip": name.format(key_of(split, i)), "instruction": "Why?", "input": text.format(i), "intent": INTENTS[i % 3]}
        for i in range(ROWS[split])
    ]


# --- the key of a row


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"clip": "x.mp4"}, "x"),
        ({"clip": "a/x.tar.mp4"}, "a/x.tar"),
        ({"clip": "x.mp4", "key": "y.mp4"}, "y.mp4"),
        ({"instruction": "?"}, None),
    ],
)
def test_the_guard_and_training_call_a_row_by_one_key(row, key, tmp_path):
    assert row_key(row) == key and json_example(row).key == (key or "")
    path = write_rows(tmp_path / "rows.json", [row | {"instruction": "?", "output": "!"}])
    corpus = load_corpus(TrainSettings(str(path), modalities=("none",)).corpus, load_tokenizer(TOKENIZER), 128)
    assert corpus.splits["train"][0].key == (key or "row 0")


def test_a_model_that_was_trained_on_test_clips_by_their_file_names_is_not_reported_though_its_data_are_gone(world, tmp_path):
    path = write_rows(tmp_path / "leak.json", [row | {"input": f"none {i}"} for i, row in enumerate(clip_rows("test"))])
    done = train(world, tmp_path / "run", data_path=path)
    assert done.code == 0, done.err
    path.unlink()
    done = report(world, tmp_path / "run" / "best", tmp_path / "out")
    assert done.code == 2 and f"6 of the 6 rows to report are rows of {path} that it was trained or chosen on" in done.err
    info = json.loads((tmp_path / "run" / "best" / "checkpoint.json").read_text())
    assert info["chain"] == [{"data": str(path), "trained_keys": 6, "chosen_keys": 0, "unknown": ""}]


# --- every stage


@pytest.fixture(scope="module")
def chain(world, tmp_path_factory) -> tuple[Path, Path]:
    """A model whose first stage saw captions of test clips under other names, its store without any of the names left."""
    root = tmp_path_factory.mktemp("chain")
    names = {f"film_{i}": key_of("test", i) for i in range(4)}
    captions = [{"key": name, "caption": f"Face: {CUES['Greet']}."} for name in names]
    flags = {"data_path": write_rows(root / "captions.json", captions), "emb_path": renamed(world, root / "emb", names)}
    done = train(world, root / "first", **flags, stage="pretrain")
    assert done.code == 0, done.err
    data = shutil.copytree(world / "MIntRec", root / "MIntRec")
    (data / "test.tsv").unlink()  # else training itself refuses
    done = train(world, root / "second", data_path=data, pretrained_path=root / "first" / "best")
    assert done.code == 0, done.err
    (root / "captions.json").unlink()
    shutil.rmtree(root / "emb")
    return root / "first" / "best", root / "second" / "best"


def test_a_report_on_what_an_earlier_stage_saw_under_another_name_is_refused(world, chain, tmp_path):
    done = report(world, chain[1], tmp_path)
    assert done.code == 2 and "4 of the 6 rows to report are rows of" in done.err and "captions.json that it was" in done.err
    assert "S03_E01_0, S03_E01_1, S03_E01_2, S03_E01_3; by key, file or embedding" in done.err


def test_training_does_not_go_on_to_a_test_split_that_an_earlier_stage_saw(world, chain, tmp_path):
    done = train(world, tmp_path / "run", data_path=world / "MIntRec", pretrained_path=chain[0])
    assert done.code == 2 and f"--pretrained_path {chain[0]}: 4 of the 6 rows to report are rows of" in done.err
    assert not (tmp_path / "run").exists()


def test_the_chain_and_its_digests_are_in_the_checkpoint(chain):
    first, second = (read_stages(folder) for folder in chain)
    assert second[:1] == first and [len(one.trained["key"]) for one in second] == [4, ROWS["train"]]
    assert [len(one.chosen["key"]) for one in second] == [0, ROWS["dev"]]
    info = checkpoint.read_info(chain[1])
    assert [Path(one["data"]).name for one in info["chain"]] == ["captions.json", "MIntRec"]


def test_a_checkpoint_without_its_digests_or_with_others_is_refused(chain, tmp_path):
    folder = shutil.copytree(chain[1], tmp_path / "copy")
    (folder / "seen.json").write_text((folder / "seen.json").read_text().replace("a", "b"))
    with pytest.raises(CheckpointError, match=r"seen.json: damaged; .*copy the whole checkpoint folder again"):
        read_stages(folder)
    (folder / "seen.json").unlink()
    with pytest.raises(CheckpointError, match=r"seen.json: missing"):
        read_stages(folder)


def test_an_adapter_of_others_is_a_stage_of_unknown_data(world, tmp_path):
    for start in ("ib_llm.pth", "gone/best"):
        found = old_checkpoint(tmp_path, {"data_path": str(world / "MIntRec"), "pretrained_path": str(tmp_path / start)})
        (tmp_path / "ib_llm.pth").touch()
        unknown, own = read_stages(found)
        assert start in unknown.unknown and not any(unknown.trained.values()) and len(own.trained["key"]) == ROWS["train"]


def old_checkpoint(root: Path, settings: dict) -> Path:
    folder = root / "old"
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint.json").write_text(json.dumps({"format": 1, "settings": settings}))
    return folder


def test_an_old_checkpoints_data_are_looked_up_and_go_on_with_the_chain(world, tmp_path):
    path = write_rows(tmp_path / "leak.json", clip_rows("test"))
    first = old_checkpoint(tmp_path, {"data_path": str(path)})
    settings = TrainSettings(str(world / "MIntRec"), modalities=("none",), pretrained_path=str(first))
    with pytest.raises(DataError, match=r"old: 6 of the 6 rows to report are rows of .*leak.json"):
        load_corpus(settings.corpus, load_tokenizer(TOKENIZER), 128)
    (tmp_path / "later").mkdir()
    later = old_checkpoint(tmp_path / "later", {"data_path": str(world / "MIntRec"), "pretrained_path": str(first)})
    assert [Path(one.data).name for one in read_stages(later)] == ["leak.json", "MIntRec"]
    path.unlink()
    corpus = load_corpus(settings.corpus, load_tokenizer(TOKENIZER), 128)
    assert [bool(one.unknown) for one in corpus.stages] == [True, False]
    assert "leak.json, are not here, so reported rows may be among them" in corpus.notes[0]


# --- words alone


def stage(rows: list[Example]) -> Stage:
    return Stage("data", joined(row_marks(rows, [{} for _ in rows])), joined([]))


def said(split: str, texts: list[str]) -> list[Example]:
    return [Example(f"{split} {i}", split, None, text, INTENTS[i % 3]) for i, text in enumerate(texts)]


def seen_of(tmp_path: Path, stages: list[Stage], rows: list[Example]) -> set[str]:
    (tmp_path / "checkpoint.json").write_text(json.dumps({"format": 1, **summary(stages)}))
    save_stages(tmp_path, stages)
    return keys_seen(tmp_path, rows, None)


def test_words_with_their_label_are_a_leak_where_most_are_copied_in_whichever_stages(tmp_path):
    test = said("test", [f"word {i}" for i in range(6)])
    half, other = said("train", ["Word 0!", "word 1", "word, 2"]), said("train", ["x", "y", "z", "word 3"])
    assert not seen_of(tmp_path, [stage(half)], test)  # 3 of 6
    assert len(seen_of(tmp_path, [stage(half), stage(other)], test)) == 4
    relabelled = [replace(one, intent="Joke") for one in half]
    assert not seen_of(tmp_path, [stage(relabelled), stage(other)], test)


def test_a_text_that_goes_with_any_label_is_no_copy(tmp_path):
    """The question of instructions about clips, `thank you` of which half is irony."""
    test, seen = said("test", ["the same"] * 6), said("train", ["the same"] * 6)
    assert not seen_of(tmp_path, [stage(seen)], test)
    rows = [{"key": str(i), "instruction": "What is meant?", "intent": "Joke"} for i in range(6)]
    assert not seen_of(tmp_path, [stage([json_example(row) for row in rows])], [json_example(r | {"key": "z"}) for r in rows])


def test_a_model_of_words_alone_is_not_reported_on_the_words_it_saw(world, tmp_path):
    rows = [{"instruction": row["input"].upper(), "intent": row["intent"]} for row in clip_rows("test")]
    path = write_rows(tmp_path / "words.json", rows)
    done = train(world, tmp_path / "run", data_path=path, modalities="none")
    assert done.code == 0, done.err
    done = report(world, tmp_path / "run" / "best", tmp_path / "out", modalities="text")
    assert done.code == 2 and "6 of the 6 rows to report are rows of" in done.err and "by text and label" in done.err


# --- within one training


@pytest.mark.parametrize("split", ["train", "dev"])
def test_training_refuses_a_test_split_that_it_sees_under_another_name(world, split, tmp_path):
    own = [row | {"split": name} for name in ROWS for row in clip_rows(name, text=name + " {}")]
    twin = own[0] | {"clip": "again.mp4", "input": "other words", "split": split}
    store = renamed(world, tmp_path / "emb", {"again": key_of("test", 2)})
    settings = TrainSettings(str(write_rows(tmp_path / "rows.json", [*own, twin])), emb_path=str(store))
    with pytest.raises(DataError, match=rf"1 of 6 rows to report are also rows to {split}, .* \(S03_E01_2\)"):
        load_corpus(settings.corpus, load_tokenizer(TOKENIZER), 512)
    write_rows(tmp_path / "rows.json", own)
    assert load_corpus(settings.corpus, load_tokenizer(TOKENIZER), 512).stages[0].data == settings.data_path


def test_a_store_of_another_encoder_does_not_go_with_a_checkpoint(world, chain, tmp_path):
    foreign = write_store(tmp_path / "foreign", encoder="imagebind_huge")
    done = train(world, tmp_path / "run", data_path=world / "MIntRec", pretrained_path=chain[1], emb_path=foreign)
    assert done.code == 2 and "other embeddings than the model was trained on" in done.err
    assert "encoder: imagebind_huge, expected imagebind_tiny" in done.err and not (tmp_path / "run").exists()


# --- explanations


def test_scores_of_answers_about_seen_clips_say_so(world, tmp_path):
    done = train(world, tmp_path / "run", data_path=world / "MIntRec")
    assert done.code == 0, done.err
    asked = {"data_path": world / "MIntRec", "emb_path": world / "emb", "max_new_tokens": 4, "device": "cpu"}
    flags = {"checkpoint": tmp_path / "run" / "best"} | asked
    for split in ("dev", "test"):
        done = call(explain.main, **flags, batch=tmp_path / f"{split}.jsonl", split=split)
        assert done.code == 0, done.err
        assert [row["seen"] for row in read_lines(tmp_path / f"{split}.jsonl")] == [split == "dev"] * 6
        sentence = "dev (6 of 6): not a result, its model was trained or chosen on 6 of these 6 clips"
        assert (sentence in done.out) == (split == "dev") and ("not a result" in done.out) == (split == "dev")
