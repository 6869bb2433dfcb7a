"""Clips in, intents and rationales out: a trained model's answers, in batches.

    p(y | clip) = softmax over y of (share * log p_head(y) + (1 - share) * log p_decoder("Intent: y")) / temperature
The head and the decoder both know the intent; `share` and `temperature` are chosen on dev (Calibration). The label with the
highest probability is then put into the answer, and the decoder goes on with the rationale: so the two always agree.

The model criticises its own answer (spec: p(y | clip) * q(y | rationale)^alpha, alpha from dev): q is the verifier's reading of
the rationale with every label word masked. Where that would change the intent, the answer is flagged as inconsistent.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm.config import NO_MODALITY
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import ask
from imagebind_llm.critic.best_of import BestOf
from imagebind_llm.critic.verifier import Verifier
from imagebind_llm.encoder.store import Store
from imagebind_llm.files import write_atomic
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import Assembled, SharedLlama, digest, frozen_dtype, open_language, restore
from imagebind_llm.itsl.checkpoint import CheckpointError, check_store, read_info
from imagebind_llm.itsl.generate import GREEDY, Sampling, generate, read_prompts, score_rows, uniform
from imagebind_llm.itsl.instructions import LEAD, answer_text, encode_prompt
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.records import Example
from imagebind_llm.taxonomy import Taxonomy, taxonomy_of

CALIBRATION = "calibration.json"
MAX_NEW_TOKENS = 96  # of a rationale
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
SMALLEST = 1e-6  # of a probability that is to be raised to a power
TEMPERATURES = tuple(float(f"{2 ** (i / 4):.4g}") for i in range(-8, 17))  # a quarter to sixteen


@dataclass(frozen=True)
class Calibration:
    """How head and decoder are mixed and how sure they are together; chosen on dev by likelihood."""

    share: float = 0.5  # of the head
    temperature: float = 1.0
    alpha: float = 0.0  # weight of the verifier's reading of the rationale; 0 also without a verifier

    def probabilities(self, head: Tensor, decoder: Tensor) -> Tensor:
        """(N,C) from the log-probabilities of both, (N,C) each."""
        return ((self.share * head + (1 - self.share) * decoder) / self.temperature).softmax(1)

    def criticised(self, p: Tensor, q: Tensor) -> Tensor:
        """p * q^alpha, normalised: (N,C) each."""
        scores = p * q.clamp(min=SMALLEST) ** self.alpha
        return scores / scores.sum(1, keepdim=True)


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

    def runners_up(self, labels: Sequence[str], count: int = 3) -> list[tuple[str, float]]:
        """The next likeliest intents with their probabilities."""
        order = self.probabilities.argsort(descending=True)[1 : count + 1]
        return [(labels[i], float(self.probabilities[i])) for i in order.tolist()]


@dataclass(frozen=True)
class Reading:
    """What the model thinks of N clips: log-probabilities (N,C) by head and decoder and, if it was trained to give its reasons
    first, each rationale and whether that came to its end."""

    head: Tensor
    decoder: Tensor
    rationales: list[tuple[str, bool]] | None = None


def calibrate(head: Tensor, decoder: Tensor, gold: Tensor) -> Calibration:
    """The share and temperature under which the gold intents (N,) of a dev split are likeliest. head, decoder (N,C)."""
    rows = torch.arange(len(gold))
    best = max(
        (Calibration(share, temperature) for share in SHARES for temperature in TEMPERATURES),
        key=lambda c: float(c.probabilities(head, decoder)[rows, gold].clamp(min=1e-30).log().mean()),
    )
    return best


def choose_alpha(p: Tensor, q: Tensor, gold: Tensor) -> float:
    """How much the rationale should count: the alpha under which the gold intents (N,) of dev are likeliest. p, q (N,C)."""
    rows = torch.arange(len(gold))

    def likelihood(alpha: float) -> float:
        return float(Calibration(alpha=alpha).criticised(p, q)[rows, gold].clamp(min=1e-30).log().mean())

    return max(ALPHAS, key=likelihood)


class Explainer:
    """A trained model, ready to answer.

        explainer = Explainer.load(Path("runs/demo/itsl/best"))
        vectors, present = store.read([example.key for example in examples])
        for explanation in explainer.explain(examples, vectors, present): ...

    `embeddings` (N,M,E) as the store has them and `present` (N,M) bool; change or drop rows of them to see what an answer
    depends on. Modalities that the model was not trained with are never looked at.
    """

    def __init__(
        self,
        assembled: Assembled,
        tokenizer: LlamaTokenizer,
        taxonomy: Taxonomy,
        modalities: Sequence[str],
        max_seq_len: int,
        calibration: Calibration | None = None,
        store_identity: dict | None = None,
        verifier: Verifier | None = None,
        order: str = "label",
    ):
        self._assembled = assembled
        self.model, self.tokenizer, self.taxonomy = assembled.model, tokenizer, taxonomy
        self.modalities, self.calibration = tuple(modalities), calibration or Calibration()
        self.store_identity, self.verifier, self.order = store_identity, verifier, order
        self.best_of: BestOf | None = None  # greedy rationales, unless it is given
        self.device = self.model.prefix_query.weight.device
        self.max_len = min(max_seq_len, assembled.config.llama.max_seq_len)
        self._known = Collator(None, self.modalities).known
        lead = tokenizer.encode(LEAD["label"])
        whole = [tokenizer.encode(answer_text(label, None)) for label in taxonomy.labels]
        assert all(ids[: len(lead)] == lead for ids in whole), "a label changes the tokens before it"
        self._labels = [ids[len(lead) :] for ids in whole]

    @classmethod
    def load(
        cls,
        folder: Path,
        llama_model_path: str = "",
        device: str = "cpu",
        dtype: str = "auto",
        shared: SharedLlama | None = None,
    ) -> "Explainer":
        """A checkpoint folder; with `shared`, several around one LLaMA in memory. Raises CheckpointError, also for one that was
        trained on instructions or captions alone."""
        info = read_info(folder)
        taxonomy = taxonomy_of(info["taxonomy"])
        if taxonomy is None:
            raise CheckpointError(
                f"{folder}: trained without intents (--stage {info['settings']['stage']}); it cannot name any"
            )
        place = torch.device(device)
        assembled, _ = restore(folder, llama_model_path, place, frozen_dtype(dtype, place), shared)
        _, tokenizer = open_language(llama_model_path or info["settings"]["llama_model_path"])
        folder = checkpoint.resolve(folder)
        path = folder / CALIBRATION
        calibration = Calibration(**json.loads(path.read_text())) if path.is_file() else None
        verifier = Verifier.load(folder) if (folder / "verifier.json").is_file() else None
        longest, order, store = info["settings"]["max_seq_len"], info["settings"]["answer_order"], info["store"]
        return cls(assembled, tokenizer, taxonomy, info["modalities"], longest, calibration, store, verifier, order)

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

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """The token ids of the question about each clip."""
        asked = (ask(Example(e.key, e.split, e.clip, e.text), None, self.modalities, self.order) for e in examples)
        return [encode_prompt(exchange, self.tokenizer, self.max_len) for exchange in asked]

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
        vectors, there = self._on_device(embeddings, present)
        rows = read_prompts(self.model, prompts, self._labels, vectors, there)
        head = self.model.intent_logits(rows.read, self.model.carried(vectors, there), there).log_softmax(1)
        rationales = None
        if self.order == "rationale":
            rationales = self._reasons(prompts, vectors, there, max_new_tokens)
            said = [self._after_lead(f"{LEAD['rationale']} {text} {LEAD['label']}") for text, _ in rationales]
            asked = [[*prompt, *ids] for prompt, ids in zip(prompts, said, strict=True)]
            rows = read_prompts(self.model, asked, self._labels, vectors, there)
        decoder = score_rows(rows, self._labels).log_softmax(1)
        return Reading(head.float().cpu(), decoder.float().cpu(), rationales)

    def intents(
        self, examples: Sequence[Example], embeddings: Tensor | None, present: Tensor | None, batch_size: int = 32
    ) -> tuple[Tensor, Tensor]:
        """`score` of any number of clips, (N,C) each."""
        prompts = self.prompts(examples)
        parts = [self.score(prompts[s], *_rows(s, embeddings, present)) for s in _slices(len(prompts), batch_size)]
        return torch.cat([part.head for part in parts]), torch.cat([part.decoder for part in parts])

    def probabilities(self, examples: Sequence[Example], embeddings: Tensor | None, present: Tensor | None) -> Tensor:
        """p(intent | clip): (N,C), calibrated."""
        return self.calibration.probabilities(*self.intents(examples, embeddings, present))

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
        for part in _slices(len(prompts), batch_size):
            probabilities, written = self.answer(prompts[part], *_rows(part, embeddings, present), max_new_tokens)
            intents = [self.taxonomy.labels[i] for i in probabilities.argmax(1).tolist()]
            criticised = self.calibration.criticised(probabilities, self.read(probabilities, [text for text, _ in written]))
            found = zip(examples[part], probabilities, intents, written, criticised, strict=True)
            for example, p, intent, (rationale, finished), after in found:
                yield Explanation(example.key, p, intent, rationale, finished, after)

    def answer(
        self, prompts: Sequence[list[int]], embeddings: Tensor | None, present: Tensor | None, max_new_tokens: int
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        """Probabilities (N,C), and a rationale for the likeliest intent of each clip with whether it came to its end."""
        reading = self.score(prompts, embeddings, present, max_new_tokens)
        probabilities = self.calibration.probabilities(reading.head, reading.decoder)
        if reading.rationales is not None:
            return probabilities, reading.rationales
        intents = [self.taxonomy.labels[i] for i in probabilities.argmax(1).tolist()]
        return probabilities, self._write(prompts, intents, *self._on_device(embeddings, present), max_new_tokens)

    def read(self, probabilities: Tensor, rationales: Sequence[str]) -> Tensor:
        """q(intent | rationale with its label words masked), (N,C); without a verifier every intent alike."""
        if self.verifier is None:
            return torch.full_like(probabilities, 1 / probabilities.shape[1])
        return self.verifier.predict_proba(rationales)

    def _write(
        self, prompts: Sequence[list[int]], intents: Sequence[str], vectors: Tensor | None, there: Tensor | None, limit: int
    ) -> list[tuple[str, bool]]:
        """A rationale for each clip and given intent, the likeliest or what `best_of` picks, and whether it came to its end."""
        begun = [self._after_lead(f"{LEAD['label']} {intent}. {LEAD['rationale']}") for intent in intents]
        asked = [[*prompt, *ids] for prompt, ids in zip(prompts, begun, strict=True)]
        answers = self._generated(asked, vectors, there, limit)
        if (best := self.best_of) is not None and vectors is not None and there is not None:
            drawn = self._generated(asked, vectors, there, limit, best)
            texts = [[*greedy, *sampled] for greedy, sampled in zip(answers, drawn, strict=True)]
            return best.pick(texts, vectors.cpu(), there.cpu(), self.taxonomy)
        return [text for [text] in answers]

    def _generated(
        self, asked: list[list[int]], vectors: Tensor | None, there: Tensor | None, limit: int, best: BestOf | None = None
    ) -> list[list[tuple[str, bool]]]:
        """The greedy answer to each prompt, or those that `best` is to choose from, and whether each came to its end."""
        draws = None
        if best is not None:
            draws = torch.cat([uniform((best.seed, prompt), (best.count, limit)) for prompt in asked]).to(self.device)
        answers = generate(
            self.model,
            asked,
            limit,
            self.tokenizer.eos_id,
            embeddings=vectors,
            present=there,
            sampling=Sampling(best.temperature) if best is not None else GREEDY,
            n_samples=best.count if best is not None else 1,
            draws=draws,
        )
        return [[(self.tokenizer.decode(ids).strip(), len(ids) < limit) for ids in own] for own in answers]

    def _reasons(
        self, prompts: Sequence[list[int]], vectors: Tensor | None, there: Tensor | None, limit: int
    ) -> list[tuple[str, bool]]:
        """The likeliest rationales where they come first, without the intent that follows them."""
        answers = generate(self.model, prompts, limit, self.tokenizer.eos_id, embeddings=vectors, present=there)
        texts = [self.tokenizer.decode(ids).partition(LEAD["label"])[0].strip() for [ids] in answers]
        return [(text, len(ids) < limit) for text, [ids] in zip(texts, answers, strict=True)]

    def _after_lead(self, text: str) -> list[int]:
        """The ids of an answer's beginning without its lead, which ends the prompt."""
        lead = self.tokenizer.encode(LEAD[self.order])
        return self.tokenizer.encode(text)[len(lead) :]

    def _on_device(self, embeddings: Tensor | None, present: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if embeddings is None or present is None or not self.needs_embeddings:
            return None, None
        return embeddings.to(self.device), (present & self._known).to(self.device)


def save_calibration(folder: Path, calibration: Calibration) -> None:
    write_atomic(Path(folder) / CALIBRATION, (json.dumps(asdict(calibration)) + "\n").encode())


def _rows(part: slice, embeddings: Tensor | None, present: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if embeddings is None or present is None else (embeddings[part], present[part])


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
