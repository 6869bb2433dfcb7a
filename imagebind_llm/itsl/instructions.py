"""The wording of prompts and answers: from an Example to token ids, and from a generated text back to label and rationale.

Instruction rows follow Stanford Alpaca, which LLaMA-Adapter and ImageBind-LLM were trained with. Clips have a shorter prompt
that ends where the label begins, with `Intent:`, so that the intent head reads the same position (the last of the prompt) at
which the decoder predicts the label. Prompt and answer are tokenised as one string, as the public code does.
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
LEAD = {"label": "Intent:", "rationale": "Rationale:"}  # first word of an answer by --answer_order; the prompt ends with it
_LABEL_FIRST = re.compile(r"\s*Intent:\s*(?P<label>[^.]*)\.(?:\s*Rationale:\s*(?P<rationale>.*))?", re.DOTALL)
_RATIONALE_FIRST = re.compile(r"\s*Rationale:\s*(?P<rationale>.*?)\s*Intent:\s*(?P<label>[^.]*)\.?\s*", re.DOTALL)


class InstructionError(ValueError):
    """A row is too long for --max_seq_len even when its prompt is shortened; the message names the row."""


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """Alpaca's prompt with an instruction and an optional input `context`, up to "### Response:" (no space after the colon)."""
    if not context:
        return f"{SINGLE} {ALONE}\n\n### Instruction:\n{instruction}\n\n### Response:"
    return f"{PAIRED} {ALONE}\n\n### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:"


def instruction_exchange(key: str, instruction: str, context: str, answer: str, lead: str = "", **fields) -> Exchange:
    """An Alpaca row whose prompt ends with `lead`. If it is too long, its `context` is shortened or, without one, the
    instruction."""
    slot = "\0"
    prompt = alpaca_prompt(instruction, slot) if context else alpaca_prompt(slot)
    before, _, after = prompt.partition(slot)
    return Exchange(key, before, context or instruction, after + lead, answer, **fields)


def caption_exchange(key: str, caption: str) -> Exchange:
    """A row of the first training stage: describe a clip."""
    return Exchange(key, CAPTION_REQUEST, "", "", caption, embedded=True)


def clip_exchange(
    example: Example, taxonomy: Taxonomy | None, with_text: bool, embedded: bool, order: str = "label"
) -> Exchange:
    """A row that asks for the intent of a clip and the reason.

    `with_text`: put the clip's words into the prompt; otherwise the model gets its embeddings only. `embedded`: the clip has
    embeddings. `order`: what the answer begins with, a key of LEAD.
    """
    before, after = ('A person says: "', '"\n') if with_text else ("A person is seen and heard.\n", "")
    answer = ""
    if example.intent is not None:
        answer = answer_text(example.intent, example.rationale, order).removeprefix(LEAD[order])
    intent = taxonomy.index(example.intent) if taxonomy and example.intent is not None else None
    context = example.text.strip() if with_text else ""
    question = after + QUESTION + LEAD[order]
    return Exchange(example.key, before, context, question, answer, intent, embedded, example.rationale)


def answer_text(intent: str, rationale: str | None, order: str = "label") -> str:
    """`Intent: Praise. Rationale: We see ...`, or with order "rationale" `Rationale: We see ... Intent: Praise.`"""
    if not rationale:
        return f"Intent: {intent}."
    if order == "label":
        return f"Intent: {intent}. Rationale: {rationale.strip()}"
    return f"Rationale: {rationale.strip()} Intent: {intent}."


def parse_answer(text: str, taxonomy: Taxonomy) -> Answer:
    """Label and rationale of a whole answer, including its lead, in either order: the inverse of `answer_text`.

    Each is None if it is missing; the label also if the taxonomy does not have it (letter case is ignored).
    """
    match = _LABEL_FIRST.fullmatch(text) or _RATIONALE_FIRST.fullmatch(text)
    if match is None:
        return Answer(None, None)
    try:
        intent = taxonomy.canonical(match["label"])
    except ValueError:
        intent = None
    return Answer(intent, (match["rationale"] or "").strip() or None)


def answer_spans(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Character spans [start, end) of label and rationale in a whole answer, as `parse_answer` reads it; (0, 0) if missing."""
    match = _LABEL_FIRST.fullmatch(text) or _RATIONALE_FIRST.fullmatch(text)
    if match is None:
        return (0, 0), (0, 0)
    return _stripped(text, *match.span("label")), _stripped(text, *match.span("rationale"))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without surrounding white space; (0, 0) if it is empty or (-1, -1), as for a group that did not match."""
    part = text[start:end] if start >= 0 else ""
    start += len(part) - len(part.lstrip())
    return (start, start + len(part.strip())) if part.strip() else (0, 0)


def encode_exchange(exchange: Exchange, tokenizer: LlamaTokenizer, max_len: int) -> Sequence:
    """Token ids of prompt and answer with start and end token, at most `max_len`.

    If they are too long, the first words of the context are dropped, then the beginning of the prompt; the answer is never
    shortened. Raises InstructionError if the answer alone does not fit.
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
    """Ids of the prompt, and of prompt and answer."""
    prompt = exchange.before + context + exchange.after
    return tokenizer.encode(prompt, bos=True), tokenizer.encode(prompt + exchange.answer, bos=True, eos=True)


def encode_prompt(exchange: Exchange, tokenizer: LlamaTokenizer, max_len: int) -> list[int]:
    """Token ids of the prompt alone, at most `max_len`, shortened as in `encode_exchange`."""
    without_answer = Exchange(exchange.key, exchange.before, exchange.context, exchange.after)
    return list(encode_exchange(without_answer, tokenizer, max_len + 1).ids[:-1])  # without the end token
