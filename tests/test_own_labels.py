"""A table of one's own, with labels of its own, goes through every command without a change of code."""

import json
from pathlib import Path

import pytest
from toy_training import call, read_lines, write_llama, write_store

import classifier
import engine_finetune
import explain
from imagebind_llm.check.datasets import check
from imagebind_llm.corpus.sequences import load_corpus
from imagebind_llm.critic.rewards import intent_reward
from imagebind_llm.datasets.readers import DataError, load_dataset
from imagebind_llm.explain.loading import load_explainer
from imagebind_llm.itsl.checkpoint import read_info
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.records import Answer
from imagebind_llm.taxonomy import MINTREC, Taxonomy, own_taxonomy, taxonomy_of
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.web.analysis import PageModel, WebSettings

LABELS = ("order food", "pay", "small talk")
ROWS = {"train": 12, "dev": 6, "test": 6}


COARSE = {"order food": "task", "pay": "task", "small talk": "chat"}


def write_table(root: Path, labels: tuple[str, ...] = LABELS, coarse: dict[str, str] | None = None) -> Path:
    """clips.csv of 24 rows and rationales of train and dev; with coarse classes, if they are given."""
    root.mkdir(exist_ok=True)
    rows, rationales = ["path,text,split,label" + ",coarse" * bool(coarse)], []
    for split, count in ROWS.items():
        for i in range(count):
            label = labels[i % len(labels)]
            rows.append(f"{split}{i}.mp4,say {split} {i},{split},{label}" + (f",{coarse[label]}" if coarse else ""))
            if split != "test":
                rationales.append({"key": f"{split}{i}", "rationale": f"We see sign {i % 3}."})
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    (root / "rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rationales))
    return root / "clips.csv"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """The table, its store and a run on it, with an epoch of the self-critical loss."""
    root = tmp_path_factory.mktemp("own")
    table = write_table(root / "data", coarse=COARSE)
    store = write_store(root / "emb", [f"{split}{i}" for split, count in ROWS.items() for i in range(count)])
    shape = {"llama_model_path": write_llama(root / "LLAMA", 4), "adapter_layer": 2, "adapter_len": 3, "lora_rank": 2}
    pace = {"epochs": 2, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4, "trainable": "all", "device": "cpu"}
    critic = {"w_critic": 0.5, "critic_start": 1, "samples": 2}
    done = call(engine_finetune.main, data_path=table, emb_path=store, **shape, **pace, **critic, output_dir=root / "run")
    assert done.code == 0, done.err
    return {"table": table, "store": store, "run": root / "run", "root": root}


def test_a_checkpoint_remembers_labels_of_its_own(trained):
    info = read_info(trained["run"] / "best")
    assert taxonomy_of(info["taxonomy"]) == own_taxonomy(LABELS, COARSE)
    explainer = load_explainer(trained["run"] / "best")
    assert explainer.taxonomy.labels == LABELS and explainer.verifier is not None
    assert explainer.verifier.taxonomy == explainer.taxonomy


def test_the_test_split_is_explained_and_reported_in_them(trained):
    answers = trained["root"] / "answers.jsonl"
    data = {"data_path": trained["table"], "emb_path": trained["store"]}
    done = call(explain.main, checkpoint=trained["run"] / "best", **data, batch=answers, device="cpu", max_new_tokens=4)
    assert done.code == 0, done.err
    rows = read_lines(answers)
    assert len(rows) == ROWS["test"] and {row["intent"] for row in rows} <= set(LABELS)
    own = {"method": "itsl", "checkpoint": trained["run"] / "best", "output_dir": trained["root"] / "report", "device": "cpu"}
    done = call(classifier.main, **data, **own)
    assert done.code == 0 and (trained["root"] / "report" / "report.html").is_file(), done.err
    assert "accuracy, coarse classes" in (trained["root"] / "report" / "report.html").read_text()
    done = call(classifier.main, **data, **own | {"output_dir": trained["root"] / "coarse"}, labels="coarse")
    assert done.code == 0, done.err
    assert json.loads((trained["root"] / "coarse" / "results.json").read_text())["classes"] == ["task", "chat"]
    done = call(classifier.main, **data, output_dir=trained["root"] / "probe", seeds=0, epochs=2)
    assert done.code == 0, done.err


def test_the_page_takes_a_table(trained):
    model = PageModel.load(WebSettings(str(trained["run"] / "best"), data_path=str(trained["table"]), device="cpu"))
    assert model.examples == [] and model.explainer.taxonomy.labels == LABELS


def test_a_published_taxonomy_is_remembered_by_its_name_and_another_whole():
    own = own_taxonomy(["b_c", "a", "B C", " a "])
    assert own.labels == ("a", "B C") and own.canonical("b_c") == "B C" and own.coarse("a") is None
    assert taxonomy_of(json.loads(json.dumps(own.described()))) == own
    coarse = own_taxonomy(["b_c", "a", "B C"], {"b_c": "task", "a": "chat"})
    assert coarse.coarse("B_C") == "task" and coarse.coarse_classes == ("chat", "task")
    for taxonomy in (own, coarse):
        described = json.loads(json.dumps(taxonomy.described()))
        assert taxonomy_of(described) == taxonomy and described == taxonomy.described(), "else a head is thought another's"
    assert taxonomy_of({"name": "x", "labels": ["a"], "express": None, "out_of_scope": None}) == Taxonomy("x", ("a",))
    assert own_taxonomy(["ask help", "pay"]).canonical("Ask_help") == "ask help", "elsewhere a spelling of another"
    assert MINTREC.described() == "MIntRec" and taxonomy_of("MIntRec") is MINTREC and taxonomy_of(None) is None


def test_a_wrong_label_without_coarse_classes_earns_nothing():
    assert intent_reward(Answer("pay", None), "order food", own_taxonomy(LABELS)) == 0
    assert intent_reward(Answer("pay", None), "pay", own_taxonomy(LABELS)) == 1
    assert intent_reward(Answer("pay", None), "order food", own_taxonomy(LABELS, COARSE)) == 0.25


def test_a_table_without_labels_or_splits_is_no_data_set_to_train_on(tmp_path):
    (tmp_path / "clips.csv").write_text("path,text,label\na.mp4,one,pay\n")
    assert load_dataset(tmp_path).taxonomy is None
    settings = TrainSettings(str(tmp_path), modalities=("none",))
    with pytest.raises(DataError, match="no splits and labels to train on"):
        load_corpus(settings.corpus, load_tokenizer(Path(__file__).parent / "golden" / "llama" / "tiny.model"), 128)


def test_a_label_with_a_full_stop_is_refused_before_it_is_trained_on(tmp_path):
    table = write_table(tmp_path, ("v1.0 praise", "pay", "leave"))
    settings = TrainSettings(str(table), modalities=("none",))
    with pytest.raises(DataError, match=r"the label 'v1.0 praise' has a full stop"):
        load_corpus(settings.corpus, load_tokenizer(Path(__file__).parent / "golden" / "llama" / "tiny.model"), 128)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("pay,task", "Pay,chat"), r"line 3: label 'Pay' has the coarse class 'chat', above it has 'task'"),
        (("pay,task", "leave,"), r"no coarse class for the label leave; fill the column coarse, or delete it"),
    ],
)
def test_coarse_classes_that_do_not_fit_the_labels_are_refused(rows, message, tmp_path):
    lines = ["path,text,split,label,coarse", *(f"{i}.mp4,say {i},train,{row}" for i, row in enumerate(rows))]
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)


def test_labels_without_coarse_classes_are_not_reported_by_them(tmp_path):
    table = write_table(tmp_path)
    store = write_store(tmp_path / "emb", [f"{split}{i}" for split, count in ROWS.items() for i in range(count)])
    done = call(classifier.main, data_path=table, emb_path=store, output_dir=tmp_path / "out", labels="coarse")
    assert done.code == 2 and "add a column coarse to a table of your own, or leave out --labels coarse" in done.err


def test_check_lists_the_rows_of_each_label(tmp_path):
    report = check(write_table(tmp_path))
    assert ("order food", "4", "2", "2") in report.intents
    (tmp_path / "clips.csv").write_text("path,text,split,label\na.mp4,one,train,pay\nb.mp4,two,train,leave\n")
    assert "no split dev or split test" in "\n".join(finding.what for finding in check(tmp_path / "clips.csv").findings)
