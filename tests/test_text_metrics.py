"""Text metrics against independent references: rouge-score, the CIDEr-D formula written out, sacrebleu's own corner cases."""

import math
import random
from collections import Counter

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from imagebind_llm.text_metrics import CiderD, bleu4, distinct2, meteor, repetition4, rouge_l, similarity, words

VOCABULARY = (
    *("the", "speaker", "smiles", "and", "waves", "with", "open", "palms", "while", "a", "soft", "voice", "rises"),
    *("so", "it's", "meant", "to", "praise,", "not", "2", "mock!"),
)


def sentences(number: int, seed: int = 0, longest: int = 30) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(VOCABULARY, k=rng.randint(1, longest))).capitalize() + "." for _ in range(number)]


def cider_d_as_in_the_paper(candidate: str, reference: str, documents: list[str]) -> float:
    """Equations 1-3 of arXiv:1411.5726 with CIDEr-D's clipping and Gaussian penalty, one n and one n-gram at a time."""

    def grams(text: str, n: int) -> list[str]:
        w = words(text)
        return [" ".join(w[i : i + n]) for i in range(len(w) - n + 1)]

    total = 0.0
    for n in (1, 2, 3, 4):
        in_documents = [set(grams(text, n)) for text in documents]
        h_c, h_s = Counter(grams(candidate, n)), Counter(grams(reference, n))
        every = sorted(set(h_c) | set(h_s))
        idf = {k: math.log(len(documents) / max(1, sum(k in d for d in in_documents))) for k in every}
        g_c, g_s = ([h[k] * idf[k] for k in every] for h in (h_c, h_s))
        norm = math.sqrt(sum(x * x for x in g_c)) * math.sqrt(sum(x * x for x in g_s))
        cosine = sum(min(a, b) * b for a, b in zip(g_c, g_s, strict=True)) / norm if norm > 0 else 0.0
        gap = len(words(candidate)) - len(words(reference))
        total += 10 * math.exp(-(gap**2) / (2 * 6.0**2)) * cosine / 4
    return total


def test_cider_d_equals_the_formula_written_out():
    documents = sentences(40)
    cider = CiderD(documents)
    for candidate, reference in zip(sentences(60, seed=1), sentences(60, seed=2), strict=True):
        assert cider.score(candidate, reference) == pytest.approx(cider_d_as_in_the_paper(candidate, reference, documents))
        mixed = reference + " " + candidate
        assert cider.score(mixed, reference) == pytest.approx(cider_d_as_in_the_paper(mixed, reference, documents))


def test_cider_d_of_the_reference_is_ten_and_several_references_are_averaged():
    documents = sentences(40)
    cider = CiderD(documents)
    long = next(text for text in documents if len(words(text)) > 20)
    assert cider.score(long, long) == pytest.approx(10)
    assert cider.score(long, [long, "nothing in common here"]) == pytest.approx(5)
    assert cider.score("", long) == cider.score(long, "") == 0


def test_cider_d_penalises_length_and_repetition():
    reference = "the speaker smiles and waves with open palms"
    cider = CiderD([*sentences(40), reference])
    assert cider.score(" ".join([reference] * 3), reference) < 0.1 * cider.score(reference, reference)


def test_cider_d_of_one_document_is_refused():
    with pytest.raises(ValueError, match="at least 2 clips, got 1"):
        CiderD(["only one"])


def test_rouge_l_equals_the_rouge_score_package():
    scorer = RougeScorer(["rougeL"])
    pairs = zip(sentences(200, seed=3, longest=70), sentences(200, seed=4, longest=70), strict=True)
    for candidate, reference in [*pairs, ("", "a b"), ("a", ""), ("Ünicode naïve", "naive ünicode"), ("a b c", "c b a")]:
        assert rouge_l(candidate, reference) == pytest.approx(scorer.score(reference, candidate)["rougeL"].fmeasure)


def test_bleu_is_one_for_the_references_and_zero_without_common_words():
    texts = [text for text in sentences(30) if len(words(text)) > 6]
    assert bleu4(texts, texts) == pytest.approx(1)
    assert bleu4(["x y z q r s t u"] * len(texts), texts) < 0.02
    with pytest.raises(ValueError, match="got 1 and 2"):
        bleu4(["a"], ["a", "b"])


def test_every_metric_peaks_on_references_and_falls_on_shuffled_ones():
    references = sentences(40, seed=5)
    shuffled = references[7:] + references[:7]
    cider = CiderD(references)

    def scores(candidates: list[str]) -> dict[str, float]:
        pairs = list(zip(candidates, references, strict=True))
        return {
            "bleu": bleu4(candidates, references),
            "rouge": sum(rouge_l(a, b) for a, b in pairs),
            "cider": sum(cider.score(a, b) for a, b in pairs),
            "similarity": similarity(candidates, references, counts_of_words),
        }

    own, other = scores(references), scores(shuffled)
    assert all(other[name] < 0.95 * own[name] for name in own), (own, other)


def counts_of_words(texts) -> torch.Tensor:
    return torch.tensor([[float(words(text).count(word)) for word in sorted({*words(" ".join(VOCABULARY))})] for text in texts])


def test_meteor_is_none_where_wordnet_is_not_there(monkeypatch):
    def absent(self):
        raise LookupError("no WordNet here")

    monkeypatch.setattr(type(pytest.importorskip("nltk.corpus").wordnet), "ensure_loaded", absent, raising=False)
    assert meteor(["a b"], ["a b"]) is None


def test_meteor_peaks_on_the_reference_where_wordnet_is_there():
    texts = [text for text in sentences(20) if len(words(text)) > 6]
    if (own := meteor(texts, texts)) is None:
        pytest.skip("nltk's WordNet data are not on this machine")
    assert own > 0.95 > meteor(texts[1:] + texts[:1], texts)


def test_distinct_2_and_repetition_by_count():
    assert distinct2(["a b c", "a b d"]) == pytest.approx(3 / 4)
    assert distinct2(["a", ""]) == 0
    assert repetition4("a b c d e") == 0
    assert repetition4("a b c d a b c d") == pytest.approx(1 / 5)  # five runs, the last is the first again
    assert repetition4("short") == 0


def test_references_are_weighted_once_for_many_answers():
    cider = CiderD(sentences(40))
    for answer in sentences(50, seed=6):
        cider.score(answer, "the same reference for all of them")
    assert cider._vectors.cache_info().misses == 1
