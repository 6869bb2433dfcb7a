"""Embeddings to intents: a number that holds, with its uncertainty, for every subset of modalities.

    python classifier.py --data_path data/demo/clips --emb_path runs/demo/emb --output_dir runs/demo/probe --ablate
    python classifier.py --data_path MIntRec --emb_path runs/mintrec/emb --output_dir runs/mintrec/probe --split_by episode

Writes results.json, predictions.tsv (a line a seed and row) and report.html, one self-contained page. A split that is
reported on can be neither trained on nor selected on. With --method itsl the rationales are scored too, where the data have
references: explanations_SEED.jsonl.
"""

import sys
import time
from functools import partial
from pathlib import Path

from imagebind_llm import distributed
from imagebind_llm.config import NO_MODALITY
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.encoder.store import Store
from imagebind_llm.explain.answers import ExplainSettings, answer_split, refuse_other_content, scores_beside
from imagebind_llm.explain.loading import load_explainer
from imagebind_llm.files import write_atomic, write_json
from imagebind_llm.flags import exit_code, parse
from imagebind_llm.intents.evaluation import (
    PREDICTIONS,
    collect_results,
    evaluate_subsets,
    predictions_table,
    read_predictions,
    slices,
)
from imagebind_llm.intents.methods import fit_itsl
from imagebind_llm.intents.protocol import Protocol, load_protocol
from imagebind_llm.intents.registry import METHODS
from imagebind_llm.intents.report import console, write_page
from imagebind_llm.intents.settings import ClassifierSettings
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import SharedLlama


def main() -> int:
    settings = parse(ClassifierSettings, description=__doc__)
    return exit_code("classifier.py", lambda: run(settings), interrupted="interrupted; nothing was written")


def run(settings: ClassifierSettings) -> None:
    """Read, evaluate, print, write."""
    started = time.monotonic()
    output = Path(settings.output_dir)
    if (output / "last").exists():
        raise DataError(f"{output}: holds a training run, with results.json of its own; give another --output_dir")
    protocol = load_protocol(settings)
    refuse_what_comes_last(protocol, settings)
    itsl, llama = settings.method == "itsl", SharedLlama()
    files = explanation_files(protocol, settings) if itsl else {}
    subsets = evaluate_subsets(protocol, settings, partial(fit_itsl, llama=llama) if itsl else METHODS[settings.method].fit)
    found = collect_results(protocol, subsets, settings)
    if files:
        found["rationales"], found["verifier"] = score_explanations(files, settings, llama)
    found["seconds"] = round(time.monotonic() - started, 1)
    print(console(found))
    write_json(output / "results.json", found)
    write_atomic(output / PREDICTIONS, predictions_table(subsets[-1], protocol).encode())
    write_atomic(output / "report.html", write_page(protocol, subsets, found, output / "report.html").encode())
    print(f"{time.monotonic() - started:.1f} s; written to {output}: results.json, {PREDICTIONS}, report.html")


def refuse_what_comes_last(protocol: Protocol, settings: ClassifierSettings) -> None:
    """Raises DataError now for files that are read once everything is computed."""
    slices(protocol, settings.needed_modality)
    if settings.compare:
        read_predictions(Path(settings.compare), protocol)


def explanation_files(protocol: Protocol, settings: ClassifierSettings) -> dict[str, Path]:
    """By checkpoint, where its rationales for the reported clips go; none where there are no references to score them by.

    Raises DataError for a file that holds anything else.
    """
    whole = settings.report_split in protocol.dataset.splits and settings.split_by == "official"
    if not (whole and (protocol.dataset.root / "rationales.jsonl").is_file() and isinstance(protocol.store, Store)):
        return {}
    infos = {folder: checkpoint.read_info(Path(folder)) for folder in settings.checkpoint}
    if any(not set(info["modalities"]) <= {*settings.modalities, NO_MODALITY} for info in infos.values()):
        return {}  # a model that explains by what is to count as unknown
    output, keys = Path(settings.output_dir), {example.key for example in protocol.report.examples}
    files = {folder: output / f"explanations_{info['settings']['seed']}.jsonl" for folder, info in infos.items()}
    for file in files.values():
        refuse_other_content(file, settings.report_split, keys)
    return files


def score_explanations(files: dict[str, Path], settings: ClassifierSettings, llama: SharedLlama) -> tuple[dict, str]:
    """The rationales of every checkpoint for the reported clips, written to their files, and their scores; continues."""
    device, split = distributed.choose_device(settings.device), settings.report_split
    for folder, file in files.items():
        explainer = load_explainer(Path(folder), settings.llama_model_path, device, shared=llama)
        data, store, size = settings.data_path, settings.emb_path, settings.batch_size
        asked = ExplainSettings(folder, data_path=data, emb_path=store, batch=str(file), split=split, batch_size=size)
        answer_split(explainer, asked)
    return scores_beside(settings.data_path, list(files.values()), split)


if __name__ == "__main__":
    sys.exit(main())
