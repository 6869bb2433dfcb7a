"""Trained checkpoints as a method: their own answers, in our classes, to what a row knows, and never on rows they have seen."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_intents import WIDTH, toy_set

from imagebind_llm.config import MODALITIES, BridgeConfig, LlamaConfig, ModelConfig, PromptConfig
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.explain.explainer import Explainer, Question
from imagebind_llm.intents import methods
from imagebind_llm.intents.evaluation import Predictions, evaluate_subsets
from imagebind_llm.intents.methods import fit_itsl, probabilities_of
from imagebind_llm.intents.protocol import load_protocol
from imagebind_llm.intents.settings import ClassifierSettings
from imagebind_llm.itsl.assembly import Assembled
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.taxonomy import EXPRESS, MINTREC, MINTREC2

TOKENIZER = Path(__file__).parent / "golden" / "llama" / "tiny.model"


def explainer(seed: int = 0, taxonomy=MINTREC, modalities=MODALITIES) -> Explainer:
    """A random model with open gates and an intent head that looks at everything."""
    tokenizer = load_tokenizer(TOKENIZER)
    llama = LlamaConfig(32, 2, 4, 2, 48, tokenizer.n_words)
    config = ModelConfig(llama, PromptConfig(2, 2), BridgeConfig(24, WIDTH), len(taxonomy.labels))
    torch.manual_seed(seed)
    model = ITSL(config.llama, config.prompts, config.bridge, n_intents=config.n_intents)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    return Explainer(Assembled(model, config, frozenset(), "toy"), tokenizer, Question(taxonomy, modalities, 256))


@pytest.fixture
def settings(tmp_path) -> ClassifierSettings:
    """For two checkpoints that were trained on the toy set's train and dev splits."""
    data, emb = toy_set(tmp_path, {"train": 24, "dev": 12, "test": 12})
    for seed in (3, 5):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        (folder / "checkpoint.json").write_text(json.dumps({"format": 1, "settings": {"data_path": str(data), "seed": seed}}))
    folders = (str(tmp_path / "run3"), str(tmp_path / "run5"))
    return ClassifierSettings(str(data), str(emb), str(tmp_path / "out"), method="itsl", checkpoint=folders, device="cpu")


@pytest.fixture
def loaded(monkeypatch):
    """Checkpoints load as random models, by the seed in their name; the store of the toy set is taken as theirs."""
    monkeypatch.setattr(methods, "load_explainer", lambda folder, *_, **__: explainer(int(folder.name[-1])))


def test_unmasked_answers_are_the_models_own(settings):
    protocol, model = load_protocol(settings), explainer()
    rows = protocol.report
    found = probabilities_of(model, rows, protocol)
    own = torch.stack([one.probabilities for one in model.explain(rows.examples, rows.vectors, rows.present, 1)])
    np.testing.assert_allclose(found, own, atol=1e-6)
    assert found.shape == (12, 20) and found.sum(1) == pytest.approx(1, abs=1e-5)


def test_coarse_classes_are_sums(settings):
    model = explainer()
    kinds = (settings, replace(settings, labels="coarse"))
    fine, coarse = (probabilities_of(model, one.report, one) for one in map(load_protocol, kinds))
    express = [MINTREC.labels.index(name) for name in MINTREC.labels if MINTREC.coarse(name) == EXPRESS]
    assert coarse[:, 0] == pytest.approx(fine[:, express].sum(1)) and coarse.sum(1) == pytest.approx(1, abs=1e-5)


def test_masked_text_is_neither_embedded_nor_in_the_prompt(settings):
    protocol, model = load_protocol(settings), explainer()
    masked = protocol.report.only(("audio", "vision"))
    other = replace(masked, examples=[replace(one, text="quite other words") for one in masked.examples])
    assert np.array_equal(probabilities_of(model, masked, protocol), probabilities_of(model, other, protocol))
    whole = replace(protocol.report, examples=other.examples)
    assert not np.allclose(probabilities_of(model, protocol.report, protocol), probabilities_of(model, whole, protocol))


def test_a_model_of_the_words_alone_looks_at_no_other_vector(settings):
    protocol, model = load_protocol(settings), explainer(modalities=("text",))
    rows = protocol.report
    other = rows.vectors.clone()
    other[:, 1:] = torch.randn(len(rows), 2, WIDTH, generator=torch.Generator().manual_seed(8))
    found = probabilities_of(model, rows, protocol)
    assert np.array_equal(probabilities_of(model, replace(rows, vectors=other), protocol), found)
    assert np.array_equal(probabilities_of(model, rows.only(("text",)), protocol), found)
    other[:, 0] = -other[:, 0]
    assert not np.allclose(probabilities_of(model, replace(rows, vectors=other), protocol), found)


def test_a_reported_label_is_never_shown_to_the_model(settings):
    protocol, model = load_protocol(settings), explainer()
    relabelled = [replace(one, intent="Joke", rationale="because") for one in protocol.report.examples]
    found = probabilities_of(model, replace(protocol.report, examples=relabelled), protocol)
    assert np.array_equal(found, probabilities_of(model, protocol.report, protocol))


def test_checkpoints_count_as_seeds_and_subsets_are_masked(settings, loaded, monkeypatch):
    monkeypatch.setattr(Explainer, "needs_embeddings", False)  # random models were trained on no store
    monkeypatch.setattr(Explainer, "_on_device", lambda self, vectors, present: (vectors, present))
    protocol = load_protocol(settings)
    subsets = evaluate_subsets(protocol, replace(settings, ablate=True), fit_itsl)
    assert len(subsets) == 7 and subsets[-1].seeds == (3, 5)
    whole = subsets[-1].answers
    assert isinstance(whole, Predictions) and whole.probabilities.shape == (2, 12, 20)
    assert np.allclose(whole.probabilities[1], probabilities_of(explainer(5), protocol.report, protocol))
    assert not np.allclose(subsets[0].answers.probabilities, whole.probabilities)
    assert subsets[0].masked is None and subsets[0].baseline is None


# --- what does not fit


def test_rows_that_a_checkpoint_was_trained_or_chosen_on_are_not_reported(settings, tmp_path):
    for changed in ({"report_split": "dev", "select_split": "none"}, {"split_by": "episode"}):
        own = replace(settings, **changed)
        with pytest.raises(DataError, match=r"rows to report are rows of .* that it was trained or chosen on \(S04"):
            fit_itsl(load_protocol(own), MODALITIES, own, lambda: None)


def test_a_seed_counts_once(settings, tmp_path):
    again = replace(settings, checkpoint=(str(tmp_path / "run3"), str(tmp_path / "run5"), str(tmp_path / "run3")))
    with pytest.raises(DataError, match="got seed 3 more than once"):
        fit_itsl(load_protocol(settings), MODALITIES, again, lambda: None)


def test_training_data_in_json_are_looked_up_too_and_gone_ones_are_said(settings, tmp_path):
    rows = [{"key": "S04_E0_2000", "instruction": "?", "output": "!"}, {"key": "S04_E1_2001", "split": "test"}]
    (tmp_path / "some.json").write_text(json.dumps(rows))
    info = {"format": 1, "settings": {"data_path": str(tmp_path / "some.json"), "seed": 0}}
    (tmp_path / "run3" / "checkpoint.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"run3: 1 of the 12 rows to report are rows of .*some.json .* \(S04_E0_2000; by key"):
        fit_itsl(load_protocol(settings), MODALITIES, settings, lambda: None)
    info = {"format": 1, "settings": {"data_path": str(tmp_path / "gone"), "seed": 0}}
    (tmp_path / "run3" / "checkpoint.json").write_text(json.dumps(info))
    protocol = load_protocol(settings)
    fit_itsl(protocol, MODALITIES, settings, lambda: None)
    assert any("gone, are not here, so reported rows may be among them" in note for note in protocol.notes)
    assert any("run5: of an older version; its training rows were read from" in note for note in protocol.notes)


def test_checkpoints_of_other_labels_modalities_or_embeddings_are_refused(settings, monkeypatch):
    protocol = load_protocol(settings)

    def opened(model):
        monkeypatch.setattr(methods, "load_explainer", lambda *_, **__: model)
        return methods._open("run3", protocol, settings.modalities, settings)

    with pytest.raises(DataError, match=r"run3: trained on the 30 intents of MIntRec2.0; .* has 20 classes, MIntRec"):
        opened(explainer(taxonomy=MINTREC2))
    with pytest.raises(DataError, match="run3: was not trained with audio; give --modalities text vision"):
        opened(explainer(modalities=("text", "vision")))
    with pytest.raises(DataError, match="was not trained with audio vision; give --modalities text"):
        opened(explainer(modalities=("none",)))
    model = explainer()
    model.store_identity = asdict(protocol.store.identity)
    assert opened(model) is model
    model.store_identity = model.store_identity | {"width": 1024}
    with pytest.raises(ValueError, match="other embeddings than the model was trained on"):
        opened(model)
