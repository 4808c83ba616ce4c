"""A server with the OpenAI interface on 127.0.0.1: real sockets and real JSON; what it writes comes from a few word lists.

It reads what a person would read in the request (which class, how many), and answers by the schema it is sent.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOKS = ["red", "small", "old", "wet", "shiny", "spotted", "pale", "dark", "huge", "striped", "muddy", "bright"]
PLACES = ["in snow", "on a rock", "at dusk", "in the rain", "under a tree", "beside a river", "in fog", "on sand"]

Reply = tuple[int, dict[str, str], str]
Behaviour = Callable[[int, dict[str, Any]], "Reply | str | None"]  # (request number, body) -> a reply, a text to say,
# or None for the usual


class Cut(Exception):
    """Raised by a behaviour: close the connection without a word."""


def wanted(body: dict[str, Any]) -> tuple[str, int]:
    """(class, number of prompts) that a request asks for."""
    text = body["messages"][-1]["content"]
    return re.search(r'single "(.+?)"', text).group(1), int(re.search(r"Write (\d+)", text).group(1))


def prompts(body: dict[str, Any]) -> list[str]:
    """Different prompts, decided by the request's seed, without those that are there already."""
    name, number = wanted(body)
    there = body["messages"][-1]["content"]
    pairs = [f"a photo of a {look} {name} {place}" for look in LOOKS for place in PLACES]
    pairs = [prompt for prompt in pairs if prompt not in there]
    return random.Random(body["seed"]).sample(pairs, min(number, len(pairs)))


def filled(schema: dict[str, Any], said: list[str]) -> dict[str, Any]:
    """An object that fits the schema: lists of texts hold what is said."""
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert sorted(schema["required"]) == sorted(schema["properties"])
    kinds = {name: (one["type"], one["items"]["type"]) for name, one in schema["properties"].items()}
    assert set(kinds.values()) == {("array", "string")}
    return dict.fromkeys(kinds, said)


class ChatServer:
    """Use it in a `with` block; `requests` are the bodies it got, `keys` the Authorization headers."""

    def __init__(self, behave: Behaviour | None = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._behave, self._lock = behave, threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(body)
            self.keys.append(handler.headers["Authorization"])
            number = len(self.requests)
        try:
            reply = self._behave(number, body) if self._behave else None
        except Cut:
            handler.close_connection = True
            return
        status, headers, text = reply if isinstance(reply, tuple) else self._completion(handler.path, body, reply)
        data = text.encode()
        handler.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(data)

    def _completion(self, path: str, body: dict[str, Any], said: str | None) -> Reply:
        if path != "/v1/chat/completions":
            return 404, {}, json.dumps({"error": {"message": f"no route {path}"}})
        if said is None:
            wish = body.get("response_format", {}).get("json_schema")
            said = json.dumps(filled(wish["schema"], prompts(body))) if wish else f"Sure:\n{json.dumps(prompts(body))}"
        usage = {"prompt_tokens": len(str(body["messages"])) // 4, "completion_tokens": len(said) // 4}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return (
            200,
            {},
            json.dumps({"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}),
        )
