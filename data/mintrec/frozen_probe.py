"""What freezing alone gives: logistic regression on a frozen LLaMA's states, and a paired comparison with trained runs.

    python data/mintrec/frozen_probe.py --data_path MIntRec --runs runs/mintrec/words0 runs/mintrec/words1 runs/mintrec/words2

The state of the last token of a question about the utterance, at one of five depths; depth and C are chosen by dev macro F1.
`--runs`: output folders of engine_finetune.py on this data (`--modalities none`), one a seed; the difference of accuracy and of
macro F1 between their mean and the probe has a 95 % interval by bootstrap over clips.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from imagebind_llm.assembly import open_language
from imagebind_llm.config import flag, parse
from imagebind_llm.datasets import DataError, load_dataset
from imagebind_llm.llama import Llama
from imagebind_llm.records import Example
from imagebind_llm.tokenizers import LlamaTokenizer
from imagebind_llm.weights import load_decoder, smollm2_path

QUESTION = 'A person in a TV show says: "{}"\nWhat is the intent of the speaker? The intent is to'
DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)  # of the layers
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
BATCH, RESAMPLES = 32, 2000


@dataclass(frozen=True)
class ProbeSettings:
    """The flags of data/mintrec/frozen_probe.py."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder; no clips are needed")
    llama_model_path: str = flag("", "a LLaMA; if not given, SmolLM2")
    runs: tuple[str, ...] = flag((), "output folders of engine_finetune.py to compare with")


def main() -> int:
    settings = parse(ProbeSettings, description=__doc__)
    try:
        splits = load_dataset(settings.data_path).splits
        gold = {name: np.array([one.intent for one in rows]) for name, rows in splits.items()}
        guesses = probe(settings.llama_model_path, splits, gold)
        print(f"frozen probe: accuracy {scores(gold['test'], guesses)[0]:.2f} macro F1 {scores(gold['test'], guesses)[1]:.2f}")
        if settings.runs:
            compare([answers(Path(run), splits["test"]) for run in settings.runs], guesses, gold["test"])
    except (DataError, OSError, ValueError) as error:
        print(f"frozen_probe.py: {error}", file=sys.stderr)
        return 2
    return 0


def probe(path: str, splits: dict[str, list[Example]], gold: dict[str, np.ndarray]) -> np.ndarray:
    """The test split's labels by the best probe."""
    _, tokenizer = open_language(path)
    llama = load_decoder(path or smollm2_path(), torch.float32)
    states = {name: last_states(llama, tokenizer, rows, name) for name, rows in splits.items()}
    found = []
    for depth in states["train"]:
        for strength in STRENGTHS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
            model.fit(states["train"][depth], gold["train"])
            score = f1_score(gold["dev"], model.predict(states["dev"][depth]), average="macro")
            found.append((score, depth, strength, model))
    score, depth, strength, model = max(found, key=lambda one: one[0])
    print(f"chosen by dev macro F1 {100 * score:.2f}: layer {depth} of {llama.config.n_layers}, C {strength}")
    return model.predict(states["test"][depth])


@torch.no_grad()
def last_states(llama: Llama, tokenizer: LlamaTokenizer, rows: list[Example], title: str) -> dict[int, np.ndarray]:
    """State of the last token after some layers: {number of layers: (n, D)}."""
    layers = sorted({max(1, round(depth * llama.config.n_layers)) for depth in DEPTHS})
    taken: dict[int, torch.Tensor] = {}
    hooks = [llama.layers[n - 1].register_forward_hook(lambda _, __, out, n=n: taken.__setitem__(n, out)) for n in layers]
    ids = [tokenizer.encode(QUESTION.format(row.text), bos=True) for row in rows]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = {n: np.zeros((len(rows), llama.config.dim), np.float32) for n in layers}
    for start in tqdm(range(0, len(order), BATCH), desc=title, unit="batch", leave=False):
        part = order[start : start + BATCH]
        longest = max(len(ids[i]) for i in part)
        llama(torch.tensor([[*ids[i], *[0] * (longest - len(ids[i]))] for i in part]))
        ends = torch.tensor([len(ids[i]) - 1 for i in part])
        for n in layers:
            found[n][part] = taken[n][torch.arange(len(part)), ends].numpy()
    for hook in hooks:
        hook.remove()
    return found


def answers(run: Path, rows: list[Example]) -> np.ndarray:
    """What a run said about the rows, in their order."""
    lines = [json.loads(line) for line in (run / "predictions_test.jsonl").read_text().splitlines()]
    predicted = {line["key"]: line["predicted"] for line in lines}
    if missing := [row.key for row in rows if row.key not in predicted]:
        raise DataError(f"{run}: says nothing about {len(missing)} of {len(rows)} test rows; was it trained on this data?")
    return np.array([predicted[row.key] for row in rows])


def scores(gold: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """Accuracy and macro F1, in %."""
    return 100 * np.array([accuracy_score(gold, guesses), f1_score(gold, guesses, average="macro", zero_division=0)])


def compare(runs: list[np.ndarray], base: np.ndarray, gold: np.ndarray) -> None:
    """Print each run, their mean and spread, and the paired difference from the probe."""
    own = np.array([scores(gold, run) for run in runs])  # (seeds,2)
    for run in own:
        print(f"  run: accuracy {run[0]:.2f} macro F1 {run[1]:.2f}")
    spread = own.std(0, ddof=1) if len(own) > 1 else np.zeros(2)
    draws = np.random.default_rng(0).integers(len(gold), size=(RESAMPLES, len(gold)))
    gaps = np.array([np.mean([scores(gold[d], run[d]) for run in runs], 0) - scores(gold[d], base[d]) for d in draws])
    low, high = np.percentile(gaps, [2.5, 97.5], axis=0)
    for i, name in enumerate(("accuracy", "macro F1")):
        gap = own[:, i].mean() - scores(gold, base)[i]
        print(f"{name}: {own[:, i].mean():.2f} ± {spread[i]:.2f}, {gap:+.2f} over the probe [{low[i]:+.2f}, {high[i]:+.2f}]")


if __name__ == "__main__":
    sys.exit(main())
