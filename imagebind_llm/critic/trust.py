"""Token weights of references by a judge (--trust_references no)."""

from dataclasses import replace

from imagebind_llm.critic.claims import claims_in_answer
from imagebind_llm.critic.judge import Judge
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.records import Sequence as Ids
from imagebind_llm.taxonomy import Taxonomy

LEAST_WEIGHT = 0.1  # of a claim that the judge finds false


def weighed(row: Ids, judge: Judge, tokenizer: LlamaTokenizer, taxonomy: Taxonomy | None, lead: str) -> Ids:
    """The row with a weight for every token: max(P, LEAST_WEIGHT) for the tokens of the reference's claims, 1 for all others.

    P is the judge's probability that the claim is true of the clip. `lead`: beginning of the answer, which is in the prompt.
    """
    ids = [*row.ids[row.n_prompt :]]
    text = lead + tokenizer.decode(ids)
    claims, spans = claims_in_answer(ids, text, len(lead), tokenizer, taxonomy)
    weights = [1.0] * len(row.ids)
    for p, (first, last) in zip(judge.score([claim.text for claim in claims], row.key).tolist(), spans, strict=True):
        weights[row.n_prompt + first : row.n_prompt + last] = [max(p, LEAST_WEIGHT)] * (last - first)
    return replace(row, weights=tuple(weights))
