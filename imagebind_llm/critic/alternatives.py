"""Alternatives to one claim of an answer, and what the judge says of each.

The alternatives are the claims that the clip's other answers make and the judge's favourites for the clip among the claims of
the train references, in their own wording: the method knows no list of what can be said. All continue the same beginning of
the answer and end with the separator that ends the claim there (", " or " and" ...), so none is a prefix of another, and the
probabilities that the model gives them are of events that exclude each other. Of many, the likeliest are taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from imagebind_llm.corpus.batches import answer_batch
from imagebind_llm.critic.claims import Claim, characters_of, claims_of, claims_of_answer, separator_end, tokens_of
from imagebind_llm.critic.credit import DEAD_ZONE, repeats
from imagebind_llm.critic.judge import Judge
from imagebind_llm.itsl.generate import score_answers, uniform
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.records import Batch
from imagebind_llm.taxonomy import Taxonomy

MOST = 6  # alternatives of a claim that are compared, its own wording included
CANDIDATES = 24  # that these are the likeliest of
FAVOURITES = 12  # of the candidates, those that come from references
CORRECTED = 2  # false claims of an answer that are corrected
SENTENCE_END = ".!?:"


@dataclass(frozen=True)
class Alternative:
    """Tokens that could be said at a place, the separator's included, and the value v of the claim; 0 without a verdict."""

    ids: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class Place:
    """Where an answer makes a claim: its tokens before that, and two alternatives or more, of which it says the first."""

    before: list[int]
    alternatives: list[Alternative]


@dataclass(frozen=True)
class Clip:
    """A row of a batch and answers to it: their tokens, without an end token, and their texts."""

    batch: Batch
    row: int
    ids: Sequence[list[int]]
    texts: Sequence[str]
    others: Sequence[str] = ()  # texts of further answers: what they say are alternatives

    @property
    def key(self) -> str:
        return self.batch.keys[self.row]

    @cached_property
    def prompt(self) -> list[int]:
        assert self.batch.n_prompt is not None
        return self.batch.tokens[self.row, : int(self.batch.n_prompt[self.row])].tolist()


@dataclass(frozen=True)
class Continuation:
    """A row to be scored: the tokens of the prompt and of the answer's beginning, and the alternative that follows."""

    prefix: list[int]
    alternative: Alternative


@dataclass(frozen=True)
class Replacements:
    """N continuations that are scored in place of sampled answers: their rows, the value (N,) of each and which of the clips
    it is about. Where there is nothing to score, one row is there that is worth 0."""

    batch: Batch
    values: Tensor
    clips: list[int]


class Alternatives:
    """Alternatives to the claims of answers of fewer than `longest` tokens, or cut off there."""

    def __init__(
        self,
        judge: Judge,
        tokenizer: LlamaTokenizer,
        taxonomy: Taxonomy | None,
        lead: int,
        references: Sequence[str],
        longest: int,
        corrects: bool = False,
    ):
        """`lead`: characters of an answer's text before what its tokens say. `references`: rationales of the train split.
        `corrects`: rows are the corrections of a clip's answers, else the alternatives of one claim."""
        self.judge, self.tokenizer, self.taxonomy = judge, tokenizer, taxonomy
        self.lead, self.references, self.longest, self.corrects = lead, references, longest, corrects
        self._favourites: dict[str, list[tuple[str, float]]] = {}

    def replaced(self, model: ITSL, clips: Sequence[Clip], seed: int, whole: bool = False) -> Replacements:
        """What is scored in place of these clips' answers. `whole`: as many rows as can be, as long as an answer can be."""
        rows = [(i, row) for i, clip in enumerate(clips) for row in self._continuations(model, clip, seed, whole)]
        if not rows:
            rows = [(0, Continuation(clips[0].prompt, Alternative((self.tokenizer.eos_id,), 0.0)))]
        owners = [i for i, _ in rows]
        ids = [[*row.alternative.ids] for _, row in rows]
        batch = answer_batch(clips[0].batch, [clips[i].row for i in owners], [row.prefix for _, row in rows], ids)
        return Replacements(batch, torch.tensor([row.alternative.value for _, row in rows]), owners)

    def _continuations(self, model: ITSL, clip: Clip, seed: int, whole: bool) -> list[Continuation]:
        if whole:
            values = [1.0] * CORRECTED if self.corrects else [(-1.0) ** i for i in range(MOST)]
            return [Continuation(clip.prompt, Alternative((*clip.ids[0],), value)) for value in values]
        if self.corrects:
            return self.corrections(model, clip)
        return self.compared(model, clip, uniform((seed, clip.key, clip.prompt, "claim"), (1,)))

    # --- rows for the losses --------------------------------------------------------------------------------------------

    def compared(self, model: ITSL, clip: Clip, draws: Tensor) -> list[Continuation]:
        """The alternatives of one claim with a verdict, drawn evenly from all answers' by one random number in [0, 1), `draws`
        (1,). Of many alternatives, the answer's own and the likeliest. Nothing where all are worth the same."""
        values = [self._values(claims_of_answer(text, self.taxonomy), clip.key) for text in clip.texts]
        verdicts = [(answer, i) for answer, by_claim in enumerate(values) for i, value in enumerate(by_claim) if value]
        if not verdicts:
            return []
        answer, number = verdicts[int(draws[0] * len(verdicts))]
        place = self.at(clip, answer, number)
        if place is None:
            return []
        claim, *others = place.alternatives
        rivals = [claim, *likeliest(model, clip, place.before, others, MOST - 1)]
        if len({alternative.value for alternative in rivals}) < 2:
            return []
        return [Continuation([*clip.prompt, *place.before], alternative) for alternative in rivals]

    def corrections(self, model: ITSL, clip: Clip) -> list[Continuation]:
        """For each of the CORRECTED most false claims of the first answer, the likeliest true alternative, with value 1.

        Each is a row of its own behind what the answer says before that claim, other false claims included: that is where the
        model stood when it made the claim.
        """
        values = self._values(claims_of_answer(clip.texts[0], self.taxonomy), clip.key)
        rows = []
        for number in sorted((i for i, value in enumerate(values) if value < 0), key=values.__getitem__)[:CORRECTED]:
            place = self.at(clip, 0, number)
            true = [other for other in place.alternatives[1:] if other.value > 0] if place else []
            if place and true:
                best = likeliest(model, clip, place.before, true, 1)[0]
                rows.append(Continuation([*clip.prompt, *place.before], Alternative(best.ids, 1.0)))
        return rows

    # --- what could be said ---------------------------------------------------------------------------------------------

    def at(self, clip: Clip, answer: int, number: int) -> Place | None:
        """What could be said in place of the claim of this number, counted from 0. None for fewer than two alternatives, or
        where the answer was cut off before the claim ended."""
        ids, text = clip.ids[answer], clip.texts[answer]
        claims = claims_of_answer(text, self.taxonomy)
        claim = claims[number]
        span = self._span(ids, text, claim)
        if span is None:
            return None
        first, last, start, end, after = span
        others = [*(other for i, other in enumerate(clip.texts) if i != answer), *clip.others]
        wordings = self._wordings(text, claims[:number], claim, others, clip.key)
        alternatives = [Alternative((*ids[first:last], *after), wordings.pop(text[claim.start : claim.end]))]
        head, tail = text[start : claim.start], text[claim.end : end]
        if not first and not head:
            head = " "  # which SentencePiece leaves out at the start of what it decodes
        for wording, value in wordings.items():
            new_ids = self._continuing(text[:start], head + wording + tail)
            if new_ids and first + len(new_ids) + len(after) <= self.longest:
                new_ids = (*new_ids, *after)
                if not any(_begins(new_ids, other.ids) or _begins(other.ids, new_ids) for other in alternatives):
                    alternatives.append(Alternative(new_ids, value))
        return Place(list(ids[:first]), alternatives) if len(alternatives) > 1 else None

    def _span(self, ids: list[int], text: str, claim: Claim) -> tuple[int, int, int, int, tuple[int, ...]] | None:
        """The tokens [first, last) of a claim and its separator, the characters [start, end) that they write, and the end token
        if that is what separates; None if nothing does."""
        characters = [(a + self.lead, b + self.lead) for a, b in characters_of(ids, self.tokenizer)]
        first, last = tokens_of((claim.start, claim.end), characters)
        while first and not text[slice(*characters[first - 1])].strip():
            first -= 1  # a space is written together with the word behind it
        separator = separator_end(text, claim.end)
        after: tuple[int, ...] = ()
        if separator is not None:
            last = tokens_of((claim.start, separator), characters)[1]
        elif len(ids) < self.longest and last == len(ids):
            after = (self.tokenizer.eos_id,)
        else:
            return None
        return first, last, characters[first][0], characters[last - 1][1], after

    def _continuing(self, text: str, more: str) -> tuple[int, ...] | None:
        """The tokens of `more` behind a text; None if they would change the text's own."""
        before, whole = self.tokenizer.encode(text), self.tokenizer.encode(text + more)
        return tuple(whole[len(before) :]) if whole[: len(before)] == before else None

    def _wordings(
        self, text: str, earlier: Sequence[Claim], claim: Claim, others: Sequence[str], key: str
    ) -> dict[str, float]:
        """Wordings that fit the claim's place, and their values: its own, those of other answers (with a verdict first), the
        judge's favourites of the modality that the claim hangs on. What repeats an earlier claim is left out or, if it is
        the answer's own, worth 0."""
        claim_wording = text[claim.start : claim.end]
        opens = claim_wording[:1].isupper() and text[: claim.start].rstrip()[-1:] in SENTENCE_END
        claims = {other[c.start : c.end]: c for other in others for c in claims_of_answer(other, self.taxonomy)}
        values = self._values([claim, *claims.values()], key)
        repeated = self._repeating(earlier, [claim.text, *(c.text for c in claims.values())])
        by_verdict = sorted(zip(claims, values[1:], repeated[1:], strict=True), key=lambda row: row[1] == 0)
        from_answers = [(wording, value) for wording, value, again in by_verdict if not again][: CANDIDATES - 1 - FAVOURITES]
        favourites = self.favourites(key, self.judge.hangs_on([claim.text])[0])
        again = self._repeating(earlier, [self._reference_claims[wording].text for wording, _ in favourites])
        from_references = [pair for pair, is_repeat in zip(favourites, again, strict=True) if not is_repeat][:FAVOURITES]
        wordings = {claim_wording: 0.0 if repeated[0] else values[0]}
        for wording, value in [*from_answers, *from_references]:
            if opens:
                wording = wording[:1].upper() + wording[1:]
            if opens or not wording[:1].isupper():  # within a sentence, whether a capital is a name's is not known
                wordings.setdefault(wording, value)
        return wordings

    def favourites(self, key: str, modality: str) -> list[tuple[str, float]]:
        """Claims of references that hang on a modality, the most probable of the clip first, and their values."""
        if key not in self._favourites:
            claims = self._reference_claims
            values = zip(claims, self._values(list(claims.values()), key), strict=True)
            self._favourites[key] = sorted(values, key=lambda pair: -pair[1])
        return [(wording, value) for wording, value in self._favourites[key] if self._modality[wording] == modality]

    @cached_property
    def _reference_claims(self) -> dict[str, Claim]:
        """The distinct claims of the references that the judge can read, by their wording."""
        claims = {text[c.start : c.end]: c for text in self.references for c in claims_of(text, self.taxonomy)}
        return {wording: claim for wording, claim in claims.items() if self.judge.read(claim.text)[1]}

    @cached_property
    def _modality(self) -> dict[str, str]:
        """The modality that each of these depends on most."""
        claims = self._reference_claims
        modalities = self.judge.hangs_on([claim.text for claim in claims.values()]) if claims else []
        return dict(zip(claims, modalities, strict=True))

    def _values(self, claims: Sequence[Claim], key: str) -> list[float]:
        """v of each claim, 0 without a verdict."""
        values = (2 * self.judge.score([claim.text for claim in claims], key) - 1).tolist()
        return [value if abs(value) >= DEAD_ZONE else 0.0 for value in values]

    def _repeating(self, earlier: Sequence[Claim], texts: Sequence[str]) -> list[bool]:
        """Whether each text says again what an earlier claim says."""
        before = [claim.text for claim in earlier]
        if not before or not texts:
            return [False] * len(texts)
        vectors = self.judge.claim_vectors([*before, *texts])
        rows = list(range(len(before)))
        return [repeats([*before, text], vectors[[*rows, len(before) + i]])[-1] for i, text in enumerate(texts)]


def likeliest(
    model: ITSL, clip: Clip, before: list[int], alternatives: Sequence[Alternative], count: int
) -> list[Alternative]:
    """The `count` alternatives to which the model gives the highest probability behind prompt and `before`."""
    if len(alternatives) <= count:
        return list(alternatives)
    ids, row = [alternative.ids for alternative in alternatives], slice(clip.row, clip.row + 1)
    embeddings, present = (None if part is None else part[row] for part in (clip.batch.embeddings, clip.batch.present))
    logp = score_answers(model, [[*clip.prompt, *before]], ids, embeddings=embeddings, present=present)[0]  # (P,)
    return [alternatives[i] for i in logp.topk(min(count, len(ids))).indices.tolist()]


def _begins(ids: Sequence[int], other: Sequence[int]) -> bool:
    """Whether `ids` is how `other` begins."""
    return tuple(other[: len(ids)]) == tuple(ids)
