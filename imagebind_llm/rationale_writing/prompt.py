"""The prompt that asks for a rationale: all of its words, in one place, under one version.

Whoever changes a word here or a rule in acceptance.py raises VERSION: rationales of different versions are never mixed.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from imagebind_llm.records import Example
from imagebind_llm.taxonomy import DEFINITIONS, Taxonomy

VERSION = "1"
SHORTEST, LONGEST = 20, 60  # words

SYSTEM = (
    "You explain what people mean. You are given one utterance from a video clip, the speaker's intent as annotators labelled "
    "it, and whatever is known about the scene. You write the reasoning that leads from the evidence to that intent."
)
RULES = f"""Write the rationale:
1. One paragraph of {SHORTEST} to {LONGEST} words, in English, and nothing else: no heading, no list, no quotes around it.
2. From evidence to conclusion: first what speaks for this intent rather than for similar ones, the conclusion last.
3. Name the intent exactly once, in the last clause ("..., so the speaker means to {{verb}}."). Before that, use neither the \
word nor any of its forms.
4. {{evidence_rule}}"""
WORDS_ONLY = (
    "Nothing is known about how it looked or sounded. Use the words and the context alone; "
    "do not mention face, eyes, gestures, posture, voice or tone."
)
WITH_EVIDENCE = "Use only the evidence given above; do not invent anything that was seen or heard."
FRAMES_ONLY = "Use the words and what the frames show. Nothing is known about how it sounded; do not mention voice or tone."
AGAIN = "This was not accepted: {reason}. Write the rationale again and follow every rule."


@dataclass(frozen=True)
class Item:
    """One clip to explain: its example, the dialogue before it, what is known of looks and sounds, frames to attach."""

    example: Example
    intent: str
    context: tuple[str, ...] = ()
    evidence: str = ""
    n_frames: int = 0


def _defined(label: str, before: str, after: str) -> str:
    """The label with its definition between these, where there is one: labels of one's own have none."""
    return f"{label}{before}{DEFINITIONS[label]}{after}" if label in DEFINITIONS else label


def first_request(item: Item, taxonomy: Taxonomy) -> list[dict]:
    """The messages of the first request; pictures, if any, are added when it is sent."""
    example = item.example
    parts = ["The intents:", *(f"- {_defined(label, ': ', '')}" for label in taxonomy.labels), ""]
    parts += ["Before this was said:", *(f"  {line}" for line in item.context)] if item.context else []
    parts += [f"Speaker: {example.speaker}"] if example.speaker else []
    parts += [f'Utterance: "{example.text}"']
    parts += [f"What is seen and heard: {item.evidence}"] if item.evidence else []
    parts += [f"Attached: {item.n_frames} frames of the clip, in order."] if item.n_frames else []
    parts += [f"The speaker's intent: {_defined(item.intent, ' (', ')')}", ""]
    rule = WITH_EVIDENCE if item.evidence else FRAMES_ONLY if item.n_frames else WORDS_ONLY
    parts += [RULES.format(verb=item.intent.lower(), evidence_rule=rule)]
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n".join(parts)}]


def next_request(messages: list[dict], answer: str, reason: str) -> list[dict]:
    """The same conversation, with the answer that was not accepted and why."""
    reply = {"role": "assistant", "content": answer or "(nothing)"}
    return [*messages, reply, {"role": "user", "content": AGAIN.format(reason=reason)}]


def with_pictures(messages: list[dict], pictures: Sequence[str]) -> list[dict]:
    """The messages with pictures (data URLs) attached to the first question."""
    if not pictures:
        return messages
    system, question, *rest = messages
    parts = [{"type": "text", "text": question["content"]}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return [system, question | {"content": parts}, *rest]


def request_id(messages: list[dict], parameters: dict) -> str:
    """A fingerprint of the prompt version and everything that is sent but the pictures themselves."""
    text = json.dumps([VERSION, parameters, messages], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def about_tokens(messages: list[dict]) -> int:
    """An estimate without the model's tokenizer: four characters a token, four tokens more a message; pictures not counted."""
    return sum(len(message["content"]) // 4 + 4 for message in messages)


def dialogue_before(examples: Sequence[Example], n: int) -> dict[str, tuple[str, ...]]:
    """For every key of MIntRec2.0's form dia{D}_utt{U}: the last n utterances before it, as `speaker: text`."""
    turns: dict[tuple[str, str], list[tuple[int, Example]]] = {}
    for example in examples:
        if match := re.fullmatch(r"(dia\d+)_utt(\d+)", example.key):
            turns.setdefault((example.split, match[1]), []).append((int(match[2]), example))
    before: dict[str, tuple[str, ...]] = {}
    for dialogue in turns.values():
        ordered = [example for _, example in sorted(dialogue, key=lambda turn: turn[0])]
        lines = [f"{example.speaker or 'someone'}: {example.text}" for example in ordered]
        before |= {example.key: tuple(lines[max(0, i - n) : i]) for i, example in enumerate(ordered)}
    return before
