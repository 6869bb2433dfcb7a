"""python -m imagebind_llm.ask: a LLaMA answers from the command line through our decoder."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from imagebind_llm import ask
from imagebind_llm.ask import AskSettings, answer, main
from imagebind_llm.itsl.instructions import alpaca_prompt
from imagebind_llm.llama.tokenizers import TokenizerError, load_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "llama"


def test_smollm2_answers_a_question():
    assert "Paris" in answer(AskSettings(instruction="What is the capital of France?", max_new_tokens=12))


@pytest.mark.parametrize("row", json.loads((GOLDEN / "h_prompts.json").read_text()), ids=lambda row: row["instruction"])
def test_alpaca_prompt_has_the_public_text_and_ids(row):
    prompt = alpaca_prompt(row["instruction"], row["input"])
    assert prompt == row["prompt"]
    assert load_tokenizer(GOLDEN / "tiny.model").encode(prompt, bos=True) == row["prompt_ids"]


def test_sampled_answers_follow_the_seed():
    def sampled(seed):
        settings = AskSettings(instruction="Tell me a story.", max_new_tokens=12, temperature=1.5, top_p=1.0, seed=seed)
        return answer(settings)

    assert sampled(1) == sampled(1) != sampled(2)


def test_missing_tokenizer_ends_the_command_with_its_message(monkeypatch, capsys):
    arguments = ["ask", "--instruction", "Hello", "--llama_model_path", str(GOLDEN / "f_meta_2shard")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main() == 2
    assert "imagebind_llm.ask: no tokenizer: expected" in capsys.readouterr().err


def test_the_device_is_asked_for_and_what_it_lacks_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ask", "--instruction", "Hello", "--device", "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main() == 2
    assert capsys.readouterr().err.startswith("imagebind_llm.ask: --device cuda: torch sees no CUDA device here")

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sys, "argv", ["ask", "--instruction", "Hello", "--device", "cpu"])
    monkeypatch.setattr(ask, "load_llama", full)
    assert main() == 2
    assert capsys.readouterr().err == "imagebind_llm.ask: CUDA out of memory.; pass --dtype bfloat16 or --device cpu\n"


def test_tokenizer_of_another_vocabulary_is_refused_before_anything_is_generated(tmp_path):
    shutil.copytree(GOLDEN / "f_meta_2shard", tmp_path / "7B", copy_function=shutil.copyfile)
    shutil.copyfile(GOLDEN / "tiny.model", tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match="97 token embeddings, the tokenizer 300 words"):
        answer(AskSettings(instruction="Hello", llama_model_path=str(tmp_path)))
