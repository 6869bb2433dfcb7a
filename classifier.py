"""Embeddings to intents: a number that holds, with its uncertainty, for every subset of modalities.

    python classifier.py --data_path data/demo/clips --emb_path runs/demo/emb --output_dir runs/demo/probe --ablate
    python classifier.py --data_path MIntRec --emb_path runs/mintrec/emb --output_dir runs/mintrec/probe --split_by episode

Writes results.json, predictions.tsv (a line a seed and row) and report.html, one self-contained page. A split that is
reported on can be neither trained on nor selected on. With --method itsl the rationales are scored too, where the data have
references: explanations_SEED.jsonl.
"""

import json
import sys
import time
from pathlib import Path

from imagebind_llm import checkpoint, distributed
from imagebind_llm.answers import answer_split, scores_beside
from imagebind_llm.checkpoint import CheckpointError
from imagebind_llm.config import NO_MODALITY, parse
from imagebind_llm.datasets import DataError
from imagebind_llm.evaluation import PREDICTIONS, evaluate, predictions_table, results
from imagebind_llm.inference import Explainer
from imagebind_llm.intent_report import console, write_page
from imagebind_llm.methods import METHODS
from imagebind_llm.protocol import Protocol, load_protocol
from imagebind_llm.settings import ClassifierSettings, ExplainSettings
from imagebind_llm.store import Store, StoreError, write_atomic
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
    output = Path(settings.output_dir)
    if (output / "last").exists():
        raise DataError(f"{output}: holds a training run, with results.json of its own; give another --output_dir")
    protocol = load_protocol(settings)
    subsets = evaluate(protocol, settings, METHODS[settings.method])
    found = results(protocol, subsets, settings)
    if settings.method == "itsl":
        found["rationales"], found["verifier"] = explained(protocol, settings, output)
    found["seconds"] = round(time.monotonic() - started, 1)
    print(console(found))
    write_atomic(output / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(output / PREDICTIONS, predictions_table(subsets[-1], protocol).encode())
    write_atomic(output / "report.html", write_page(protocol, subsets, found, output / "report.html").encode())
    print(f"{time.monotonic() - started:.1f} s; written to {output}: results.json, {PREDICTIONS}, report.html")


def explained(protocol: Protocol, settings: ClassifierSettings, output: Path) -> tuple[dict, str]:
    """The rationales of every checkpoint for the reported clips, written to OUTPUT_DIR, and their scores; continues."""
    whole = settings.report_split in protocol.dataset.splits and settings.split_by == "official"
    if not (whole and (protocol.dataset.root / "rationales.jsonl").is_file() and isinstance(protocol.store, Store)):
        return {}, ""
    files = []
    for folder in settings.checkpoint:
        explainer = Explainer.load(Path(folder), settings.llama_model_path, distributed.choose_device(settings.device))
        if not set(explainer.modalities) <= {*settings.modalities, NO_MODALITY}:
            return {}, ""  # a model that explains by what is to count as unknown
        files.append(output / f"explanations_{checkpoint.read_info(Path(folder))['settings']['seed']}.jsonl")
        data, store, split = settings.data_path, settings.emb_path, settings.report_split
        asked = ExplainSettings(folder, data_path=data, emb_path=store, batch=str(files[-1]), split=split)
        answer_split(explainer, asked)
    return scores_beside(settings.data_path, files, settings.report_split)


if __name__ == "__main__":
    sys.exit(main())
