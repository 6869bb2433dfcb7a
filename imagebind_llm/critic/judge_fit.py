"""Fits judges (judge.py) on clauses and their clips by contrast, calibrates and evaluates them on dev.

Each step classifies, for 256 (clause, clip) pairs of the train split, which clip a clause belongs to and which clause belongs
to a clip (InfoNCE, arXiv:1807.03748, in both directions); other clauses of the clip's own texts are no negatives. At its
optimum the score is log p(clause | clip) / p(clause) up to constants. The test split is not read; intents only evaluate.

Two judges are fitted on different halves of the train clips with different seeds: one gives rewards, the other (watching) judge
only measures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from imagebind_llm import distributed
from imagebind_llm.config import MODALITIES
from imagebind_llm.corpus.sequences import Corpus
from imagebind_llm.critic.claims import claims_of
from imagebind_llm.critic.credit import SAME
from imagebind_llm.critic.judge import FITTED, SHARED, ClauseVectors, Figures, Judge, JudgeError, clip_vectors
from imagebind_llm.encoder.store import Store
from imagebind_llm.taxonomy import Taxonomy

NAMES = {"judge": "judge", "watch": "watching judge (gives no rewards)"}  # from file name to description
RANK = 32
STEPS, PAIRS = 600, 256
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 0.1
KNOWN = 4096  # largest number of fitted clauses that a judge stores, the most frequent ones
FAMILIAR = 0.25  # quantile, over fitted clauses, of the cosine with the nearest other: the smallest cosine for a verdict
DEALT = 4  # other clips with which each dev clause is compared
SMALLEST = 1e-6
SAMPLE = 64  # train clips by which `Judge.hangs_on` decides
LEAST = 0.6  # area under the curve below which a modality is switched off
MOST = 4000  # largest number of clauses in an evaluation


@dataclass(frozen=True)
class Clauses:
    """Clauses of N clips: their keys, T distinct texts, and pairs (P,2) of clip number and text number."""

    keys: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: Tensor

    @classmethod
    def of(cls, texts_by_clip: Mapping[str, Sequence[str]], taxonomy: Taxonomy | None) -> "Clauses":
        """The clauses of the texts about each clip, without clips that have none."""
        numbers: dict[str, int] = {}
        keys: list[str] = []
        pairs: list[tuple[int, int]] = []
        for key, texts in texts_by_clip.items():
            clauses = dict.fromkeys(claim.text for text in texts for claim in claims_of(text, taxonomy))
            if clauses:
                pairs += [(len(keys), numbers.setdefault(text, len(numbers))) for text in clauses]
                keys.append(key)
        return cls(tuple(keys), tuple(numbers), torch.tensor(pairs, dtype=torch.long).view(-1, 2))


def fit_map(clauses: Clauses, vectors: ClauseVectors, store: Store, modalities: Sequence[str], seed: int) -> Judge:
    """Fit a judge, without calibration. Deterministic. Raises JudgeError for fewer than 2 clips."""
    if len(clauses.keys) < 2:
        raise JudgeError(f"a judge needs clauses of at least 2 train clips, got {len(clauses.keys)}; pass --captions")
    generator = torch.Generator().manual_seed(seed)
    columns = [MODALITIES.index(name) for name in modalities]
    clips, clip_mean, clip_size = _centred_clips(store, clauses.keys, columns)  # (N,m*E), (M,E), (m,)
    texts = vectors(clauses.texts)  # (T,E)
    clause_mean = texts[clauses.pairs[:, 1]].mean(0)
    clause_size = (texts - clause_mean).square().sum(1).mean().sqrt().clamp(min=SMALLEST)
    texts = (texts - clause_mean) / clause_size
    width = texts.shape[1]
    clip_map, clause_map = (torch.randn(RANK, n * width, generator=generator) / width**0.5 for n in (len(columns), 1))
    optimizer = torch.optim.AdamW([clip_map.requires_grad_(), clause_map.requires_grad_()], weight_decay=WEIGHT_DECAY)
    true_codes = (clauses.pairs[:, 0] * len(clauses.texts) + clauses.pairs[:, 1]).sort().values
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        pairs = clauses.pairs[torch.randint(len(clauses.pairs), (PAIRS,), generator=generator)]
        codes = pairs[:, :1] * len(clauses.texts) + pairs[:, 1]  # (clip, clause)
        place = torch.searchsorted(true_codes, codes).clamp(max=len(true_codes) - 1)
        true = (true_codes[place] == codes).fill_diagonal_(False)  # other clauses of the clip's own texts
        logits = (clips[pairs[:, 0]] @ clip_map.T) @ (texts[pairs[:, 1]] @ clause_map.T).T  # (clip, clause)
        logits = logits.masked_fill(true, -torch.inf)
        target = torch.arange(PAIRS)
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    full = torch.zeros(len(MODALITIES), RANK, width)
    full[columns] = clip_map.detach().view(RANK, len(columns), width).transpose(0, 1) / clip_size[:, None, None]
    tensors = {
        "clip_mean": clip_mean,
        "clip_map": full,
        "clause_map": clause_map.detach() / clause_size,
        "clause_mean": clause_mean,
    }
    return Judge(vectors, store, FITTED, tensors | _uncalibrated(clauses, vectors, store), modalities)


def _uncalibrated(clauses: Clauses, vectors: ClauseVectors, store: Store) -> dict[str, Tensor]:
    """The tensors that both kinds of judge have (see Judge), with the identity as calibration."""
    counts = torch.bincount(clauses.pairs[:, 1], minlength=len(clauses.texts))
    most_frequent = counts.argsort(descending=True, stable=True)[:KNOWN]
    fitted = vectors([clauses.texts[i] for i in most_frequent.tolist()])  # (T,E)
    cosines = (fitted @ fitted.T).fill_diagonal_(-1).amax(1)
    return {
        "known": fitted.half(),
        "sample": clip_vectors(store, clauses.keys[:: max(1, len(clauses.keys) // SAMPLE)][:SAMPLE])[0],
        "familiar": cosines.quantile(FAMILIAR) if len(fitted) > 1 else torch.tensor(1.0),
        "slope": torch.ones(()),
        "offset": torch.zeros(()),
    }


def _centred_clips(store: Store, keys: Sequence[str], columns: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Centred vectors (N,m*E) of the modalities `columns`, scaled to root mean square length 1, zeros where absent; the means
    (M,E) of all modalities; and the lengths (m,) by which they were divided."""
    clips, present = clip_vectors(store, keys)
    n = present.sum(0).clamp(min=1)[:, None]
    mean = clips.sum(0) / n  # (M,E)
    centred = (clips - mean) * present[..., None]
    size = (centred.square().sum((0, 2)) / n[:, 0]).sqrt().clamp(min=SMALLEST)  # (M,)
    return (centred / size[:, None])[:, columns].flatten(1), mean, size[list(columns)]


def shared_space(clauses: Clauses, vectors: ClauseVectors, store: Store, modalities: Sequence[str], seed: int = 0) -> Judge:
    """A judge by cosines in the encoder's space, less the train clips' mean, without calibration. `seed` is not used; `fit_map`
    has it too."""
    clips, present = clip_vectors(store, clauses.keys)
    clip_mean = clips.sum(0) / present.sum(0).clamp(min=1)[:, None]
    return Judge(vectors, store, SHARED, {"clip_mean": clip_mean} | _uncalibrated(clauses, vectors, store), modalities)


# --- evaluation ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """Pairs (clause, key) of dev clauses with their own clip, with any other clip, and with another clip of the same intent."""

    own: list[tuple[str, str]]
    any_clip: list[tuple[str, str]]
    same_intent: list[tuple[str, str]]

    @classmethod
    def of(cls, clauses: Clauses, vectors: ClauseVectors, intents: Mapping[str, object], seed: int = 0) -> "Trial":
        """At most MOST clauses, each also paired with up to DEALT other clips whose own texts do not contain it."""
        generator = torch.Generator().manual_seed(seed)
        texts = vectors(clauses.texts)
        by_clip: dict[int, list[int]] = {}
        for clip, text in clauses.pairs.tolist():
            by_clip.setdefault(clip, []).append(text)
        by_intent: dict[object, list[int]] = {}
        for clip, key in enumerate(clauses.keys):
            if intents.get(key) is not None:
                by_intent.setdefault(intents[key], []).append(clip)

        def contains(clip: int, text: int) -> bool:
            clause, clip_clauses = clauses.texts[text], [clauses.texts[t] for t in by_clip[clip]]
            is_similar = float((texts[by_clip[clip]] @ texts[text]).max()) > SAME
            return is_similar or any(other in clause or clause in other for other in clip_clauses)

        def pairs_with_others(clip: int, text: int, others: Sequence[int]) -> list[tuple[str, str]]:
            clips = [others[i] for i in torch.randint(len(others), (DEALT,), generator=generator).tolist()]
            return [(clauses.texts[text], clauses.keys[c]) for c in clips if c != clip and not contains(c, text)]

        order = torch.randperm(len(clauses.pairs), generator=generator)[:MOST]
        own, from_any, from_same = [], [], []
        for clip, text in clauses.pairs[order].tolist():
            key = clauses.keys[clip]
            own.append((clauses.texts[text], key))
            from_any += pairs_with_others(clip, text, range(len(clauses.keys)))
            if len(by_intent.get(intents.get(key), [])) > 1:
                from_same += pairs_with_others(clip, text, by_intent[intents[key]])
        return cls(own, from_any, from_same)


def area(own: Tensor, dealt: Tensor) -> float:
    """Area under the ROC curve: probability that a score in `own` is above one in `dealt`, ties count half. nan is ignored."""
    own, dealt = own[~own.isnan()].contiguous(), dealt[~dealt.isnan()].sort().values
    if not len(own) or not len(dealt):
        return 0.5
    below, up_to = (torch.searchsorted(dealt, own, right=right).double().mean() for right in (False, True))
    return float((below + up_to) / 2 / len(dealt))


def calibrate(judge: Judge, trial: Trial) -> None:
    """Set slope and offset by logistic regression: clauses with their own clip against clauses with others, in equal weight.

    Raises JudgeError if there is no clause of either kind with a verdict.
    """
    own, dealt = (judge.similarity(*zip(*pairs, strict=True)) for pairs in (trial.own, trial.any_clip))
    own, dealt = own[~own.isnan()].double(), dealt[~dealt.isnan()].double()
    if not len(own) or not len(dealt):
        raise JudgeError("no dev clause can be compared with another clip, so the judge cannot be calibrated; pass --captions")
    s = torch.cat([own, dealt])
    size = s.abs().mean().clamp(min=1e-12)
    target = torch.cat([torch.ones_like(own), torch.zeros_like(dealt)])
    weight = torch.cat([torch.full_like(own, 0.5 / len(own)), torch.full_like(dealt, 0.5 / len(dealt))])
    slope_offset = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope_offset], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = slope_offset[0] * s / size + slope_offset[1]
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
        loss = loss + 1e-4 * slope_offset[0] ** 2  # finite where the two kinds do not overlap
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, offset = slope_offset.detach()
    judge.tensors |= {"slope": (slope / size).float(), "offset": offset.float()}


def figures(judge: Judge, trial: Trial) -> Figures:
    """Evaluate a calibrated judge."""

    def scores(pairs: list[tuple[str, str]]) -> Tensor:
        return judge.probability(judge.similarity(*zip(*pairs, strict=True))) if pairs else torch.zeros(0)

    def alone(name: str) -> tuple[float, bool]:
        own, dealt = (
            [(text, key) for text, key in pairs if hangs_on[text] == name]
            for pairs in (trial.own, trial.same_intent or trial.any_clip)
        )
        if not own or not dealt:
            return 0.5, False
        auc = area(*(judge.similarity_by([name], *zip(*pairs, strict=True))[:, 0] for pairs in (own, dealt)))
        error = ((1 / len(own) + 1 / len(dealt)) / 12) ** 0.5  # standard error of an area at chance
        return auc, auc >= max(LEAST, 0.5 + 2 * error)

    texts = list(dict.fromkeys(text for pairs in vars(trial).values() for text, _ in pairs))
    hangs_on = dict(zip(texts, judge.hangs_on(texts), strict=True))
    by_name = {name: alone(name) for name in judge.modalities}
    own, dealt = scores(trial.own), scores(trial.any_clip)
    return Figures(
        n=len(trial.own),
        any_clip=area(own, dealt),
        same_intent=area(own, scores(trial.same_intent)) if trial.same_intent else None,
        alone={name: value for name, (value, _) in by_name.items()},
        useful=[name for name, (_, is_useful) in by_name.items() if is_useful],
        own=float(own.mean()),
        dealt=float(dealt.mean()),
        familiar=1 - float(judge.similarity(*zip(*trial.own, strict=True)).isnan().float().mean()),
    )


# --- the judges of a run ------------------------------------------------------------------------------------------------


def open_judges(
    folder: Path, corpus: Corpus, encoder_weights: str, seed: int, device: torch.device, say: Callable[[str], None]
) -> tuple[Judge, Judge]:
    """The two judges of a training run, fitted by the main rank into `folder` and read from there by all ranks. Collective.

    They are fitted on the captions of train or, without captions, on its rationales, and calibrated on those of dev. `device`:
    where the text tower runs.
    """
    assert corpus.store is not None, "a judge needs embeddings"
    vectors = ClauseVectors.load(corpus.store.identity, encoder_weights, device)
    if distributed.is_main():
        source, texts = _texts(corpus)
        intents = {row.key: row.intent for split in ("train", "dev") for row in corpus.splits.get(split, [])}
        judges = fit_judges(texts, source, corpus.store, vectors, corpus.modalities, corpus.taxonomy, intents, seed)
        for (name, role), judge in zip(NAMES.items(), judges, strict=True):
            judge.save(folder, name)
            say(sentence(judge, role))
    distributed.barrier()
    pays, watches = (Judge.load(folder, corpus.store, vectors, name) for name in NAMES)
    return pays, watches


def _texts(corpus: Corpus) -> tuple[str, dict[str, dict[str, list[str]]]]:
    """The kind of the texts that judges are fitted on, and the texts of train and dev clips by split and key."""
    if corpus.captions:
        return "captions", corpus.captions
    return "rationales", {
        split: {row.key: [row.rationale] for row in corpus.splits.get(split, []) if row.rationale and row.embedded}
        for split in ("train", "dev")
    }


def fit_judges(
    texts: Mapping[str, Mapping[str, Sequence[str]]],
    source: str,
    store: Store,
    vectors: ClauseVectors,
    modalities: Sequence[str],
    taxonomy: Taxonomy | None,
    intents: Mapping[str, object],
    seed: int = 0,
) -> tuple[Judge, Judge]:
    """The rewarding and the watching judge, each fitted on one half of the train clips and calibrated on dev.

    Modalities at chance are switched off, and the kind of judge that separates dev clips of the same intent better is taken.

    Args:
        texts: {"train": {key: texts}, "dev": {key: texts}}; without dev texts every fifth train clip is used as dev.
        source: kind of the texts.

    Raises JudgeError if every modality is at chance.
    """
    train, dev = dict(texts["train"]), dict(texts.get("dev", {}))
    if not dev:
        dev = {key: train.pop(key) for key in list(train)[::5]}
    trial = Trial.of(Clauses.of(dev, taxonomy), vectors, intents, seed)
    halves = [{key: texts for i, (key, texts) in enumerate(train.items()) if i % 2 == half} for half in range(2)]
    pays, watches = (
        _best(Clauses.of(part, taxonomy), trial, vectors, store, modalities, 2 * seed + half)
        for half, part in enumerate(halves)
    )
    pays.source = watches.source = source
    return pays, watches


def _best(clauses: Clauses, trial: Trial, vectors: ClauseVectors, store: Store, modalities: Sequence[str], seed: int) -> Judge:
    """The better kind of judge on dev, with the useful modalities only."""
    judges = []
    for kind in (fit_map, shared_space):
        judge = _measured(kind(clauses, vectors, store, modalities, seed), trial)
        assert judge.figures is not None
        alone, useful = judge.figures.alone, tuple(judge.figures.useful)
        if useful and useful != judge.modalities:
            judge.modalities = useful  # the maps of the other modalities stay in its tensors
            judge = _measured(judge, trial)
            assert judge.figures is not None
            judge.figures = replace(judge.figures, alone=alone)
        if useful:
            judges.append(judge)
    if not judges:
        raise JudgeError(
            f"the judge cannot tell clips of the same intent apart by {', '.join(modalities)} (area under the curve below "
            f"{LEAST} for each, or no better than chance): pass --captions that say what is seen and heard, or train with "
            f"--credit answer"
        )
    return max(judges, key=lambda judge: judge.figures.deciding if judge.figures else 0.0)


def _measured(judge: Judge, trial: Trial) -> Judge:
    calibrate(judge, trial)
    judge.figures = figures(judge, trial)
    return judge


def sentence(judge: Judge, role: str = "judge") -> str:
    """One sentence on a judge and its figures on dev; it begins with WARNING if the judge was fitted on rationales."""
    dev = judge.figures
    assert dev is not None
    same = "" if dev.same_intent is None else f", {dev.same_intent:.3f} against clips of the same intent"
    off = [name for name in dev.alone if name not in judge.modalities]
    alone = ", ".join(f"{name} {area:.3f}{' (switched off)' if name in off else ''}" for name, area in dev.alone.items())
    how = f"fitted on {judge.source}" if judge.kind == FITTED else "cosines in the encoder's space, better than a fitted map"
    warning, worse = "", ""
    if judge.source != "captions":
        warning, worse = "WARNING: ", "; rationales name what is typical: captions of the clips would make it better"
    return (
        f"{warning}{role}, {how}, on {dev.n} dev clauses: area under the curve {dev.any_clip:.3f} against any clip{same} "
        f"(alone: {alone}); P {dev.own:.2f} for a clip's own, {dev.dealt:.2f} for others'; "
        f"a verdict on {100 * dev.familiar:.0f} % of them{worse}"
    )
