"""What freezing alone gives: logistic regression on a frozen LLaMA's states, and a paired comparison with trained runs.

    python data/mintrec/frozen_probe.py --data_path MIntRec --runs runs/mintrec/words0 runs/mintrec/words1 runs/mintrec/words2

The state of the last token of a question about the utterance, at one of five depths; depth and C are chosen by dev macro F1.
`--runs`: output folders of engine_finetune.py on this data (`--modalities none`), one a seed; the difference of accuracy and of
macro F1 between their mean and the probe has a 95 % interval by bootstrap over clips.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from imagebind_llm.corpus.batches import by_length
from imagebind_llm.datasets.readers import DataError, load_dataset
from imagebind_llm.files import json_lines
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.itsl.assembly import open_language
from imagebind_llm.llama.decoder import Llama
from imagebind_llm.llama.gguf import smollm2_path
from imagebind_llm.llama.load import load_decoder
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.metrics import paired_difference, scores
from imagebind_llm.records import Example

QUESTION = 'A person in a TV show says: "{}"\nWhat is the intent of the speaker? The intent is to'
DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)  # of the layers
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
BATCH = 32


@dataclass(frozen=True)
class ProbeSettings:
    """The flags of data/mintrec/frozen_probe.py."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder; no clips are needed")
    llama_model_path: str = flag("", "a LLaMA; if not given, SmolLM2")
    runs: tuple[str, ...] = flag((), "output folders of engine_finetune.py to compare with")


def main() -> int:
    settings = parse(ProbeSettings, description=__doc__)
    return exit_code("frozen_probe.py", lambda: run(settings))


def run(settings: ProbeSettings) -> None:
    """Fit, print the scores on test, and compare with trained runs."""
    splits = load_dataset(settings.data_path).splits
    gold = {name: np.array([one.intent for one in rows]) for name, rows in splits.items()}
    guesses = probe(settings.llama_model_path, splits, gold)
    own = scores(gold["test"], guesses)
    print(f"frozen probe: accuracy {100 * own['accuracy']:.2f} macro F1 {100 * own['macro_f1']:.2f}")
    if settings.runs:
        compare([answers(Path(folder), splits["test"]) for folder in settings.runs], guesses, gold["test"])


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
    found = {n: np.zeros((len(rows), llama.config.dim), np.float32) for n in layers}
    for part in tqdm(by_length([len(row) for row in ids], BATCH), desc=title, unit="batch", leave=False):
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
    predicted = {row["key"]: row["predicted"] for _, row in json_lines(run / "predictions_test.jsonl") if row}
    if missing := [row.key for row in rows if row.key not in predicted]:
        raise DataError(f"{run}: says nothing about {len(missing)} of {len(rows)} test rows; was it trained on this data?")
    return np.array([predicted[row.key] for row in rows])


def compare(runs: list[np.ndarray], base: np.ndarray, gold: np.ndarray) -> None:
    """Print each run, their mean and spread, and the paired difference from the probe."""
    found = [scores(gold, run) for run in runs]
    for one in found:
        print(f"  run: accuracy {100 * one['accuracy']:.2f} macro F1 {100 * one['macro_f1']:.2f}")
    classes = {label: i for i, label in enumerate(np.unique(np.concatenate([gold, base, *runs])))}
    numbers = [np.array([classes[label] for label in labels]) for labels in (gold, base, *runs)]
    for name, gap in paired_difference(numbers[0], np.stack(numbers[2:]), numbers[1][None]).items():
        values = 100 * np.array([one[name] for one in found])
        spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        reach = f"{100 * gap.value:+.2f} over the probe [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}], p {gap.p:.3f}"
        print(f"{name}: {values.mean():.2f}{spread}, {reach}")


if __name__ == "__main__":
    sys.exit(main())
