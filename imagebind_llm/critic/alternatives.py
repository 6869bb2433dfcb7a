"""Alternatives to one claim of an answer, each with its value by the judge (--credit local and corrected).

The alternatives are claims of the clip's other answers, and those claims of the train references that the judge finds most
probable for the clip, in their original wording; there is no fixed list of claims. All continue the same beginning of the
answer and end with the separator that ends the claim there (", " or " and" ...), so none is a prefix of another and no two of
them can occur together. If there are many, those that the model finds most likely are taken.
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

MOST = 6  # largest number of compared alternatives, including the claim itself
CANDIDATES = 24  # largest number of alternatives from which the likeliest are taken
FAVOURITES = 12  # of the candidates, those from references
CORRECTED = 2  # largest number of false claims that are corrected in an answer
SENTENCE_END = ".!?:"


@dataclass(frozen=True)
class Alternative:
    """Tokens of a claim with its separator, and the claim's value v; 0 if it is undecided."""

    ids: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class Place:
    """A place in an answer: the tokens before a claim, and at least two alternatives, the first of which is the claim."""

    before: list[int]
    alternatives: list[Alternative]


@dataclass(frozen=True)
class Clip:
    """A row of a batch with answers to it: their tokens without an end token, and their texts."""

    batch: Batch
    row: int
    ids: Sequence[list[int]]
    texts: Sequence[str]
    others: Sequence[str] = ()  # texts of further answers, whose claims are alternatives

    @property
    def key(self) -> str:
        return self.batch.keys[self.row]

    @cached_property
    def prompt(self) -> list[int]:
        assert self.batch.n_prompt is not None
        return self.batch.tokens[self.row, : int(self.batch.n_prompt[self.row])].tolist()


@dataclass(frozen=True)
class Continuation:
    """A row to be scored: an alternative after `prefix`, the tokens of the prompt and of the answer's beginning."""

    prefix: list[int]
    alternative: Alternative


@dataclass(frozen=True)
class Replacements:
    """N continuations that are scored instead of sampled answers; one with value 0 if there are none."""

    batch: Batch
    values: Tensor  # (N,)
    clips: list[int]  # number of each row's clip


class Alternatives:
    """Finds alternatives to the claims of answers, which have at most `longest` tokens."""

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
        """
        Args:
            lead: number of characters of the lead, with which an answer's text begins and which is in the prompt.
            references: rationales of the train split.
            corrects: `replaced` returns corrections of false claims, otherwise alternatives of one claim.
        """
        self.judge, self.tokenizer, self.taxonomy = judge, tokenizer, taxonomy
        self.lead, self.references, self.longest, self.corrects = lead, references, longest, corrects
        self._favourites: dict[str, list[tuple[str, float]]] = {}

    def replaced(self, model: ITSL, clips: Sequence[Clip], seed: int, whole: bool = False) -> Replacements:
        """The rows to score instead of these clips' answers.

        `whole`: the largest number of rows, each as long as a whole answer, for the test of memory.
        """
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
        """The likeliest alternatives of one claim, with the claim itself; none if all have the same value.

        The claim is drawn uniformly from the decided claims of all answers, by a random number in [0, 1), `draws` (1,).
        """
        values = [self._values(claims_of_answer(text, self.taxonomy), clip.key) for text in clip.texts]
        decided = [(answer, i) for answer, by_claim in enumerate(values) for i, value in enumerate(by_claim) if value]
        if not decided:
            return []
        answer, number = decided[int(draws[0] * len(decided))]
        place = self.at(clip, answer, number)
        if place is None:
            return []
        claim, *others = place.alternatives
        alternatives = [claim, *likeliest(model, clip, place.before, others, MOST - 1)]
        if len({alternative.value for alternative in alternatives}) < 2:
            return []
        return [Continuation([*clip.prompt, *place.before], alternative) for alternative in alternatives]

    def corrections(self, model: ITSL, clip: Clip) -> list[Continuation]:
        """The likeliest true alternative, with value 1, for each of the CORRECTED claims of the first answer with lowest value.

        Each is a separate row after the answer's own beginning, with its other false claims, since the model has generated the
        claim after these tokens.
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

    # --- alternatives at a place ----------------------------------------------------------------------------------------

    def at(self, clip: Clip, answer: int, number: int) -> Place | None:
        """The alternatives to claim `number`, counted from 0, of an answer. None if there are fewer than two, or if the answer
        was cut off within the claim."""
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
            head = " "  # SentencePiece drops it at the beginning of a decoded text
        for wording, value in wordings.items():
            new_ids = self._continuing(text[:start], head + wording + tail)
            if new_ids and first + len(new_ids) + len(after) <= self.longest:
                new_ids = (*new_ids, *after)
                if not any(_begins(new_ids, other.ids) or _begins(other.ids, new_ids) for other in alternatives):
                    alternatives.append(Alternative(new_ids, value))
        return Place(list(ids[:first]), alternatives) if len(alternatives) > 1 else None

    def _span(self, ids: list[int], text: str, claim: Claim) -> tuple[int, int, int, int, tuple[int, ...]] | None:
        """Tokens [first, last) of a claim with its separator, their characters [start, end), and the end token if that ends the
        claim instead of a separator; None if neither does."""
        characters = [(a + self.lead, b + self.lead) for a, b in characters_of(ids, self.tokenizer)]
        first, last = tokens_of((claim.start, claim.end), characters)
        while first and not text[slice(*characters[first - 1])].strip():
            first -= 1  # a space belongs to the word after it
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
        """The tokens of `more` after `text`; None if the tokens of `text` would change."""
        before, whole = self.tokenizer.encode(text), self.tokenizer.encode(text + more)
        return tuple(whole[len(before) :]) if whole[: len(before)] == before else None

    def _wordings(
        self, text: str, earlier: Sequence[Claim], claim: Claim, others: Sequence[str], key: str
    ) -> dict[str, float]:
        """Wordings for the place of a claim, and their values.

        These are the claim's own wording, claims of other answers (decided ones first), and reference claims that depend on
        the same modality, most probable first. Repetitions of an earlier claim are not among them; the claim itself gets 0 if
        it is one.
        """
        claim_wording = text[claim.start : claim.end]
        begins_sentence = claim_wording[:1].isupper() and text[: claim.start].rstrip()[-1:] in SENTENCE_END
        claims = {other[c.start : c.end]: c for other in others for c in claims_of_answer(other, self.taxonomy)}
        values = self._values([claim, *claims.values()], key)
        repeated = self._repeating(earlier, [claim.text, *(c.text for c in claims.values())])
        by_verdict = sorted(zip(claims, values[1:], repeated[1:], strict=True), key=lambda row: row[1] == 0)
        n_answers = CANDIDATES - 1 - FAVOURITES
        from_answers = [(wording, value) for wording, value, is_repeat in by_verdict if not is_repeat][:n_answers]
        favourites = self.favourites(key, self.judge.hangs_on([claim.text])[0])
        repeats_of = self._repeating(earlier, [self._reference_claims[wording].text for wording, _ in favourites])
        from_references = [pair for pair, is_repeat in zip(favourites, repeats_of, strict=True) if not is_repeat][:FAVOURITES]
        wordings = {claim_wording: 0.0 if repeated[0] else values[0]}
        for wording, value in [*from_answers, *from_references]:
            if begins_sentence:
                wording = wording[:1].upper() + wording[1:]
            if begins_sentence or not wording[:1].isupper():  # a capital may be that of a name
                wordings.setdefault(wording, value)
        return wordings

    def favourites(self, key: str, modality: str) -> list[tuple[str, float]]:
        """Reference claims that depend on a modality, and their values, most probable for the clip first."""
        if key not in self._favourites:
            claims = self._reference_claims
            values = zip(claims, self._values(list(claims.values()), key), strict=True)
            self._favourites[key] = sorted(values, key=lambda pair: -pair[1])
        return [(wording, value) for wording, value in self._favourites[key] if self._modality[wording] == modality]

    @cached_property
    def _reference_claims(self) -> dict[str, Claim]:
        """The distinct reference claims on which the judge has a verdict, by wording."""
        claims = {text[c.start : c.end]: c for text in self.references for c in claims_of(text, self.taxonomy)}
        return {wording: claim for wording, claim in claims.items() if self.judge.read(claim.text)[1]}

    @cached_property
    def _modality(self) -> dict[str, str]:
        """The modality that each reference claim depends on most, by wording."""
        claims = self._reference_claims
        modalities = self.judge.hangs_on([claim.text for claim in claims.values()]) if claims else []
        return dict(zip(claims, modalities, strict=True))

    def _values(self, claims: Sequence[Claim], key: str) -> list[float]:
        """Value v of each claim, 0 if it is undecided."""
        values = (2 * self.judge.score([claim.text for claim in claims], key) - 1).tolist()
        return [value if abs(value) >= DEAD_ZONE else 0.0 for value in values]

    def _repeating(self, earlier: Sequence[Claim], texts: Sequence[str]) -> list[bool]:
        """Whether each text repeats an earlier claim."""
        earlier_texts = [claim.text for claim in earlier]
        n = len(earlier_texts)
        if not n or not texts:
            return [False] * len(texts)
        vectors = self.judge.claim_vectors([*earlier_texts, *texts])
        return [repeats([*earlier_texts, text], vectors[[*range(n), n + i]])[-1] for i, text in enumerate(texts)]


def likeliest(
    model: ITSL, clip: Clip, before: list[int], alternatives: Sequence[Alternative], count: int
) -> list[Alternative]:
    """The `count` alternatives that the model finds most probable after the prompt and `before`."""
    if len(alternatives) <= count:
        return list(alternatives)
    ids, row = [alternative.ids for alternative in alternatives], slice(clip.row, clip.row + 1)
    embeddings, present = (None if part is None else part[row] for part in (clip.batch.embeddings, clip.batch.present))
    logp = score_answers(model, [[*clip.prompt, *before]], ids, embeddings=embeddings, present=present)[0]  # (P,)
    return [alternatives[i] for i in logp.topk(min(count, len(ids))).indices.tolist()]


def _begins(ids: Sequence[int], other: Sequence[int]) -> bool:
    """Whether `other` begins with `ids`."""
    return tuple(other[: len(ids)]) == tuple(ids)
