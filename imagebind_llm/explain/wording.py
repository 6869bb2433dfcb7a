"""Generates rationales, before or after the label, greedily or as the best of several samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from imagebind_llm.critic.best_of import BestOf, Written
from imagebind_llm.itsl.generate import GREEDY, Sampling, generate, uniform
from imagebind_llm.itsl.instructions import LEAD
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.taxonomy import Taxonomy


class Wording:
    """Generates the rationales of a model that answers in `order` (label or rationale first).

    In all methods: prompts, token ids of N prompts; vectors (N,M,E) and present (N,M) on the model's device, None for a model
    of text only; limit, largest number of tokens of a rationale. Each rationale comes with whether it is finished.
    """

    def __init__(self, model: ITSL, tokenizer: LlamaTokenizer, order: str):
        self.model, self.tokenizer, self.order = model, tokenizer, order

    def after_lead(self, text: str) -> list[int]:
        """Token ids of the beginning `text` of an answer, without its lead, which is in the prompt."""
        lead = self.tokenizer.encode(LEAD[self.order])
        return self.tokenizer.encode(text)[len(lead) :]

    def before_label(
        self, prompts: Sequence[list[int]], vectors: Tensor | None, present: Tensor | None, limit: int
    ) -> list[Written]:
        """Greedy rationales of a model that gives them first, without the label that follows."""
        answers = generate(self.model, prompts, limit, self.tokenizer.eos_id, embeddings=vectors, present=present)
        texts = [self.tokenizer.decode(ids).partition(LEAD["label"])[0].strip() for [ids] in answers]
        return [(text, len(ids) < limit) for text, [ids] in zip(texts, answers, strict=True)]

    def after_label(
        self,
        prompts: Sequence[list[int]],
        intents: Sequence[str],
        vectors: Tensor | None,
        present: Tensor | None,
        limit: int,
        best: tuple[BestOf, Taxonomy] | None = None,
    ) -> list[Written]:
        """A rationale for each clip and intent: the greedy one or, with `best`, the best of it and of sampled ones."""
        beginnings = [self.after_lead(f"{LEAD['label']} {intent}. {LEAD['rationale']}") for intent in intents]
        extended = [[*prompt, *ids] for prompt, ids in zip(prompts, beginnings, strict=True)]
        answers = self._generated(extended, vectors, present, limit)
        if best is None or vectors is None or present is None:
            return [text for [text] in answers]
        judge, taxonomy = best
        samples = self._generated(extended, vectors, present, limit, judge)
        texts = [[*greedy, *sampled] for greedy, sampled in zip(answers, samples, strict=True)]
        return judge.pick(texts, vectors.cpu(), present.cpu(), taxonomy)

    def _generated(
        self, prompts: list[list[int]], vectors: Tensor | None, present: Tensor | None, limit: int, best: BestOf | None = None
    ) -> list[list[Written]]:
        """The greedy continuation of each prompt or, with `best`, the sampled ones."""
        draws = None
        if best is not None:
            draws = torch.cat([uniform((0, prompt), (best.count, limit)) for prompt in prompts])
            draws = draws.to(self.model.prefix_query.weight.device)
        answers = generate(
            self.model,
            prompts,
            limit,
            self.tokenizer.eos_id,
            embeddings=vectors,
            present=present,
            sampling=Sampling(best.temperature) if best is not None else GREEDY,
            n_samples=best.count if best is not None else 1,
            draws=draws,
        )
        return [[(self.tokenizer.decode(ids).strip(), len(ids) < limit) for ids in samples] for samples in answers]
