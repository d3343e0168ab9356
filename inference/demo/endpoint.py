"""The HTTP service: ``POST /v1/chat/completions`` in OpenAI's shape, ``GET /v1/models``, ``GET /healthz``."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import iterate_in_threadpool

from ...datasets.records import Region
from ...utils.errors import LocapError, UsageError
from ..asks import Ask
from ..captioner import Seen
from ..results import Result
from .callbacks import box_of, rows_of, text_of
from .questions import ask_of_painting, checked_asks
from .schema import ChatRequest
from .service import BusyError, FailedError, Service, friendly, until
from .uploads import OPAQUE, decode_data_uri

LOOK_SECONDS = 0.2  # between two looks whether the client is still there


def make_app(service: Service, *, api_key: str | None = None, auth: tuple[str, str] | None = None) -> FastAPI:
    """Return the application of the HTTP service.

    Args:
        service: the system.
        api_key: what clients must send as ``Authorization: Bearer KEY``.
        auth: (user, password) of the page, which then are asked for here, too, unless the key is sent.
    """
    app = FastAPI(title="locap", openapi_url=None, docs_url=None, redoc_url=None)
    locked = [Depends(_lock(api_key, auth))]
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(LocapError, _failed)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", dependencies=locked)
    async def models() -> dict[str, Any]:
        about = {"id": service.name, "object": "model", "owned_by": "locap", "takes": sorted(service.takes)}
        return {"object": "list", "data": [about]}

    @app.post("/v1/chat/completions", dependencies=locked, response_model=None)
    async def chat_completions(asked: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        if len(asked.images) != 1:
            raise UsageError("A request is about one image.", value=len(asked.images), allowed="one image_url")
        if asked.stream:
            seen, asks = await _turn(service, request, lambda _: _prepare(service, asked))
            return StreamingResponse(_events(service, seen, asks), media_type="text/event-stream")
        result = await _turn(
            service, request, lambda left: service.captioner.ask(*_prepare(service, asked), until(left))
        )
        return JSONResponse(_completion(service, result))

    return app


def _prepare(service: Service, asked: ChatRequest) -> tuple[Seen, list[Ask]]:
    """Decode and encode the image, and check the questions; runs in the model's thread."""
    pixels, alpha = decode_data_uri(asked.images[0])
    height, width = pixels.shape[:2]
    given = [region.asked for region in asked.regions]
    if not given and alpha is not None and (alpha < OPAQUE).any():
        given = [ask_of_painting(alpha >= OPAQUE)]  # as in the server of Describe Anything: the opaque part is meant
    prompt = None
    if "prompt" in service.takes and asked.words.strip():
        prompt = asked.words
        given = given or [("box", (0, 0, width, height))]
    asks = checked_asks(given, height, width, prompt)
    service.captioner.check(asks)
    return service.captioner.see(pixels), asks


async def _turn(service: Service, request: Request, function: Callable[[threading.Event], Any]) -> Any:
    """Await a function's turn; a client that has gone gives its place up, which the function is told by an event."""
    left = threading.Event()
    future = service.submit(function, left)
    task = asyncio.ensure_future(asyncio.wrap_future(future))
    try:
        while not (await asyncio.wait([task], timeout=LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                raise HTTPException(499, "The client has gone.")
        return task.result()
    finally:
        left.set()
        task.cancel()


def _completion(service: Service, result: Result) -> dict[str, Any]:
    message = {"role": "assistant", "content": text_of(result)}
    return {
        **_head(service, "chat.completion"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        "regions": _regions(result),
    }


def _head(service: Service, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
    }


def _regions(result: Result) -> list[dict[str, Any]]:
    return [
        {
            "box": [round(float(side), 2) for side in box_of(region)] if _is_placed(region) else None,
            "mask": None if region.mask is None else dict(region.mask),
            "caption": caption,
            "category": row[1] or None,
            "score": None if region.score is None or not math.isfinite(region.score) else round(region.score, 4),
        }
        for region, caption, row in zip(result.record.regions, result.captions, rows_of(result), strict=True)
    ]


def _is_placed(region: Region) -> bool:
    return region.box_xyxy is not None or region.mask is not None


async def _events(service: Service, seen: Seen, asks: Sequence[Ask]) -> AsyncIterator[str]:
    """Yield server-sent events: text that is new, then the regions, then ``[DONE]``."""
    head = _head(service, "chat.completion.chunk")
    results = service.stream(seen, asks)
    told, result = "", None
    try:
        async for result in iterate_in_threadpool(results):
            text = text_of(result)
            if len(asks) == 1 and text.startswith(told):
                yield _event(head, {"content": text[len(told) :]})
                told = text
        if result is not None:
            text = text_of(result)
            rest = text[len(told) :] if text.startswith(told) else f"\n{text}"  # with beams, words may have changed
            yield _event(head, {"content": rest} if rest else {}, "stop", regions=_regions(result))
    except LocapError as err:
        yield f"data: {json.dumps(_error(friendly(err), 'server_error'))}\n\n"
    finally:
        results.close()
    yield "data: [DONE]\n\n"


def _event(head: dict[str, Any], delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({**head, 'choices': [choice], **more})}\n\n"


def _lock(api_key: str | None, auth: tuple[str, str] | None) -> Callable[[Request], None]:
    accepted = [f"Bearer {api_key}"] if api_key else []
    if auth:
        accepted.append("Basic " + base64.b64encode(":".join(auth).encode()).decode())

    def check(request: Request) -> None:
        sent = request.headers.get("authorization", "").encode()
        if accepted and not any(hmac.compare_digest(sent, key.encode()) for key in accepted):
            raise HTTPException(401, "Authorization is missing or wrong.", {"WWW-Authenticate": "Bearer"})

    return check


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


async def _invalid(request: Request, err: RequestValidationError) -> JSONResponse:
    first = err.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse(_error(f"{place}: {first['msg']}"[:300], "invalid_request_error"), 400)


async def _refused(request: Request, err: HTTPException) -> JSONResponse:
    return JSONResponse(_error(str(err.detail), "invalid_request_error"), err.status_code, err.headers)


async def _failed(request: Request, err: LocapError) -> JSONResponse:
    status = 429 if isinstance(err, BusyError) else 500 if isinstance(err, FailedError) else 400
    kind = "invalid_request_error" if status == 400 else "server_error"
    return JSONResponse(_error(friendly(err), kind), status, {"Retry-After": "1"} if status == 429 else None)
