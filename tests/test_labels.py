"""The taxonomies: order, spelling, coarse classes."""

import pytest

from imagebind_llm.taxonomy import ACHIEVE, DEFINITIONS, EXPRESS, MINTREC, MINTREC2


def test_mintrec_order_is_the_official_one():
    assert ", ".join(MINTREC.labels) == (
        "Complain, Praise, Apologise, Thank, Criticize, Agree, Taunt, Flaunt, Joke, Oppose, Comfort, Care, Inform, Advise, "
        "Arrange, Introduce, Leave, Prevent, Greet, Ask for help"
    )


def test_mintrec2_order_is_the_official_one_with_unk_as_index_30():
    assert len(MINTREC2.labels) == 30
    assert (MINTREC2.index("Acknowledge"), MINTREC2.index("Warn"), MINTREC2.index("UNK")) == (0, 29, 30)
    assert list(MINTREC2.labels) == sorted(MINTREC2.labels)


def test_coarse_classes_have_eleven_and_sixteen_expressions():
    assert sum(MINTREC.coarse(label) == EXPRESS for label in MINTREC.labels) == 11
    assert sum(MINTREC2.coarse(label) == EXPRESS for label in MINTREC2.labels) == 16
    assert MINTREC.coarse("Comfort") == ACHIEVE


@pytest.mark.parametrize("written", ["ask_help", "Ask for help", "ask for help", " ASK FOR HELP "])
def test_spellings_of_the_republished_files_are_understood(written):
    assert MINTREC.canonical(written) == "Ask for help"


def test_unknown_label_names_the_nearest():
    with pytest.raises(ValueError, match="'Apologize' is not one of MIntRec's 20 intents; did you mean 'Apologise'"):
        MINTREC.canonical("Apologize")


def test_every_label_has_a_sentence_of_its_own_that_does_not_name_it():
    labels = {*MINTREC.labels, *MINTREC2.labels}
    assert set(DEFINITIONS) == labels and len(set(DEFINITIONS.values())) == len(labels)
    assert not [label for label, sentence in DEFINITIONS.items() if label.lower() in sentence.lower()]
    assert all(sentence.startswith("The speaker ") and sentence.endswith(".") for sentence in DEFINITIONS.values())
