"""From what is known to what the model reads and writes: prompts, answers, token ids, and the way back.

Instruction rows follow Stanford Alpaca, which LLaMA-Adapter and ImageBind-LLM were trained with. Clips have a shorter prompt
that ends where the label begins, `Intent:`, so that the last prompt position, which the intent head reads, is the very
position at which the decoder chooses the label. A prompt and its answer are tokenised in one, as the public code does.
"""

import re
from bisect import bisect_left

from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.records import Answer, Example, Exchange, Sequence
from imagebind_llm.taxonomy import Taxonomy

ALONE = "Write a response that appropriately completes the request."
PAIRED = "Below is an instruction that describes a task, paired with an input that provides further context."
SINGLE = "Below is an instruction that describes a task."
CAPTION_REQUEST = "Describe what is seen and heard.\n"
QUESTION = "What is the intent of the speaker, and why?\n"
LEAD = {"label": "Intent:", "rationale": "Rationale:"}  # how every answer about a clip begins; the end of its prompt
_LABEL_FIRST = re.compile(r"\s*Intent:\s*(?P<label>[^.]*)\.(?:\s*Rationale:\s*(?P<rationale>.*))?", re.DOTALL)
_RATIONALE_FIRST = re.compile(r"\s*Rationale:\s*(?P<rationale>.*?)\s*Intent:\s*(?P<label>[^.]*)\.?\s*", re.DOTALL)


class InstructionError(ValueError):
    """A row that cannot be made to fit; the message says which and what to change."""


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """The instruction, and what is `given` to it, up to where the answer begins (no space after the colon)."""
    if not given:
        return f"{SINGLE} {ALONE}\n\n### Instruction:\n{instruction}\n\n### Response:"
    return f"{PAIRED} {ALONE}\n\n### Instruction:\n{instruction}\n\n### Input:\n{given}\n\n### Response:"


def instruction_exchange(key: str, instruction: str, given: str, answer: str, lead: str = "", **fields) -> Exchange:
    """An Alpaca row, its prompt ending with `lead`. What may be shortened is the input or, without one, the instruction."""
    slot = "\0"
    prompt = alpaca_prompt(instruction, slot) if given else alpaca_prompt(slot)
    before, _, after = prompt.partition(slot)
    return Exchange(key, before, given or instruction, after + lead, answer, **fields)


def caption_exchange(key: str, caption: str) -> Exchange:
    """The first stage's question: everything that a clip shows."""
    return Exchange(key, CAPTION_REQUEST, "", "", caption, embedded=True)


def clip_exchange(
    example: Example, taxonomy: Taxonomy | None, with_text: bool, embedded: bool, order: str = "label"
) -> Exchange:
    """The question about a clip. `with_text`: its words are in the prompt; else it is only seen and heard."""
    before, after = ('A person says: "', '"\n') if with_text else ("A person is seen and heard.\n", "")
    answer = ""
    if example.intent is not None:
        answer = answer_text(example.intent, example.rationale, order).removeprefix(LEAD[order])
    intent = taxonomy.index(example.intent) if taxonomy and example.intent is not None else None
    context = example.text.strip() if with_text else ""
    question = after + QUESTION + LEAD[order]
    return Exchange(example.key, before, context, question, answer, intent, embedded, example.rationale)


def answer_text(intent: str, rationale: str | None, order: str = "label") -> str:
    """`Intent: Praise. Rationale: We see ...` or, rationale first, `Rationale: We see ... Intent: Praise.`"""
    if not rationale:
        return f"Intent: {intent}."
    if order == "label":
        return f"Intent: {intent}. Rationale: {rationale.strip()}"
    return f"Rationale: {rationale.strip()} Intent: {intent}."


def parse_answer(text: str, taxonomy: Taxonomy) -> Answer:
    """The inverse of `answer_text`, in either order, of a whole answer with its lead. Lenient about letter case only."""
    match = _LABEL_FIRST.fullmatch(text) or _RATIONALE_FIRST.fullmatch(text)
    if match is None:
        return Answer(None, None)
    try:
        intent = taxonomy.canonical(match["label"])
    except ValueError:
        intent = None
    return Answer(intent, (match["rationale"] or "").strip() or None)


def answer_spans(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Characters [start, end) of label and rationale in a whole answer, as `parse_answer` reads it; (0, 0) for none."""
    match = _LABEL_FIRST.fullmatch(text) or _RATIONALE_FIRST.fullmatch(text)
    if match is None:
        return (0, 0), (0, 0)
    return _stripped(text, *match.span("label")), _stripped(text, *match.span("rationale"))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space around it; (0, 0) for (-1, -1), which a group that took no part has."""
    part = text[start:end] if start >= 0 else ""
    start += len(part) - len(part.lstrip())
    return (start, start + len(part.strip())) if part.strip() else (0, 0)


def encode_exchange(exchange: Exchange, tokenizer: LlamaTokenizer, max_len: int) -> Sequence:
    """Token ids of prompt and answer with start and end token, at most `max_len`.

    What is too long loses the first words of its context, then the beginning of its prompt, and never a token of its answer.
    Raises InstructionError if the answer alone does not fit.
    """
    words = exchange.context.split(" ")
    prompt, ids = _ids(exchange, exchange.context, tokenizer)
    if cut := len(ids) > max_len:

        def fits(dropped: int) -> bool:
            return len(_ids(exchange, " ".join(words[dropped:]), tokenizer)[1]) <= max_len

        dropped = bisect_left(range(1, len(words)), True, key=fits) + 1
        prompt, ids = _ids(exchange, " ".join(words[dropped:]), tokenizer)
    if (excess := len(ids) - max_len) > 0:
        if excess > len(prompt) - 2:  # the start token and one more stay
            raise InstructionError(
                f"{exchange.key}: its answer has {len(ids) - len(prompt)} tokens and does not fit into {max_len}; "
                f"raise --max_seq_len or shorten the answer"
            )
        prompt, ids = [ids[0], *prompt[1 + excess :]], [ids[0], *ids[1 + excess :]]
    return Sequence(exchange.key, tuple(ids), len(prompt), exchange.intent, exchange.embedded, cut, exchange.rationale)


def _ids(exchange: Exchange, context: str, tokenizer: LlamaTokenizer) -> tuple[list[int], list[int]]:
    prompt = exchange.before + context + exchange.after
    asked = tokenizer.encode(prompt, bos=True)
    return asked, tokenizer.encode(prompt + exchange.answer, bos=True, eos=True)


def encode_prompt(exchange: Exchange, tokenizer: LlamaTokenizer, max_len: int) -> list[int]:
    """The ids of the prompt alone, at most `max_len`, shortened like those of a whole exchange."""
    bare = Exchange(exchange.key, exchange.before, exchange.context, exchange.after)
    return list(encode_exchange(bare, tokenizer, max_len + 1).ids[:-1])  # without the end token
