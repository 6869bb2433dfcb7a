"""The verifier predicts the intent that a rationale argues for, with every label word masked.

Its probability of the gold label is the consistency reward; its accuracy is the masked simulatability of rationales (masked
because a text that contains the label would be trivial: RORA, arXiv:2402.18678). TF-IDF of words and word pairs, and logistic
regression (scikit-learn), fitted on the *train* split's reference rationales only, then frozen. Stored without pickle:
    FOLDER/verifier.json          taxonomy, vocabulary, its check on dev
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
# Forms of label words for which "the word without its last e, and any ending" matches too much or too little.
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
    """The verifier cannot be fitted or read; the message says what to do."""


def mask_labels(text: str, taxonomy: Taxonomy) -> str:
    """The text with every word of every label, in any form (complaint, left, unhelpful), replaced by `[label]`.

    Doubtful forms are masked too: a masked word too many costs a feature, one too few gives the answer away.
    """
    for label in taxonomy.labels:
        if " " in label:  # masked as a whole, because the "for" of "ask for help" would give the label away as well
            text = _pattern(_label_words(label), together=True).sub(MASK, text)
    return _pattern(_label_words(" ".join(taxonomy.labels))).sub(MASK, text)


def label_mentions(text: str, label: str) -> int:
    """How often a text names the label, in any form; a label of several words counts if they are near each other."""
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
    """Accuracy and mean probability of the gold label on n rationales, compared with shuffled rationales and wrong labels."""

    n: int
    accuracy: float
    accuracy_shuffled: float
    gold: float
    gold_shuffled: float
    gold_swapped: float
    standard_error: float  # of the smaller difference between `gold` and the two below it

    @property
    def peaks(self) -> bool:
        """Whether `gold` is above `gold_shuffled` and `gold_swapped` by more than three standard errors."""
        return self.gold - max(self.gold_shuffled, self.gold_swapped) > 3 * self.standard_error

    def sentence(self) -> str:
        """The check in words; it begins with WARNING if the verifier is no better than chance."""
        text = (
            f"verifier on {self.n} rationales: accuracy {self.accuracy:.3f} (shuffled {self.accuracy_shuffled:.3f}), "
            f"q(gold) {self.gold:.3f} (shuffled {self.gold_shuffled:.3f}, wrong label {self.gold_swapped:.3f})"
        )
        if self.peaks:
            return text
        return f"WARNING: {text}: it cannot tell them apart, its reward is noise; train with --reward_weights consistency=0"


class Verifier:
    """Predicts probabilities of the taxonomy's intents from label-masked texts. `dev`: its check on dev, if there was one."""

    def __init__(self, taxonomy: Taxonomy, vocabulary: Sequence[str], tensors: dict[str, Tensor], classes: Sequence[str]):
        self.taxonomy, self.classes, self.tensors = taxonomy, tuple(classes), tensors
        self.vocabulary = {term: column for column, term in enumerate(vocabulary)}
        self.dev: Check | None = None

    def predict_proba(self, texts: Sequence[str]) -> Tensor:
        """q(intent | masked text) in class order, (n,C) float32; 0 for an intent without train rationales."""
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
        """Compare n rationales with the same rationales shuffled, and with wrong labels."""
        draw = np.random.default_rng(seed)
        gold = torch.tensor([self.taxonomy.index(intent) for intent in intents])
        q = self.predict_proba(rationales)
        n, n_labels = q.shape
        shuffled = q[draw.permutation(n)]
        other = (gold + torch.from_numpy(draw.integers(1, n_labels, n))) % n_labels
        p, p_shuffled, p_swapped = q[range(n), gold], shuffled[range(n), gold], q[range(n), other]
        differences = min((p - p_shuffled, p - p_swapped), key=lambda difference: float(difference.mean()))
        return Check(
            n,
            accuracy=float((q.argmax(1) == gold).float().mean()),
            accuracy_shuffled=float((shuffled.argmax(1) == gold).float().mean()),
            gold=float(p.mean()),
            gold_shuffled=float(p_shuffled.mean()),
            gold_swapped=float(p_swapped.mean()),
            standard_error=float(differences.std()) / n**0.5 if n > 1 else float("inf"),
        )

    def save(self, folder: Path) -> None:
        """Write verifier.safetensors and verifier.json, each completely or not at all."""
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
        """Read what `save` wrote. Raises VerifierError if it is missing, damaged or of another format."""
        path = Path(folder) / "verifier.json"
        try:
            state, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise VerifierError(f"{path}: no verifier can be read ({error}); training fits and saves one") from error
        expected = (FORMAT, len(state["classes"]), len(state["vocabulary"]))
        if (got := (state.get("format"), *tensors["coefficients"].shape)) != expected:
            raise VerifierError(f"{path}: expected format and sizes {expected}, got {got}; training fits and saves one")
        taxonomy = taxonomy_of(state["taxonomy"])
        if taxonomy is None:
            raise VerifierError(f"{path}: it names no labels; training fits and saves a verifier")
        verifier = cls(taxonomy, state["vocabulary"], tensors, state["classes"])
        verifier.dev = Check(**state["dev"]) if state["dev"] else None
        return verifier


def fit_verifier(
    rationales: Sequence[str],
    intents: Sequence[str],
    taxonomy: Taxonomy,
    dev: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Verifier:
    """Fit on the train split's reference rationales; with `dev` (rationales, intents), set `.dev` to the check on them.

    Deterministic. Raises VerifierError for fewer than two intents, or if no word is left after masking.
    """
    from sklearn.linear_model import LogisticRegression  # here, because the import takes seconds and masking does not need it

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
        raise VerifierError(
            f"no word is left of {len(rationales)} train rationales when labels are masked ({error}); "
            f"write others with: python write_rationales.py --splits train"
        ) from error
    model = LogisticRegression(C=INVERSE_PENALTY, solver="newton-cg", max_iter=1000)
    model.fit(features, [classes.index(intent) for intent in intents])
    coefficients, intercept = model.coef_, model.intercept_
    if len(classes) == 2:  # scikit-learn gives the coefficients of the second class only; those of the first are 0
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
    """Words and word pairs, without the mask."""
    terms = words(masked.replace(MASK, " "))
    return terms + [" ".join(pair) for pair in n_grams(terms, 2)]
