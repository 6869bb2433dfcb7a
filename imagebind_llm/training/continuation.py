"""Which settings may change between the stop of a run and its continuation: those that do not change its steps.

The numbers of ranks, passes and rows per pass may change if their product does not. The paths of data, embeddings, LLaMA and
start may change if the contents do not: they are compared by digests.
"""

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import Any

from imagebind_llm.corpus.sequences import Corpus
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import digest, same_llama

SHARES = {"batch_size", "accum_iter"}  # how a step's rows are distributed
PLACES = {"data_path", "emb_path", "llama_model_path", "pretrained_path", "rationales"}  # contents are compared, not paths
REMOVED = {"reward_norm": "group"}  # flags that no longer exist, and the value with which a run can continue
SAMPLED_ROWS = 64  # number of rows whose embeddings are compared
# order of the running sums in old checkpoints, which hold them without names
OLD_LOSSES = "nll answer_tokens cross_entropy intents right tokens caption_nll caption_tokens contrast contrasted"
OLD_CRITIC = (
    "answers clips reward_intent reward_rationale reward_consistency reward_format skipped unfinished tokens surprise "
    "divergence distinct advantage reward_truth watched judged claims undecided probability"
)


def differences(then: dict[str, Any], now: dict[str, Any], free: Collection[str]) -> list[str]:
    """Differences between two descriptions of a run (a checkpoint's JSON), in words; empty if the run can continue.

    free: settings that may differ.
    """
    old, new = then["settings"], now["settings"]
    changes = [
        f"--{name} {_shown(old.get(name))} -> {_shown(new[name])}"
        for name in new
        if name not in SHARES | PLACES | set(free) and old.get(name) != new[name]
    ]
    removed = [name for name, value in REMOVED.items() if old.get(name, value) != value]
    changes += [f"--{name} {old[name]}, which no longer exists" for name in removed]
    changes += [f"--{flag} {new[flag]} holds {what}" for flag, what in _other_contents(then, now)]
    if math.prod(_shares(then)) != math.prod(_shares(now)):
        changes.append(f"rows a step: {_shown_shares(then)} -> {_shown_shares(now)}")
    return changes


def _other_contents(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """Flags whose paths have other contents now, and which; what an old checkpoint does not record counts as equal."""
    configs = [checkpoint.config_from_json(about["model"]).llama for about in (then, now)]
    is_same = {
        ("llama_model_path", "another LLaMA"): same_llama(then["llama"], now["llama"]) and configs[0] == configs[1],
        ("data_path", "other rows"): then["data"] == now["data"],
        ("rationales", "other rationales"): then.get("rationales", now["rationales"]) == now["rationales"],
        ("emb_path", "embeddings made in another way"): then["store"] == now["store"],
        ("emb_path", "other embeddings"): then.get("vectors", now["vectors"]) == now["vectors"],
        ("pretrained_path", "other tensors"): then.get("start", now["start"]) == now["start"],
    }
    return [place for place, same in is_same.items() if not same]


def _shares(about: dict[str, Any]) -> tuple[int, int, int]:
    """Rows per pass, passes and ranks; their product is the number of rows of a step."""
    return about["settings"]["batch_size"], about["settings"]["accum_iter"], about["world_size"]


def _shown_shares(about: dict[str, Any]) -> str:
    batch, passes, ranks = _shares(about)
    return f"{batch * passes * ranks} (--batch_size {batch} --accum_iter {passes}, {ranks} rank{'s' if ranks > 1 else ''})"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def sums_of_rank(info: dict[str, Any], rank: int, ranks: int) -> tuple[dict[str, float], dict[str, float]]:
    """The running sums of the epoch, of losses and of the critic, with which a rank continues.

    They are the sums of the old ranks rank, rank + ranks, ...: its own if the number of ranks is the same, empty if it has no
    old rank or the epoch has just begun.
    """
    parts = info["sums"][rank::ranks] if info["step"] else []
    return _added([part[0] for part in parts], OLD_LOSSES), _added([part[1] for part in parts], OLD_CRITIC)


def _added(parts: Sequence[dict[str, float] | list[float]], old_order: str) -> dict[str, float]:
    """The totals of running sums by name; those of an old checkpoint are lists in `old_order`."""
    totals: dict[str, float] = {}
    for part in parts:
        sums = part if isinstance(part, dict) else dict(zip(old_order.split(), part, strict=False))
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def digest_of_rationales(corpus: Corpus) -> str:
    """Digest of all reference rationales, on which the rewards of the self-critical loss depend."""
    rationales = [row.rationale for rows in corpus.splits.values() for row in rows]
    return hashlib.sha256(repr(rationales).encode()).hexdigest()[:16]


def digest_of_vectors(corpus: Corpus) -> str:
    """Digest of the embeddings of evenly spaced rows; "" if there are none."""
    keys = [row.key for rows in corpus.splits.values() for row in rows if row.embedded]
    if corpus.store is None or not keys:
        return ""
    vectors, present = corpus.store.read(keys[:: math.ceil(len(keys) / SAMPLED_ROWS)])
    return digest({"vectors": vectors, "present": present})
