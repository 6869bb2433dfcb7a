"""Embeddings to intents: a number that holds, with its uncertainty, for every subset of modalities.

    python classifier.py --data_path data/demo/clips --emb_path runs/demo/emb --output_dir runs/demo/probe --ablate
    python classifier.py --data_path MIntRec --emb_path runs/mintrec/emb --output_dir runs/mintrec/probe --split_by episode

Writes results.json, predictions.tsv (a line a seed and row) and report.html, one self-contained page. A split that is
reported on can be neither trained on nor selected on.
"""

import json
import sys
import time
from pathlib import Path

from imagebind_llm.checkpoint import CheckpointError
from imagebind_llm.config import parse
from imagebind_llm.datasets import DataError
from imagebind_llm.evaluation import PREDICTIONS, evaluate, predictions_table, results
from imagebind_llm.intent_report import console, write_page
from imagebind_llm.methods import METHODS
from imagebind_llm.protocol import load_protocol
from imagebind_llm.settings import ClassifierSettings
from imagebind_llm.store import StoreError, write_atomic
from imagebind_llm.tokenizers import TokenizerError
from imagebind_llm.weights import WeightsError


def main() -> int:
    settings = parse(ClassifierSettings, description=__doc__)
    try:
        run(settings)
    except (CheckpointError, DataError, StoreError, TokenizerError, WeightsError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted; nothing was written")
    return 0


def fail(message: str) -> int:
    print(f"classifier.py: {message}", file=sys.stderr)
    return 2


def run(settings: ClassifierSettings) -> None:
    """Read, evaluate, print, write."""
    started = time.monotonic()
    protocol = load_protocol(settings)
    subsets = evaluate(protocol, settings, METHODS[settings.method])
    found = results(protocol, subsets, settings) | {"seconds": round(time.monotonic() - started, 1)}
    print(console(found))
    output = Path(settings.output_dir)
    write_atomic(output / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(output / PREDICTIONS, predictions_table(subsets[-1], protocol).encode())
    write_atomic(output / "report.html", write_page(protocol, subsets, found, output / "report.html").encode())
    print(f"{time.monotonic() - started:.1f} s; written to {output}: results.json, {PREDICTIONS}, report.html")


if __name__ == "__main__":
    sys.exit(main())
