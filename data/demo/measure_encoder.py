"""How good imagebind_tiny is, on the demo world: beside what anyone could read, what is read off its frozen embeddings.

Linear probes are fitted on the train split, their regularisation is chosen on dev, and test is reported. Cues are also named
without any training: the value whose captions are nearest by cosine.
"""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from imagebind_llm import markdown
from imagebind_llm.config import MODALITIES, modality_subsets
from imagebind_llm.datasets.readers import load_dataset, rationale_rows
from imagebind_llm.demo_world import cues, phrases, texts
from imagebind_llm.demo_world.write import DemoWorldSettings, write_world
from imagebind_llm.encoder.bpe import ClipBPE
from imagebind_llm.encoder.extraction import ExtractSettings, extract
from imagebind_llm.encoder.store import Store
from imagebind_llm.encoder.towers import ImageBind
from imagebind_llm.encoder.weights import load_imagebind

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # C of the logistic regression: the larger, the less regularised


def measure(preset: str, weights: Path, data_path: str, emb_path: str, overwrite: bool) -> str:
    """Print and return two Markdown tables: intents by subset of modalities, and single cues.

    The demo world and its embeddings are made where they are missing; `overwrite` embeds anew.
    """
    if not Path(data_path, "test.tsv").exists():
        write_world(DemoWorldSettings(data_path))
    extract(ExtractSettings(data_path, emb_path, encoder=preset, encoder_weights=str(weights), overwrite=overwrite))
    splits, store = load_dataset(data_path).splits, Store(Path(emb_path))
    vectors = {name: F.normalize(store.read([one.key for one in rows])[0], dim=-1) for name, rows in splits.items()}  # (n,M,E)
    intents = {name: np.array([one.intent for one in rows]) for name, rows in splits.items()}
    shown = rationale_rows(Path(data_path, "rationales.jsonl"))
    truth = {name: [{"family": family_of(e.text)} | shown[e.key]["cues"] for e in rows] for name, rows in splits.items()}
    tables = f"{intent_table(vectors, intents, truth)}\n\n{cue_probe_table(vectors, truth, load_imagebind(weights, preset))}"
    print(tables)
    return tables


def intent_table(vectors: dict[str, Tensor], intents: dict[str, np.ndarray], truth: dict[str, list[dict]]) -> str:
    """Rows of the seven subsets: the exact ceiling; its rule on the test split, and a probe, both told the true cues; ours."""
    of_probes = ("probe on the true cues", "probe on embeddings", "of the ceiling")
    lines = []
    for subset in modality_subsets(MODALITIES):
        columns = [MODALITIES.index(name) for name in subset]
        variables = [variable for name in subset for variable in cues.CUES_OF[name]]
        features = {split: x[:, columns].flatten(1).numpy() for split, x in vectors.items()}  # (n,modalities*E)
        told = {split: np.array([one_hot(one, variables) for one in rows]) for split, rows in truth.items()}
        ceiling, probe = cues.bayes_accuracy(subset), probe_accuracy(features, intents)
        percent = (ceiling, _rule_here(variables, truth["test"], intents["test"]), probe_accuracy(told, intents), probe)
        lines.append([" + ".join(subset), *(f"{100 * accuracy:.1f}" for accuracy in percent), f"{probe / ceiling:.2f}"])
    return markdown.table(("modalities", "ceiling", "its rule on this test split", *of_probes), lines)


def one_hot(known: dict[str, str], variables: list[str]) -> list[float]:
    """An indicator for every value of the variables."""
    return [float(known[variable] == value) for variable in variables for value in cues.VALUES[variable]]


def family_of(text: str) -> str:
    """The family whose template made this sentence."""
    for family, templates in texts.TEMPLATES.items():
        if any(re.fullmatch(re.sub(r"\\\{\w+\\\}", ".+", re.escape(template)), text) for template in templates):
            return family
    raise ValueError(f"not a sentence of the demo world: {text!r}; make the world again with this version")


def _rule_here(variables: list[str], truth: list[dict], intents: np.ndarray) -> float:
    guesses = [cues.INTENTS[cues.posterior({v: one[v] for v in variables}).argmax()] for one in truth]
    return float(np.mean(np.array(guesses) == intents))


def probe_accuracy(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> float:
    """Test accuracy of logistic regression fitted on train, its C chosen by the log loss on dev.

    Not by dev accuracy: many C tie there, and rounding of the embeddings would choose among them.
    """
    probes = [LogisticRegression(C=c, max_iter=2000).fit(features["train"], labels["train"]) for c in STRENGTHS]
    best = min(probes, key=lambda p: log_loss(labels["dev"], p.predict_proba(features["dev"]), labels=p.classes_))
    return float(best.score(features["test"], labels["test"]))


@torch.no_grad()
def cue_probe_table(vectors: dict[str, Tensor], known: dict[str, list[dict]], model: ImageBind) -> str:
    """A row a cue: the share of its commonest value on test, the linear probe, and naming it by the nearest captions."""
    lines = []
    for cue, values in cues.CUES.items():
        column = MODALITIES.index("vision" if cue in cues.VISUAL else "audio")
        truth = {split: np.array([one[cue] for one in rows]) for split, rows in known.items()}
        chance = max(float(np.mean(truth["test"] == value)) for value in values)
        probe = probe_accuracy({split: x[:, column].numpy() for split, x in vectors.items()}, truth)
        captions = [model.encode("text", ClipBPE().encode(list(phrases.PHRASES[cue][value]))).mean(0) for value in values]
        nearest = (vectors["test"][:, column] @ F.normalize(torch.stack(captions), dim=1).T).argmax(1)  # (n,)
        zero_shot = float(np.mean(np.array(values)[nearest.numpy()] == truth["test"]))
        lines.append([cue, *(f"{100 * accuracy:.1f}" for accuracy in (chance, probe, zero_shot))])
    return markdown.table(("cue", "commonest value", "linear probe", "zero-shot"), lines)
