"""Self-critical learning: the model's own sampled answers, their rewards, and how much better these are than a baseline's.

For every clip of a step, K answers are sampled at temperature 1 without truncation (on-policy), rewarded in parts (rewards.py)
and compared with a baseline. The forward pass that the references need anyway also scores the samples. The KL penalty towards
the model at the start, beta * sum over tokens of (logp - logp_ref), is subtracted from the normalised reward; logp_ref comes
from a frozen copy of the trained tensors.

--credit answer      one advantage for all tokens of an answer
--credit claim       a judge looks at the clip: the tokens of a claim get that claim's advantage over the claims of the other
                     answers (credit.py), the label's tokens the intent part, all tokens the other parts; KL penalty per token
--credit best        the truest answer of each clip is learnt as a reference is; no KL penalty, as there is no reward
--credit local       instead of the samples, one claim of one answer of each clip is scored, with its alternatives
--credit corrected   the false claims of the greedy answer, each replaced by a true one, are learnt (both: alternatives.py)

The log is of the sampled answers in all cases.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from imagebind_llm.corpus.batches import answer_batch
from imagebind_llm.critic.alternatives import Alternatives, Clip, Replacements
from imagebind_llm.critic.claims import claims_in_answer, label_in_answer
from imagebind_llm.critic.credit import DEAD_ZONE, Verdict, best, claim_advantages, counting, repeats, spread_over_tokens, truth
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.judge import Judge
from imagebind_llm.critic.rewards import TRUTH, Advantage, advantage, column, reward_parts
from imagebind_llm.critic.sampled_answers import JudgedAnswers, SampledAnswers
from imagebind_llm.critic.settings import CriticSettings
from imagebind_llm.critic.verifier import Verifier
from imagebind_llm.itsl.generate import GREEDY, Sampling, generate, uniform
from imagebind_llm.itsl.instructions import LEAD, parse_answer
from imagebind_llm.itsl.losses import local_expectation, self_critical
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.records import IGNORE, Answer, Batch, Output
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.taxonomy import Taxonomy
from imagebind_llm.text_metrics import CiderD, distinct2

ON_POLICY = Sampling(temperature=1.0)
SPARE_TOKENS = 8  # an answer may be longer than the longest reference by so much
LARGEST_LOG_RATIO = 5.0  # of a token's probability to that at the start, in the divergence by token


class Critic:
    """Samples, rewards and the loss. Needs reference rationales: `rows` are the train split's sequences."""

    def __init__(
        self,
        settings: CriticSettings,
        tokenizer: LlamaTokenizer,
        taxonomy: Taxonomy,
        rows: Sequence[Ids],
        verifier: Verifier,
        reference: dict[str, Tensor],
        start: int = 0,
        judge: Judge | None = None,
        watch: Judge | None = None,
    ):
        """`reference`: the trained tensors at the start, by name; never changed. `start`: the epoch that this was. Some of
        `rows` must have rationales. `judge`: what --credit claim and the part "truth" need; `watch` is asked and never paid."""
        self.judge, self.watch = judge, watch
        self.start = start
        self.settings, self.tokenizer, self.taxonomy, self.verifier = settings, tokenizer, taxonomy, verifier
        self.weights, self.reference = settings.rewards(), reference
        assert judge is not None or not settings.judges, "no judge is there for what --credit or truth asks of one"
        self.rationales = {row.key: row.rationale for row in rows}
        self.cider = CiderD([text for text in self.rationales.values() if text])
        self.eos: int | None = tokenizer.eos_id  # None: no answer ends before its limit, as when memory is tried (rehearsal.py)
        self.max_new = max(len(row.ids) - row.n_prompt for row in rows) + SPARE_TOKENS  # with the end token
        self.alternatives: Alternatives | None = None
        if settings.credit in ("local", "corrected"):
            assert judge is not None
            references = [text for text in self.rationales.values() if text]
            corrects = settings.credit == "corrected"
            self.alternatives = Alternatives(judge, tokenizer, taxonomy, self._lead, references, self.max_new, corrects)

    def weight(self, epoch: float) -> float:
        """lambda: 0 at the start, then rising in a line to --w_critic within an epoch."""
        return self.settings.w_critic * min(max(epoch - self.start, 0.0), 1.0)

    def sample(self, model: ITSL, batch: Batch, generator: torch.Generator) -> SampledAnswers | None:
        """Answers to the clips of a batch whose intent is known, on the batch's device; None if there is none.

        The random numbers of a clip's answers follow from the generator's seed, its key and its prompt alone, so that it does
        not matter which rows share its batch.
        """
        assert batch.intents is not None and batch.n_prompt is not None
        has_answer = (batch.targets != IGNORE).any(1).tolist()  # rows that are prompts alone are there for the intent head
        picked = [i for i, intent in enumerate(batch.intents.tolist()) if intent != IGNORE and has_answer[i]]
        if not picked:
            return None
        prompts = [batch.tokens[i, : int(batch.n_prompt[i])].tolist() for i in picked]
        model.eval()
        drawn, greedy = self._draw(model, batch, picked, prompts, generator.initial_seed())
        parsed, texts = self._parse(drawn)
        judged = self._judged(drawn, texts, [batch.keys[i] for i in picked], greedy) if self.judge is not None else None
        parts, greedy_parts = self._parts(batch, picked, parsed, greedy, judged)
        eos = [self.tokenizer.eos_id]
        ended = [[*ids, *(eos if len(ids) < self.max_new else [])] for ids in drawn]  # as they were drawn
        owners = [i for i in range(len(picked)) for _ in range(self.settings.samples)]
        rows = answer_batch(batch, [picked[i] for i in owners], [prompts[i] for i in owners], ended)
        replaced = None
        if self.alternatives is not None:
            clips = self._clips(batch, picked, drawn, texts, greedy)
            replaced = self.alternatives.replaced(model, clips, generator.initial_seed(), whole=self.eos is None)
            owners = replaced.clips
        model.train()
        answered = torch.tensor([picked[i] for i in owners], device=batch.tokens.device)
        return SampledAnswers(rows, parts, greedy_parts, parsed, texts, judged, answered, replaced)

    def _draw(
        self, model: ITSL, batch: Batch, picked: Sequence[int], prompts: Sequence[list[int]], seed: int
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """K sampled answers to each clip, one clip after another, and the greedy ones where they are compared or corrected."""
        vectors = None if batch.embeddings is None else batch.embeddings[picked]
        present = None if batch.present is None else batch.present[picked]
        shape = (self.settings.samples, self.max_new)
        draws = torch.cat([uniform((seed, batch.keys[i], p), shape) for i, p in zip(picked, prompts, strict=True)])
        draws = draws.to(batch.tokens.device)  # (B*K, max_new)
        answer = partial(generate, model, prompts, self.max_new, self.eos, embeddings=vectors, present=present)
        drawn = answer(sampling=ON_POLICY, n_samples=self.settings.samples, draws=draws)
        needs_greedy = self.settings.baseline == "greedy" or self.settings.credit == "corrected"
        greedy = answer(sampling=GREEDY, n_samples=1, draws=None) if needs_greedy else None
        return _in_a_row(drawn), None if greedy is None else _in_a_row(greedy)

    def _parts(
        self,
        batch: Batch,
        picked: Sequence[int],
        answers: Sequence[Answer],
        greedy: Sequence[list[int]] | None,
        judged: JudgedAnswers | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Reward parts of the sampled answers (B,K), and of the greedy ones (B,) where these are the baseline."""
        assert batch.intents is not None
        k, keys = self.settings.samples, [batch.keys[i] for i in picked]
        golds = [self.taxonomy.labels[int(batch.intents[i])] for i in picked]
        flat = self._rewards(answers, [g for g in golds for _ in range(k)], [key for key in keys for _ in range(k)])
        parts = {name: values.view(len(picked), k) for name, values in flat.items()}
        greedy_parts = None
        if greedy is not None and self.settings.baseline == "greedy":
            greedy_parts = self._rewards(self._parse(greedy)[0], golds, keys)
        if judged is not None:
            parts[TRUTH] = torch.tensor([truth(answer) for answer in judged.verdicts]).view(len(picked), k)
            if greedy_parts is not None and judged.greedy is not None:
                greedy_parts[TRUTH] = torch.tensor([truth(answer) for answer in judged.greedy])
        return parts, greedy_parts

    def _clips(
        self,
        batch: Batch,
        picked: Sequence[int],
        drawn: Sequence[list[int]],
        texts: Sequence[str],
        greedy: Sequence[list[int]] | None,
    ) -> list[Clip]:
        """The answers whose claims are replaced: the sampled ones or, where these are corrected, the greedy one; what the
        others say are alternatives."""
        k, greedy_texts = self.settings.samples, [] if greedy is None else self._parse(greedy)[1]
        parts = [slice(i * k, (i + 1) * k) for i in range(len(picked))]
        if greedy is not None and self.settings.credit == "corrected":
            return [Clip(batch, row, [greedy[i]], [greedy_texts[i]], texts[parts[i]]) for i, row in enumerate(picked)]
        return [Clip(batch, row, drawn[parts[i]], texts[parts[i]], greedy_texts[i : i + 1]) for i, row in enumerate(picked)]

    def _judged(
        self, drawn: Sequence[list[int]], texts: Sequence[str], keys: Sequence[str], greedy: Sequence[list[int]] | None
    ) -> JudgedAnswers:
        """`keys` of the clips, one for every K of the drawn answers."""
        assert self.judge is not None
        sample_keys = [key for key in keys for _ in range(self.settings.samples)]
        labels = [label_in_answer(*answer, self._lead, self.tokenizer) for answer in zip(drawn, texts, strict=True)]
        return JudgedAnswers(
            self._verdicts(self.judge, drawn, texts, sample_keys),
            labels,
            None if greedy is None else self._verdicts(self.judge, greedy, self._parse(greedy)[1], keys),
            [truth(answer) for answer in self._verdicts(self.watch, drawn, texts, sample_keys)] if self.watch else [],
        )

    def _verdicts(
        self, judge: Judge, answers: Sequence[list[int]], texts: Sequence[str], keys: Sequence[str]
    ) -> list[list[Verdict]]:
        """On the claims of each answer, whose text is the lead and what its tokens say."""
        verdicts = []
        for ids, text, key in zip(answers, texts, keys, strict=True):
            claims, spans = claims_in_answer(ids, text, self._lead, self.tokenizer, self.taxonomy)
            clauses = [claim.text for claim in claims]
            values = (2 * judge.score(clauses, key) - 1).tolist()
            counts = counting(values, repeats(clauses, judge.claim_vectors(clauses)) if clauses else [])
            verdicts.append([Verdict(*span, v, paid) for span, v, paid in zip(spans, values, counts, strict=True)])
        return verdicts

    @property
    def _lead(self) -> int:
        """Characters of an answer's text before what its tokens say."""
        return len(LEAD[self.settings.answer_order])

    def _parse(self, answers: Sequence[list[int]]) -> tuple[list[Answer], list[str]]:
        lead = LEAD[self.settings.answer_order]
        texts = [lead + self.tokenizer.decode(ids) for ids in answers]
        parsed = [parse_answer(text, self.taxonomy) for text in texts]
        finished = [len(ids) < self.max_new for ids in answers]
        return [Answer(a.intent, a.rationale, done) for a, done in zip(parsed, finished, strict=True)], texts

    def _rewards(self, answers: Sequence[Answer], golds: Sequence[str], keys: Sequence[str]) -> dict[str, Tensor]:
        return reward_parts(answers, golds, [self.rationales.get(key) for key in keys], self.cider, self.verifier)

    @torch.no_grad()
    def at_the_start(self, model: ITSL, batch: Batch) -> Output:
        """Output of the model as it was when the self-critical loss began; zeros with --credit corrected, which needs none."""
        if self.settings.credit == "corrected":
            return Output(torch.zeros(batch.tokens.shape, device=batch.tokens.device), batch.targets != IGNORE)
        return functional_call(model, self.reference, (batch,))

    def loss(self, sampled: SampledAnswers, logp: Tensor, mask: Tensor, reference: Tensor, sums: CriticSums) -> Tensor:
        """The self-critical loss of R sampled answers, logp and mask (R,T), averaged over them; adds to `sums`."""
        shape = next(iter(sampled.parts.values())).shape  # (B,K)
        log_ratio = (logp.detach() - reference) * mask  # (R,T)
        if sampled.replaced is not None:
            return self._loss_of_replaced(sampled, sampled.replaced, logp, mask, log_ratio, sums)
        if self.settings.credit == "answer":
            whole = self._compared(sampled, logp.device, self.weights, self.settings.kl * log_ratio.sum(1).view(shape))
            value, skipped = whole.value.flatten(), whole.skipped
        elif self.settings.credit == "best":
            chosen = self.weights[TRUTH] * best(sampled.parts[TRUTH].to(logp.device))
            value, skipped = chosen.flatten(), (chosen == 0).all(1)
        else:
            value = self.by_token(sampled, mask)  # (R,T)
            skipped = (value == 0).view(shape[0], -1).all(1)  # (B,)
            value = value - self.settings.kl * log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
            value = value.masked_fill(skipped.repeat_interleave(shape[1])[:, None], 0)
        self._count(sampled, sums)
        sums["skipped"] += int(skipped.sum())
        sums["tokens"] += int(mask.sum())
        sums["surprise"] -= float((logp.detach() * mask).sum())
        sums["divergence"] += float(log_ratio.sum())
        size = value.abs() if value.ndim == 1 else (value.abs() * mask).sum(1) / mask.sum(1).clamp(min=1)
        sums["advantage"] += float(size.sum())
        return self_critical(logp, mask, value, self.max_new)

    def _loss_of_replaced(
        self, sampled: SampledAnswers, replaced: Replacements, logp: Tensor, mask: Tensor, drift: Tensor, sums: CriticSums
    ) -> Tensor:
        """Of the rows of `replaced`, the mean over the pass's clips. logp, mask and drift, the log-ratio to the start, (N,T).

        local: the expectation at one place of each clip, an alternative's divergence off its value. corrected: cross-entropy of
        the corrections, each sum of tokens over max_new, without a divergence. 0 for a clip without rows.
        """
        n_clips = len(next(iter(sampled.parts.values())))
        values = self.weights[TRUTH] * replaced.values.to(logp.device)  # (N,)
        self._count(sampled, sums)
        sums["tokens"] += int((sampled.batch.targets != IGNORE).sum())
        clips_with_value = {clip for clip, v in zip(replaced.clips, replaced.values.tolist(), strict=True) if v}
        sums["skipped"] += n_clips - len(clips_with_value)
        if self.settings.credit == "corrected":
            sums["advantage"] += float(values.sum()) * self.settings.samples
            return self_critical(logp, mask, values, self.max_new) * len(values) / n_clips
        values = values - self.settings.kl * drift.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).sum(1)
        total, owners = (logp * mask).sum(1), torch.tensor(replaced.clips, device=logp.device)  # (N,), (N,)
        groups = [owners == clip for clip in sorted(set(replaced.clips))]
        for group in groups:
            p, v = total[group].detach().softmax(0), values[group]
            size = (p * (v - (p * v).sum()).abs()).sum()
            sums["advantage"] += float(size) * self.settings.samples  # of each answer, as the others' is
        losses = [local_expectation(total[group], values[group]) for group in groups]
        return torch.stack(losses).sum() / n_clips

    def _compared(
        self, sampled: SampledAnswers, device: torch.device, weights: dict[str, float], penalty: Tensor | None = None
    ) -> Advantage:
        """Advantages of whole answers by the parts that have a weight."""
        return advantage(
            {name: part.to(device) for name, part in sampled.parts.items()},
            self.settings.baseline,
            weights,
            None if sampled.greedy is None else {name: part.to(device) for name, part in sampled.greedy.items()},
            penalty,
        )

    def by_token(self, sampled: SampledAnswers, mask: Tensor) -> Tensor:
        """Advantage (R,T) of every token, without the divergence: a claim's own, the label's of the intent part, all of the
        others. mask (R,T): where the sampled answers' tokens are."""
        assert sampled.judged is not None and sampled.batch.n_prompt is not None
        judged, k, lengths = sampled.judged, self.settings.samples, mask.sum(1).tolist()
        claims: list[list[float]] = []
        floors: list[float] = []
        for clip in range(len(judged.verdicts) // k):
            group = judged.verdicts[clip * k : (clip + 1) * k]
            clip_claims, clip_floors = claim_advantages(
                group, self.settings.baseline, judged.greedy[clip] if judged.greedy is not None else None
            )
            claims, floors = claims + clip_claims, floors + clip_floors
        values = spread_over_tokens(judged.verdicts, claims, floors, lengths, max(lengths), self.settings.credit == "to_go")
        values = self.weights[TRUTH] * values.to(mask.device)  # (R,longest)
        if self.weights.get("intent"):
            intent = self._compared(sampled, mask.device, {"intent": self.weights["intent"]}).value.flatten()
            for row, (first, last) in enumerate(judged.labels):
                values[row, first:last] += intent[row]
        place = (torch.arange(mask.shape[1], device=mask.device) - sampled.batch.n_prompt[:, None]).clamp(0, max(lengths) - 1)
        value = values.gather(1, place)  # (R,T)
        if others := {name: w for name, w in self.weights.items() if w and name not in (TRUTH, "intent")}:
            value = value + self._compared(sampled, mask.device, others).value.flatten()[:, None]
        return value * mask

    def _count(self, sampled: SampledAnswers, sums: CriticSums) -> None:
        sums["answers"] += len(sampled.answers)
        sums["clips"] += len(next(iter(sampled.parts.values())))
        for name, part in sampled.parts.items():
            sums[column(name)] += float(part.sum())
        sums["unfinished"] += sum(not answer.finished for answer in sampled.answers)
        sums["distinct"] += distinct2(sampled.texts) * len(sampled.answers)
        if sampled.judged is not None:
            values = [verdict.value for answer in sampled.judged.verdicts for verdict in answer]
            sums["judged"] += len(sampled.answers)
            sums["watched"] += sum(sampled.judged.watched)
            sums["claims"] += len(values)
            sums["undecided"] += sum(abs(value) < DEAD_ZONE for value in values)
            sums["probability"] += sum((value + 1) / 2 for value in values)


def _in_a_row(answers: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """The answers to all clips, clip by clip, in one list."""
    return [ids for of_clip in answers for ids in of_clip]
