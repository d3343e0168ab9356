"""What a judge is asked, what it answers, and the key under which an answer is kept."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a judge.

    Attributes:
        text: the whole prompt.
        max_tokens: length limit of the answer.
        temperature: of sampling.
        run: tells repetitions of one question apart; it is not sent.
        image: a PNG file sent before the text, or None.
    """

    text: str
    max_tokens: int
    temperature: float = 0.0
    run: int = 0
    image: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge's answer and the name of the model that says it gave it."""

    content: str
    model: str


def request_key(model: str, request: Request) -> str:
    """Return the SHA-256 of model, messages, sampling parameters and run; of an image its own digest counts."""
    image = None if request.image is None else hashlib.sha256(request.image).hexdigest()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": request.text, "image_sha256": image}],
        **sampling(request),
        "run": request.run,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


def sampling(request: Request) -> dict[str, Any]:
    """Return the parameters of sampling as the endpoint calls them."""
    return {"temperature": float(request.temperature), "max_tokens": request.max_tokens}


def request_body(model: str, request: Request) -> bytes:
    """Return the JSON that is sent to ``/chat/completions``."""
    content: Any = request.text
    if request.image is not None:
        url = "data:image/png;base64," + base64.b64encode(request.image).decode("ascii")
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.text}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], **sampling(request)}
    return json.dumps(body).encode("ascii")
