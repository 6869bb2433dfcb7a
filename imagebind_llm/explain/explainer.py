"""Predicts intents and rationales with a trained model, in batches.

calibration.py has the formula of the probabilities. The label with the highest one is put into the answer, and the decoder
continues with the rationale (wording.py), so that the two agree.
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
    """How a model was trained to answer."""

    taxonomy: Taxonomy
    modalities: Sequence[str]
    max_seq_len: int
    order: str = "label"  # what an answer begins with: label or rationale


@dataclass(frozen=True)
class Explanation:
    """An answer about one clip."""

    key: str
    probabilities: Tensor  # (C,) in the taxonomy's order
    intent: str  # the likeliest
    rationale: str
    finished: bool  # the rationale ended with EOS, not at the length limit
    criticised: Tensor  # (C,) probabilities after the verifier has read the rationale

    @property
    def consistent(self) -> bool:
        """Whether the likeliest intent is the same after reading the rationale."""
        return bool(self.criticised.argmax() == self.probabilities.argmax())

    def runners_up(self, labels: Sequence[str]) -> list[tuple[str, float]]:
        """The three next likeliest intents with their probabilities."""
        order = self.probabilities.argsort(descending=True)[1:4]
        return [(labels[i], float(self.probabilities[i])) for i in order.tolist()]


@dataclass(frozen=True)
class Reading:
    """Scores of N clips."""

    head: Tensor  # (N,C) log-probabilities by the intent head
    decoder: Tensor  # (N,C) log-probabilities by the decoder
    rationales: list[Written] | None = None  # if the model was trained to give the rationale first


class Explainer:
    """A trained model that answers questions about clips.

        explainer = load_explainer(Path("runs/demo/itsl/best"))  # loading.py
        vectors, present = store.read([example.key for example in examples])
        for explanation in explainer.explain(examples, vectors, present): ...

    In all methods `embeddings` (N,M,E) are as in the store, and `present` (N,M) is bool. Modalities that the model was not
    trained with are ignored.
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
        self.best_of: BestOf | None = None  # None: greedy rationales
        self.device = self.model.prefix_query.weight.device
        self.max_len = min(question.max_seq_len, assembled.config.llama.max_seq_len)
        self._wording = Wording(self.model, tokenizer, question.order)
        self._modality_mask = Collator(None, self.modalities).modality_mask
        lead = tokenizer.encode(LEAD["label"])
        answers = [tokenizer.encode(answer_text(label, None)) for label in self.taxonomy.labels]
        assert all(ids[: len(lead)] == lead for ids in answers), "a label changes the tokens before it"
        self._labels = [ids[len(lead) :] for ids in answers]

    @property
    def digest(self) -> str:
        """Digest of the trained tensors and of the calibration."""
        return hashlib.sha256((digest(self._assembled.adapter()) + repr(self.calibration)).encode()).hexdigest()[:16]

    @property
    def needs_embeddings(self) -> bool:
        return NO_MODALITY not in self.modalities

    def check_store(self, store: Store) -> None:
        """Raise CheckpointError if the store's embeddings were made in another way than those the model was trained on."""
        check_store(store, self.store_identity)

    # --- intents ------------------------------------------------------------------------------------------------------

    def prompts(self, examples: Sequence[Example], has_text: Sequence[bool] = ()) -> list[list[int]]:
        """The token ids of the prompt for each clip, without its transcript where `has_text` is False."""
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
        """Log-probabilities by head and decoder, on the CPU.

        If the model gives the rationale first, it is generated, and the decoder's label is conditioned on it.
        """
        self.model.eval()
        vectors, presence = self._on_device(embeddings, present)
        rows = read_prompts(self.model, prompts, self._labels, vectors, presence)
        head = self.model.intent_logits(rows.prompt_state, self.model.carried(vectors, presence), presence).log_softmax(1)
        rationales = None
        if self.order == "rationale":
            rationales = self._wording.before_label(prompts, vectors, presence, max_new_tokens)
            beginnings = [self._wording.after_lead(f"{LEAD['rationale']} {text} {LEAD['label']}") for text, _ in rationales]
            extended = [[*prompt, *ids] for prompt, ids in zip(prompts, beginnings, strict=True)]
            rows = read_prompts(self.model, extended, self._labels, vectors, presence)
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
        """Yield an explanation of each clip, in order, batch by batch."""
        prompts = self.prompts(examples)
        for part in batch_slices(len(prompts), batch_size):
            probabilities, rationales = self.answer(prompts[part], *_rows(part, embeddings, present), max_new_tokens)
            intents = [self.taxonomy.labels[i] for i in probabilities.argmax(1).tolist()]
            criticised = self.calibration.criticised(probabilities, self.read(probabilities, [text for text, _ in rationales]))
            answers = zip(examples[part], probabilities, intents, rationales, criticised, strict=True)
            for example, p, intent, (rationale, finished), after in answers:
                yield Explanation(example.key, p, intent, rationale, finished, after)

    def answer(
        self, prompts: Sequence[list[int]], embeddings: Tensor | None, present: Tensor | None, max_new_tokens: int
    ) -> tuple[Tensor, list[Written]]:
        """Probabilities (N,C), and for each clip the rationale of the likeliest intent and whether it is finished."""
        reading = self.score(prompts, embeddings, present, max_new_tokens)
        probabilities = self.calibration.probabilities(reading.head, reading.decoder)
        if reading.rationales is not None:
            return probabilities, reading.rationales
        intents = [self.taxonomy.labels[i] for i in probabilities.argmax(1).tolist()]
        best = (self.best_of, self.taxonomy) if self.best_of is not None else None
        rows = self._on_device(embeddings, present)
        return probabilities, self._wording.after_label(prompts, intents, *rows, max_new_tokens, best)

    def read(self, probabilities: Tensor, rationales: Sequence[str]) -> Tensor:
        """q(intent | rationale with label words masked) by the verifier, (N,C); uniform without a verifier."""
        if self.verifier is None:
            return torch.full_like(probabilities, 1 / probabilities.shape[1])
        return self.verifier.predict_proba(rationales)

    def _on_device(self, embeddings: Tensor | None, present: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if embeddings is None or present is None or not self.needs_embeddings:
            return None, None
        return embeddings.to(self.device), (present & self._modality_mask).to(self.device)


def _rows(part: slice, embeddings: Tensor | None, present: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if embeddings is None or present is None else (embeddings[part], present[part])


def batch_slices(count: int, size: int) -> list[slice]:
    """[0, size), [size, 2 size), ... of `count` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
