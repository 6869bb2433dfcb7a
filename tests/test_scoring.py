"""Scores side by side: each peaks on the references and falls on shuffled ones; cue scores by hand; the command."""

import json

import pytest
import torch

from imagebind_llm.datasets.readers import DataError
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.demo_world.write import draw_world
from imagebind_llm.explain.scoring import (
    COLUMNS,
    Judges,
    Rationale,
    cue_scores,
    main,
    read_rationales,
    score_rationales,
    sentence_encoder,
    shuffled,
    templates,
)
from imagebind_llm.taxonomy import DEMO
from imagebind_llm.text_metrics import words


def as_rationale(row) -> Rationale:
    return Rationale(row.key, row.scene.intent, row.rationale, row.scene.cues, table=CUE_TABLE)


@pytest.fixture(scope="module")
def world():
    made = draw_world(0, {"train": 200, "dev": 60, "test": 60})
    return {split: [row for row in made if row.split == split] for split in ("train", "dev", "test")}


@pytest.fixture(scope="module")
def references(world):
    return {split: [as_rationale(row) for row in some] for split, some in world.items()}


@pytest.fixture(scope="module")
def judges(references) -> Judges:
    def encode(texts):
        known = sorted({word for row in references["train"] for word in words(row.rationale)})
        return torch.tensor([[float(words(text).count(word)) for word in known] for text in texts])

    return Judges.fit(references["train"], DEMO, references["dev"], encode)


def test_every_score_peaks_on_references_and_falls_on_shuffled_ones(references, judges):
    test = references["test"]
    gold = [row.intent for row in test]
    own = score_rationales([row.rationale for row in test], test, judges, gold)
    other = score_rationales(shuffled(test), test, judges, gold)
    assert set(own) == set(COLUMNS)
    assert [own[name] for name in ("bleu4", "rouge_l", "cue_precision", "cue_recall", "cue_f1")] == pytest.approx([1] * 5)
    assert own["cider_d"] == pytest.approx(10, abs=0.2) and own["similarity"] == pytest.approx(1)
    for name in (
        "bleu4",
        "rouge_l",
        "cider_d",
        "consistency",
        "q_gold",
        "consistency_predicted",
        "cue_precision",
        "cue_recall",
    ):
        assert other[name] < 0.6 * own[name], name
    assert other["similarity"] < 0.95
    assert other["distinct2"] == pytest.approx(own["distinct2"]) and other["words"] == pytest.approx(own["words"])


def test_a_template_that_knows_the_label_reads_well_and_sees_little(references, judges):
    test, fixed = references["test"], templates(references["train"])
    scores = score_rationales([fixed[row.intent] for row in test], test, judges)
    assert scores["consistency"] > 0.7 and scores["cue_precision"] < 0.7 and scores["consistency_predicted"] is None
    assert scores["atypical_precision"] == scores["cue_skill"] == 0
    unknown = [Rationale(row.key, row.intent, row.rationale) for row in references["train"]]
    chosen = templates(unknown)  # where nothing is known of cues
    assert set(chosen) <= set(DEMO.labels) and all(text in {r.rationale for r in unknown} for text in chosen.values())
    assert templates([]) == {}


def test_shuffling_gives_nobody_their_own_and_loses_none(references):
    test = references["test"]
    dealt = shuffled(test, seed=3)
    assert sorted(dealt) == sorted(row.rationale for row in test) and dealt == shuffled(test, seed=3) != shuffled(test)
    assert all(a != b.rationale for a, b in zip(dealt, test, strict=True))


def test_cue_scores_by_hand():
    truth = {"expression": "smile", "gaze": "down", "pitch": "rising"}
    text = "We see a broad smile and downcast eyes and hear a rising pitch."
    reference = Rationale("a", "Thank", text, truth, table=CUE_TABLE)
    said = "We see a smiling mouth and a direct look."  # one of two claims true, one of three named
    scores = cue_scores([said], [reference])
    assert scores["cue_precision"] == 0.5 and scores["cue_recall"] == pytest.approx(1 / 3)
    assert scores["cue_f1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert cue_scores(["nothing"], [reference]) == {
        "cue_precision": None, "cue_recall": 0.0, "cue_f1": None, "cue_skill": None,
        "atypical_precision": None, "atypical_claims": 0, "claims": 0,
    }  # fmt: skip


def test_missing_texts_score_nothing_and_missing_references_are_left_out(references, judges):
    test = references["test"][:4]
    none = score_rationales([""] * 4, test, judges, [row.intent for row in test])
    assert none["bleu4"] == none["rouge_l"] == none["cider_d"] == none["consistency"] == none["q_gold"] == 0
    bare = [Rationale(row.key, row.intent, "") for row in test]
    scores = score_rationales([row.rationale for row in test], bare, judges)
    assert scores["bleu4"] is None and scores["cue_f1"] is None and scores["consistency"] > 0.5
    with pytest.raises(ValueError, match="a candidate for each of 4 references, got 3"):
        score_rationales([""] * 3, test, judges)


def test_claims_about_the_words_belong_to_the_text():
    text = "We see a broad smile while the words report what happened and hear booming speech."
    assert CUE_TABLE.claims_in(text) == {"family": "news", "expression": "smile", "loudness": "loud"}
    assert [CUE_TABLE.modality_of(cue) for cue in CUE_TABLE.claims_in(text)] == ["text", "vision", "audio"]


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    for split, some in world.items():
        lines = ["season\tepisode\tclip\ttext\tlabel"]
        lines += ["\t".join((r.season, r.episode, r.clip, r.text, r.scene.intent)) for r in some]
        (root / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    made = [as_rationale(row) for some in world.values() for row in some]
    (root / "rationales.jsonl").write_text("".join(json.dumps(vars(row) | {"table": None}) + "\n" for row in made))
    CUE_TABLE.write(root)
    return root


def test_the_command_prints_all_sources_side_by_side(folder, tmp_path, capsys, references):
    answers = [{"key": r.key, "intent": "Joke", "rationale": r.rationale} for r in references["test"][:20]]
    (tmp_path / "model.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    assert (
        main(["--data_path", str(folder), "--candidates", str(tmp_path / "model.jsonl"), "--output", str(tmp_path / "s.json")])
        == 0
    )
    said = capsys.readouterr().out
    assert "| reference | 1.000 | 1.000 |" in said and "| reference, shuffled |" in said and "| template of the gold" in said
    assert "| template of the intents of model |" in said
    assert "| model (20 of 60) | 1.000 |" in said and "verifier on 60 rationales: accuracy 0." in said
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["model (20 of 60)"]["consistency_predicted"] < 0.3 < found["model (20 of 60)"]["consistency"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--candidates", "absent.jsonl"], "absent.jsonl: no such file; expected JSON lines of {key, intent, rationale}"),
        (["--references", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--sentence_encoder", "absent"], "--sentence_encoder absent: no local encoder can be loaded"),
    ],
)
def test_the_command_ends_with_a_sentence(folder, given, message, capsys):
    assert main(["--data_path", str(folder), *given]) == 2
    assert message in capsys.readouterr().err


def test_files_are_read_by_key_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"key": "a", "rationale": "x"}\n\n{"key": "a", "rationale": "y", "intent": "Joke"}\n')
    assert read_rationales(path) == {"a": Rationale("a", "Joke", "y")}
    path.write_text('{"key": "a", "rationale": "x"}\n{"rationale": "x"}\n')
    with pytest.raises(DataError, match="line 2: expected an object with key and rationale"):
        read_rationales(path)


def test_a_local_sentence_encoder_averages_its_states(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "smile", "frown"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    encode = sentence_encoder(str(tmp_path))
    long = " ".join(["a smile"] * 4)
    vectors = encode(["a smile", long, "a frown"])
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors[0], encode(["a smile"])[0], atol=1e-5, rtol=1e-4)  # padding does not count
    torch.testing.assert_close(vectors[1], encode([long])[0], atol=1e-5, rtol=1e-4)
