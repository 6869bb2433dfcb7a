"""Another decoder is a subclass of Llama and a line in DECODERS: its folders are read, trained on and answered by."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_training import TOKENIZER, call, write_intents, write_store

import engine_finetune
import explain
from imagebind_llm.check.weights import check
from imagebind_llm.itsl.checkpoint import read_info, read_tensors
from imagebind_llm.llama.decoder import Block, Llama
from imagebind_llm.llama.load import load_decoder
from imagebind_llm.llama.registry import DECODERS
from imagebind_llm.weight_files import WeightsError

BIASED = ("wq", "wk", "wv")


class BiasedBlock(Block):
    """Queries, keys and values with frozen biases."""

    def __init__(self, config, prompts, device=None):
        super().__init__(config, prompts, device)
        for linear in (getattr(self.attention, name) for name in BIASED):
            linear.bias = nn.Parameter(torch.zeros(linear.out_features, device=device))


class Biased(Llama):
    """As Qwen2 is."""

    block = BiasedBlock
    huggingface = "Qwen2ForCausalLM"

    @staticmethod
    def more_shapes(config):
        rows = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        width = config.dim // config.n_heads
        return {f"attention.{name}.bias": (n * width,) for name, n in zip(BIASED, rows, strict=True)}


def write_qwen2(folder: Path):
    """A folder that transformers saved, with our tokenizer of 300 words; returns its model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300}
    theirs = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.3))
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    theirs.eval().save_pretrained(folder)
    shutil.copy(TOKENIZER, folder / "tokenizer.model")
    return theirs


def test_a_decoder_in_the_table_gives_the_logits_of_transformers(tmp_path, monkeypatch):
    theirs = write_qwen2(tmp_path)
    with pytest.raises(WeightsError, match=r"expected model_type llama \(LlamaForCausalLM\), got qwen2"):
        load_decoder(tmp_path, torch.float32)
    monkeypatch.setitem(DECODERS, "qwen2", Biased)
    ours, tokens = load_decoder(tmp_path, torch.float32), torch.randint(0, 300, (2, 25))
    with torch.no_grad():
        assert (ours.logits(ours(tokens)) - theirs(tokens).logits).abs().max() < 5e-5
    assert check(tmp_path).facts["what"] == "qwen2, of LLaMA's family, Hugging Face format, 1 file"


def test_a_decoder_in_the_table_is_trained_around_and_answers(tmp_path, monkeypatch):
    monkeypatch.setitem(DECODERS, "qwen2", Biased)
    write_qwen2(tmp_path / "qwen2")
    data = {"data_path": write_intents(tmp_path / "MIntRec"), "emb_path": write_store(tmp_path / "emb")}
    shape = {"llama_model_path": tmp_path / "qwen2", "adapter_layer": 2, "adapter_len": 2, "lora_rank": 2, "trainable": "all"}
    pace = {"epochs": 1, "warmup_epochs": 0, "batch_size": 4, "device": "cpu"}
    done = call(engine_finetune.main, **data, **shape, **pace, output_dir=tmp_path / "run")
    assert done.code == 0, done.err
    assert read_info(tmp_path / "run" / "best")["model"]["llama"]["architecture"] == "qwen2"
    trained = read_tensors(tmp_path / "run" / "best")
    assert "llama.layers.2.attention.wk.bias" in trained and "llama.layers.0.attention.wk.bias" not in trained
    asked = {"checkpoint": tmp_path / "run" / "best", "key": "S03_E01_1", "max_new_tokens": 8, "device": "cpu"}
    done = call(explain.main, **data, **asked)
    assert done.code == 0 and "Complain" in done.out, done.err
