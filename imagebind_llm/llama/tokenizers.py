"""Text to token ids for LLaMA: SentencePiece, Hugging Face and GGUF tokenizers."""

import json
from pathlib import Path
from typing import Any

from imagebind_llm.llama.gguf_header import GGUFError, read_header

# How a byte-level vocabulary cuts text into words, by the name that GGUF gives it. LLaMA-3's pattern is that of its
# tokenizer.json: contractions, letters with one sign before them, up to three digits, signs, line ends, spaces.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL, USER_DEFINED = 3, 4  # GGUF's types of tokens that are found before the text is cut
PADDED_TO = 64  # embeddings may have unused rows up to a multiple of this
PADDED_MOST = 256


class TokenizerError(ValueError):
    """A tokenizer that is missing, damaged or of another model: what was expected, what was found, what to do next."""


class LlamaTokenizer:
    """Text to token ids and back. `n_words` ids; `adds_bos`: whether the model's texts begin with `bos_id`.

    `pad_id` is always a valid id (the end token where the vocabulary has no padding): what stands on padded positions is
    never looked at. `chat_template` is the model's own, None for a model that was not tuned to chat.
    """

    n_words: int
    bos_id: int
    eos_id: int
    pad_id: int
    adds_bos: bool
    eos_token: str = ""
    chat_template: str | None = None

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids. `bos`: this is the start of a text, so put what this model has there (SmolLM2: nothing)."""
        return [self.bos_id] * (bos and self.adds_bos) + self._ids(text) + [self.eos_id] * eos

    def decode(self, ids: list[int]) -> str:
        """The text of some ids; start, end and other control tokens are left out."""
        raise NotImplementedError

    def chat(self, message: str) -> str:
        """A user's message in the model's chat form, up to where the answer begins. Needs a `chat_template`.

        Encode it with `bos`: a start token that the template would write is left out here.
        """
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        assert self.chat_template, "this model has no chat template"
        template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(self.chat_template)
        messages = [{"role": "user", "content": message}]
        return template.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token=self.eos_token)

    def _ids(self, text: str) -> list[int]:
        raise NotImplementedError


class SentencePieceTokenizer(LlamaTokenizer):
    """LLaMA-1 and 2: a SentencePiece model, from a file or as bytes. Control signs in a text stay text."""

    def __init__(self, model: str | bytes):
        from sentencepiece import SentencePieceProcessor

        source = {"model_proto": model} if isinstance(model, bytes) else {"model_file": model}
        self.processor = SentencePieceProcessor(**source)
        self.n_words = self.processor.vocab_size()
        self.bos_id, self.eos_id = self.processor.bos_id(), self.processor.eos_id()
        pad = self.processor.pad_id()
        self.pad_id = self.eos_id if pad < 0 else pad
        self.adds_bos = self.bos_id >= 0

    def _ids(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)


class BytePairTokenizer(LlamaTokenizer):
    """A `tokenizers.Tokenizer`: LLaMA-3, SmolLM2, or any model with a tokenizer.json. Special tokens in a text count."""

    def __init__(self, tokenizer, bos_id: int, eos_id: int, pad_id: int | None, adds_bos: bool, chat_template: str | None):
        self.tokenizer = tokenizer
        self.n_words = tokenizer.get_vocab_size()
        self.bos_id, self.eos_id, self.adds_bos, self.chat_template = bos_id, eos_id, adds_bos, chat_template
        self.pad_id = eos_id if pad_id is None else pad_id
        self.eos_token = tokenizer.id_to_token(eos_id)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def load_tokenizer(path: str | Path) -> LlamaTokenizer:
    """The tokenizer that belongs to a LLaMA: in the .gguf, in the folder, or (Meta) beside it. Raises TokenizerError."""
    path = Path(path).expanduser()
    file = find_tokenizer(path)
    if file is None:
        where = path if path.is_dir() else path.parent
        raise TokenizerError(
            f"no tokenizer: expected {where}/tokenizer.model or tokenizer.json (Meta's also one folder up), found neither; "
            "copy it there from where the weights came from"
        )
    readers = {".gguf": _from_gguf, ".json": _from_json, ".model": _from_model}
    return readers[file.suffix](file)


def find_tokenizer(path: Path) -> Path | None:
    """The file that holds the tokenizer of the LLaMA at `path`, None if there is none."""
    if path.is_file() and path.suffix in (".gguf", ".json", ".model"):
        return path
    folder = path if path.is_dir() else path.parent
    places = [folder, folder.parent] if (folder / "params.json").is_file() else [folder]  # Meta: beside the sizes 7B, 13B
    candidates = [place / name for place in places for name in ("tokenizer.json", "tokenizer.model")]
    return next((file for file in candidates if file.is_file()), None)


def check_vocabulary(tokenizer: LlamaTokenizer, vocab_size: int) -> None:
    """Raise TokenizerError unless the tokenizer's vocabulary is the model's (whose embedding may be padded a little)."""
    unused = vocab_size - tokenizer.n_words
    padded = 0 < unused < PADDED_MOST and vocab_size % PADDED_TO == 0
    if unused and not padded:
        raise TokenizerError(
            f"the model has {vocab_size} token embeddings, the tokenizer {tokenizer.n_words} words: another model's; "
            "put the model's own tokenizer.model or tokenizer.json beside its weights"
        )


def _from_model(file: Path) -> LlamaTokenizer:
    try:
        return SentencePieceTokenizer(str(file))
    except (RuntimeError, OSError) as problem:
        raise TokenizerError(
            f"{file}: not a SentencePiece model (LLaMA-3's tokenizer.model is of another kind: use its tokenizer.json); "
            "copy the file again"
        ) from problem


def _from_json(file: Path) -> LlamaTokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as problem:  # the library raises nothing more specific
        raise TokenizerError(f"{file}: not a tokenizer that can be read ({problem}); copy the file again") from problem
    settings = _json_beside(file, "tokenizer_config.json")
    ids = {name: _special_id(file, tokenizer, settings, name) for name in ("bos", "eos", "pad")}
    bos, eos, pad = ids["bos"], ids["eos"], ids["pad"]
    if eos is None:
        raise TokenizerError(f"{file}: no end token; expected eos_token in tokenizer_config.json or its id in config.json")
    first = tokenizer.encode("a").ids[:1]
    chat = settings.get("chat_template") or _text_beside(file, "chat_template.jinja")
    return BytePairTokenizer(tokenizer, eos if bos is None else bos, eos, pad, first == [bos], chat)


def _special_id(file: Path, tokenizer, settings: dict, name: str) -> int | None:
    """The id of bos, eos or pad: by the token that tokenizer_config.json names, else by config.json's number."""
    token = settings.get(f"{name}_token")
    token = token["content"] if isinstance(token, dict) else token
    number = _json_beside(file, "config.json").get(f"{name}_token_id")
    return tokenizer.token_to_id(token) if token else number[0] if isinstance(number, list) else number


def _json_beside(file: Path, name: str) -> dict:
    text = _text_beside(file, name)
    try:
        return json.loads(text) if text else {}
    except ValueError as problem:
        raise TokenizerError(f"{file.with_name(name)}: not JSON ({problem}); copy the file again") from problem


def _text_beside(file: Path, name: str) -> str | None:
    other = file.with_name(name)
    return other.read_text() if other.is_file() else None


def _from_gguf(file: Path) -> LlamaTokenizer:
    try:
        facts = read_header(file).metadata
    except GGUFError as problem:
        raise TokenizerError(str(problem)) from problem
    kind = facts.get("tokenizer.ggml.model", "none")
    needed = {"llama": ("tokens", "scores", "token_type"), "gpt2": ("tokens", "merges", "token_type", "eos_token_id")}
    if missing := [name for name in needed.get(kind, ()) if f"tokenizer.ggml.{name}" not in facts]:
        raise TokenizerError(f"{file}: its tokenizer lacks {', '.join(missing)}; use the Hugging Face form")
    if kind == "llama":
        return SentencePieceTokenizer(_sentencepiece_model(facts))
    if kind != "gpt2":
        raise TokenizerError(f"{file}: a tokenizer of kind {kind}, expected llama or gpt2; use the Hugging Face form")
    return BytePairTokenizer(
        _byte_pairs(file, facts),
        facts.get("tokenizer.ggml.bos_token_id", facts["tokenizer.ggml.eos_token_id"]),
        facts["tokenizer.ggml.eos_token_id"],
        facts.get("tokenizer.ggml.padding_token_id"),
        facts.get("tokenizer.ggml.add_bos_token", False),
        facts.get("tokenizer.chat_template"),
    )


def _byte_pairs(file: Path, facts: dict):
    """A byte-level BPE tokenizer from GGUF's lists of tokens and merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    words = {
        "gpt-2": lambda: ByteLevel(add_prefix_space=False),
        "smollm": lambda: Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
        "llama-bpe": lambda: Sequence(
            [Split(Regex(LLAMA3_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
    }
    rule = facts.get("tokenizer.ggml.pre", "gpt-2")
    if rule not in words:
        raise TokenizerError(f"{file}: words are cut by rule {rule}, known: {', '.join(words)}; use the Hugging Face form")
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=rule == "llama-bpe")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = words[rule](), decoders.ByteLevel()
    for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    return tokenizer


def _sentencepiece_model(facts: dict) -> bytes:
    """The SentencePiece model whose pieces GGUF lists (LLaMA-1 and 2, TinyLlama): byte-pair merges by score."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # its classes are made at run time

    names = ("tokens", "scores", "token_type")
    rows = zip(*(facts[f"tokenizer.ggml.{name}"] for name in names), strict=True)
    pieces = [proto.ModelProto.SentencePiece(piece=piece, score=score, type=kind) for piece, score, kind in rows]
    trainer = proto.TrainerSpec(
        model_type=proto.TrainerSpec.BPE,
        byte_fallback=True,
        vocab_size=len(pieces),
        unk_id=facts.get("tokenizer.ggml.unknown_token_id", 0),
        bos_id=facts.get("tokenizer.ggml.bos_token_id", 1),
        eos_id=facts.get("tokenizer.ggml.eos_token_id", 2),
        pad_id=-1,
    )
    prefix = facts.get("tokenizer.ggml.add_space_prefix", True)
    normalizer = proto.NormalizerSpec(name="identity", add_dummy_prefix=prefix, remove_extra_whitespaces=False)
    return proto.ModelProto(pieces=pieces, trainer_spec=trainer, normalizer_spec=normalizer).SerializeToString()
