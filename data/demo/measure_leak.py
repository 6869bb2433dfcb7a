"""What cheating would be worth: the probe's score on the demo world's test split if that split trains it or chooses the epoch.

    python data/demo/measure_leak.py

classifier.py refuses both, so this script goes around it. The demo world's best reachable accuracy is known, so one sees
which scores cannot be true.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch

from imagebind_llm import markdown
from imagebind_llm.config import MODALITIES, ProbeConfig
from imagebind_llm.demo_world import cues
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.intents.probe import Scaling, train_probes
from imagebind_llm.intents.protocol import Protocol, load_protocol
from imagebind_llm.intents.settings import ClassifierSettings

RULES = {
    "train trains, dev chooses (classifier.py)": (False, False),
    "train trains, test chooses": (False, True),
    "train and test train, dev chooses": (True, False),
    "train and test train, test chooses": (True, True),
}


@dataclass(frozen=True)
class LeakSettings:
    """What data/demo/measure_leak.py takes."""

    data_path: str = flag("data/demo/clips", "folder of the demo world")
    emb_path: str = flag("runs/demo/emb", "embedding store of --data_path")
    seeds: tuple[int, ...] = flag((0, 1, 2, 3, 4), "seeds of initial weights and row order")
    epochs: int = flag(100, "training epochs of the MLP")


def main() -> int:
    settings = parse(LeakSettings, description=__doc__)
    return exit_code("measure_leak.py", lambda: print(measure(settings)))


def measure(settings: LeakSettings) -> str:
    """A Markdown table: accuracy on test, %, mean over seeds, by what was done with test before."""
    protocol = load_protocol(ClassifierSettings(settings.data_path, settings.emb_path, ""))
    subsets = [("text",), MODALITIES]
    accuracies = {"best reachable": [cues.bayes_accuracy(subset) for subset in subsets]}
    for rule, (trains, chooses) in RULES.items():
        accuracies[rule] = [test_accuracy(protocol, subset, trains, chooses, settings) for subset in subsets]
    rows = [[rule, *(f"{100 * accuracy:.1f}" for accuracy in row)] for rule, row in accuracies.items()]
    return markdown.table(["rule", *(" + ".join(subset) for subset in subsets)], rows)


def test_accuracy(protocol: Protocol, subset: tuple[str, ...], trains: bool, chooses: bool, settings: LeakSettings) -> float:
    """Mean accuracy over seeds on the test rows, which also train or choose the epoch if told so."""
    columns = [MODALITIES.index(name) for name in subset]
    train, select, report = protocol.train, protocol.select, protocol.report
    assert train is not None and select is not None
    scaling = Scaling.of(train.vectors[:, columns], train.present[:, columns])
    seen = [(scaling.apply(r.vectors[:, columns], r.present[:, columns]), r.classes) for r in (train, select, report)]
    known, selection, asked = seen
    if trains:
        known = (torch.cat([known[0], asked[0]]), torch.cat([known[1], asked[1]]))
    config = ProbeConfig(epochs=settings.epochs)
    probes = train_probes(*known, asked if chooses else selection, len(protocol.classes), config, settings.seeds)
    return float(np.mean(probes.probabilities(asked[0]).argmax(-1) == asked[1].numpy()))


if __name__ == "__main__":
    sys.exit(main())
