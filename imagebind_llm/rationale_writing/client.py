"""The network: one question at a time to an OpenAI-compatible chat endpoint, asked again where waiting helps.

An error is one of three kinds. Waiting helps (429, 5xx, a time-out, an answer that is no answer): the question is asked again
after a growing pause, or after the pause that the server names. This question alone has no answer (400, or waiting did not
help): Unanswered, the run goes on. No question will have one (key, URL, quota): RationalesError, the run stops.
The openai package's own retries are off: they go on waiting for a quota that is used up and in a run that is being ended, and
do not ask again after a reply with status 200 that is no answer.
"""

import json
import os
import random
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from imagebind_llm.flags import flag

PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


@dataclass(frozen=True)
class RationaleSettings:
    """The flags of write_rationales.py. Sampling flags that are not given are not sent: the server's defaults hold."""

    data_path: str = flag(help="MIntRec or MIntRec2.0 folder; clips are needed for --frames only")
    output: str = flag(help="JSONL file for accepted rationales; an interrupted run continues")
    model: str = flag(help="name of the model at the endpoint")
    base_url: str = flag("", "an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1; if not given, OpenAI's own")
    splits: tuple[str, ...] = flag(
        ("train",), "splits to write rationales for; those of test are for scoring only", ("train", "dev", "test")
    )
    evidence: str = flag(
        "", "descriptions of what is seen and heard: a TSV with the columns key and text, or captions.json of the demo world"
    )
    frames: int = flag(0, "number of frames of the clip to attach, for models that accept pictures")
    context: int = flag(3, "number of earlier utterances of the dialogue to send (MIntRec2.0)")
    limit: int = flag(0, "number of clips of each split, from the first; 0: all")
    concurrency: int = flag(8, "requests sent at the same time")
    retries: int = flag(6, "retries after a rate limit, a server error or a time-out")
    timeout: float = flag(120.0, "seconds to wait for an answer")
    temperature: float | None = flag(None, "sampling temperature; if not given, the endpoint's default")
    max_tokens: int | None = flag(
        None, "longest answer in tokens; if not given, the endpoint's default. Pass 200 for small local models"
    )
    dry_run: bool = flag(False, "send nothing: print the first requests and how many tokens all would take")

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout <= 0 or min(self.retries, self.frames, self.context, self.limit) < 0:
            raise ValueError("--concurrency and --timeout must be above 0, --retries --frames --context --limit at least 0")
        if not self.model.strip():
            raise ValueError("--model is empty: give the model's name at the endpoint")
        if not self.output.endswith(".jsonl"):
            raise ValueError(f"--output {self.output}: the name must end in .jsonl; the review page goes beside it as .html")


class RationalesError(ValueError):
    """Rationales cannot be written as asked; the message says what to type."""


class Unanswered(Exception):
    """One question got no usable answer; the next may."""


class Stopped(Exception):
    """The run is ending; nothing more is asked."""


@dataclass(frozen=True)
class Reply:
    """What the model said, why it ended, whether it refused, and the tokens that it cost."""

    text: str
    finish_reason: str
    refused: bool
    prompt_tokens: int
    completion_tokens: int


class ChatClient:
    """Asks one model. Used from several threads; `stop`, once set, ends every pause at once."""

    def __init__(self, settings: RationaleSettings, stop: threading.Event):
        try:
            import openai
        except ImportError as error:
            raise RationalesError("the openai package is missing; install it with: pip install -e .[rationales]") from error
        self._openai, self._settings, self._stop = openai, settings, stop
        self._url = settings.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self._client: Any = openai.OpenAI(api_key=_key(self._url), base_url=self._url, timeout=settings.timeout, max_retries=0)
        self._ever_answered = False

    def ask(self, messages: list[dict]) -> Reply:
        """The model's answer to a conversation. Raises Unanswered, RationalesError, or Stopped."""
        error: Exception | None = None
        for attempt in range(self._settings.retries + 1):
            if self._stop.wait(_pause(error, attempt) if error else 0):
                raise Stopped
            try:
                answer = self._client.chat.completions.create(messages=messages, **parameters(self._settings))
                self._ever_answered = True
                return _reply(answer)
            except (self._openai.OpenAIError, json.JSONDecodeError, NotAnAnswer) as caught:
                self._ever_answered |= isinstance(caught, self._openai.APIStatusError)
                error = caught
                if final := self._final(caught):
                    raise final from caught
        raise self._given_up(error) from error

    def _final(self, error: Exception) -> Exception | None:
        """What is raised at once for an error that no waiting mends; None for the others."""
        status = getattr(error, "status_code", None)
        if status == 402 or "insufficient_quota" in (getattr(error, "code", None), getattr(error, "type", None)):
            return RationalesError(
                f"{self._url}: the quota or credit is used up ({_one_line(error)}); fill it up and start again"
            )
        if status in (401, 403):
            return RationalesError(f"{self._url} refuses the key ({_one_line(error)}); set OPENAI_API_KEY to a valid one")
        if status == 404:
            return RationalesError(
                f"{self._url}: no such address or model ({_one_line(error)}); check --model {self._settings.model} and "
                f"--base_url, which usually ends in /v1"
            )
        if status is not None and status not in (408, 409, 429) and status < 500:
            return Unanswered(f"the endpoint refuses the request ({_one_line(error)})")
        timed_out = isinstance(error, self._openai.APITimeoutError)
        if isinstance(error, self._openai.APIConnectionError) and not timed_out and not self._ever_answered:
            return RationalesError(
                f"{self._url}: nobody answers ({_one_line(error)}); is the server running, is --base_url right?"
            )
        return None

    def _given_up(self, error: Exception | None) -> Exception:
        tries = f"{self._settings.retries + 1} tries"
        if getattr(error, "status_code", None) == 429:
            return RationalesError(f"{self._url}: too many requests even after {tries}; start again with a lower --concurrency")
        if isinstance(error, self._openai.APIConnectionError) and not isinstance(error, self._openai.APITimeoutError):
            return RationalesError(f"{self._url}: the connection is lost ({_one_line(error)}); start again to continue")
        return Unanswered(f"no usable answer after {tries}: {_one_line(error)}")


class NotAnAnswer(Exception):
    """A reply with status 200 that is not a chat completion."""


def parameters(settings: RationaleSettings) -> dict:
    """What is sent beside the messages; what was not given is left to the server."""
    optional = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    return {"model": settings.model} | {name: value for name, value in optional.items() if value is not None}


def _reply(answer) -> Reply:
    """The parts of a chat completion that count. Raises NotAnAnswer if it is none (a web page, say, at a wrong URL)."""
    try:
        choice, usage = answer.choices[0], answer.usage
        text, refusal = choice.message.content, getattr(choice.message, "refusal", None)
        tokens = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
    except (AttributeError, IndexError, TypeError) as error:
        raise NotAnAnswer(f"expected a chat completion, got {str(answer)[:80]!r}") from error
    if text is not None and not isinstance(text, str):
        raise NotAnAnswer(f"expected text, got {str(text)[:80]!r}")
    return Reply(text or refusal or "", choice.finish_reason or "", bool(refusal), *tokens)


def _key(url: str) -> str:
    """The key from the environment; a server on this machine needs none."""
    if key := os.environ.get("OPENAI_API_KEY"):
        return key
    if urlsplit(url).hostname in LOCAL:
        return "none"
    raise RationalesError(
        f"OPENAI_API_KEY is not set, and {url} needs a key: export OPENAI_API_KEY=... ; "
        f"for a server on this machine give --base_url http://localhost:8000/v1"
    )


def _pause(error: Exception, attempt: int) -> float:
    """Seconds before the next try: what the server asks for, or twice as long each time, a little apart from other threads."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(float(headers["retry-after"]), LONGEST_PAUSE_S)
    except (KeyError, ValueError):
        return min(PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)


def _one_line(error: Exception | None) -> str:
    """One line of what the other side said."""
    return " ".join(str(error).split())[:200]
