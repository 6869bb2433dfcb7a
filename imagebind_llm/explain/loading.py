"""A checkpoint folder -> an Explainer."""

from pathlib import Path

import torch

from imagebind_llm.critic.verifier import Verifier
from imagebind_llm.explain.calibration import Calibration
from imagebind_llm.explain.explainer import Explainer, Question
from imagebind_llm.itsl import checkpoint
from imagebind_llm.itsl.assembly import SharedLlama, frozen_dtype, open_language, restore
from imagebind_llm.taxonomy import taxonomy_of


def load_explainer(
    folder: Path,
    llama_model_path: str = "",
    device: str = "cpu",
    dtype: str = "auto",
    shared: SharedLlama | None = None,
) -> Explainer:
    """The model of a checkpoint folder; with `shared`, several around one LLaMA in memory. Raises CheckpointError, also for one
    that was trained on instructions or captions alone."""
    info = checkpoint.read_info(folder)
    settings, taxonomy = info["settings"], taxonomy_of(info["taxonomy"])
    if taxonomy is None:
        raise checkpoint.CheckpointError(
            f"{folder}: trained without intents (--stage {settings['stage']}); it cannot name any"
        )
    place = torch.device(device)
    assembled, _ = restore(folder, llama_model_path, place, frozen_dtype(dtype, place), shared)
    _, tokenizer = open_language(llama_model_path or settings["llama_model_path"])
    folder = checkpoint.resolve(folder)
    verifier = Verifier.load(folder) if (folder / "verifier.json").is_file() else None
    question = Question(taxonomy, tuple(info["modalities"]), settings["max_seq_len"], settings["answer_order"])
    return Explainer(assembled, tokenizer, question, Calibration.load(folder), verifier, info["store"])
