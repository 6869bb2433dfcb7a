"""Describes clips with a checkpoint of any stage, with the prompt of --stage pretrain, to measure what the model sees."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagebind_llm.corpus.batches import Collator
from imagebind_llm.explain.explainer import batch_slices
from imagebind_llm.itsl.assembly import frozen_dtype, open_language, restore
from imagebind_llm.itsl.generate import generate
from imagebind_llm.itsl.instructions import CAPTION_REQUEST
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.tokenizers import LlamaTokenizer

MAX_NEW_TOKENS = 112  # of a caption
LISTING = "Face:"  # beginning of those captions of the demo world that name all cues in one line


def load_describer(
    folder: Path, llama_model_path: str = "", device: str = "cpu", dtype: str = "auto"
) -> tuple[ITSL, LlamaTokenizer, dict[str, Any]]:
    """The model and tokenizer of a checkpoint of any stage, and its JSON. Raises CheckpointError."""
    torch_device = torch.device(device)
    assembled, info = restore(folder, llama_model_path, torch_device, frozen_dtype(dtype, torch_device))
    _, tokenizer = open_language(llama_model_path or info["settings"]["llama_model_path"])
    return assembled.model.eval(), tokenizer, info


def describe(
    model: ITSL,
    tokenizer: LlamaTokenizer,
    modalities: tuple[str, ...],
    vectors: Tensor,
    present: Tensor,
    beginning: str = "",
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Iterator[str]:
    """Yield the greedy caption of every clip, starting with `beginning`, in order.

    vectors (N,M,E) and present (N,M) as in the store; only `modalities` are used.
    """
    device = model.llama.tok_embeddings.weight.device
    prompt = tokenizer.encode(CAPTION_REQUEST + beginning, bos=True)
    present = present & Collator(None, modalities).modality_mask
    for part in batch_slices(len(vectors), batch_size):
        embeddings, presence = vectors[part].to(device), present[part].to(device)
        prompts = [prompt] * len(embeddings)
        for [ids] in generate(model, prompts, max_new_tokens, tokenizer.eos_id, embeddings=embeddings, present=presence):
            yield f"{beginning} {tokenizer.decode(ids).strip()}".strip()
