"""Two self-critical steps on eight clips, on however many ranks torchrun starts this with.

    critic_ranks.py OUT.safetensors DATA STORE LLAMA LAMBDA CREDIT

Answers (and each pair of tokens, as a claim) are worth what share of their token ids is even, since a random LLaMA says nothing
that parses.
"""

import sys
from dataclasses import replace

import torch
from safetensors.torch import save_file

from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import load_corpus
from imagebind_llm.critic.credit import Verdict
from imagebind_llm.critic.critic_sums import CriticSums
from imagebind_llm.critic.judge import SHARED, ClauseVectors, Judge
from imagebind_llm.critic.sampled_answers import JudgedAnswers, SampledAnswers
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.critic.verifier import fit_verifier
from imagebind_llm.itsl.assembly import build, open_language
from imagebind_llm.records import IGNORE, Batch
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import CriticStep, Sums, counts_of, train_step


class Even(Critic):
    def sample(self, model, batch: Batch, generator: torch.Generator) -> SampledAnswers | None:
        sampled = super().sample(model, batch, generator)
        targets = sampled.batch.targets
        even = ((targets % 2 == 0) & (targets != IGNORE)).sum(1) / (targets != IGNORE).sum(1)
        return replace(sampled, parts=dict.fromkeys(sampled.parts, even.view(sampled.parts["intent"].shape)))

    def _judged(self, drawn, texts, keys, greedy) -> JudgedAnswers:
        pairs = [[(i, sum(1 - token % 2 for token in ids[i : i + 2]) - 1) for i in range(0, len(ids) - 1, 2)] for ids in drawn]
        verdicts = [[Verdict(i, i + 2, float(worth), True) for i, worth in answer] for answer in pairs]
        return JudgedAnswers(verdicts, [(0, 1)] * len(drawn), None, [])


def main(out: str, data: str, store: str, llama: str, weight: str, credit: str) -> None:
    settings = TrainSettings(
        data_path=data,
        emb_path=store,
        llama_model_path=llama,
        trainable="all",
        adapter_layer=2,
        adapter_len=3,
        lora_rank=2,
        w_critic=1.0,
        credit=credit,
    )
    with distributed.process_group("cpu") as device:
        _, tokenizer = open_language(llama, settings.model)
        corpus = load_corpus(settings.corpus, tokenizer, settings.max_seq_len)
        own = build(settings.build, corpus.taxonomy, corpus.store.identity.width, device).model
        for name, parameter in own.named_parameters():
            if name.endswith("gate"):
                torch.nn.init.constant_(parameter, 0.5)
        trained = {name: p for name, p in own.named_parameters() if p.requires_grad}
        rows = corpus.splits["train"]
        told = [row.rationale for row in rows], [corpus.taxonomy.labels[row.intent] for row in rows]
        verifier = fit_verifier(*told, corpus.taxonomy, None)
        start = {name: p.detach().clone() for name, p in trained.items()}
        unasked = Judge(ClauseVectors(lambda texts: torch.ones(len(texts), 1)), corpus.store, SHARED, {}, ())
        critic = Even(settings.critic, tokenizer, corpus.taxonomy, rows, verifier, start, judge=unasked)

        model, optimizer = distributed.wrap(own), torch.optim.SGD(trained.values(), lr=0.5)
        ranks, collate = distributed.world_size(), Collator(corpus.store, corpus.modalities)
        for step in (rows[:4], rows[4:8]):
            passes = [collate([row]) for row in step[distributed.rank() :: ranks]]
            critical = CriticStep(critic, float(weight), torch.Generator(), CriticSums())
            train_step(model, optimizer, passes, counts_of(step), settings, Sums(), critical)
        if distributed.is_main():
            save_file({name: p.detach().clone() for name, p in trained.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
