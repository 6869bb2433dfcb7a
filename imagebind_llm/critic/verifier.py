"""The verifier: which intent does a rationale argue for, once every label word in it is masked?

Its probability of the gold label is the consistency reward; its accuracy is the masked simulatability of rationales (the
label must not be readable off the text itself: RORA, arXiv:2402.18678). TF-IDF of words and word pairs, and logistic
regression (scikit-learn), fitted on the *train* split's reference rationales alone, then frozen. Stored without pickle:
    FOLDER/verifier.json          taxonomy, vocabulary, what it scored on dev
    FOLDER/verifier.safetensors   idf (V,), coefficients (classes,V), intercept (classes,), float64
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from imagebind_llm.files import write_atomic, write_json
from imagebind_llm.taxonomy import Taxonomy, taxonomy_of
from imagebind_llm.text_metrics import n_grams, words

FORMAT = 1
MASK = "[label]"
INVERSE_PENALTY = 10.0
# Forms of label words where "the word without its last e, and anything after it" is too much or too little.
FORMS = {
    "advise": r"advis\w*|advice",
    "apologise": r"apolog\w*",
    "asking": r"ask\w*",
    "care": r"care[ds]?|carers?|caring\w*|careful\w*|careless\w*",
    "criticize": r"critic\w*|critiqu\w*",
    "emphasize": r"empha\w*",
    "explain": r"expla(?:in|n)\w*",
    "leave": r"leav\w*|left",
    "opinions": r"opinion\w*",
    "plan": r"plan(?:s|ned|ning|ner|ners)?",
}
NOT_MASKED = {"for"}


class VerifierError(ValueError):
    """The verifier cannot be fitted or read; the message says what to type."""


def mask_labels(text: str, taxonomy: Taxonomy) -> str:
    """The text with every word of every label, in whatever form (complaint, left, unhelpful), replaced by `[label]`.

    Where a form is doubtful it is masked: a masked word too many costs a feature, one too few gives the answer away.
    """
    for label in taxonomy.labels:
        if " " in label:  # as a whole: the "for" that "ask for help" would leave behind is as telling as its other words
            text = _pattern(_label_words(label), together=True).sub(MASK, text)
    return _pattern(_label_words(" ".join(taxonomy.labels))).sub(MASK, text)


def label_mentions(text: str, label: str) -> int:
    """How often a text names the label, in whatever form; of "Ask for help", both words within reach of each other."""
    return len(_pattern(_label_words(label), together=True).findall(text))


def _label_words(labels: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in labels.lower().split() if word not in NOT_MASKED))


@lru_cache(maxsize=256)
def _pattern(names: tuple[str, ...], together: bool = False) -> re.Pattern:
    forms = [f"(?:dis|un|mis|re)?(?:{FORMS.get(name, re.escape(name.removesuffix('e')) + r'[a-z]*')})" for name in names]
    joined = r"\W+(?:\w+\W+){0,3}?".join(forms) if together else "(?:" + "|".join(forms) + ")"
    return re.compile(rf"\b{joined}\b", re.IGNORECASE)


@dataclass(frozen=True)
class Check:
    """Accuracy, and mean probability of the gold label, on rationales as they are, dealt out anew, and with a wrong label."""

    n: int
    accuracy: float
    accuracy_shuffled: float
    gold: float
    gold_shuffled: float
    gold_swapped: float
    standard_error: float  # of the smaller of the two falls of `gold`

    @property
    def peaks(self) -> bool:
        """Whether the reference rationales score above shuffled and label-swapped ones by three standard errors."""
        return self.gold - max(self.gold_shuffled, self.gold_swapped) > 3 * self.standard_error

    def sentence(self) -> str:
        """The check in words; it begins with WARNING where the verifier is not to be trusted."""
        text = (
            f"verifier on {self.n} rationales: accuracy {self.accuracy:.3f} (shuffled {self.accuracy_shuffled:.3f}), "
            f"q(gold) {self.gold:.3f} (shuffled {self.gold_shuffled:.3f}, wrong label {self.gold_swapped:.3f})"
        )
        if self.peaks:
            return text
        return f"WARNING: {text}: it cannot tell them apart, its reward is noise; train with --reward_weights consistency=0"


class Verifier:
    """Label-masked text -> probabilities of the taxonomy's intents. `dev`: what it scored on rationales it never saw."""

    def __init__(self, taxonomy: Taxonomy, vocabulary: Sequence[str], tensors: dict[str, Tensor], classes: Sequence[str]):
        self.taxonomy, self.classes, self.tensors = taxonomy, tuple(classes), tensors
        self.vocabulary = {term: column for column, term in enumerate(vocabulary)}
        self.dev: Check | None = None

    def predict_proba(self, texts: Sequence[str]) -> Tensor:
        """q(intent | masked text) in class order, (n,C) float32; an intent that no train rationale had gets 0."""
        logits = self._features(texts) @ self.tensors["coefficients"].numpy().T + self.tensors["intercept"].numpy()
        columns = [self.taxonomy.index(name) for name in self.classes]
        q = torch.zeros(len(texts), len(self.taxonomy.labels))
        q[:, columns] = torch.from_numpy(logits).softmax(1).float()
        return q

    def _features(self, texts: Sequence[str]):
        """Sparse TF-IDF rows of unit length (n,V), as scikit-learn makes them (sublinear counts)."""
        vectorizer = _vectorizer(self.taxonomy, vocabulary=self.vocabulary)
        vectorizer.idf_ = self.tensors["idf"].numpy()
        return vectorizer.transform(texts)

    def check(self, rationales: Sequence[str], intents: Sequence[str], seed: int = 0) -> Check:
        """Does it peak on these rationales, and fall where they are shuffled or claimed for another label?"""
        draw = np.random.default_rng(seed)
        gold = torch.tensor([self.taxonomy.index(intent) for intent in intents])
        q = self.predict_proba(rationales)
        n, n_labels = q.shape
        shuffled = q[draw.permutation(n)]
        other = (gold + torch.from_numpy(draw.integers(1, n_labels, n))) % n_labels
        p, p_shuffled, p_swapped = q[range(n), gold], shuffled[range(n), gold], q[range(n), other]
        falls = min((p - p_shuffled, p - p_swapped), key=lambda fall: float(fall.mean()))
        return Check(
            n,
            accuracy=float((q.argmax(1) == gold).float().mean()),
            accuracy_shuffled=float((shuffled.argmax(1) == gold).float().mean()),
            gold=float(p.mean()),
            gold_shuffled=float(p_shuffled.mean()),
            gold_swapped=float(p_swapped.mean()),
            standard_error=float(falls.std()) / n**0.5 if n > 1 else float("inf"),
        )

    def save(self, folder: Path) -> None:
        """Write verifier.safetensors and verifier.json, whole or not at all."""
        state = {
            "format": FORMAT,
            "taxonomy": self.taxonomy.described(),
            "classes": self.classes,
            "dev": asdict(self.dev) if self.dev else None,
            "vocabulary": list(self.vocabulary),
        }
        write_atomic(Path(folder) / "verifier.safetensors", save(self.tensors))
        write_json(Path(folder) / "verifier.json", state, indent=0)

    @classmethod
    def load(cls, folder: Path) -> "Verifier":
        """Read what `save` wrote. Raises VerifierError if it is not there, damaged or of another format."""
        where = Path(folder) / "verifier.json"
        try:
            state, tensors = json.loads(where.read_text()), load_file(where.with_suffix(".safetensors"))
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise VerifierError(f"{where}: no verifier can be read ({error}); training fits and saves one") from error
        expected = (FORMAT, len(state["classes"]), len(state["vocabulary"]))
        if (got := (state.get("format"), *tensors["coefficients"].shape)) != expected:
            raise VerifierError(f"{where}: expected format and sizes {expected}, got {got}; training fits and saves one")
        taxonomy = taxonomy_of(state["taxonomy"])
        if taxonomy is None:
            raise VerifierError(f"{where}: it names no labels; training fits and saves a verifier")
        verifier = cls(taxonomy, state["vocabulary"], tensors, state["classes"])
        verifier.dev = Check(**state["dev"]) if state["dev"] else None
        return verifier


def fit_verifier(
    rationales: Sequence[str],
    intents: Sequence[str],
    taxonomy: Taxonomy,
    dev: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Verifier:
    """Fit on the train split's reference rationales; `dev` (rationales, intents), if given, is scored and kept as `.dev`.

    The same rationales give the same verifier. Raises VerifierError unless two intents occur.
    """
    from sklearn.linear_model import LogisticRegression  # here: it takes seconds to import, and masking needs none of it

    classes = [label for label in taxonomy.labels if label in set(intents)]
    if len(classes) < 2:
        raise VerifierError(
            f"a verifier needs train rationales of at least 2 intents, got {len(rationales)} of {len(classes)}; "
            f"write more with: python write_rationales.py --splits train"
        )
    vectorizer = _vectorizer(taxonomy, min_df=2 if len(rationales) > 50 else 1)
    try:
        features = vectorizer.fit_transform(rationales)
    except ValueError as error:  # scikit-learn's, for texts without a word
        raise VerifierError(f"nothing can be read from {len(rationales)} train rationales, labels masked: {error}") from error
    model = LogisticRegression(C=INVERSE_PENALTY, solver="newton-cg", max_iter=1000)
    model.fit(features, [classes.index(intent) for intent in intents])
    coefficients, intercept = model.coef_, model.intercept_
    if len(classes) == 2:  # scikit-learn keeps the second class's alone, the first one's being 0
        coefficients, intercept = (np.concatenate([np.zeros_like(part), part]) for part in (coefficients, intercept))
    parts = {"idf": vectorizer.idf_, "coefficients": coefficients, "intercept": intercept}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}
    verifier = Verifier(taxonomy, list(vectorizer.get_feature_names_out()), tensors, classes)
    verifier.dev = verifier.check(*dev) if dev else None
    return verifier


def _vectorizer(taxonomy: Taxonomy, **more):
    """scikit-learn's TF-IDF over the terms of label-masked texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=lambda text: _terms(mask_labels(text, taxonomy)), sublinear_tf=True, **more)


def _terms(masked: str) -> list[str]:
    """Words and word pairs; the mask itself is none, for whether a label is named says nothing about which."""
    terms = words(masked.replace(MASK, " "))
    return terms + [" ".join(pair) for pair in n_grams(terms, 2)]
