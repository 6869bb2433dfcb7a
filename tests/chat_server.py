"""A loopback server that answers like an OpenAI-compatible chat endpoint, and remembers what it was asked and answered."""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def asked_about(messages: list[dict]) -> tuple[str, str]:
    """(utterance, intent) that a conversation is about."""
    question = messages[1]["content"]
    question = question if isinstance(question, str) else question[0]["text"]
    return re.search(r'Utterance: "(.*)"', question)[1], re.search(r"The speaker's intent: ([\w ]+) \(", question)[1]


def good(messages: list[dict]) -> str:
    """A rationale that breaks no rule, another one for every utterance."""
    utterance, intent = asked_about(messages)
    return (
        f'The words "{utterance}" are addressed to the other person and give little room for a different reading of what '
        f"was said about {utterance.split()[-1]}, so the speaker means to {intent.lower()}."
    )


class ChatServer:
    """`answer(messages, n)`: the text of the n-th request's reply (n from 0), or (status, body, headers) in full."""

    def __init__(self, answer: Callable = lambda messages, n: good(messages)):
        self.answer, self.requests, self.answered = answer, [], []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server._serve(self)

            def log_message(self, *arguments):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            n = len(self.requests)
            self.requests.append(request)
        reply = self.answer(request["messages"], n)
        status, body, headers = reply if isinstance(reply, tuple) else (200, completion(reply), {})
        try:
            handler.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())
            self.answered.append(json.dumps(request["messages"]))
        except (BrokenPipeError, ConnectionResetError):  # the client has gone: it timed out, or was killed
            pass

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._http.shutdown()
        self._http.server_close()


def completion(text: str | None, finish_reason: str = "stop", refusal: str | None = None) -> dict:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def error(status: int, message: str, code: str | None = None, **headers: str) -> tuple:
    return status, {"error": {"message": message, "code": code, "type": code}}, headers
