"""Scores of a text against a reference, and of texts by themselves: pure functions, no model, no file, no download.

BLEU-4 is sacrebleu's, METEOR is nltk's where its WordNet data are already there, ROUGE-L equals rouge-score's (checked by
a test; ours walks a bit vector instead of a table, since training scores hundreds of answers a step).
CIDEr-D follows Vedantam et al. (arXiv:1411.5726, section 4 and the "CIDEr-D" variant): n = 1-4, Gaussian length penalty with
sigma 6, clipped counts, times 10; term frequencies are plain counts, as in the public evaluation server, and document
frequencies come from a fixed set of references (one a document), so that an answer's score depends on nothing else.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import sacrebleu
import torch
from torch import Tensor

MAX_N = 4
SIGMA = 6.0
CIDER_SCALE = 10.0
_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower-case letters and digits in runs; the same words as rouge-score's."""
    return _WORD.findall(text.lower())


def n_grams(sequence: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in order; none if there are fewer words."""
    return list(zip(*(sequence[i:] for i in range(n)), strict=False))


def bleu4(candidates: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 in [0, 1], one reference each: sacrebleu's defaults (13a words, exponential smoothing, cased)."""
    _same_number(candidates, references)
    return sacrebleu.corpus_bleu(list(candidates), [list(references)]).score / 100


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, in [0, 1]; 0 if either has none."""
    ours, theirs = words(candidate), words(reference)
    common = _common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; a row of the table is the bits of one integer (Hyyrö 2004)."""
    where: dict[str, int] = {}
    for i, word in enumerate(first):
        where[word] = where.get(word, 0) | 1 << i
    full = row = (1 << len(first)) - 1
    for word in second:
        matched = row & where.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()


class CiderD:
    """CIDEr-D with the document frequencies of `documents` (the train references; one string a document)."""

    def __init__(self, documents: Iterable[str]):
        self.frequency: Counter[tuple[str, ...]] = Counter()
        n_documents = 0
        for text in documents:
            n_documents += 1
            self.frequency.update({gram for n in range(1, MAX_N + 1) for gram in n_grams(words(text), n)})
        if n_documents < 2:
            raise ValueError(
                f"CIDEr-D needs the references of at least 2 clips, got {n_documents}: no word could tell them apart"
            )
        self._log_documents = math.log(n_documents)
        self._vectors = lru_cache(maxsize=65536)(self._weighted)

    def score(self, candidate: str, references: str | Sequence[str]) -> float:
        """Per-answer CIDEr-D in [0, 10], the mean over the references. 10 for the reference itself if it has 4 words or more,
        each n-gram order with one that not every document has."""
        several = [references] if isinstance(references, str) else references
        own = self._weighted(candidate)
        return sum(self._similarity(own, self._vectors(reference)) for reference in several) / len(several)

    def _weighted(self, text: str) -> tuple[int, list[dict], list[float]]:
        """Number of words; for n = 1-4: {n-gram: count * log(documents / documents that have it)}, and its norm."""
        sequence = words(text)
        vectors = []
        for n in range(1, MAX_N + 1):
            counts = Counter(n_grams(sequence, n))
            vectors.append({g: c * (self._log_documents - math.log(self.frequency[g] or 1)) for g, c in counts.items()})
        return len(sequence), vectors, [math.hypot(*vector.values()) for vector in vectors]

    @staticmethod
    def _similarity(candidate: tuple, reference: tuple) -> float:
        (n_own, own, own_norm), (n_their, their, their_norm) = candidate, reference
        total = 0.0
        for mine, other, product in zip(own, their, (a * b for a, b in zip(own_norm, their_norm, strict=True)), strict=True):
            if product:
                total += sum(min(w, other[g]) * other[g] for g, w in mine.items() if g in other) / product
        return CIDER_SCALE * total / MAX_N * math.exp(-((n_own - n_their) ** 2) / (2 * SIGMA**2))


def meteor(candidates: Sequence[str], references: Sequence[str]) -> float | None:
    """Mean METEOR in [0, 1]; None where nltk or its WordNet data are not on this machine (they are never downloaded)."""
    _same_number(candidates, references)
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        return None
    return _mean(meteor_score([words(their)], words(ours)) for ours, their in zip(candidates, references, strict=True))


def similarity(candidates: Sequence[str], references: Sequence[str], encode: Callable[[Sequence[str]], Tensor]) -> float:
    """Mean cosine of sentence vectors; `encode` maps n texts to (n, width)."""
    _same_number(candidates, references)
    return float(torch.cosine_similarity(encode(candidates), encode(references)).mean())


def distinct2(texts: Iterable[str]) -> float:
    """Distinct word pairs as a share of all word pairs of the texts together, in [0, 1]: low where all say the same."""
    pairs = [pair for text in texts for pair in n_grams(words(text), 2)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def repetition4(text: str) -> float:
    """Share of a text's runs of four words that occurred before in it, in [0, 1]: 0 where nothing is said twice."""
    runs = n_grams(words(text), 4)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _same_number(candidates: Sequence[str], references: Sequence[str]) -> None:
    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"expected a candidate for each reference and at least one, got {len(candidates)} and {len(references)}"
        )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
