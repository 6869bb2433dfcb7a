"""What could be said in place of a claim: whose wording, which tokens, what it is worth, and which of it the losses get."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from test_claims import tokenizers
from tiny_itsl import TINY
from toy_training import TOKENIZER

from imagebind_llm.config import PromptConfig
from imagebind_llm.critic import alternatives
from imagebind_llm.critic.alternatives import Alternative, Alternatives, Clip, likeliest
from imagebind_llm.itsl.generate import score_answers
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.tokenizers import load_tokenizer
from imagebind_llm.records import Batch
from imagebind_llm.taxonomy import DEMO

BELIEVED = {"smile": 0.9, "frown": 0.1, "palm": 0.95, "murmur": 0.8, "sob": 0.05, "shrug": 0.55}
HEARD = ("murmur", "sob")
REFERENCES = ("We see a raised palm, and hear a sob.", "We see a broad smile and hear a low murmur.", "There is a wide palm.")
ANSWER = " Praise. Rationale: We see a deep frown and hear a sob, with a shrug of sorts."
OTHERS = (" Praise. Rationale: We see a smile and hear a sob.", " Thank. Rationale: We see a deep frown and notice a shrug.")


class Believer:
    """Believes in what BELIEVED names, the same of every clip; claims with the same key word say the same."""

    def score(self, claims, key):
        return torch.tensor([BELIEVED.get(self.word(claim), 0.5) for claim in claims])

    def claim_vectors(self, claims):
        return torch.nn.functional.one_hot(torch.tensor([list(BELIEVED).index(self.word(c)) for c in claims]), 6).float()

    def hangs_on(self, claims):
        return ["audio" if self.word(claim) in HEARD else "vision" for claim in claims]

    def read(self, claim):
        return claim, self.word(claim) is not None

    def word(self, claim):
        return next((word for word in BELIEVED if word in claim), None)


def made(tokenizer, longest: int = 200) -> Alternatives:
    return Alternatives(Believer(), tokenizer, DEMO, len("Intent:"), REFERENCES, longest)


def answered(tokenizer, *answers: str, lead: str = "Intent:") -> Clip:
    prompt = tokenizer.encode(f"Why? {lead}", bos=True)
    ids = [tokenizer.encode(f"Why? {lead}{answer}", bos=True)[len(prompt) :] for answer in answers]
    return Clip(row_of(prompt), 0, ids, [lead + tokenizer.decode(answer) for answer in ids])


def row_of(prompt: list[int], keys: tuple[str, ...] = ("k",)) -> Batch:
    tokens = torch.tensor([prompt] * len(keys))
    return Batch(tokens, tokens, n_prompt=torch.tensor([len(prompt)] * len(keys)), keys=keys)


def shown(tokenizer, place) -> dict[str, float]:
    before = len(tokenizer.decode(place.before))
    return {tokenizer.decode([*place.before, *one.ids])[before:]: one.value for one in place.alternatives}


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda tokenizer: type(tokenizer).__name__)
def test_a_claim_could_be_what_other_answers_and_the_judges_favourites_say_each_with_the_separator(tokenizer):
    clip = answered(tokenizer, ANSWER, *OTHERS)
    seen = made(tokenizer).at(clip, 0, 0)
    assert tokenizer.decode(seen.before).strip() == "Praise. Rationale:"
    assert shown(tokenizer, seen) == pytest.approx(
        {
            " We see a deep frown and": -0.8,  # its own comes first
            " We see a smile and": 0.8,
            " Hear a sob and": -0.9,
            " Notice a shrug and": 0.0,  # without a verdict
            " We see a raised palm and": 0.9,
            " There is a wide palm and": 0.9,
            " We see a broad smile and": 0.8,
        }
    )
    assert next(iter(shown(tokenizer, seen))) == " We see a deep frown and"
    assert all(a.ids[-1] == seen.alternatives[0].ids[-1] for a in seen.alternatives)
    heard = made(tokenizer).at(clip, 0, 1)
    assert shown(tokenizer, heard) == pytest.approx({" hear a sob,": -0.9, " notice a shrug,": 0.0, " hear a low murmur,": 0.6})
    last = made(tokenizer).at(clip, 0, 2)
    assert {text[-1] for text in shown(tokenizer, last)} == {"."} and last.before == clip.ids[0][: len(last.before)]


def test_an_alternative_is_written_with_the_tokens_that_the_whole_text_would_have():
    turned = [f" {one.split(': ')[1]} Intent: Praise." for one in (ANSWER, *OTHERS)]
    for tokenizer, (answers, lead) in product(tokenizers(), (((ANSWER, *OTHERS), "Intent:"), (turned, "Rationale:"))):
        clip, some = answered(tokenizer, *answers, lead=lead), made(tokenizer)
        some.lead = len(lead)
        for number in range(3):
            place = some.at(clip, 0, number)
            own = [*place.before, *place.alternatives[0].ids]
            assert clip.ids[0][: len(own)] == own
            for other in place.alternatives[1:]:
                ids = [*clip.prompt, *place.before, *other.ids]
                assert tokenizer.encode(text := tokenizer.decode(ids), bos=True) == ids and text.startswith(f"Why? {lead} ")


def test_the_end_token_ends_a_claim_that_has_no_separator_and_one_that_was_cut_off_has_no_alternatives():
    tokenizer = load_tokenizer(TOKENIZER)
    clip = answered(tokenizer, " Praise. Rationale: We see a frown", OTHERS[0])
    place = made(tokenizer).at(clip, 0, 0)
    assert {a.ids[-1] for a in place.alternatives} == {tokenizer.eos_id} and len(place.alternatives) > 2
    assert made(tokenizer, longest=len(clip.ids[0])).at(clip, 0, 0) is None


def test_what_repeats_an_earlier_claim_is_left_out_and_the_answers_own_is_worth_nothing():
    tokenizer = load_tokenizer(TOKENIZER)
    clip = answered(tokenizer, " Praise. Rationale: We see a raised palm and a wide palm.", OTHERS[0])
    some = made(tokenizer)
    some.references = ("We see a smile and an open palm and a broad smile.",)
    place = some.at(clip, 0, 1)
    assert shown(tokenizer, place) == pytest.approx({" a wide palm.": 0.0, " hear a sob.": -0.9, " a broad smile.": 0.8})


def test_no_alternative_is_how_another_begins_and_none_is_longer_than_an_answer():
    tokenizer = load_tokenizer(TOKENIZER)
    clip = answered(tokenizer, ANSWER, *OTHERS)
    roomy = made(tokenizer).at(clip, 0, 0)
    own, *others = roomy.alternatives
    room = len(roomy.before) + max(len(one.ids) for one in others) - 1
    tight = made(tokenizer, room).at(clip, 0, 0)
    assert tight.alternatives == [own, *(one for one in others if len(roomy.before) + len(one.ids) <= room)]
    assert 1 < len(tight.alternatives) < len(roomy.alternatives)

    class Abrupt(Alternatives):
        def _continuing(self, text, more):
            return tuple([7] * len(more))

    place = Abrupt(Believer(), tokenizer, DEMO, 7, REFERENCES, 200).at(clip, 0, 0)
    assert len(place.alternatives) == 2, "of those that begin alike the first is kept"


def test_the_favourites_are_the_most_probable_of_the_references_claims_that_can_be_judged(monkeypatch):
    references = (*REFERENCES, "The words thank someone, with a shrug of sorts.")
    some = Alternatives(Believer(), load_tokenizer(TOKENIZER), DEMO, 7, references, 200)
    seen = ["We see a raised palm", "There is a wide palm", "We see a broad smile", "a shrug of sorts"]
    assert [wording for wording, _ in some.favourites("k", "vision")] == seen
    assert dict(some.favourites("k", "audio")) == pytest.approx({"hear a low murmur": 0.6, "hear a sob": -0.9})
    monkeypatch.setattr(alternatives, "FAVOURITES", 1)
    place = some.at(answered(some.tokenizer, ANSWER), 0, 0)
    assert [some.tokenizer.decode(list(one.ids)) for one in place.alternatives[1:]] == ["We see a raised palm and"]


@pytest.fixture(scope="module")
def model() -> ITSL:
    torch.manual_seed(1)
    return ITSL(replace(TINY, vocab_size=300), PromptConfig(3, 2)).eval()


def test_the_likeliest_are_taken(model):
    clip = Clip(row_of([1, 5, 9]), 0, [], [])
    some = [Alternative((i, 20 - i, 7), 0.0) for i in range(3, 9)]
    scores = [float(score_answers(model, [[1, 5, 9, 4]], [one.ids])) for one in some]
    best = sorted(range(6), key=lambda i: -scores[i])
    assert likeliest(model, clip, [4], some, 2) == [some[i] for i in best[:2]]
    assert likeliest(None, clip, [4], some[:2], 2) == some[:2], "no model is asked where there is nothing to choose"


def test_every_claim_with_a_verdict_is_drawn_alike_and_compared_with_the_likeliest(model, monkeypatch):
    tokenizer = load_tokenizer(TOKENIZER)
    clip, some = answered(tokenizer, ANSWER, *OTHERS), made(tokenizer)
    drawn = [some.compared(model, clip, torch.tensor([u])) for u in (0.0, 0.21, 0.41, 0.61, 0.99)]
    said = [tokenizer.decode([*rows[0].prefix[len(clip.prompt) :], *rows[0].alternative.ids]).split(":")[1] for rows in drawn]
    assert said == [
        " We see a deep frown and",
        " We see a deep frown and hear a sob,",
        " We see a smile and",
        " We see a smile and hear a sob.",
        " We see a deep frown and",
    ], "the shrug is never drawn"
    assert all(len(rows) <= alternatives.MOST for rows in drawn)
    assert len({tuple(row.prefix) for row in drawn[0]}) == 1
    monkeypatch.setattr(alternatives, "MOST", 3)
    place = some.at(clip, 0, 0)
    best = likeliest(model, clip, place.before, place.alternatives[1:], 2)
    rows = some.compared(model, clip, torch.tensor([0.0]))
    assert [row.alternative for row in rows] == [place.alternatives[0], *best]


def test_clips_with_the_same_prompt_and_answers_are_compared_at_places_of_their_own(model):
    tokenizer = load_tokenizer(TOKENIZER)
    one = answered(tokenizer, ANSWER, *OTHERS)
    batch = row_of(one.prompt, tuple("abcdef"))
    clips = [replace(one, batch=batch, row=i) for i in range(6)]
    found = made(tokenizer).replaced(model, clips, seed=0)
    places = [set(found.batch.n_prompt[[i for i, clip in enumerate(found.clips) if clip == c]].tolist()) for c in range(6)]
    assert all(len(place) == 1 for place in places) and len({place.pop() for place in places}) > 1
    assert made(tokenizer).replaced(model, clips[::-1], seed=0).batch.n_prompt.sum() == found.batch.n_prompt.sum()


def test_nothing_is_compared_where_all_are_worth_the_same_or_nothing_else_is_said(model, monkeypatch):
    tokenizer = load_tokenizer(TOKENIZER)
    some = Alternatives(Believer(), tokenizer, DEMO, 7, (), 200)
    clip = answered(tokenizer, " Praise. Rationale: We see a frown.", " Praise. Rationale: We see a smile.")
    assert len(some.compared(model, clip, torch.zeros(1))) == 2
    monkeypatch.setitem(BELIEVED, "frown", 0.9)
    assert some.compared(model, clip, torch.zeros(1)) == []
    monkeypatch.setitem(BELIEVED, "frown", 0.1)
    assert some.compared(model, replace(clip, ids=clip.ids[:1], texts=clip.texts[:1]), torch.zeros(1)) == []
    assert some.compared(model, replace(clip, ids=[[]], texts=["Intent:"]), torch.zeros(1)) == []


def test_the_most_false_claims_are_corrected_by_the_likeliest_true_ones(model, monkeypatch):
    tokenizer = load_tokenizer(TOKENIZER)
    clip, some = answered(tokenizer, ANSWER, *OTHERS), made(tokenizer)
    sob, frown = some.corrections(model, clip)
    text = tokenizer.decode([*sob.prefix[len(clip.prompt) :], *sob.alternative.ids])
    assert text.endswith("a deep frown and hear a low murmur,")
    assert sob.alternative.value == frown.alternative.value == 1.0
    place = some.at(clip, 0, 0)
    true = [one for one in place.alternatives if one.value > 0]
    assert len(true) == 4 and frown.alternative.ids == likeliest(model, clip, place.before, true, 1)[0].ids
    monkeypatch.setattr(alternatives, "CORRECTED", 1)
    assert some.corrections(model, clip) == [sob]
