"""An OpenAI-compatible chat endpoint over HTTP(S), by the standard library.

What it never does: write or show the API key, follow a redirect, read an answer without a bound on size and time, or
send a key that was not named for it over plain HTTP to another machine.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from ...utils.errors import MissingDependencyError, UsageError
from .requests import DEFAULT_KEY_VARIABLE, Reply, Request, request_body

MAX_REPLY_BYTES = 2**20
MAX_CONTENT = 20_000  # characters
MAX_WAIT = 60.0  # seconds between two tries
RETRIED_STATUS = frozenset((408, 409, 425, 429, *range(500, 600)))


class Endpoint:
    """Asks a model.

    Args:
        url: up to and including ``/v1``, http or https.
        model: the model's name there.
        key_variable: environment variable with the API key; default: ``OPENAI_API_KEY``, which is sent over https and
            to this machine only.
        timeout: seconds for one answer.
        tries: how often one request is sent before it counts as failed.
        pause: seconds before the second try; doubled from try to try.

    Raises:
        UsageError: the address is not one, or the named variable is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = None,
        timeout: float = 120.0,
        tries: int = 6,
        pause: float = 1.0,
    ) -> None:
        self.host, local, encrypted = check_url(url)
        self.model, self.timeout, self.tries, self.pause = model, timeout, tries, pause
        self.stopped = threading.Event()
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._key = _read_key(key_variable, trusted=local or encrypted)
        proxies = urllib.request.ProxyHandler({} if local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirect)

    def __repr__(self) -> str:
        return f"Endpoint({self.host!r}, {self.model!r})"  # no key in tracebacks

    def ask(self, request: Request) -> Reply:
        """Return the model's reply.

        Raises:
            MissingDependencyError: the endpoint refuses, cannot be reached or answers nonsense, after all tries.
        """
        body, reason = request_body(self.model, request), ""
        for attempt in range(self.tries):
            try:
                return self._reply(self._send(body))
            except _Retry as err:
                reason = str(err)
                wait = min(MAX_WAIT, max(self.pause * 2**attempt, err.wait))
            if attempt + 1 < self.tries and self.stopped.wait(wait):
                break
        raise self._failure(
            f"after {self.tries} tries: {reason}", "start it, or check judge_url; then the same command"
        )

    def _send(self, body: bytes) -> bytes:
        """Return the bytes of the answer; raises `_Retry` where another try may help."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "locap"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers)  # noqa: S310 - the scheme was checked
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return _read_bounded(answer, deadline)
        except urllib.error.HTTPError as err:
            with err:
                raise self._refusal(err, deadline) from None
        except (OSError, http.client.HTTPException, ValueError) as err:  # URLError is an OSError
            reason = getattr(err, "reason", None) or err
            raise _Retry(self._clean(f"{type(err).__name__}: {reason}")) from None

    def _refusal(self, err: urllib.error.HTTPError, deadline: float) -> Exception:
        """Return what to raise for an answer that is not 200."""
        if err.code in RETRIED_STATUS:
            return _Retry(f"HTTP {err.code}", wait=_seconds(err.headers.get("Retry-After")))
        if 300 <= err.code < 400:
            target = self._clean(urlsplit(err.headers.get("Location") or "").netloc)
            return self._failure(f"HTTP {err.code}, a redirect to {target or 'elsewhere'}", "give the final judge_url")
        try:
            text = _read_bounded(err, deadline)[:300].decode("utf-8", "replace")
        except (_Retry, OSError, http.client.HTTPException):
            text = ""
        fixes = {401: "check the API key", 403: "check the API key", 404: "check judge_url and judge"}
        return self._failure(f"HTTP {err.code} {self._clean(text)}", fixes.get(err.code))

    def _reply(self, data: bytes) -> Reply:
        try:
            body = json.loads(data)
            content = body["choices"][0]["message"]["content"]
            model = body.get("model")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Retry("the answer is not that of a chat endpoint") from None
        if not isinstance(content, (str, type(None))) or not isinstance(model, (str, type(None))):
            raise _Retry("the answer is not that of a chat endpoint")
        return Reply(self._hide_key(content or "")[:MAX_CONTENT], self._clean(model or self.model)[:200])

    def _failure(self, reason: str, fix: str | None) -> MissingDependencyError:
        what = f"The judge {self.model} at {self.host} gave no answer: {reason.strip()}."
        return MissingDependencyError(what, fix=fix)

    def _hide_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _clean(self, text: str) -> str:
        """Return a stranger's text fit for one line of a message."""
        return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in self._hide_key(text)))


class _Retry(Exception):
    """Another try may help, after ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow nothing: the key and the prompts are meant for one host."""


def check_url(url: str) -> tuple[str, bool, bool]:
    """Return an endpoint's host with port, whether it is this machine, and whether the way there is encrypted.

    Raises:
        UsageError: it is no http(s) address, or carries a user name, a query or a fragment (never shown: they may be
            secrets).
    """
    allowed = "http://HOST[:PORT]/v1 or https://HOST/v1"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError("judge_url is not an address.", allowed=allowed) from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or re.search(r"\s", url):
        raise UsageError("judge_url is not an address of the web.", value=parts.scheme, allowed=allowed)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            "judge_url carries a user name, a query or a fragment.",
            allowed=allowed,
            fix="put the API key into an environment variable and name it with judge_key_variable",
        )
    return f"{host}:{port}" if port else host, _is_this_machine(host), parts.scheme == "https"


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_key(variable: str | None, *, trusted: bool) -> str:
    """Return the API key, or "" where there is none to send."""
    if variable is None:
        variable = DEFAULT_KEY_VARIABLE if trusted else ""
    elif not os.environ.get(variable, "").strip():  # the name is not shown: it may be a key given by mistake
        raise UsageError(
            "The environment variable that judge_key_variable names is not set.",
            allowed="the name of a variable that holds the API key",
            fix="export NAME=…, then judge_key_variable=NAME",
        )
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UsageError("The API key holds characters that no header may carry.", allowed="printable ASCII")
    return key


def _read_bounded(answer: Any, deadline: float) -> bytes:
    """Read an answer piece by piece, so that neither its size nor its slowness is the sender's choice."""
    pieces, size = [], 0
    while piece := answer.read1(65536):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise _Retry(f"the answer is longer than {MAX_REPLY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _Retry("the answer took too long")
    return b"".join(pieces)


def _seconds(text: str | None) -> float:
    """Return the seconds of a Retry-After header, 0 where it holds none."""
    return float(text) if text and re.fullmatch(r"\d{1,6}", text.strip()) else 0.0
