"""What a run ends with: prompts as they are asked, whatever the gold answer, and an alpha chosen on rows of all of dev."""

import json
from pathlib import Path

import pytest
import torch
from toy_training import ROWS, call, key_of, read_lines, write_intents, write_llama, write_store

import engine_finetune
from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.explain.calibration import Calibration
from imagebind_llm.records import Sequence
from imagebind_llm.training import results
from imagebind_llm.training.results import ALPHA_ROWS, _with_alpha

SMALL = {"epochs": 1, "warmup_epochs": 0, "lr": 0.02, "batch_size": 4, "adapter_layer": 2, "adapter_len": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_llama(root / "LLAMA", 4)
    write_store(root / "emb")
    return root


def test_what_is_predicted_does_not_depend_on_how_long_the_gold_answer_is(world, tmp_path):
    """Sequences lose context to make room for the answer that is trained on; a prompt that is scored must not."""
    found, cut = [], []
    for name, more in (("short", ""), ("long", " We see it in every look, and hear it too." * 2)):
        data = write_intents(tmp_path / name)
        table, told = data / "test.tsv", data / "rationales.jsonl"
        table.write_text(table.read_text().replace("say it", " ".join(f"word {i}" for i in range(9)) + " say it"))
        rows = [row | {"rationale": row["rationale"] + more * row["key"].startswith("S03")} for row in read_lines(told)]
        told.write_text("".join(json.dumps(row) + "\n" for row in rows))
        places = {"data_path": data, "emb_path": world / "emb", "llama_model_path": world / "LLAMA"}
        done = call(engine_finetune.main, **SMALL, **places, max_seq_len=200, output_dir=tmp_path / f"run{name}")
        assert done.code == 0, done.err
        cut.append(f"rows whose prompt was shortened to fit --max_seq_len 200: {ROWS['test']}" in done.out)
        found.append(read_lines(tmp_path / f"run{name}" / "predictions_test.jsonl"))
    assert cut == [False, True], "the long answers must take room from the prompt"
    assert [row["key"] for row in found[0]] == [key_of("test", i) for i in range(ROWS["test"])] and found[0] == found[1]


class Answering:
    """Remembers what it was asked; its rationale for a row is the row's number."""

    def __init__(self):
        self.asked, self.read_texts = [], []

    def answer(self, prompts, embeddings, present, limit):
        self.asked += [prompt[0] for prompt in prompts]
        return None, [(f"{prompt[0]}", True) for prompt in prompts]

    def read(self, p, texts):
        self.read_texts, self.p = [int(text) for text in texts], p
        return p


@pytest.mark.parametrize("ranks", [1, 3])
def test_alpha_is_chosen_on_drawn_dev_rows_the_same_for_a_seed(monkeypatch, ranks):
    """A dev split sorted by intent: its first rows know of some intents alone."""
    count = 3 * ALPHA_ROWS
    rows = [Sequence(f"row {i}", (1, 2), 1, intent=None if i == 5 else i // ALPHA_ROWS) for i in range(count)]
    known = [i for i in range(count) if i != 5]
    head = torch.tensor([[float(i), 0.0, 0.0] for i in known]).log_softmax(1)
    gold = torch.tensor([rows[i].intent for i in known])
    golds = []
    monkeypatch.setattr(results, "choose_alpha", lambda p, q, gold: golds.append(gold) or 0.5)

    def others(own: list) -> list[tuple[int, str]]:
        """What the other ranks have written."""
        return [(i, "0") for i in range(ALPHA_ROWS) if i not in dict(own)]

    def drawn(seed: int) -> list[int]:
        everything = []
        monkeypatch.setattr(distributed, "world_size", lambda: ranks)
        for rank in range(ranks):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(distributed, "gather_objects", lambda own: [everything.append(own) or own, others(own)])
            explainer = Answering()
            arguments = (rows, [[i] for i in range(count)], (head, head, gold), Collator(None, ()), 32, seed)
            assert _with_alpha(explainer, Calibration(), *arguments)[0].alpha == 0.5
            if ranks == 1:  # else the texts of the others are missing here
                assert golds[-1].tolist() == [rows[i].intent for i in explainer.read_texts]
                confidence = torch.tensor([[float(i), 0.0, 0.0] for i in explainer.read_texts]).softmax(1)
                torch.testing.assert_close(explainer.p, confidence)
        return sorted(int(text) for own in everything for _, text in own)

    first = drawn(0)
    assert len(set(first)) == ALPHA_ROWS and 5 not in first and first == drawn(0) != drawn(1)
    assert {rows[i].intent for i in first} == {0, 1, 2}
