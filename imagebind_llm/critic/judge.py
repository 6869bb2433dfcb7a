"""A judge of claims: how likely is it that this clause holds of this clip, rather than of another?

    s(clause t, clip e) = sum over modalities of (A_m (e_m - mean_m)) . (B (t - mean_t))        "fitted" (judge_fit.py)
                        = the largest over modalities of (e_m - mean_m) . t                     "shared", nothing fitted
    P = 1 / (1 + exp(-(slope * s + offset)))
The clause goes through the frozen text tower of the encoder whose embeddings the clip has, and both are L2-normalised. Centred
on the train clips, a score cannot be raised by a clause that is near to every clip. Of a clause only one ending of two words
or more is read: the one nearest to a clause that the judge was fitted on (of "we notice a broad smile", "a broad smile").
There is no verdict (P is 0.5) if no ending is near enough, or if the clause depends most on a modality that is switched off or
absent from the clip. Stored without pickle:
    FOLDER/NAME.json           what it was fitted on, which modalities it looks at, what it scored on dev
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
UNDECIDED = 0.5  # P where there is nothing to tell by
FEWEST_WORDS = 2  # of the ending that a clause is read as
CLAUSES_PER_PASS = 256
KEPT = 50_000  # texts whose vectors are remembered, about 200 MB: whoever serves a page for weeks sees no end of them
NEARLY = 1e-3  # cosines this close are one


class JudgeError(ValueError):
    """The judge cannot be fitted or read; the message says what to type."""


class Clips(Protocol):
    """Where a judge finds the vectors of clips: a store, or whatever reads like one."""

    @property
    def identity(self) -> Identity: ...

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors (n,M,E) and presence (n,M)."""
        ...


class ClauseVectors:
    """Text -> L2-normalised vectors (n,E) of a text tower; each distinct text goes through the tower once."""

    def __init__(self, encode: Callable[[Sequence[str]], Tensor]):
        """`encode`: n texts to (n,E), of any length."""
        self._encode = encode
        self._vectors: dict[str, Tensor] = {}

    @classmethod
    def load(cls, identity: Identity, weights: str = "", device: torch.device | str = "cpu") -> "ClauseVectors":
        """The text tower of the encoder that made a store; no other tower is read. `weights`: its file, if it is not in
        checkpoints/. The vectors are on the CPU, wherever the tower is. Raises WeightsError for other weights than the store's,
        and where there are none."""
        return cls(load_text_tower(identity, weights, device))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        if len(self._vectors) > KEPT:
            self._vectors.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        for start in range(0, len(new), CLAUSES_PER_PASS):
            part = new[start : start + CLAUSES_PER_PASS]
            self._vectors |= zip(part, F.normalize(self._encode(part).float(), dim=1), strict=True)
        return torch.stack([self._vectors[text] for text in texts])  # (n,E)


@dataclass(frozen=True)
class Figures:
    """How well a judge tells dev clips' own clauses from those of other clips: areas under the ROC curve.

    `any_clip`, `same_intent`: whose clauses are dealt (None: no two clips share an intent). `alone`: same-intent (else
    any-clip) areas of each modality by itself, over the clauses that hang on it most, 0.5 if there are none; `useful`: those
    that tell something, by more than chance. `own`, `dealt`: mean P. `familiar`: share of the own clauses on which the judge
    can say something. No verdict counts as P = 0.5 in all.
    """

    n: int
    any_clip: float
    same_intent: float | None
    alone: dict[str, float]
    useful: list[str]
    own: float
    dealt: float
    familiar: float

    @property
    def deciding(self) -> float:
        """The area that gates and choices go by."""
        return self.any_clip if self.same_intent is None else self.same_intent


class Judge:
    """P that a clause holds of a clip of the store. Frozen: nothing in it is trained with the model that it judges."""

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
        """`tensors`: clip_mean (M,E), slope (), offset (), known (T,E) vectors of the clauses it was fitted on and the least
        cosine with one of them, familiar (), sample (S,M,E) embeddings of clips by which it tells what a clause hangs on; and,
        fitted, clip_map (M,r,E), clause_map (r,E), clause_mean (E,).
        `modalities`: those that it looks at, of those it was `fitted` with. `source`: the texts that it was fitted on."""
        self.vectors, self.store, self.kind, self.tensors, self.source = vectors, store, kind, tensors, source
        self.modalities = tuple(modalities)
        self.fitted = tuple(fitted or modalities)
        self._sample: Tensor | None = None
        self.figures: Figures | None = None
        self._clips: dict[str, Tensor] = {}
        self._endings: dict[str, tuple[str, bool]] = {}

    def score(self, claims: Sequence[str], key: str) -> Tensor:
        """P (n,) float32 in [0, 1] that each claim holds of the clip; 0.5 where there is no verdict."""
        if not claims:
            return torch.zeros(0)
        return self.probability(self.similarity(claims, [key] * len(claims)))

    def probability(self, similarity: Tensor) -> Tensor:
        """Calibrated; nan, which stands for nothing to tell by, becomes 0.5."""
        p = torch.sigmoid(self.tensors["slope"] * similarity + self.tensors["offset"])
        return torch.where(similarity.isnan(), torch.tensor(UNDECIDED), p)

    def similarity(self, claims: Sequence[str], keys: Sequence[str]) -> Tensor:
        """s (n,) of each claim and the clip beside it; nan where there is no verdict, or no modality is present."""
        parts = self.similarity_by(self.modalities, claims, keys)  # (n,m)
        whole = parts.nan_to_num(0.0).sum(1) if self.kind == FITTED else parts.nan_to_num(-torch.inf).amax(1)
        present = {name: ~part.isnan() for name, part in zip(self.modalities, parts.T, strict=True)}
        has_verdict = [
            self.read(claim)[1] and name in present and bool(present[name][i])
            for i, (claim, name) in enumerate(zip(claims, self.hangs_on(claims), strict=True))
        ]
        return whole.masked_fill(~torch.tensor(has_verdict) | parts.isnan().all(1), torch.nan)

    def similarity_by(self, modalities: Sequence[str], claims: Sequence[str], keys: Sequence[str]) -> Tensor:
        """The part (n,m) of s that comes from each modality, for all claims alike; nan where a modality is absent."""
        clips = torch.stack([self._clip(key) for key in keys])  # (n,M,r)
        return (clips * self._clauses(claims)[:, None]).sum(2)[:, [MODALITIES.index(name) for name in modalities]]

    def hangs_on(self, claims: Sequence[str]) -> list[str]:
        """The modality whose part of s varies most over clips, for each claim."""
        if self._sample is None:
            self._sample = self._projected(self.tensors["sample"])  # (S,M,r)
        parts = torch.einsum("smr,nr->nsm", self._sample, self._clauses(claims))
        spread = parts.std(1, correction=0)[:, [MODALITIES.index(name) for name in self.fitted]]
        return [self.fitted[i] for i in spread.argmax(1).tolist()]

    def read(self, claim: str) -> tuple[str, bool]:
        """The ending of a claim that is nearest to a clause the judge was fitted on, and whether it is near enough."""
        if claim not in self._endings:
            parts = claim.split()
            endings = [" ".join(parts[i:]) for i in range(max(1, len(parts) - FEWEST_WORDS + 1))]
            near = (self.vectors(endings) @ self.tensors["known"].T.float()).amax(1)
            best = int((near >= near.max() - NEARLY).nonzero()[0])  # the longest of equally near ones
            self._endings[claim] = endings[best], bool(near[best] >= self.tensors["familiar"])
        return self._endings[claim]

    def forget(self, key: str) -> None:
        """Drop what is kept of a clip that will not be asked about again."""
        self._clips.pop(key, None)

    def claim_vectors(self, claims: Sequence[str]) -> Tensor:
        """Vectors (n,E) of length 1 of claims as they are read."""
        return self.vectors([self.read(claim)[0] for claim in claims])

    def _clauses(self, claims: Sequence[str]) -> Tensor:
        vectors = self.claim_vectors(claims)
        if self.kind == FITTED:
            vectors = (vectors - self.tensors["clause_mean"]) @ self.tensors["clause_map"].T
        return vectors  # (n,r)

    def _clip(self, key: str) -> Tensor:
        """(M,r), nan in the rows of modalities that the clip has not."""
        if key not in self._clips:
            vectors, present = clip_vectors(self.store, [key])
            self._clips[key] = self._projected(vectors)[0].masked_fill(~present[0][:, None], torch.nan)
        return self._clips[key]

    def _projected(self, vectors: Tensor) -> Tensor:
        """(n,M,E) -> (n,M,r)."""
        centred = vectors - self.tensors["clip_mean"]
        return torch.einsum("nme,mre->nmr", centred, self.tensors["clip_map"]) if self.kind == FITTED else centred

    # --- on disk --------------------------------------------------------------------------------------------------------

    def save(self, folder: Path, name: str = "judge") -> None:
        """Write NAME.safetensors and NAME.json, each whole or not at all."""
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
        """Read what `save` wrote. Raises JudgeError if it is not there, damaged, or of another encoder than the store's."""
        where = Path(folder) / f"{name}.json"
        try:
            state, tensors = json.loads(where.read_text()), load_file(where.with_suffix(".safetensors"))
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise JudgeError(f"{where}: no judge can be read ({error}); training fits and saves one") from error
        if (got := state.get("format")) != FORMAT:
            raise JudgeError(f"{where}: judge format {got}, this version reads {FORMAT}; train again")
        if state["store"]["weights_sha256"] != store.identity.weights_sha256:
            raise JudgeError(
                f"{where}: expected embeddings of {state['store']['encoder']} {state['store']['weights_sha256'][:8]}, got "
                f"{store.identity.encoder} {store.identity.weights_sha256[:8]}; pass the store that it was fitted on"
            )
        judge = cls(vectors, store, state["kind"], tensors, state["modalities"], state["source"], state["fitted"])
        judge.figures = Figures(**state["dev"]) if state["dev"] else None
        return judge


def clip_vectors(store: Clips, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """L2-normalised embeddings (n,M,E), zeros where absent, and presence (n,M)."""
    vectors, present = store.read(keys)
    return F.normalize(vectors, dim=2) * present[..., None], present
