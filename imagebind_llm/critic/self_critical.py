"""Self-critical learning: sample answers, reward them, and raise the likelihood of those that are better than a baseline.

For every clip of a step, K answers are sampled at temperature 1 without truncation (on-policy), rewarded in parts (rewards.py)
and compared with a baseline. One forward pass computes the log-probabilities of references and samples. The KL penalty towards
the model at the start, beta * sum over tokens of (logp - logp_ref), is subtracted from the normalised reward; logp_ref comes
from a frozen copy of the trained tensors.

--credit answer      one advantage for all tokens of an answer
--credit claim       a judge scores claims by the clip: the tokens of a claim get its advantage over the claims of other answers
                     (credit.py), the label's tokens that of the intent part, all tokens that of other parts; penalty per token
--credit to_go       as claim, and a claim's advantage also goes to the tokens before it
--credit best        supervision on the answer of each clip with the truest claims; no KL penalty
--credit local       one claim of one answer of each clip is compared with alternatives, by their probabilities
--credit corrected   supervision on true claims in place of the false claims of the greedy answer (both: alternatives.py)

The log describes the sampled answers in all cases.
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
SPARE_TOKENS = 8  # by which an answer may be longer than the longest reference
LARGEST_LOG_RATIO = 5.0  # bound of logp - logp_ref of a token, where the KL penalty is per token


class Critic:
    """Samples answers to the clips of a batch, rewards them, and computes the self-critical loss."""

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
        """`rows`: the train split's sequences, some of them with reference rationales. `reference`: the trained tensors by name
        at the start, the epoch `start`; they must not change. `judge`: required for the reward part truth and for any --credit
        but answer. `watch`: a second judge, for the log and the guard only."""
        self.judge, self.watch = judge, watch
        self.start = start
        self.settings, self.tokenizer, self.taxonomy, self.verifier = settings, tokenizer, taxonomy, verifier
        self.weights, self.reference = settings.rewards(), reference
        assert judge is not None or not settings.judges, "--credit and the reward part truth need a judge"
        self.rationales = {row.key: row.rationale for row in rows}
        self.cider = CiderD([text for text in self.rationales.values() if text])
        self.eos: int | None = tokenizer.eos_id  # None: no answer ends before its limit, for the test of memory (rehearsal.py)
        self.max_new = max(len(row.ids) - row.n_prompt for row in rows) + SPARE_TOKENS  # with the end token
        self.alternatives: Alternatives | None = None
        if settings.credit in ("local", "corrected"):
            assert judge is not None
            references = [text for text in self.rationales.values() if text]
            corrects = settings.credit == "corrected"
            self.alternatives = Alternatives(judge, tokenizer, taxonomy, self._lead, references, self.max_new, corrects)

    def weight(self, epoch: float) -> float:
        """lambda at an epoch: rises linearly from 0 at the start to --w_critic one epoch later."""
        return self.settings.w_critic * min(max(epoch - self.start, 0.0), 1.0)

    def sample(self, model: ITSL, batch: Batch, generator: torch.Generator) -> SampledAnswers | None:
        """K answers to each clip of a batch that has a known intent and an answer; None if no clip has.

        The random numbers of an answer depend only on the generator's seed and on the key and prompt of its clip, not on the
        other rows of the batch.
        """
        assert batch.intents is not None and batch.n_prompt is not None
        has_answer = (batch.targets != IGNORE).any(1).tolist()  # rows without one supervise the intent head only
        clip_rows = [i for i, intent in enumerate(batch.intents.tolist()) if intent != IGNORE and has_answer[i]]
        if not clip_rows:
            return None
        prompts = [batch.tokens[i, : int(batch.n_prompt[i])].tolist() for i in clip_rows]
        model.eval()
        samples, greedy = self._generate(model, batch, clip_rows, prompts, generator.initial_seed())
        answers, texts = self._parse(samples)
        judged = self._judged(samples, texts, [batch.keys[i] for i in clip_rows], greedy) if self.judge is not None else None
        parts, greedy_parts = self._parts(batch, clip_rows, answers, greedy, judged)
        eos = [self.tokenizer.eos_id]
        with_eos = [[*ids, *(eos if len(ids) < self.max_new else [])] for ids in samples]  # if the model has generated it
        owners = [i for i in range(len(clip_rows)) for _ in range(self.settings.samples)]
        rows = answer_batch(batch, [clip_rows[i] for i in owners], [prompts[i] for i in owners], with_eos)
        replaced = None
        if self.alternatives is not None:
            clips = self._clips(batch, clip_rows, samples, texts, greedy)
            replaced = self.alternatives.replaced(model, clips, generator.initial_seed(), whole=self.eos is None)
            owners = replaced.clips
        model.train()
        owner_rows = torch.tensor([clip_rows[i] for i in owners], device=batch.tokens.device)
        return SampledAnswers(rows, parts, greedy_parts, answers, texts, judged, owner_rows, replaced)

    def _generate(
        self, model: ITSL, batch: Batch, clip_rows: Sequence[int], prompts: Sequence[list[int]], seed: int
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """Token ids of K sampled answers to each clip, clip by clip, and of the greedy answers if they are needed."""
        vectors = None if batch.embeddings is None else batch.embeddings[clip_rows]
        present = None if batch.present is None else batch.present[clip_rows]
        shape = (self.settings.samples, self.max_new)
        draws = torch.cat([uniform((seed, batch.keys[i], p), shape) for i, p in zip(clip_rows, prompts, strict=True)])
        draws = draws.to(batch.tokens.device)  # (B*K, max_new)
        answer = partial(generate, model, prompts, self.max_new, self.eos, embeddings=vectors, present=present)
        samples = answer(sampling=ON_POLICY, n_samples=self.settings.samples, draws=draws)
        needs_greedy = self.settings.baseline == "greedy" or self.settings.credit == "corrected"
        greedy = answer(sampling=GREEDY, n_samples=1, draws=None) if needs_greedy else None
        return _flat(samples), None if greedy is None else _flat(greedy)

    def _parts(
        self,
        batch: Batch,
        clip_rows: Sequence[int],
        answers: Sequence[Answer],
        greedy: Sequence[list[int]] | None,
        judged: JudgedAnswers | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Reward parts (B,K) of the sampled answers, and (B,) of the greedy ones if they are the baseline."""
        assert batch.intents is not None
        k, keys = self.settings.samples, [batch.keys[i] for i in clip_rows]
        golds = [self.taxonomy.labels[int(batch.intents[i])] for i in clip_rows]
        rewards = self._rewards(answers, [g for g in golds for _ in range(k)], [key for key in keys for _ in range(k)])
        parts = {name: values.view(len(clip_rows), k) for name, values in rewards.items()}
        greedy_parts = None
        if greedy is not None and self.settings.baseline == "greedy":
            greedy_parts = self._rewards(self._parse(greedy)[0], golds, keys)
        if judged is not None:
            parts[TRUTH] = torch.tensor([truth(answer) for answer in judged.verdicts]).view(len(clip_rows), k)
            if greedy_parts is not None and judged.greedy is not None:
                greedy_parts[TRUTH] = torch.tensor([truth(answer) for answer in judged.greedy])
        return parts, greedy_parts

    def _clips(
        self,
        batch: Batch,
        clip_rows: Sequence[int],
        samples: Sequence[list[int]],
        texts: Sequence[str],
        greedy: Sequence[list[int]] | None,
    ) -> list[Clip]:
        """Each clip with the answers whose claims are replaced: the sampled ones or, with --credit corrected, the greedy one.
        The claims of its other answers are alternatives."""
        k, greedy_texts = self.settings.samples, [] if greedy is None else self._parse(greedy)[1]
        parts = [slice(i * k, (i + 1) * k) for i in range(len(clip_rows))]
        if greedy is not None and self.settings.credit == "corrected":
            return [Clip(batch, row, [greedy[i]], [greedy_texts[i]], texts[parts[i]]) for i, row in enumerate(clip_rows)]
        rows = enumerate(clip_rows)
        return [Clip(batch, row, samples[parts[i]], texts[parts[i]], greedy_texts[i : i + 1]) for i, row in rows]

    def _judged(
        self, samples: Sequence[list[int]], texts: Sequence[str], keys: Sequence[str], greedy: Sequence[list[int]] | None
    ) -> JudgedAnswers:
        """Verdicts on the claims of the B*K sampled and the B greedy answers; `keys` of the B clips."""
        assert self.judge is not None
        sample_keys = [key for key in keys for _ in range(self.settings.samples)]
        label_spans = [label_in_answer(*answer, self._lead, self.tokenizer) for answer in zip(samples, texts, strict=True)]
        return JudgedAnswers(
            self._verdicts(self.judge, samples, texts, sample_keys),
            label_spans,
            None if greedy is None else self._verdicts(self.judge, greedy, self._parse(greedy)[1], keys),
            [truth(answer) for answer in self._verdicts(self.watch, samples, texts, sample_keys)] if self.watch else [],
        )

    def _verdicts(
        self, judge: Judge, answers: Sequence[list[int]], texts: Sequence[str], keys: Sequence[str]
    ) -> list[list[Verdict]]:
        """The verdicts on the claims of each answer; `texts` begin with the lead, which is not among the tokens."""
        verdicts = []
        for ids, text, key in zip(answers, texts, keys, strict=True):
            claims, spans = claims_in_answer(ids, text, self._lead, self.tokenizer, self.taxonomy)
            clauses = [claim.text for claim in claims]
            values = (2 * judge.score(clauses, key) - 1).tolist()
            flags = counting(values, repeats(clauses, judge.claim_vectors(clauses)) if clauses else [])
            verdicts.append([Verdict(*span, v, counts) for span, v, counts in zip(spans, values, flags, strict=True)])
        return verdicts

    @property
    def _lead(self) -> int:
        """Number of characters of the lead, with which an answer's text begins and which is in the prompt."""
        return len(LEAD[self.settings.answer_order])

    def _parse(self, answers: Sequence[list[int]]) -> tuple[list[Answer], list[str]]:
        """Labels and rationales of answers, and their texts with the lead."""
        lead = LEAD[self.settings.answer_order]
        texts = [lead + self.tokenizer.decode(ids) for ids in answers]
        parsed = [parse_answer(text, self.taxonomy) for text in texts]
        finished = [len(ids) < self.max_new for ids in answers]
        return [Answer(a.intent, a.rationale, done) for a, done in zip(parsed, finished, strict=True)], texts

    def _rewards(self, answers: Sequence[Answer], golds: Sequence[str], keys: Sequence[str]) -> dict[str, Tensor]:
        return reward_parts(answers, golds, [self.rationales.get(key) for key in keys], self.cider, self.verifier)

    @torch.no_grad()
    def at_the_start(self, model: ITSL, batch: Batch) -> Output:
        """Output of the model with the parameters it had at the start; zeros with --credit corrected, which has no penalty."""
        if self.settings.credit == "corrected":
            return Output(torch.zeros(batch.tokens.shape, device=batch.tokens.device), batch.targets != IGNORE)
        return functional_call(model, self.reference, (batch,))

    def loss(self, sampled: SampledAnswers, logp: Tensor, mask: Tensor, reference: Tensor, sums: CriticSums) -> Tensor:
        """The self-critical loss, a mean over R sampled answers; adds to `sums`.

        logp, mask, reference: (R,T) log-probabilities, which tokens are the answers', log-probabilities at the start.
        """
        shape = next(iter(sampled.parts.values())).shape  # (B,K)
        log_ratio = (logp.detach() - reference) * mask  # (R,T)
        if sampled.replaced is not None:
            return self._loss_of_replaced(sampled, sampled.replaced, logp, mask, log_ratio, sums)
        if self.settings.credit == "answer":
            answer = self._advantage(sampled, logp.device, self.weights, self.settings.kl * log_ratio.sum(1).view(shape))
            value, skipped = answer.value.flatten(), answer.skipped
        elif self.settings.credit == "best":
            by_answer = self.weights[TRUTH] * best(sampled.parts[TRUTH].to(logp.device))  # (B,K)
            value, skipped = by_answer.flatten(), (by_answer == 0).all(1)
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
        self, sampled: SampledAnswers, replaced: Replacements, logp: Tensor, mask: Tensor, log_ratios: Tensor, sums: CriticSums
    ) -> Tensor:
        """The loss with --credit local (local expectations, the KL penalty subtracted from the values) or corrected (negative
        log-likelihood of the corrections over max_new, no penalty): a mean over clips, 0 for one without rows. logp, mask and
        log_ratios, logp less that at the start, (N,T)."""
        n_clips = len(next(iter(sampled.parts.values())))
        values = self.weights[TRUTH] * replaced.values.to(logp.device)  # (N,)
        self._count(sampled, sums)
        sums["tokens"] += int((sampled.batch.targets != IGNORE).sum())
        clips_with_value = {clip for clip, v in zip(replaced.clips, replaced.values.tolist(), strict=True) if v}
        sums["skipped"] += n_clips - len(clips_with_value)
        if self.settings.credit == "corrected":
            sums["advantage"] += float(values.sum()) * self.settings.samples
            return self_critical(logp, mask, values, self.max_new) * len(values) / n_clips
        values = values - self.settings.kl * log_ratios.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).sum(1)
        total, owners = (logp * mask).sum(1), torch.tensor(replaced.clips, device=logp.device)  # (N,), (N,)
        groups = [owners == clip for clip in sorted(set(replaced.clips))]
        for group in groups:
            p, v = total[group].detach().softmax(0), values[group]
            size = (p * (v - (p * v).sum()).abs()).sum()
            sums["advantage"] += float(size) * self.settings.samples  # per answer, as with other --credit
        losses = [local_expectation(total[group], values[group]) for group in groups]
        return torch.stack(losses).sum() / n_clips

    def _advantage(
        self, sampled: SampledAnswers, device: torch.device, weights: dict[str, float], penalty: Tensor | None = None
    ) -> Advantage:
        """Advantages (B,K) of whole answers, from the reward parts that have a weight."""
        return advantage(
            {name: part.to(device) for name, part in sampled.parts.items()},
            self.settings.baseline,
            weights,
            None if sampled.greedy is None else {name: part.to(device) for name, part in sampled.greedy.items()},
            penalty,
        )

    def by_token(self, sampled: SampledAnswers, mask: Tensor) -> Tensor:
        """Advantage (R,T) of every token with --credit claim or to_go, without the KL penalty; mask (R,T): answer tokens."""
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
            intent = self._advantage(sampled, mask.device, {"intent": self.weights["intent"]}).value.flatten()
            for row, (first, last) in enumerate(judged.label_spans):
                values[row, first:last] += intent[row]
        place = (torch.arange(mask.shape[1], device=mask.device) - sampled.batch.n_prompt[:, None]).clamp(0, max(lengths) - 1)
        value = values.gather(1, place)  # (R,T)
        if others := {name: w for name, w in self.weights.items() if w and name not in (TRUTH, "intent")}:
            value = value + self._advantage(sampled, mask.device, others).value.flatten()[:, None]
        return value * mask

    def _count(self, sampled: SampledAnswers, sums: CriticSums) -> None:
        """Add what the log says of sampled answers to `sums`."""
        sums["answers"] += len(sampled.answers)
        sums["clips"] += len(next(iter(sampled.parts.values())))
        for name, part in sampled.parts.items():
            sums[column(name)] += float(part.sum())
        sums["unfinished"] += sum(not answer.finished for answer in sampled.answers)
        sums["distinct"] += distinct2(sampled.texts) * len(sampled.answers)
        if sampled.judged is not None:
            values = [verdict.value for answer in sampled.judged.verdicts for verdict in answer]
            sums["judged"] += len(sampled.answers)
            sums["watched"] += sum(sampled.judged.watched_truths)
            sums["claims"] += len(values)
            sums["undecided"] += sum(abs(value) < DEAD_ZONE for value in values)
            sums["probability"] += sum((value + 1) / 2 for value in values)


def _flat(answers: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """answers[clip][sample] in one list, clip by clip."""
    return [ids for clip_answers in answers for ids in clip_answers]
