"""A LLaMA of LLaMA-7B's true width that takes no disk to speak of: what is not written in a sparse file reads as zeros.

Random are the embedding, the head and the last layer's attention, so that the loss and its gradient are of some size; norms
are 1. Layers of zeros take the time and the memory of any others.
"""

import json
import math
import struct
from pathlib import Path

import torch
from toy_training import TOKENIZER

from imagebind_llm.config import LLAMA_PRESETS
from imagebind_llm.itsl.instructions import alpaca_prompt
from imagebind_llm.llama.checkpoint_files import expected_shapes
from imagebind_llm.llama.huggingface import huggingface_name

SEVEN_B = LLAMA_PRESETS["Llama7B_adapter"]
BYTES = 2  # of a bfloat16
TOKENS_OF_TESTS = 300
WORD = "word"


def write_wide_llama(root: Path, n_layers: int) -> float:
    """A Hugging Face folder of so many of LLaMA-7B's layers; returns the size of its weights in GB."""
    shapes = {name: shape for name, shape in expected_shapes(SEVEN_B).items() if _layer(name) < n_layers}
    root.mkdir(parents=True)
    sizes = {"hidden_size": SEVEN_B.dim, "intermediate_size": SEVEN_B.hidden_dim, "num_hidden_layers": n_layers}
    sizes |= {"num_attention_heads": SEVEN_B.n_heads, "vocab_size": SEVEN_B.vocab_size, "rms_norm_eps": SEVEN_B.norm_eps}
    (root / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes}))
    _write_tokenizer(root / "tokenizer.model")
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + BYTES * math.prod(shape)
        header[huggingface_name(name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    random = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    written = ("tok_embeddings", "output", f"layers.{n_layers - 1}.attention.")
    with open(root / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            if name.startswith(written) or "norm" in name:
                file.seek(8 + len(text) + header[huggingface_name(name)]["data_offsets"][0])
                values = torch.ones(shape, dtype=torch.bfloat16) if "norm" in name else _filled(random, shape)
                file.write(values.view(torch.int16).numpy().tobytes())
        file.truncate(8 + len(text) + end)
    return end / 1e9


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("layers.") else 0


def _filled(block: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The block of numbers again and again."""
    return block.repeat(-(-math.prod(shape) // len(block)))[: math.prod(shape)].view(shape)


def _write_tokenizer(path: Path) -> None:
    """The tests' tokenizer with as many words as LLaMA's, those of the Alpaca prompt and WORD among them: a protocol buffer
    is extended by appending to it."""
    words = dict.fromkeys(f"▁{word}" for word in f"{alpaca_prompt(WORD)} {WORD}".split() if len(word) > 3)
    words |= dict.fromkeys(f"<unused {i}>" for i in range(SEVEN_B.vocab_size - TOKENS_OF_TESTS - len(words)))
    model = TOKENIZER.read_bytes()
    for word in words:
        kind = 5 if word.startswith("<unused") else 4  # UNUSED, USER_DEFINED
        piece = _field(b"\x0a", word.encode()) + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes([kind])  # text, score, type
        model += _field(b"\x0a", piece)
    path.write_bytes(model)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + bytes([len(content)]) + content
