"""Tokenizers of the LLaMA family: three stored forms, one interface, and a clear error for a missing or foreign one."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tiny_gguf import random_weights, write_gguf

from imagebind_llm.llama.gguf import smollm2_path
from imagebind_llm.llama.tokenizers import TokenizerError, check_vocabulary, load_tokenizer

TINY = Path(__file__).parent / "golden" / "llama" / "tiny.model"
LISTS = {"ggml.tokens": ["a", "b", "ab"], "ggml.token_type": [1, 1, 1], "ggml.merges": ["a b"], "ggml.eos_token_id": 0}
TEXTS = [
    "the people of the country",
    "  two  spaces\n\nand a line end ",
    "in 2024 there were 1234567 of them",
    "I'll don't, won't: (really?) <b>x</b>",
    "héllo 你好 🙂 ß",
    "",
]


@pytest.fixture(scope="module")
def smollm2():
    return load_tokenizer(smollm2_path())


@pytest.fixture(scope="module")
def oracle():
    """transformers' reading of the same GGUF file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_path().parent, gguf_file=smollm2_path().name)


def gguf_of(path: Path, model: Path) -> Path:
    """A GGUF file with the pieces of a SentencePiece model."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
    facts = {
        "ggml.model": "llama",
        "ggml.tokens": [piece.piece for piece in proto.pieces],
        "ggml.scores": [piece.score for piece in proto.pieces],
        "ggml.token_type": [piece.type for piece in proto.pieces],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
    }
    return write_gguf(path, random_weights(), tokenizer=facts)


# --- the same ids as the public readers ---


@pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"])
def test_smollm2_ids_equal_transformers(smollm2, oracle, text):
    assert smollm2.encode(text) == oracle.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_ids(smollm2, text):
    assert smollm2.decode(smollm2.encode(text, bos=True, eos=True)) == text


def test_smollm2_facts_are_those_of_its_file(smollm2):
    assert (smollm2.n_words, smollm2.bos_id, smollm2.eos_id, smollm2.pad_id, smollm2.adds_bos) == (49152, 1, 2, 2, False)


def test_start_of_a_text_is_marked_only_where_the_model_learned_it(smollm2):
    assert smollm2.encode("a", bos=True) == smollm2.encode("a")
    llama = load_tokenizer(TINY)
    assert llama.encode("a", bos=True) == [1, *llama.encode("a")]
    assert llama.encode("a", eos=True) == [*llama.encode("a"), 2]


def test_chat_prompt_equals_transformers(smollm2, oracle):
    message = [{"role": "user", "content": "Why?"}]
    assert smollm2.chat("Why?") == oracle.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def test_line_ends_between_template_blocks_are_dropped_as_transformers_does(tmp_path, oracle):
    template = "{% for m in messages %}\n  {% if m.role %}\n<{{ m.role }}> {{ m.content }}\n  {% endif %}\n{% endfor %}\n"
    template += "answer: {{ eos_token }}"
    oracle.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    message = [{"role": "user", "content": "Why?"}]
    assert load_tokenizer(tmp_path).chat("Why?") == oracle.apply_chat_template(message, chat_template=template, tokenize=False)


def test_start_token_of_a_template_is_left_to_encode(tmp_path, oracle):
    oracle.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    assert load_tokenizer(tmp_path).chat("Why?") == "Why?"


@pytest.mark.parametrize("form", ["model", "gguf"])
@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_ids_are_the_library_s_from_file_and_from_gguf(tmp_path, form, text):
    ours = load_tokenizer(TINY if form == "model" else gguf_of(tmp_path / "x.gguf", TINY))
    theirs = sentencepiece.SentencePieceProcessor(str(TINY))
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode([1, *theirs.encode(text), 2]) == theirs.decode(theirs.encode(text))
    assert (ours.n_words, ours.bos_id, ours.eos_id, ours.pad_id, ours.adds_bos) == (300, 1, 2, 2, True)


def test_padding_is_a_valid_id_even_where_the_vocabulary_has_none():
    assert sentencepiece.SentencePieceProcessor(str(TINY)).pad_id() == -1
    assert load_tokenizer(TINY).pad_id == 2


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_json_saved_by_transformers_gives_its_ids(tmp_path, oracle, smollm2, text):
    oracle.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.encode(text) == oracle.encode(text, add_special_tokens=False)
    assert (ours.n_words, ours.bos_id, ours.eos_id, ours.adds_bos) == (49152, 1, 2, False)
    assert ours.chat("Why?") == smollm2.chat("Why?")


def test_start_token_that_tokenizer_json_adds_is_added_once(tmp_path, oracle):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    oracle.save_pretrained(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    saved.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.adds_bos
    assert ours.encode("hi", bos=True) == [1, *ours.encode("hi")]
    assert 1 not in ours.encode("hi")


def test_special_ids_come_from_config_json_where_the_tokenizer_names_none(tmp_path, oracle):
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [7, 8]}))
    ours = load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, 7, 7)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("gpt-2", ["12", "345", "6", "ĊĊ", "Ġa"]),
        ("smollm", [*"123456", "ĊĊ", "Ġa"]),
        ("llama-bpe", ["123", "4", "56", "ĊĊ", "Ġa"]),
    ],
)
def test_numbers_are_cut_by_the_rule_that_the_file_names(tmp_path, rule, expected):
    tokens = [*"0123456789a", "Ġ", "Ċ", "Ġa", "12", "123", "34", "345", "56", "ĊĊ"]
    facts = {
        "ggml.model": "gpt2",
        "ggml.pre": rule,
        "ggml.tokens": tokens,
        "ggml.token_type": [1] * len(tokens),
        "ggml.merges": ["Ġ a", "3 4", "34 5", "5 6", "1 2", "Ċ Ċ"],
        "ggml.eos_token_id": 0,
    }
    ours = load_tokenizer(write_gguf(tmp_path / "x.gguf", random_weights(), tokenizer=facts))
    assert [tokens[i] for i in ours.encode("123456\n\n a")] == expected


def test_tokenizer_beside_the_sizes_belongs_to_each_of_them(tmp_path):
    (tmp_path / "7B").mkdir()
    (tmp_path / "7B" / "params.json").write_text("{}")
    shutil.copyfile(TINY, tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path / "7B").n_words == load_tokenizer(tmp_path).n_words == 300


# --- bad input ---


def test_missing_tokenizer_names_the_file_and_the_place(tmp_path):
    with pytest.raises(TokenizerError, match=f"expected {tmp_path}/tokenizer.model or tokenizer.json"):
        load_tokenizer(tmp_path)


def test_tokenizer_above_a_folder_that_is_not_meta_s_is_not_taken(tmp_path):
    (tmp_path / "model").mkdir()
    shutil.copyfile(TINY, tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_tokenizer(tmp_path / "model")


def test_tokenizer_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # as LLaMA-3's begins
    with pytest.raises(TokenizerError, match=r"not a SentencePiece model \(LLaMA-3's"):
        load_tokenizer(tmp_path)


def test_broken_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer that can be read"):
        load_tokenizer(tmp_path)


def test_broken_settings_beside_the_tokenizer_are_named(tmp_path, oracle):
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: not JSON"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_without_an_end_token_is_refused(tmp_path, oracle):
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(TokenizerError, match="no end token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"ggml.model": "bert"}, "a tokenizer of kind bert, expected llama or gpt2"),
        ({"ggml.model": "gpt2", "ggml.pre": "smollm"}, "lacks tokens, merges, token_type, eos_token_id"),
        ({"ggml.model": "gpt2", "ggml.pre": "qwen2"} | LISTS, "words are cut by rule qwen2, known: gpt-2"),
    ],
)
def test_gguf_tokenizer_that_is_not_known_is_refused(tmp_path, facts, message):
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(write_gguf(tmp_path / "x.gguf", random_weights(), tokenizer=facts))


@pytest.mark.parametrize("vocab_size", [97, 299, 301, 32000, 49152])
def test_tokenizer_of_another_vocabulary_is_refused(vocab_size):
    with pytest.raises(TokenizerError, match=f"{vocab_size} token embeddings, the tokenizer 300 words: another model's"):
        check_vocabulary(load_tokenizer(TINY), vocab_size)


@pytest.mark.parametrize("vocab_size", [300, 320, 512])
def test_padded_embedding_is_accepted(vocab_size):
    check_vocabulary(load_tokenizer(TINY), vocab_size)
