"""Who may talk to the server, and how much they may send; before anything is read or decoded."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

from .limits import BODY_SECONDS, MAX_BODY


class TooLargeError(HTTPException):
    """A body of undeclared length grew beyond the limit."""

    def __init__(self) -> None:
        super().__init__(413, "The request is too large.")


class TooSlowError(HTTPException):
    """A body did not come to its end in time."""

    def __init__(self) -> None:
        super().__init__(408, "The request took too long to send.")


class Guard:
    """ASGI middleware: names under which the server is reached, pages of other sites, and the size of requests.

    A browser that was led here by a name that somebody else's name server answers (DNS rebinding) sends that name;
    a page of another site sends its own address. Both are refused. Addresses in numbers cannot be rebound.

    Args:
        app: what it guards.
        hosts: names under which the server may be reached, beside localhost and this machine's own.
        body_seconds: in which a request must have been sent.
    """

    def __init__(self, app: Any, hosts: Iterable[str] = (), body_seconds: float = BODY_SECONDS) -> None:
        self.app, self.body_seconds = app, body_seconds
        self.hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(headers)
        if refused:
            return await _refuse(send, *refused)
        counted = _Counted(receive, send, self.body_seconds)
        try:
            return await self.app(scope, counted.receive, counted.send)
        except (TooLargeError, TooSlowError) as err:
            if not counted.answered:
                await _refuse(send, err.status_code, err.detail)

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_known(host):
            return 403, "The server is not known under this name; --host NAME adds one."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "Pages of other sites may not talk to this server."
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return 400, "The length of the request is no number."
        return (413, "The request is too large.") if int(length) > MAX_BODY else None

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self.hosts
        return True


class _Counted:
    """Counts the bytes and seconds of a request, and knows whether its answer has begun."""

    def __init__(self, receive: Any, send: Any, seconds: float) -> None:
        self._receive, self._send, self._count, self.answered = receive, send, 0, False
        self._until, self._whole = time.monotonic() + seconds, False

    async def receive(self) -> Any:
        message = await (self._receive() if self._whole else self._in_time())
        self._whole = not message.get("more_body", False)  # what follows is that the client has gone
        self._count += len(message.get("body", b""))
        if self._count > MAX_BODY:
            raise TooLargeError
        return message

    async def _in_time(self) -> Any:
        try:
            return await asyncio.wait_for(self._receive(), self._until - time.monotonic())
        except asyncio.TimeoutError:
            raise TooSlowError from None

    async def send(self, message: Any) -> None:
        self.answered = True
        await self._send(message)


async def _refuse(send: Any, status: int, message: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
