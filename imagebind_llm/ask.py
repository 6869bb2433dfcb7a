"""python -m imagebind_llm.ask: a LLaMA answers one instruction, through the decoder of the method with its prompts shut."""

import sys
from dataclasses import dataclass

import torch

from imagebind_llm import distributed
from imagebind_llm.config import PromptConfig
from imagebind_llm.flags import exit_code, flag, parse
from imagebind_llm.itsl.generate import Sampling, generate
from imagebind_llm.itsl.instructions import alpaca_prompt
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.llama.gguf import smollm2_path
from imagebind_llm.llama.load import assign, load_llama
from imagebind_llm.llama.tokenizers import check_vocabulary, load_tokenizer


@dataclass(frozen=True)
class AskSettings:
    """What `python -m imagebind_llm.ask` takes."""

    instruction: str = flag(help="instruction or question for the model")
    llama_model_path: str = flag("", "LLaMA: a Meta or Hugging Face folder or .gguf file; if not given, `make setup`'s SmolLM2")
    max_new_tokens: int = flag(128, "largest number of tokens of the answer")
    temperature: float = flag(0.0, "sampling temperature; 0: always the likeliest token")
    top_p: float = flag(0.75, "nucleus sampling: the smallest set of tokens with this probability")
    seed: int = flag(0, "seed of sampling")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    dtype: str = flag("float32", "dtype of the weights; bfloat16 halves the memory", ("float32", "bfloat16"))

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise ValueError("--instruction is empty: say what to ask")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens {self.max_new_tokens}: at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature {self.temperature}: at least 0, and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p {self.top_p}: above 0 and at most 1")


def answer(settings: AskSettings) -> str:
    """Load a LLaMA and let it answer one instruction; its prompts' gates are shut, so it speaks for itself."""
    path, device = settings.llama_model_path or smollm2_path(), torch.device(distributed.choose_device(settings.device))
    config, state = load_llama(path, getattr(torch, settings.dtype), device)
    tokenizer = load_tokenizer(path)
    check_vocabulary(tokenizer, config.vocab_size)
    model = ITSL(config, PromptConfig(adapter_layer=1, adapter_len=1), device="meta")
    assign(model.llama, state)
    model.to(device)  # its prompts and gates
    text = tokenizer.chat(settings.instruction) if tokenizer.chat_template else alpaca_prompt(settings.instruction)
    [[ids]] = generate(
        model,
        [tokenizer.encode(text, bos=True)],
        settings.max_new_tokens,
        tokenizer.eos_id,
        sampling=Sampling(settings.temperature, settings.top_p),
        generator=torch.Generator(device).manual_seed(settings.seed),
    )
    return tokenizer.decode(ids).strip()


def main() -> int:
    settings = parse(AskSettings, description="Ask a LLaMA something.")
    advice = "pass --dtype bfloat16 or --device cpu"
    return exit_code("imagebind_llm.ask", lambda: print(answer(settings)), out_of_memory=advice)


if __name__ == "__main__":
    sys.exit(main())
