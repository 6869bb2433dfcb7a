"""Acceptance: each rule with a text that breaks it and one that comes close and does not."""

import pytest

from imagebind_llm.rationale_writing.acceptance import Judge, tidied
from imagebind_llm.rationale_writing.prompt import RULES, Item, first_request, next_request, request_id
from imagebind_llm.records import Example
from imagebind_llm.taxonomy import DEFINITIONS, MINTREC, MINTREC2

THANK = Item(Example("S01_E01_1", "train", None, "thank you so much, your voice helped", "Thank"), "Thank")
GOOD = (
    'Saying "thank you so much" right after being given a hand is a plain response to a favour, '
    "and nothing in the sentence sounds ironic, so the speaker means to thank the listener."
)
PLAIN = "The sentence answers a favour that was done a moment ago and dwells on how much it meant"


def judged(
    text: str, item: Item = THANK, taxonomy=MINTREC, finish: str = "stop", refused: bool = False, others: str = ""
) -> str:
    """The rule that the text breaks; empty if it is accepted."""
    return Judge(taxonomy, {"S01_E01_9": others}).verdict(text, finish, refused, item).rule


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Rationale: {GOOD}",
        f"```\n{GOOD}\n```",
        f"**Rationale:** {GOOD}",
        PLAIN + ", so the intent is to thank them.",
        PLAIN + ", not to praise or to joke, so the intent is clearly to thank.",
        PLAIN + "; “your voice helped” says what was good about it, so she means to thank them.",
    ],
)
def test_a_rationale_as_asked_for_is_accepted_without_its_wrapping(text):
    assert judged(text) == ""
    assert Judge(MINTREC, {}).verdict(text, "stop", False, THANK).rationale == tidied(text)
    assert tidied(text).endswith(".") and "ationale:" not in tidied(text)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "empty"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("- one thing\n- another thing, so the speaker means to thank", "form"),
        (f'{{"rationale": "{PLAIN}, so it is to thank."}}', "form"),
        ("Die Worte antworten auf einen Gefallen und sagen viel, also will der Sprecher noch einmal danken, thank", "language"),
        ("这句话是在别人帮忙之后说的 所以说话人想要表达感谢 " * 3 + "thank", "language"),
        ("Those words are thanks, so she means to thank.", "length"),
        (PLAIN + " " + PLAIN.replace("dwells", "is") + " and it goes on like that for a while " * 3 + "to thank", "length"),
        ("it goes on and on and it goes on and on and it goes on and on and so to thank", "repetition"),
        (DEFINITIONS["Thank"] + " That is what happens here in the words of this scene, so it is to thank.", "prompt copied"),
        ("It goes from evidence to conclusion: first what speaks for this intent rather than for others. So it is to thank.",
         "prompt copied"),
        (PLAIN + ", and that is all there is to say about it.", "label"),
        ("Full of thanks, " + PLAIN.lower() + " for the one who is meant, so the intent is to thank.", "label"),
        (PLAIN + ", so it is to thank and thank again.", "label"),
        (PLAIN + ", not to praise, joke, taunt or agree, so the intent is to thank.", "label stuffing"),
        ("With a warm smile " + PLAIN.lower() + ", so the intent is to thank.", "invented cue"),
        ("In a cheerful tone " + PLAIN.lower() + ", so the intent is to thank.", "invented cue"),
    ],
)  # fmt: skip
def test_each_rule_refuses_what_breaks_it(text, rule):
    assert judged(text) == rule


def test_refusals_and_cut_answers_are_told_by_the_endpoint_too():
    assert judged(GOOD, refused=True) == "refused" and judged(GOOD, finish="length") == "cut off"


def test_words_of_the_utterance_are_no_invented_cues_but_evidence_allows_more():
    assert judged(PLAIN + ", and that a voice helped, so the intent is to thank.") == ""
    smile = "With a warm smile " + PLAIN.lower() + ", so the intent is to thank."
    tone = "In a cheerful tone " + PLAIN.lower() + ", so the intent is to thank."
    with_frames, with_evidence = (Item(THANK.example, "Thank", **more) for more in ({"n_frames": 4}, {"evidence": "a smile"}))
    assert [judged(text, item) for item in (with_frames, with_evidence) for text in (smile, tone)] == [
        "",
        "invented cue",
        "",
        "",
    ]


def test_a_copy_of_another_rationale_is_refused_even_with_another_label():
    assert judged(PLAIN + ", so it is to thank.", others=PLAIN + ", so it is to praise.") == "copy"
    assert judged(PLAIN + " here, so it is to thank.", others=PLAIN + ", so it is to praise.") == ""


def test_the_reason_is_a_sentence_for_the_model():
    verdict = Judge(MINTREC, {}).verdict("Too short to thank.", "stop", False, THANK)
    messages = next_request(first_request(THANK, MINTREC), "Too short to thank.", verdict.reason)
    assert messages[-1]["content"].startswith(
        "This was not accepted: it has 4 words; 20 to 60 are wanted. Write the rationale again"
    )


def test_the_prompt_defines_every_intent_and_its_fingerprint_follows_what_is_asked():
    for taxonomy in (MINTREC, MINTREC2):
        question = first_request(THANK, taxonomy)[1]["content"]
        assert all(f"- {label}: {DEFINITIONS[label]}" in question for label in taxonomy.labels)
    assert "{" not in question and "20 to 60 words" in RULES
    other = Item(THANK.example, "Thank", evidence="a smile")
    ids = {
        request_id(first_request(item, t), {"model": m}) for item in (THANK, other) for t in (MINTREC, MINTREC2) for m in "ab"
    }
    assert len(ids) == 8
