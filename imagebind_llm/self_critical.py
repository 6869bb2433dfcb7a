"""Self-critical learning: the model's own sampled answers, what they are worth, and how much better that is than a baseline.

For every clip of a step K answers are drawn at temperature 1 without truncation (on-policy), rewarded by parts (rewards.py)
and compared with a baseline; the wrapped forward pass that the references need anyway scores them too. The divergence from
the model at the start, beta * sum over tokens of (logp - logp_ref), is taken off the normalised reward; logp_ref comes from
a frozen copy of the trained tensors.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.func import functional_call

from imagebind_llm.generate import GREEDY, Sampling, generate
from imagebind_llm.instructions import LEAD, parse_answer
from imagebind_llm.labels import Taxonomy
from imagebind_llm.losses import self_critical
from imagebind_llm.model import ITSL
from imagebind_llm.records import IGNORE, Answer, Batch, Output
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.rewards import advantage, reward_parts
from imagebind_llm.settings import TrainSettings
from imagebind_llm.text_metrics import CiderD, distinct2
from imagebind_llm.tokenizers import LlamaTokenizer
from imagebind_llm.verifier import Verifier

ON_POLICY = Sampling(temperature=1.0)
SPARE_TOKENS = 8  # an answer may be longer than the longest reference by so much


@dataclass(frozen=True)
class Sampled:
    """K answers to each of B clips: a batch of their R = B*K rows, reward parts (B,K) each, those of the greedy answers (B,)
    where they were drawn, and the texts."""

    batch: Batch
    parts: dict[str, Tensor]
    greedy: dict[str, Tensor] | None
    answers: list[Answer]
    texts: list[str]


@dataclass
class CriticSums:
    """Running sums of one rank, over answers or clips; what the guards of the method look at."""

    answers: float = 0.0
    clips: float = 0.0
    intent: float = 0.0
    rationale: float = 0.0
    consistency: float = 0.0
    format: float = 0.0
    skipped: float = 0.0  # clips whose answers were all worth the same
    unfinished: float = 0.0
    tokens: float = 0.0
    surprise: float = 0.0  # -log p of the sampled tokens: their mean is the entropy
    divergence: float = 0.0  # log p - log p_ref, summed over an answer
    distinct: float = 0.0  # distinct-2 of a step's answers, times their number
    advantage: float = 0.0  # its absolute value

    def means(self) -> dict[str, float]:
        """By answer, by clip (skipped) and by token (entropy); empty if nothing was sampled."""
        if not self.answers:
            return {}
        n = self.answers
        names = ("intent", "rationale", "consistency", "format", "unfinished", "advantage")
        found = {f"reward_{name}" if name in names[:4] else name: getattr(self, name) / n for name in names}
        return found | {
            "skipped": self.skipped / self.clips,
            "length": self.tokens / n,
            "entropy": self.surprise / max(self.tokens, 1.0),
            "kl": self.divergence / n,
            "distinct_2": self.distinct / n,
        }


class Critic:
    """Samples, rewards and the loss. Needs reference rationales: `rows` are the train split's sequences."""

    def __init__(
        self,
        settings: TrainSettings,
        tokenizer: LlamaTokenizer,
        taxonomy: Taxonomy,
        rows: Sequence[Ids],
        verifier: Verifier,
        reference: dict[str, Tensor],
        start: int = 0,
    ):
        """`reference`: the trained tensors at the start, by name; never changed. `start`: the epoch that this was. Some of
        `rows` must have rationales."""
        self.start = start
        self.settings, self.tokenizer, self.taxonomy, self.verifier = settings, tokenizer, taxonomy, verifier
        self.weights, self.reference = settings.rewards(), reference
        self.rationales = {row.key: row.rationale for row in rows}
        self.cider = CiderD([text for text in self.rationales.values() if text])
        self.eos: int | None = tokenizer.eos_id  # None: no answer ends before its limit, as when memory is tried (rehearsal.py)
        self.max_new = max(len(row.ids) - row.n_prompt for row in rows) + SPARE_TOKENS  # with the end token

    def weight(self, epoch: float) -> float:
        """lambda: 0 at the start, then rising in a line to --w_critic within an epoch."""
        return self.settings.w_critic * min(max(epoch - self.start, 0.0), 1.0)

    def sample(self, model: ITSL, batch: Batch, generator: torch.Generator) -> Sampled | None:
        """Answers to the clips of a batch whose intent is known, on the batch's device; None if there is none.

        The random numbers of a clip's answers follow from the generator's seed, its key and its prompt alone, so that it does
        not matter which rows share its batch.
        """
        assert batch.intents is not None and batch.n_prompt is not None
        picked = [i for i, intent in enumerate(batch.intents.tolist()) if intent != IGNORE]
        if not picked:
            return None
        prompts = [batch.tokens[i, : int(batch.n_prompt[i])].tolist() for i in picked]
        vectors = None if batch.embeddings is None else batch.embeddings[picked]
        present = None if batch.present is None else batch.present[picked]

        def answers(sampling: Sampling, count: int) -> list[list[int]]:
            found = generate(
                model,
                prompts,
                self.max_new,
                self.eos,
                embeddings=vectors,
                present=present,
                sampling=sampling,
                n_samples=count,
                draws=draws if sampling is ON_POLICY else None,
            )
            return [ids for row in found for ids in row]

        model.eval()
        k = self.settings.samples
        seed, shape = generator.initial_seed(), (k, self.max_new)
        draws = torch.cat([_uniform((seed, batch.keys[i], p), shape) for i, p in zip(picked, prompts, strict=True)])
        draws = draws.to(batch.tokens.device)  # (B*K, max_new)
        drawn = answers(ON_POLICY, k)
        greedy = answers(GREEDY, 1) if self.settings.baseline == "greedy" else None
        model.train()
        keys = [batch.keys[i] for i in picked]
        golds = [self.taxonomy.labels[int(batch.intents[i])] for i in picked]
        parsed, texts = self._parse(drawn)
        parts = self._rewards(parsed, [g for g in golds for _ in range(k)], [key for key in keys for _ in range(k)])
        grouped = {name: values.view(len(picked), k) for name, values in parts.items()}
        own = self._rewards(self._parse(greedy)[0], golds, keys) if greedy is not None else None
        return Sampled(self._batch(batch, picked, prompts, drawn), grouped, own, parsed, texts)

    def _parse(self, answers: Sequence[list[int]]) -> tuple[list[Answer], list[str]]:
        lead = LEAD[self.settings.answer_order]
        texts = [lead + self.tokenizer.decode(ids) for ids in answers]
        parsed = [parse_answer(text, self.taxonomy) for text in texts]
        finished = [len(ids) < self.max_new for ids in answers]
        return [Answer(a.intent, a.rationale, done) for a, done in zip(parsed, finished, strict=True)], texts

    def _rewards(self, answers: Sequence[Answer], golds: Sequence[str], keys: Sequence[str]) -> dict[str, Tensor]:
        return reward_parts(answers, golds, [self.rationales.get(key) for key in keys], self.cider, self.verifier)

    def _batch(self, batch: Batch, picked: Sequence[int], prompts: Sequence[list[int]], drawn: Sequence[list[int]]) -> Batch:
        """The sampled answers as rows to be scored: prompt, answer and, where it ended by itself, its end token."""
        k = self.settings.samples
        eos = [self.tokenizer.eos_id]
        rows = [[*prompts[i // k], *ids, *(eos if len(ids) < self.max_new else [])] for i, ids in enumerate(drawn)]
        longest = max(map(len, rows))
        device = batch.tokens.device
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        n_prompt = torch.tensor([len(prompts[i // k]) for i in range(len(rows))], device=device)
        ends = torch.tensor([len(row) for row in rows], device=device)
        columns = torch.arange(longest, device=device)
        answer = (columns >= n_prompt[:, None]) & (columns < ends[:, None])
        repeated = torch.tensor(picked, device=device).repeat_interleave(k)
        return Batch(
            tokens,
            tokens.masked_fill(~answer, IGNORE),
            None if batch.embeddings is None else batch.embeddings[repeated],
            None if batch.present is None else batch.present[repeated],
            n_prompt,
            torch.full_like(n_prompt, IGNORE),
            tuple(batch.keys[i] for i in repeated.tolist()),
        )

    @torch.no_grad()
    def reference_logp(self, model: ITSL, batch: Batch) -> Tensor:
        """log p (R,T) of the sampled tokens under the model at the start."""
        return functional_call(model, self.reference, (batch,)).logp

    def loss(self, sampled: Sampled, logp: Tensor, mask: Tensor, reference: Tensor, sums: CriticSums) -> Tensor:
        """The self-critical loss of R sampled answers, logp and mask (R,T), averaged over them; adds to `sums`."""
        shape = next(iter(sampled.parts.values())).shape  # (B,K)
        divergence = ((logp.detach() - reference) * mask).sum(1)  # (R,)
        found = advantage(
            {name: part.to(logp.device) for name, part in sampled.parts.items()},
            self.settings.baseline,
            self.weights,
            None if sampled.greedy is None else {name: part.to(logp.device) for name, part in sampled.greedy.items()},
            self.settings.reward_norm,
            self.settings.kl * divergence.view(shape),
        )
        sums.answers += len(logp)
        sums.clips += shape[0]
        for name, part in sampled.parts.items():
            setattr(sums, name, getattr(sums, name) + float(part.sum()))
        sums.skipped += int(found.skipped.sum())
        sums.unfinished += sum(not answer.finished for answer in sampled.answers)
        sums.tokens += int(mask.sum())
        sums.surprise -= float((logp.detach() * mask).sum())
        sums.divergence += float(divergence.sum())
        sums.distinct += distinct2(sampled.texts) * len(logp)
        sums.advantage += float(found.value.abs().sum())
        return self_critical(logp, mask, found.value.flatten(), self.max_new)


def _uniform(seed: object, shape: tuple[int, ...]) -> Tensor:
    """Random numbers in [0, 1), float64, that follow from what `seed` prints as, on any device."""
    digest = hashlib.sha256(repr(seed).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def joined(first: Batch, second: Batch) -> Batch:
    """The rows of both batches in one, so that one forward pass serves them."""
    longest = max(first.tokens.shape[1], second.tokens.shape[1])

    def both(name: str) -> Tensor | None:
        own, other = getattr(first, name), getattr(second, name)
        if name == "captions" and own is not None:
            other = own.new_zeros(len(second.tokens))  # no sampled answer is a caption
        if own is None or other is None:
            assert own is other, f"{name} is in one of the batches alone"
            return None
        if name in ("tokens", "targets", "below"):
            own, other = (_widened(t, longest, IGNORE if name == "targets" else 0) for t in (own, other))
        return torch.cat([own, other])

    found = {f.name: both(f.name) for f in fields(Batch) if f.name != "keys"}
    return Batch(**found, keys=first.keys + second.keys)  # type: ignore[arg-type]


def _widened(tensor: Tensor, columns: int, value: int) -> Tensor:
    out = tensor.new_full((tensor.shape[0], columns, *tensor.shape[2:]), value)
    out[:, : tensor.shape[1]] = tensor
    return out


def split(output: Output, rows: int, columns: int) -> tuple[Output, Tensor, Tensor]:
    """Undo `joined`: the output of the first `rows` rows and `columns`, and logp and mask of the others."""
    head = None if output.intent_logits is None else output.intent_logits[:rows]
    return (
        Output(output.logp[:rows, :columns], output.mask[:rows, :columns], head),
        output.logp[rows:],
        output.mask[rows:],
    )
