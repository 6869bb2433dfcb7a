"""Clips in, intents and rationales out: a trained model's answers, in batches.

calibration.py has the formula of the probabilities. The label with the highest one is put into the answer, and the decoder goes
on with the rationale (wording.py): so the two always agree.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagebind_llm.config import NO_MODALITY
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import ask
from imagebind_llm.critic.best_of import BestOf, Written
from imagebind_llm.critic.verifier import Verifier
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain.calibration import Calibration
from imagebind_llm.explain.wording import Wording
from imagebind_llm.itsl.assembly import Assembled, digest
from imagebind_llm.itsl.checkpoint import check_store
from imagebind_llm.itsl.generate import read_prompts, score_rows
from imagebind_llm.itsl.instructions import LEAD, answer_text, encode_prompt
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.records import Example
from imagebind_llm.taxonomy import Taxonomy

MAX_NEW_TOKENS = 96  # of a rationale


@dataclass(frozen=True)
class Question:
    """How a model is asked: the intents that it chooses from, the modalities that it looks at, the longest sequence in tokens,
    and what comes first in its answer, the label or the rationale."""

    taxonomy: Taxonomy
    modalities: Sequence[str]
    max_seq_len: int
    order: str = "label"


@dataclass(frozen=True)
class Explanation:
    """An answer about one clip: probabilities (C,) in the taxonomy's order, the likeliest intent, why, and whether the
    rationale was ended by the model (or ran into the limit).

    `criticised` (C,): the probabilities after reading the rationale; `consistent`: they have the same likeliest intent.
    """

    key: str
    probabilities: Tensor
    intent: str
    rationale: str
    finished: bool
    criticised: Tensor

    @property
    def consistent(self) -> bool:
        return bool(self.criticised.argmax() == self.probabilities.argmax())

    def runners_up(self, labels: Sequence[str]) -> list[tuple[str, float]]:
        """The three next likeliest intents with their probabilities."""
        order = self.probabilities.argsort(descending=True)[1:4]
        return [(labels[i], float(self.probabilities[i])) for i in order.tolist()]


@dataclass(frozen=True)
class Reading:
    """What the model thinks of N clips: log-probabilities (N,C) by head and decoder and, if it was trained to give its reasons
    first, each rationale and whether that came to its end."""

    head: Tensor
    decoder: Tensor
    rationales: list[Written] | None = None


class Explainer:
    """A trained model, ready to answer.

        explainer = load_explainer(Path("runs/demo/itsl/best"))  # loading.py
        vectors, present = store.read([example.key for example in examples])
        for explanation in explainer.explain(examples, vectors, present): ...

    `embeddings` (N,M,E) as the store has them and `present` (N,M) bool; change or drop rows of them to see what an answer
    depends on. Modalities that the model was not trained with are never looked at.
    """

    def __init__(
        self,
        assembled: Assembled,
        tokenizer: LlamaTokenizer,
        question: Question,
        calibration: Calibration | None = None,
        verifier: Verifier | None = None,
        store_identity: dict | None = None,
    ):
        self._assembled = assembled
        self.model, self.tokenizer = assembled.model, tokenizer
        self.taxonomy, self.modalities, self.order = question.taxonomy, tuple(question.modalities), question.order
        self.calibration, self.verifier, self.store_identity = calibration or Calibration(), verifier, store_identity
        self.best_of: BestOf | None = None  # greedy rationales, unless it is given
        self.device = self.model.prefix_query.weight.device
        self.max_len = min(question.max_seq_len, assembled.config.llama.max_seq_len)
        self._wording = Wording(self.model, tokenizer, question.order)
        self._known = Collator(None, self.modalities).known
        lead = tokenizer.encode(LEAD["label"])
        whole = [tokenizer.encode(answer_text(label, None)) for label in self.taxonomy.labels]
        assert all(ids[: len(lead)] == lead for ids in whole), "a label changes the tokens before it"
        self._labels = [ids[len(lead) :] for ids in whole]

    @property
    def digest(self) -> str:
        """Tells models apart: of what was trained, and how it is read."""
        return hashlib.sha256((digest(self._assembled.adapter()) + repr(self.calibration)).encode()).hexdigest()[:16]

    @property
    def needs_embeddings(self) -> bool:
        return NO_MODALITY not in self.modalities

    def check_store(self, store: Store) -> None:
        """Raises CheckpointError if the store's embeddings were made in another way than those the model was trained on."""
        check_store(store, self.store_identity)

    # --- intents ------------------------------------------------------------------------------------------------------

    def prompts(self, examples: Sequence[Example], has_text: Sequence[bool] = ()) -> list[list[int]]:
        """The token ids of the question about each clip; where `has_text` says that its text is absent, without its words."""
        prompts = []
        for example, words in zip(examples, has_text or [True] * len(examples), strict=True):
            readable = tuple(name for name in self.modalities if words or name != "text")
            bare = Example(example.key, example.split, example.clip, example.text)  # neither intent nor rationale
            prompts.append(encode_prompt(ask(bare, None, readable, self.order), self.tokenizer, self.max_len))
        return prompts

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[list[int]],
        embeddings: Tensor | None,
        present: Tensor | None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Reading:
        """What head and decoder think, on the CPU. A rationale that comes first is written before the decoder is asked."""
        self.model.eval()
        vectors, presence = self._on_device(embeddings, present)
        rows = read_prompts(self.model, prompts, self._labels, vectors, presence)
        head = self.model.intent_logits(rows.read, self.model.carried(vectors, presence), presence).log_softmax(1)
        rationales = None
        if self.order == "rationale":
            rationales = self._wording.before_label(prompts, vectors, presence, max_new_tokens)
            beginnings = [self._wording.after_lead(f"{LEAD['rationale']} {text} {LEAD['label']}") for text, _ in rationales]
            asked = [[*prompt, *ids] for prompt, ids in zip(prompts, beginnings, strict=True)]
            rows = read_prompts(self.model, asked, self._labels, vectors, presence)
        decoder = score_rows(rows, self._labels).log_softmax(1)
        return Reading(head.float().cpu(), decoder.float().cpu(), rationales)

    # --- rationales ---------------------------------------------------------------------------------------------------

    def explain(
        self,
        examples: Sequence[Example],
        embeddings: Tensor | None = None,
        present: Tensor | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = 32,
    ) -> Iterator[Explanation]:
        """An answer about each clip, in order, as batches are done."""
        prompts = self.prompts(examples)
        for part in batch_slices(len(prompts), batch_size):
            probabilities, written = self.answer(prompts[part], *_rows(part, embeddings, present), max_new_tokens)
            intents = [self.taxonomy.labels[i] for i in probabilities.argmax(1).tolist()]
            criticised = self.calibration.criticised(probabilities, self.read(probabilities, [text for text, _ in written]))
            answers = zip(examples[part], probabilities, intents, written, criticised, strict=True)
            for example, p, intent, (rationale, finished), after in answers:
                yield Explanation(example.key, p, intent, rationale, finished, after)

    def answer(
        self, prompts: Sequence[list[int]], embeddings: Tensor | None, present: Tensor | None, max_new_tokens: int
    ) -> tuple[Tensor, list[Written]]:
        """Probabilities (N,C), and a rationale for the likeliest intent of each clip with whether it came to its end."""
        reading = self.score(prompts, embeddings, present, max_new_tokens)
        probabilities = self.calibration.probabilities(reading.head, reading.decoder)
        if reading.rationales is not None:
            return probabilities, reading.rationales
        intents = [self.taxonomy.labels[i] for i in probabilities.argmax(1).tolist()]
        best = (self.best_of, self.taxonomy) if self.best_of is not None else None
        rows = self._on_device(embeddings, present)
        return probabilities, self._wording.after_label(prompts, intents, *rows, max_new_tokens, best)

    def read(self, probabilities: Tensor, rationales: Sequence[str]) -> Tensor:
        """q(intent | rationale with its label words masked), (N,C); without a verifier every intent alike."""
        if self.verifier is None:
            return torch.full_like(probabilities, 1 / probabilities.shape[1])
        return self.verifier.predict_proba(rationales)

    def _on_device(self, embeddings: Tensor | None, present: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if embeddings is None or present is None or not self.needs_embeddings:
            return None, None
        return embeddings.to(self.device), (present & self._known).to(self.device)


def _rows(part: slice, embeddings: Tensor | None, present: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if embeddings is None or present is None else (embeddings[part], present[part])


def batch_slices(count: int, size: int) -> list[slice]:
    """[0, size), [size, 2 size), ... of `count` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
