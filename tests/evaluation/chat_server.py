"""A chat endpoint on this machine, as well or ill behaved as a test wants (fixture ``server``)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from locap.evaluation.judges import client


@dataclass
class FakeServer:
    """Answers ``answer(body)``: a text, or (status, headers, bytes), or a number of seconds to say nothing."""

    url: str = ""
    answer: Callable[[dict[str, Any]], Any] = lambda body: "1.0"
    model: str = "fake-judge-0613"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def options(self, folder: Any, **more: str) -> dict[str, str]:
        """Options of a protocol that ask this server and keep answers in the folder."""
        return {"judge": "fake", "judge_url": self.url, "judge_cache": str(folder / "answers.jsonl"), **more}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.bodies.append(body)
            fake.headers.append(dict(self.headers))
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
        try:
            self._answer(fake.answer(body))
        finally:
            with fake.lock:
                fake.at_once -= 1

    def _answer(self, answer: Any) -> None:
        if isinstance(answer, float):
            time.sleep(answer)
            return
        if isinstance(answer, str):
            reply = {"model": self.fake.model, "choices": [{"message": {"role": "assistant", "content": answer}}]}
            answer = (200, {}, json.dumps(reply).encode())
        status, headers, data = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that answers 1.0 to everything, and a client that does not wait long between tries."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "MAX_WAIT", 0.01)
    fake = FakeServer()
    handler = type("Handler", (_Handler,), {"fake": fake})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    fake.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield fake
    http.shutdown()
    http.server_close()
