"""A judge of claims: the probability P that a clause is true of a clip.

    s(clause t, clip e) = sum over modalities of (A_m (e_m - mean_m)) . (B (t - mean_t))        "fitted" (judge_fit.py)
                        = the largest over modalities of (e_m - mean_m) . t                     "shared", nothing fitted
    P = 1 / (1 + exp(-(slope * s + offset)))
The clause is encoded by the frozen text tower of the encoder that made the clip's embeddings, and both are L2-normalised. The
means of the train clips are subtracted, so that no clause scores high with every clip. Only an ending of a clause, of at least
two words, is read: the one nearest to a clause that the judge was fitted on (of "we notice a broad smile", "a broad smile").
There is no verdict (P is 0.5) if no ending is near enough, or if the clause depends most on a modality that is switched off or
absent from the clip. Stored without pickle:
    FOLDER/NAME.json           kind, modalities, source of the texts, figures on dev
    FOLDER/NAME.safetensors    the maps and means above, float32
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from imagebind_llm.config import MODALITIES
from imagebind_llm.encoder.registry import load_text_tower
from imagebind_llm.encoder.store import Identity
from imagebind_llm.files import write_atomic, write_json

FORMAT = 1
FITTED, SHARED = "fitted", "shared"
UNDECIDED = 0.5  # P without a verdict
FEWEST_WORDS = 2  # of the ending of a clause that is read
CLAUSES_PER_PASS = 256
LARGEST_CACHE = 50_000  # texts whose vectors are kept, about 200 MB; a web page that runs for weeks sees ever new ones
TOLERANCE = 1e-3  # cosines that differ by less count as equal


class JudgeError(ValueError):
    """The judge cannot be fitted or read; the message says what to do."""


class Clips(Protocol):
    """Interface of what a judge reads embeddings from: a store, or embeddings in memory."""

    @property
    def identity(self) -> Identity: ...

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors (n,M,E) and presence (n,M)."""
        ...


class ClauseVectors:
    """Encodes texts to L2-normalised vectors (n,E) and keeps them, so that each distinct text is encoded once."""

    def __init__(self, encode: Callable[[Sequence[str]], Tensor]):
        """`encode`: maps n texts to vectors (n,E), which need not be normalised."""
        self._encode = encode
        self._vectors: dict[str, Tensor] = {}

    @classmethod
    def load(cls, identity: Identity, weights: str = "", device: torch.device | str = "cpu") -> "ClauseVectors":
        """Load the text tower of the encoder that made a store, and no other tower. The vectors are on the CPU.

        `weights`: the encoder's file, if it is not in checkpoints/. Raises WeightsError if there are no weights or they are not
        those of the store.
        """
        return cls(load_text_tower(identity, weights, device))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        if len(self._vectors) > LARGEST_CACHE:
            self._vectors.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        for start in range(0, len(new), CLAUSES_PER_PASS):
            part = new[start : start + CLAUSES_PER_PASS]
            self._vectors |= zip(part, F.normalize(self._encode(part).float(), dim=1), strict=True)
        return torch.stack([self._vectors[text] for text in texts])  # (n,E)


@dataclass(frozen=True)
class Figures:
    """How well a judge separates the clauses of a dev clip from clauses of other clips. No verdict counts as P = 0.5.

    Areas are areas under the ROC curve. The field names are those of the judge's JSON.
    """

    n: int  # clauses
    any_clip: float  # area against clauses of any other clip
    same_intent: float | None  # area against clauses of clips with the same intent; None if no two clips share one
    alone: dict[str, float]  # area of each modality by itself (same_intent if there is one), over the clauses that depend on it
    useful: list[str]  # modalities whose area is above chance
    own: float  # mean P of clauses with their own clip
    dealt: float  # mean P of clauses with another clip
    familiar: float  # share of clauses on which the judge has a verdict

    @property
    def deciding(self) -> float:
        """The area by which judges are compared."""
        return self.any_clip if self.same_intent is None else self.same_intent


class Judge:
    """Computes P that a clause is true of a clip. It is not trained together with the model that it judges."""

    def __init__(
        self,
        vectors: ClauseVectors,
        store: Clips,
        kind: str,
        tensors: dict[str, Tensor],
        modalities: Sequence[str],
        source: str = "captions",
        fitted: Sequence[str] = (),
    ):
        """
        Args:
            kind: FITTED or SHARED.
            tensors: clip_mean (M,E); slope () and offset () of the calibration; known (T,E), vectors of the clauses that it was
                fitted on; familiar (), the smallest cosine with one of them for a verdict; sample (S,M,E), embeddings of clips
                by which `hangs_on` decides; if fitted, clip_map (M,r,E), clause_map (r,E) and clause_mean (E,).
            modalities: modalities that are used, of those that it was `fitted` with.
            source: kind of the texts that it was fitted on, "captions" or "rationales".
        """
        self.vectors, self.store, self.kind, self.tensors, self.source = vectors, store, kind, tensors, source
        self.modalities = tuple(modalities)
        self.fitted = tuple(fitted or modalities)
        self._sample: Tensor | None = None
        self.figures: Figures | None = None
        self._clips: dict[str, Tensor] = {}
        self._endings: dict[str, tuple[str, bool]] = {}

    def score(self, claims: Sequence[str], key: str) -> Tensor:
        """P (n,) float32 in [0, 1] that each claim is true of the clip; 0.5 without a verdict."""
        if not claims:
            return torch.zeros(0)
        return self.probability(self.similarity(claims, [key] * len(claims)))

    def probability(self, similarity: Tensor) -> Tensor:
        """P (n,) of similarities (n,), by the calibration; 0.5 for nan, which stands for no verdict."""
        p = torch.sigmoid(self.tensors["slope"] * similarity + self.tensors["offset"])
        return torch.where(similarity.isnan(), torch.tensor(UNDECIDED), p)

    def similarity(self, claims: Sequence[str], keys: Sequence[str]) -> Tensor:
        """s (n,) of each claim with the clip of the same number; nan without a verdict."""
        parts = self.similarity_by(self.modalities, claims, keys)  # (n,m)
        whole = parts.nan_to_num(0.0).sum(1) if self.kind == FITTED else parts.nan_to_num(-torch.inf).amax(1)
        present = {name: ~part.isnan() for name, part in zip(self.modalities, parts.T, strict=True)}
        has_verdict = [
            self.read(claim)[1] and name in present and bool(present[name][i])
            for i, (claim, name) in enumerate(zip(claims, self.hangs_on(claims), strict=True))
        ]
        return whole.masked_fill(~torch.tensor(has_verdict) | parts.isnan().all(1), torch.nan)

    def similarity_by(self, modalities: Sequence[str], claims: Sequence[str], keys: Sequence[str]) -> Tensor:
        """The parts (n,m) of s by modality, also of claims without a verdict; nan if a modality is absent."""
        clips = torch.stack([self._clip(key) for key in keys])  # (n,M,r)
        return (clips * self._clauses(claims)[:, None]).sum(2)[:, [MODALITIES.index(name) for name in modalities]]

    def hangs_on(self, claims: Sequence[str]) -> list[str]:
        """The modality that each claim depends on: the one whose part of s varies most over clips."""
        if self._sample is None:
            self._sample = self._projected(self.tensors["sample"])  # (S,M,r)
        parts = torch.einsum("smr,nr->nsm", self._sample, self._clauses(claims))
        spread = parts.std(1, correction=0)[:, [MODALITIES.index(name) for name in self.fitted]]
        return [self.fitted[i] for i in spread.argmax(1).tolist()]

    def read(self, claim: str) -> tuple[str, bool]:
        """The ending of a claim that is nearest to a clause that the judge was fitted on, and whether it is near enough."""
        if claim not in self._endings:
            parts = claim.split()
            endings = [" ".join(parts[i:]) for i in range(max(1, len(parts) - FEWEST_WORDS + 1))]
            cosines = (self.vectors(endings) @ self.tensors["known"].T.float()).amax(1)
            best = int((cosines >= cosines.max() - TOLERANCE).nonzero()[0])  # the longest of equal ones
            self._endings[claim] = endings[best], bool(cosines[best] >= self.tensors["familiar"])
        return self._endings[claim]

    def forget(self, key: str) -> None:
        """Remove a clip from the cache."""
        self._clips.pop(key, None)

    def claim_vectors(self, claims: Sequence[str]) -> Tensor:
        """Vectors (n,E) of length 1 of the endings of claims that `read` returns."""
        return self.vectors([self.read(claim)[0] for claim in claims])

    def _clauses(self, claims: Sequence[str]) -> Tensor:
        vectors = self.claim_vectors(claims)
        if self.kind == FITTED:
            vectors = (vectors - self.tensors["clause_mean"]) @ self.tensors["clause_map"].T
        return vectors  # (n,r)

    def _clip(self, key: str) -> Tensor:
        """Projected embeddings (M,r) of a clip, nan for absent modalities."""
        if key not in self._clips:
            vectors, present = clip_vectors(self.store, [key])
            self._clips[key] = self._projected(vectors)[0].masked_fill(~present[0][:, None], torch.nan)
        return self._clips[key]

    def _projected(self, vectors: Tensor) -> Tensor:
        """Embeddings (n,M,E) -> (n,M,r)."""
        centred = vectors - self.tensors["clip_mean"]
        return torch.einsum("nme,mre->nmr", centred, self.tensors["clip_map"]) if self.kind == FITTED else centred

    # --- on disk --------------------------------------------------------------------------------------------------------

    def save(self, folder: Path, name: str = "judge") -> None:
        """Write NAME.safetensors and NAME.json, each completely or not at all."""
        state = {
            "format": FORMAT,
            "kind": self.kind,
            "source": self.source,
            "modalities": self.modalities,
            "fitted": self.fitted,
            "store": asdict(self.store.identity),
            "dev": asdict(self.figures) if self.figures else None,
        }
        write_atomic(Path(folder) / f"{name}.safetensors", save(self.tensors))
        write_json(Path(folder) / f"{name}.json", state)

    @classmethod
    def load(cls, folder: Path, store: Clips, vectors: ClauseVectors, name: str = "judge") -> "Judge":
        """Read what `save` wrote. Raises JudgeError if it is missing, damaged, or for another encoder than the store's."""
        path = Path(folder) / f"{name}.json"
        try:
            state, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise JudgeError(f"{path}: no judge can be read ({error}); training fits and saves one") from error
        if (got := state.get("format")) != FORMAT:
            raise JudgeError(f"{path}: judge format {got}, this version reads {FORMAT}; train again")
        if state["store"]["weights_sha256"] != store.identity.weights_sha256:
            raise JudgeError(
                f"{path}: expected embeddings of {state['store']['encoder']} {state['store']['weights_sha256'][:8]}, got "
                f"{store.identity.encoder} {store.identity.weights_sha256[:8]}; pass the store that it was fitted on"
            )
        judge = cls(vectors, store, state["kind"], tensors, state["modalities"], state["source"], state["fitted"])
        judge.figures = Figures(**state["dev"]) if state["dev"] else None
        return judge


def clip_vectors(store: Clips, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """L2-normalised embeddings (n,M,E), zeros where absent, and presence (n,M)."""
    vectors, present = store.read(keys)
    return F.normalize(vectors, dim=2) * present[..., None], present
