"""Ask a server with the OpenAI interface: /chat/completions, structured where it can, patient where it is busy.

The key comes from the environment, goes into one header, and is cut out of whatever the server says.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2

from variegate.errors import Problem, RecipeError
from variegate.recipe import LLMSection
from variegate.stages.prompts.answers import Answer, NoAnswer
from variegate.stages.prompts.asking import response_format

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # worth another try
NO_BOUNDS = frozenset({400, 415, 422})  # what servers answer that know a response_format but not all of the schema
NO_SCHEMA = NO_BOUNDS | {500, 501}  # what servers answer that know no response_format
LESS_STRICT = {  # what a server refuses, and what is done instead; not every one knows bounds of lists
    2: (" that says how many", "asking without the number"),
    1: ("", "asking without, and reading the lists in its text"),
}
RETRIES = 4
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
CONNECT_S = 5.0
MAX_BYTES = 4 * 2**20  # of an answer
SHOWN = 300  # characters of a server's complaint


def key_of(section: LLMSection) -> str | None:
    return (os.environ.get(section.key_env, "").strip() or None) if section.key_env else None


def key_problems(section: LLMSection) -> list[Problem]:
    """A key that is missing, or that would travel in clear text; servers on this machine need none."""
    url = urlsplit(str(section.endpoint))
    if not section.key_env or is_here(url.hostname or ""):
        return _client_problems(section)
    if url.scheme == "http":
        text = f"would send the key over the network in clear text to {section.endpoint}"
        return [Problem("prompts.llm.endpoint", text, "use https, or prompts.llm.key_env=null if it needs no key")]
    if key_of(section) is None:
        text = f"the environment variable {section.key_env} with the key for {section.endpoint} is not set"
        remedy = "set it, or name another one; prompts.llm.key_env=null for a server without keys"
        return [Problem("prompts.llm.key_env", text, remedy)]
    return _client_problems(section)


def _client_problems(section: LLMSection) -> list[Problem]:
    """A key that no header can hold, or a proxy in the environment that cannot be used."""
    try:
        _open_client(section).close()
    except ImportError as exc:
        remedy = "install what it names, or unset ALL_PROXY, HTTPS_PROXY and HTTP_PROXY"
        return [Problem(str(section.endpoint), f"cannot be asked through the proxy that is set: {exc}", remedy)]
    except UnicodeError:
        text = f"the key in {section.key_env} holds signs that no key has, such as typographic quotes"
        return [Problem("prompts.llm.key_env", text, "set it again, as the server shows it")]
    except (ValueError, OSError, httpx2.InvalidURL) as exc:
        text, remedy = f"cannot be asked: {exc}", "check the proxies and SSL_CERT_FILE of the environment"
        return [Problem(str(section.endpoint), text, remedy)]
    return []


def _open_client(section: LLMSection) -> httpx2.Client:
    key = key_of(section)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    here = is_here(urlsplit(str(section.endpoint)).hostname or "")
    return httpx2.Client(headers=headers, timeout=section.timeout_s, trust_env=not here)


def reach_problems(section: LLMSection) -> list[Problem]:
    """A server on this machine that is not running: no request, only a connection."""
    url = urlsplit(str(section.endpoint))
    if not is_here(url.hostname or ""):
        return []
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((str(url.hostname), port), timeout=CONNECT_S).close()
    except OSError as exc:
        text = f"cannot be reached ({exc.strerror or exc})"
        return [Problem(str(section.endpoint), text, "start the server, or check prompts.llm.endpoint")]
    return []


def is_here(host: str) -> bool:
    """Whether a host name means this very machine.

    >>> is_here("127.0.0.1"), is_here("localhost"), is_here("::1"), is_here("api.openai.com")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Endpoint:
    """A server; call it with a request. Threads may share it."""

    def __init__(self, section: LLMSection, stop: threading.Event, say: Callable[[str], None]) -> None:
        """`stop` ends waiting between tries; `say` hears what is not done as asked."""
        self._url = f"{str(section.endpoint).rstrip('/')}/chat/completions"
        self._shown, self._stop, self._say = str(section.endpoint), stop, say
        self._key = key_of(section)
        self._key_env = section.key_env
        self._client = _open_client(section)
        self._strictness = len(LESS_STRICT)  # of the schema that is asked for; 0: none
        self._lock = threading.Lock()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def __call__(self, request: dict[str, Any], count: int) -> Answer:
        """The answer, a list of `count` prompts by a schema where the server takes one.

        Raises RecipeError for what asking again does not change, NoAnswer when the server stays silent.
        """
        while True:
            strictness = self._strictness
            wish = {"response_format": response_format(count if strictness == 2 else None)} if strictness else {}
            status, body = self._patiently({**request, **wish})
            if status == 200:
                return self._answer(body, structured=strictness > 0)
            if not strictness or status not in NO_SCHEMA:
                raise self._refused(status, body)
            self._less_strictly(strictness, status, body)

    def _patiently(self, body: dict[str, Any]) -> tuple[int, str]:
        """(status, body) of the last of several tries."""
        status, said, wait = 0, "", FIRST_WAIT_S
        for last in [False] * RETRIES + [True]:
            try:
                status, said, asked_wait = self._post(body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as exc:
                raise NoAnswer(f"{self._shown} cannot be reached ({self._clean(str(exc))})") from exc
            except httpx2.RequestError as exc:
                status, said, asked_wait = 0, str(exc) or type(exc).__name__, None
            if (status and status not in BUSY) or last:
                break
            if self._stop.wait(min(wait if asked_wait is None else asked_wait, LONGEST_WAIT_S)):
                raise NoAnswer("stopped")
            wait *= 2
        if not status:
            raise NoAnswer(f"{self._shown} broke off {RETRIES + 1} times ({self._clean(said)})")
        return status, said

    def _post(self, body: dict[str, Any]) -> tuple[int, str, float | None]:
        """(status, text, seconds the server asks to wait)."""
        with self._client.stream("POST", self._url, json=body) as response:
            data = b""
            for part in response.iter_bytes():
                data += part
                if len(data) > MAX_BYTES:
                    raise NoAnswer(f"{self._shown} answers more than {MAX_BYTES:,} bytes")
            wait = response.headers.get("Retry-After", "")
            return response.status_code, data.decode("utf-8", "replace"), float(wait) if wait.isdigit() else None

    def _answer(self, body: str, *, structured: bool) -> Answer:
        try:
            value = json.loads(body)
            text = value["choices"][0]["message"].get("content") or ""
            usage = value.get("usage") or {}
            counts = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
            name = self._clean(str(value.get("model", "")))
            return Answer(self._clean(str(text), MAX_BYTES), name, structured, *counts)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
            text = f"answers something that is no chat completion: {self._clean(body)!r}"
            raise RecipeError(Problem(self._shown, text, "does the address end in /v1?")) from exc

    def _less_strictly(self, strictness: int, status: int, body: str) -> None:
        with self._lock:
            if self._strictness == strictness:
                refused, instead = LESS_STRICT[strictness if status in NO_BOUNDS else 1]
                self._strictness = strictness - 1 if status in NO_BOUNDS else 0
                reason = f"{status}: {self._clean(_complaint(body))}"
                self._say(f"{self._shown} refuses answers by a JSON schema{refused} ({reason}); {instead}")

    def _refused(self, status: int, body: str) -> Exception:
        reason = f"answers {status}: {self._clean(_complaint(body))}"
        if status in BUSY:
            return NoAnswer(f"{self._shown} {reason}, {RETRIES + 1} times")
        remedies = {401: f"check the key in {self._key_env}", 403: f"check the key in {self._key_env}",
                    404: "check prompts.llm.model, and that the endpoint ends in /v1"}  # fmt: skip
        return RecipeError(Problem(self._shown, reason, remedies.get(status, "check prompts.llm")))

    def _clean(self, text: str, width: int = SHOWN) -> str:
        """Without the key, which some servers repeat."""
        said = text.replace(self._key, "***") if self._key else text
        return said if len(said) <= width else said[:width] + "..."


def _complaint(body: str) -> str:
    """What a server says is wrong: the message in its JSON, or its text."""
    try:
        error = json.loads(body)["error"]
        return " ".join(str(error["message"] if isinstance(error, dict) else error).split())
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split()) or "nothing"
