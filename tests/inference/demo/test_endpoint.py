"""The HTTP service: its shape, its limits, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from locap.datasets.records import encode_mask
from locap.inference.demo.limits import MAX_BODY, MAX_REGIONS, MAX_WAITING

pytest.importorskip("fastapi")
CHAT = "/v1/chat/completions"


@pytest.fixture
def ask(client, kit):
    """``ask(*regions, image=..., **more)``: the response."""

    def ask(*regions, image=None, **more):
        image = kit.png(kit.plain(10, 20, 30)) if image is None else image
        return client.post(CHAT, json=kit.request_of(image, *regions, **more))

    return ask


def events(response):
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_shape_of_an_answer(ask, client):
    mask = np.zeros((40, 60), bool)
    mask[:5, :5] = True
    rle = dict(encode_mask(mask))
    answer = ask({"box": [60, 0, 30, 20]}, {"point": [1, 2]}, {"mask": rle}, {"text": "a cat"}, temperature=0.2).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "colours"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    said = "1. rgb 10 20 30\n2. rgb 10 20 30\n3. rgb 10 20 30\n4. found at 1 1 5 5"
    assert answer["choices"][0]["message"]["content"] == said
    box, point, masked, phrase = answer["regions"]
    assert box == {
        "box": [30, 0, 60, 20], "mask": None, "caption": "rgb 10 20 30", "category": "thing", "score": 0.5
    }  # fmt: skip
    assert point["box"] is None
    assert masked["mask"] == rle
    assert phrase["box"] == [1, 1, 5, 5]
    assert client.get("/v1/models").json()["data"][0]["takes"] == ["box", "mask", "point", "text"]
    assert client.get("/healthz").json() == {"status": "ok"}


def test_without_regions_everything_is_described(ask):
    assert ask().json()["choices"][0]["message"]["content"] == "rgb 10 20 30"


def test_what_is_opaque_is_the_region(ask, kit):
    pixels = np.dstack([kit.plain(200, 0, 0), np.zeros((40, 60), np.uint8)])
    pixels[10:20, 10:20] = (0, 90, 0, 255)
    (region,) = ask(image=kit.png(pixels)).json()["regions"]
    assert region["caption"] == "rgb 0 90 0"
    assert region["box"] == [10, 10, 20, 20]


def test_own_words_reach_systems_that_take_them(ask, colours):
    ask({"box": [0, 0, 9, 9]}, text="What is it?")
    colours.takes |= {"prompt"}
    ask({"box": [0, 0, 9, 9]}, text="What is it?")
    ask(text="Where?")
    ask({"box": [0, 0, 9, 9]})
    assert colours.prompts == [None, "What is it?", "Where?", None]


def test_answers_are_streamed(ask, colours):
    colours.words = 4
    colours.pause = 0.2
    chunks = events(ask({"box": [0, 0, 9, 9]}, stream=True))
    told = [event["choices"][0]["delta"].get("content", "") for event in chunks]
    assert told[:3] == ["rgb", " 10", " 20"]
    assert "".join(told) == "rgb 10 20 30"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["regions"][0] == {
        "box": [0, 0, 9, 9], "mask": None, "caption": "rgb 10 20 30", "category": "thing", "score": 0.5
    }  # fmt: skip


@pytest.mark.fault("J1")
def test_large_requests_are_refused(client, ask):
    response = client.post(CHAT, content=b"x" * (MAX_BODY + 1))
    assert response.status_code == 413
    assert "too large" in response.json()["error"]["message"]
    pieces = (b"x" * 1_000_000 for _ in range(60))  # of undeclared length: read no further than the limit
    assert client.post(CHAT, content=pieces, headers={"content-type": "application/json"}).status_code == 413
    big = "data:image/png;base64," + base64.b64encode(b"\x89PNG" + bytes(20_000_100)).decode()
    response = ask(image=big)
    assert (response.status_code, "too large" in response.text) == (400, True)


@pytest.mark.fault("J3")
@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/a.png",
        "https://example.org/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "gopher://127.0.0.1/x",
        "//127.0.0.1/a.png",
        "/etc/passwd",
        "../../etc/passwd",
        "",
    ],
)
def test_nothing_is_fetched(ask, address):
    response = ask(image=address)
    assert response.status_code == 400
    assert "not fetched" in response.json()["error"]["message"]
    assert "passwd" not in response.text


@pytest.mark.fault("J4")
def test_images_that_are_none(ask, kit):
    good = kit.png(kit.plain(1, 2, 3))
    bomb = kit.png(np.zeros((9000, 9000), np.uint8), compress_level=9)
    for data, message in (
        (b"<html>", "cannot be read"),
        (b"GIF89a" + bytes(50), "not supported: a GIF"),
        (good[:60], "truncated or corrupt"),
        (bomb, "too large"),
        (b"", "the file is empty"),
    ):
        response = ask(image=data)
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]
        assert "/tmp" not in response.text
    assert ask(image=kit.png(kit.plain(9, 8, 7, height=1, width=1))).json()["regions"][0]["caption"] == "rgb 9 8 7"
    assert ask(image=kit.png(np.full((4, 4, 4), 255, np.uint8))).status_code == 200


@pytest.mark.fault("J5")
@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"box": [1, 2, 3]}, "regions.0.box"),
        ({"box": "1 2 3 4"}, "regions.0.box"),
        ({"box": [1, 2, 3, 4], "point": [1, 1]}, "exactly one of"),
        ({}, "exactly one of"),
        ({"circle": [1, 2, 3]}, "circle"),
        ({"box": [100, 100, 200, 200]}, "no area in the image"),
        ({"point": [-1, 1]}, "outside the image"),
        ({"text": "x" * 1_000_000}, "too long"),
        ({"mask": {"size": [4, 4], "counts": [16]}}, "not of the image's size"),
        ({"mask": {"size": [40, 60], "counts": "§§§"}}, ""),
        ({"mask": {"size": [10**9, 10**9], "counts": [1]}}, "not of the image's size"),
    ],
)
def test_regions_that_are_none(ask, region, message):
    response = ask(region)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert len(response.text) < 1000


@pytest.mark.fault("J5")
def test_numbers_that_are_none_and_too_many_regions(ask, client, kit):
    body = json.dumps(kit.request_of(kit.png(kit.plain(1, 1, 1)), {"box": [0, 0, 5, 5]}))
    for number in ("NaN", "Infinity", "1e999"):
        response = client.post(CHAT, content=body.replace("[0, 0, 5, 5]", f"[{number}, 0, 5, 5]"))
        assert response.status_code == 400, number
    assert ask(*[{"box": [0, 0, 5, 5]}] * 10_000).status_code == 400
    assert ask(*[{"box": [0, 0, 5, 5]}] * MAX_REGIONS).status_code == 200
    assert client.post(CHAT, content="[" * 100_000).status_code == 400
    assert client.post(CHAT, json={"messages": []}).status_code == 400
    assert client.post(CHAT, json={"messages": [{"role": "user", "content": "hello"}]}).status_code == 400


@pytest.mark.fault("J5")
@pytest.mark.fault("J5")
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"messages":' + b'[{"a":' * 50_000,
        b'{"messages": ' + b"9" * 100_000 + b"}",
        b'{"messages": [], "regions": [' + b"{}," * 1_000_000 + b"{}]}",
        b"\xff\xfe\x00",
        b"",
    ],
    ids=["nested", "objects", "huge number", "million regions", "no text", "nothing"],
)
def test_bodies_that_are_none(client, body):
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert len(response.text) < 1000


@pytest.mark.fault("J5")
@pytest.mark.parametrize("counts", [[10**9], [10**30], [-1, 2401], [0] * 100_000 + [10**18], "o" * 100_000])
def test_run_lengths_beyond_the_image(ask, counts):
    """Refused before anything of their size is made."""
    began = time.monotonic()
    assert ask({"mask": {"size": [40, 60], "counts": counts}}).status_code == 400
    assert time.monotonic() - began < 5


@pytest.mark.fault("J1")
def test_slow_requests_are_ended(service):
    from locap.inference.demo.endpoint import make_app
    from locap.inference.demo.guard import Guard

    sent = []

    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "scheme": "http",
             "server": ("127.0.0.1", 80), "client": None, "root_path": "", "http_version": "1.1"}  # fmt: skip
    asyncio.run(Guard(make_app(service), body_seconds=0.3)(scope, receive, send))
    assert sent[0]["status"] == 408


def test_words_stay_words(ask):
    (region,) = ask({"text": "<script>alert(1)</script> </s><|endoftext|>"}).json()["regions"]
    assert region["category"] == "<script>alert(1)</script> </s><|endoftext|>"  # JSON; the page escapes it


@pytest.mark.fault("J6")
def test_32_users_at_once_and_one_too_many(client, service, colours, kit):
    colours.go.clear()
    images = [kit.plain(number, 100, 200) for number in range(MAX_WAITING)]
    with ThreadPoolExecutor(MAX_WAITING) as users:
        answers = [
            users.submit(client.post, CHAT, json=kit.request_of(kit.png(image), {"box": [0, 0, 60, 40]}))
            for image in images
        ]
        wait_for_places(service, 0)
        refused = client.post(CHAT, json=kit.request_of(kit.png(images[0])))
        colours.go.set()
        captions = [answer.result().json()["regions"][0]["caption"] for answer in answers]
    assert captions == [kit.colour(image) for image in images]
    assert "busy" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "1"
    assert client.post(CHAT, json=kit.request_of(kit.png(images[0]))).status_code == 200


def wait_for_places(service, count):
    for _ in range(200):
        if service.places == count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{service.places} places are free, not {count}")


@pytest.mark.fault("J7")
def test_a_client_who_leaves_gives_its_place_up(serve, service, colours, kit):
    import httpx

    address = serve(service, with_page=False)
    body = kit.request_of(kit.png(kit.plain(1, 2, 3)), {"box": [0, 0, 9, 9]}, stream=True)
    colours.words, colours.pause = 1000, 0.02
    with httpx.stream("POST", address + CHAT, json=body) as response:
        next(response.iter_text())
    wait_for_places(service, MAX_WAITING)
    assert colours.written < 100
    _impatient(address, body | {"stream": False}, 0.5)  # without a stream, too
    wait_for_places(service, MAX_WAITING)
    assert colours.written < 100
    colours.words, colours.pause = 1, 0.0
    colours.go.clear()
    threading.Thread(target=_impatient, args=(address, body | {"stream": False}, 5.0)).start()
    wait_for_places(service, MAX_WAITING - 1)
    _impatient(address, body | {"stream": False}, 0.2)  # waits behind the one before, and gives up
    wait_for_places(service, MAX_WAITING - 1)
    colours.go.set()


def _impatient(address, body, seconds):
    import httpx

    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(address + CHAT, json=body, timeout=seconds)


@pytest.mark.fault("J8")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (RuntimeError("secret /home/user"), "The system failed on this request"),
        (MemoryError(), "The machine's memory is not enough"),
    ],
)
def test_a_failure_is_logged_and_the_next_request_works(ask, colours, caplog, fault, message):
    colours.fault = fault
    with caplog.at_level(logging.ERROR):
        response = ask({"box": [0, 0, 5, 5]})
    said = response.json()["error"]["message"]
    assert response.status_code == 500
    assert said.startswith(message)
    assert "secret" not in said
    number = said.split("(request ")[1].split(")")[0]
    assert f"request {number} failed" in caplog.text
    assert "Traceback" in caplog.text
    assert ask({"box": [0, 0, 5, 5]}).status_code == 200


@pytest.mark.fault("J11")
def test_names_and_pages_that_are_not_ours(service):
    from fastapi.testclient import TestClient

    from locap.inference.demo.server import make_application

    client = TestClient(make_application(service, with_page=False, hosts=["captions.example"]))
    for host, status in (
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("[::1]:7860", 200),
        ("captions.example", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("[::1", 403),
    ):
        assert client.get("/v1/models", headers={"host": host}).status_code == status, host
    for origin, status in (("http://localhost", 200), ("http://evil.example", 403), ("null", 403)):
        response = client.get("/v1/models", headers={"host": "localhost", "origin": origin})
        assert response.status_code == status
        assert "access-control-allow-origin" not in response.headers
    assert client.get("/openapi.json", headers={"host": "localhost"}).status_code == 404


def test_the_key_is_asked_for(service):
    from fastapi.testclient import TestClient

    from locap.inference.demo.server import make_application

    app = make_application(service, with_page=False, api_key="k1", auth=("ann", "pw"))
    client = TestClient(app, base_url="http://127.0.0.1")
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"authorization": "Bearer k2"}).status_code == 401
    assert "Authorization" in client.get("/v1/models").json()["error"]["message"]
    assert client.get("/v1/models", headers={"authorization": "Bearer k1"}).status_code == 200
    assert client.get("/v1/models", auth=("ann", "pw")).status_code == 200
    assert client.get("/healthz").status_code == 200
