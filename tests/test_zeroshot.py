"""The nearest label sentence, as the original adds its softmaxes; what is absent is no term."""

import pytest
import torch

from imagebind_llm.intents.zeroshot import label_sentences, nearest_label
from imagebind_llm.taxonomy import ACHIEVE, EXPRESS, MINTREC, MINTREC2


def test_it_is_the_originals_sum_of_softmaxes_on_public_scales():
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(6, 3, 16), dim=-1) * torch.tensor([14.3, 20.0, 1.0])[:, None]
    sentences = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1) * 14.3
    present = torch.ones(6, 3, dtype=torch.bool)
    audio, vision = vectors[:, 1], vectors[:, 2]
    original = (vision @ sentences.T).softmax(-1) + (audio @ sentences.T).softmax(-1)
    found = nearest_label(vectors, present, sentences, ("audio", "vision"))
    torch.testing.assert_close(found, original / 2)
    assert torch.equal(found.argmax(1), original.argmax(1))


def test_what_is_absent_is_no_term_and_nothing_known_is_uniform():
    torch.manual_seed(0)
    vectors, sentences = torch.randn(2, 3, 16), torch.randn(4, 16)
    present = torch.tensor([[True, False, True], [False, False, False]])
    found = nearest_label(vectors, present, sentences, ("audio", "vision"))
    torch.testing.assert_close(found[0], (vectors[0, 2] @ sentences.T).softmax(-1))
    assert found[1].tolist() == [0.25] * 4


def test_sentences_are_the_names_or_one_definition_for_each():
    assert label_sentences(MINTREC.labels, "names") == list(MINTREC.labels)
    for classes in (MINTREC.labels, MINTREC2.labels, (EXPRESS, ACHIEVE)):
        sentences = label_sentences(classes, "definitions")
        assert len(set(sentences)) == len(classes) and all(one.startswith("The speaker") for one in sentences)
    with pytest.raises(ValueError, match="no definition of the label UNK; use --sentences names"):
        label_sentences(("Praise", "UNK"), "definitions")
