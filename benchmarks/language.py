"""Training through frozen weights against peft's adaption prompt, decoding against transformers' generate.

Both contenders have the same random weights' sizes, the same prompted layers and the same dtype. Ours computes what the
loss needs: the head at the answer's positions only.
"""

from collections.abc import Callable

import torch

from benchmarks.runner import Case
from imagebind_llm.config import LlamaConfig, PromptConfig
from imagebind_llm.itsl.generate import generate
from imagebind_llm.itsl.losses import rationale_nll
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import IGNORE, Batch

SHAPES = {
    "dim 512": LlamaConfig(512, 8, 8, 8, 1536, 32000),
    "SmolLM2": LlamaConfig(576, 30, 9, 3, 1536, 49152, rope_theta=100000.0, tied=True),
}
ADAPTER_LEN = 10
Work = Callable[[], float]


def training(shape: str, dtype: str = "float32", rows: int = 4, length: int = 512) -> Work:
    """Forward and backward of our model, prompts and gates of all layers trained; the answer is the last quarter."""
    model = _ours(SHAPES[shape], getattr(torch, dtype))
    model.train_only("prompts")
    tokens = torch.randint(SHAPES[shape].vocab_size, (rows, length))
    batch = Batch(tokens, tokens.masked_fill(torch.arange(length) < length * 3 // 4, IGNORE))

    def work() -> float:
        output = model(batch)
        rationale_nll(output.logp, output.mask).backward()
        model.zero_grad(set_to_none=True)
        return rows * length

    return work


def peft_training(shape: str, dtype: str = "float32", rows: int = 4, length: int = 512) -> Work:
    """The same work by peft's AdaptionPrompt on transformers' LlamaForCausalLM."""
    from peft import AdaptionPromptConfig, get_peft_model

    config = SHAPES[shape]
    adaption = AdaptionPromptConfig(adapter_len=ADAPTER_LEN, adapter_layers=config.n_layers, task_type="CAUSAL_LM")
    model = get_peft_model(_transformers(config, getattr(torch, dtype)), adaption)
    tokens = torch.randint(config.vocab_size, (rows, length))
    labels = tokens.masked_fill(torch.arange(length) < length * 3 // 4, IGNORE)

    def work() -> float:
        model(input_ids=tokens, labels=labels, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)
        return rows * length

    return work


def decoding(shape: str, rows: int, dtype: str = "float32", prompt: int = 64, new: int = 128) -> Work:
    """Greedy decoding of `new` tokens a row with our model, prompts in all layers, no row stopping."""
    model = _ours(SHAPES[shape], getattr(torch, dtype))
    prompts = torch.randint(SHAPES[shape].vocab_size, (rows, prompt)).tolist()

    def work() -> float:
        generate(model, prompts, new, eos=None)
        return rows * new

    return work


def transformers_decoding(shape: str, rows: int, dtype: str = "float32", prompt: int = 64, new: int = 128) -> Work:
    """The same lengths by transformers' generate, without prompts."""
    model = _transformers(SHAPES[shape], getattr(torch, dtype)).eval()
    tokens = torch.randint(SHAPES[shape].vocab_size, (rows, prompt))
    model.generation_config.eos_token_id = None

    def work() -> float:
        with torch.no_grad():
            out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False)
        assert out.shape[1] == prompt + new
        return rows * new

    return work


def _ours(config: LlamaConfig, dtype: torch.dtype) -> ITSL:
    model = ITSL(config, PromptConfig(config.n_layers, ADAPTER_LEN))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)  # as transformers does: other logits would cost other exponentials
        elif name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.1)
    return model.to(dtype)


def _transformers(config: LlamaConfig, dtype: torch.dtype):
    from transformers import LlamaConfig as PeerConfig
    from transformers import LlamaForCausalLM

    sizes = PeerConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        tie_word_embeddings=config.tied,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.max_seq_len,
    )
    model: torch.nn.Module = LlamaForCausalLM(sizes)
    return model.to(dtype)


def _case(name: str, ours: str, peer: str, options: dict, target: str = "", dtype: str = "float32", peers: str = "") -> Case:
    """A case in tokens/s; `peers` is the peer's dtype where it is another."""
    here = f"{__name__}:"
    ours_options, peer_options = {"dtype": dtype}, {"dtype": peers or dtype}
    return Case(name, "tokens", here + ours, here + peer, target, options, ours_options, peer_options)


def _training_cases(shape: str, target: str) -> list[Case]:
    options, bf16 = {"shape": shape}, "bfloat16"
    return [
        _case(f"train {shape}, fp32, against peft", "training", "peft_training", options, f"{target}, memory <= 0.6"),
        _case(f"train {shape}, bf16, against peft", "training", "peft_training", options, dtype=bf16),
        _case(f"train {shape}, bf16, against our fp32", "training", "training", options, ">= 2.5x", bf16, "float32"),
    ]


def _decoding_cases(rows: int) -> list[Case]:
    name, options, bf16 = f"decode dim 512, batch {rows}", {"shape": "dim 512", "rows": rows}, "bfloat16"
    return [
        _case(f"{name}, fp32, against transformers", "decoding", "transformers_decoding", options, ">= 1x"),
        _case(f"{name}, bf16, against our fp32", "decoding", "decoding", options, "", bf16, "float32"),
    ]


CASES = [
    *_training_cases("dim 512", ">= 1.5x"),
    *_training_cases("SmolLM2", ">= 1.2x"),
    *_decoding_cases(1),
    *_decoding_cases(32),
]
