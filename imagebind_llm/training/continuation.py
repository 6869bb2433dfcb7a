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
from imagebind_llm.itsl.assembly import digest

SHARES = {"batch_size", "accum_iter"}  # how a step's rows are distributed
PLACES = {"data_path", "emb_path", "llama_model_path", "pretrained_path", "rationales"}  # contents are compared, not paths
REMOVED = {"reward_norm": "group"}  # flags that no longer exist, and the value with which a run can continue
SAMPLED_ROWS = 64  # number of rows whose embeddings are compared


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
    """Flags whose paths have other contents now, and which."""
    configs = [checkpoint.config_from_json(about["model"]).llama for about in (then, now)]
    is_same = {
        ("llama_model_path", "another LLaMA"): then["llama"] == now["llama"] and configs[0] == configs[1],
        ("data_path", "other rows"): then["data"] == now["data"],
        ("rationales", "other rationales"): then["rationales"] == now["rationales"],
        ("emb_path", "embeddings made in another way"): then["store"] == now["store"],
        ("emb_path", "other embeddings"): then["vectors"] == now["vectors"],
        ("pretrained_path", "other tensors"): then["start"] == now["start"],
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
    old rank or the epoch has just begun. Raises CheckpointError for the sums of an older version, which have no names.
    """
    parts = info["sums"][rank::ranks] if info["step"] else []
    if any(isinstance(sums, list) for part in parts for sums in part):
        raise checkpoint.CheckpointError(
            f"expected the running sums of an epoch by name, got a list: this run was stopped by an older version at step "
            f"{info['step']} of epoch {info['epoch']}; start over with --resume no, or let that version end the epoch"
        )
    return _added([part[0] for part in parts]), _added([part[1] for part in parts])


def _added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The totals of running sums by name."""
    return {name: sum(part[name] for part in parts) for name in (parts[0] if parts else ())}


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
