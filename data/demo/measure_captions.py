"""Does a model see and hear? It describes clips that it was not trained on; every cue that it names is held against the truth.

    python data/demo/measure_captions.py --checkpoint runs/demo/pretrain/best

For checkpoints of either stage, so that one sees what the second has unlearned. The model is asked as the first stage asks, and
to list all cues. A cue that it does not name counts as wrong. Beside it the typical values of the clip's intent, which is what
one can say without looking. In %; interval: 95 %, bootstrap over clips.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imagebind_llm import distributed, markdown
from imagebind_llm.datasets.readers import DataError, load_dataset
from imagebind_llm.demo_world.cues import CUES, TYPICAL
from imagebind_llm.demo_world.phrases import caption
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain.captions import LISTING, describe, load_describer
from imagebind_llm.explain.rationales import read_rationales
from imagebind_llm.files import write_json
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.itsl.checkpoint import CheckpointError, check_store
from imagebind_llm.metrics import bootstrap_interval, drawn_rows


@dataclass(frozen=True)
class CaptionSettings:
    """The flags of data/demo/measure_captions.py."""

    checkpoint: str = flag(help="checkpoint folder, such as runs/demo/pretrain/best")
    data_path: str = flag("data/demo/clips", "folder of the demo world")
    emb_path: str = flag("runs/demo/emb", "embedding store of --data_path")
    llama_model_path: str = flag("", "path of the LLaMA; if not given, the one that the checkpoint names")
    split: str = flag("dev", "split to describe; train shows what was memorised", ("train", "dev", "test"))
    limit: int = flag(0, "number of clips of the split, from the first; 0: all")
    batch_size: int = flag(32, "clips per batch")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    dtype: str = flag("auto", "dtype of frozen weights; auto: bfloat16 on a GPU, else float32", ("auto", "float32", "bfloat16"))
    output: str = flag("", "JSON file for accuracy by cue and the captions")


def main() -> int:
    settings = parse(CaptionSettings, description=__doc__)
    return exit_code("measure_captions.py", lambda: print(measure(settings)))


def measure(settings: CaptionSettings) -> str:
    """The table, in Markdown."""
    known = read_rationales(Path(settings.data_path, "rationales.jsonl"))
    examples = load_dataset(settings.data_path, (settings.split,)).splits[settings.split]
    clips = [e for e in examples if e.key in known and known[e.key].cues and e.intent in TYPICAL][: settings.limit or None]
    if not clips:
        raise DataError(f"{settings.data_path}: no clip of split {settings.split} has known cues; only the demo world's have")
    truths = [known[clip.key].cues or {} for clip in clips]
    captions = describe_clips(settings, [clip.key for clip in clips])
    rows = {
        settings.checkpoint: captions,
        "typical of the gold intent": [caption({cue: TYPICAL[clip.intent or ""][cue] for cue in CUES}) for clip in clips],
        "the truth": [caption(dict(truth)) for truth in truths],
    }
    right = {name: captions_right(texts, truths) for name, texts in rows.items()}
    if settings.output:
        told = {clip.key: text for clip, text in zip(clips, captions, strict=True)}
        found = {"split": settings.split, "accuracy": accuracy(right[settings.checkpoint]), "captions": told}
        write_json(Path(settings.output), found)
    head = [f"{settings.split}, {len(clips)} clips", "all cues", *CUES]
    return markdown.table(head, [[name, *cells(found)] for name, found in right.items()])


def describe_clips(settings: CaptionSettings, keys: list[str]) -> list[str]:
    """A caption for each."""
    device = distributed.choose_device(settings.device)
    model, tokenizer, info = load_describer(Path(settings.checkpoint), settings.llama_model_path, device, settings.dtype)
    if not info["store"]:
        raise CheckpointError(f"{settings.checkpoint}: trained on the words alone; it sees and hears nothing")
    store = Store(Path(settings.emb_path))
    check_store(store, info["store"])
    told = describe(model, tokenizer, tuple(info["modalities"]), *store.read(keys), LISTING, settings.batch_size)
    return list(tqdm(told, total=len(keys), desc="describing", unit="clip"))


def captions_right(captions: Sequence[str], truths: Sequence[Mapping[str, str]]) -> np.ndarray:
    """(N,8) bool, in the order of CUES: is the cue named, and truly? One that a caption leaves out is not."""
    if len(captions) != len(truths):
        raise ValueError(f"expected a caption for each of {len(truths)} clips, got {len(captions)}")
    claims = [CUE_TABLE.cues_in(text) for text in captions]
    rows = [[own.get(cue) == truth[cue] for cue in CUES] for own, truth in zip(claims, truths, strict=True)]
    return np.array(rows, dtype=bool).reshape(-1, len(CUES))


def accuracy(right: np.ndarray) -> dict[str, float]:
    """The share of cues named right, all and by cue, from (N,8) bool."""
    return {"all": float(right.mean())} | dict(zip(CUES, right.mean(0).tolist(), strict=True))


def cells(right: np.ndarray) -> list[str]:
    """The same in %, all of them with an interval."""
    every, *single = (100 * value for value in accuracy(right).values())
    low, high = bootstrap_interval(100 * right.mean(1)[drawn_rows(len(right))].mean(1), every)
    return [f"{every:.1f} [{low:.1f}, {high:.1f}]", *(f"{value:.1f}" for value in single)]


if __name__ == "__main__":
    sys.exit(main())
