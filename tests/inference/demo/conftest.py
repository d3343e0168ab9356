"""A captioner that answers with the mean colour of what it is asked about, and a demo around it."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from locap.datasets.records import Category, Record, Region, decode_mask
from locap.inference.asks import Ask
from locap.inference.captioner import Seen
from locap.inference.results import Result
from locap.inference.streams import Follow
from locap.utils.errors import UsageError

KINDS = frozenset({"box", "point", "mask", "text"})


class Colours:
    """`Captioner`'s interface; a caption is the mean colour of the region, so that users cannot be mistaken."""

    categories = (Category(1, "thing"),)

    def __init__(self, takes: frozenset[str] = KINDS) -> None:
        self.takes, self.fault, self.pause, self.words, self.written = takes, None, 0.0, 1, 0
        self.prompts: list[str | None] = []
        self.go = threading.Event()
        self.go.set()

    def see(self, image: np.ndarray) -> Seen:
        return Seen(Record("image", *image.shape[:2], image=image), image.mean())

    def check(self, asks: list[Ask]) -> None:
        for ask in asks:
            if ask.kind not in self.takes:
                raise UsageError(f"This system takes no {ask.kind}.", allowed=", ".join(sorted(self.takes)))

    def ask(self, seen: Seen, asks: list[Ask] = (), watch: Follow | None = None) -> Result:
        self.check(asks)
        self.go.wait(20)
        for count in range(1, self.words + 1):
            time.sleep(self.pause)
            self.written = count
            if watch is not None:
                watch([(k, text) for k, text in enumerate(self._begun(seen, asks, count))])
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        pixels = seen.record.image
        self.prompts += [ask.prompt for ask in asks]
        regions = [self._region(pixels, number, ask) for number, ask in enumerate(asks, 1)]
        regions = regions or [
            Region(1, 1, box_xyxy=(0, 0, *pixels.shape[1::-1]), captions=(colour(pixels),), score=0.9)
        ]
        return Result(Record("image", *pixels.shape[:2], pixels, regions), self.categories, pixels, tuple(asks))

    def _begun(self, seen: Seen, asks: list[Ask], count: int) -> Iterator[str]:
        for ask in asks:
            captions = self._region(seen.record.image, 1, ask).captions
            yield " ".join(" ".join(captions).split()[:count])

    def _region(self, pixels: np.ndarray, number: int, ask: Ask) -> Region:
        if ask.kind == "text":
            return Region(number, expressions=(ask.value,), box_xyxy=(1, 1, 5, 5), score=0.5)
        region = ask.to_region(number)
        if ask.kind == "mask":
            part = pixels[decode_mask(ask.value)]
        else:
            x0, y0, *rest = (int(side) for side in ask.value)
            x1, y1 = rest or (x0 + 1, y0 + 1)
            part = pixels[y0:y1, x0:x1]
        region.captions, region.category_id, region.score = (colour(part),), 1, 0.5
        return region


def colour(pixels: np.ndarray) -> str:
    return "rgb " + " ".join(f"{value:.0f}" for value in pixels.reshape(-1, 3).mean(0))


def png(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def plain(*rgb: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), rgb, np.uint8)


def request_of(image: bytes | str, *regions: dict, text: str = "", **more: object) -> dict:
    url = image if isinstance(image, str) else "data:image/png;base64," + base64.b64encode(image).decode()
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": content}], "regions": list(regions), **more}


@pytest.fixture
def kit() -> SimpleNamespace:
    """What tests of the demo need again and again."""
    return SimpleNamespace(Colours=Colours, colour=colour, png=png, plain=plain, request_of=request_of)


@pytest.fixture
def colours() -> Colours:
    return Colours()


@pytest.fixture
def service(colours):
    pytest.importorskip("fastapi")
    from locap.inference.demo.service import Service

    service = Service(colours, "colours")
    yield service
    colours.go.set()
    service.close()


@pytest.fixture
def client(service):
    """The HTTP service alone, in this process."""
    from fastapi.testclient import TestClient

    from locap.inference.demo.server import make_application

    with TestClient(make_application(service, with_page=False), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def serve(tmp_path, monkeypatch) -> Iterator[Callable[..., str]]:
    """``serve(service, **options)``: the address of a demo that runs in a thread."""
    uvicorn = pytest.importorskip("uvicorn")
    from locap.inference.demo.server import bind, configure, make_application

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    running = []

    def start(service: object, **options: object) -> str:
        if options.get("with_page", True):
            pytest.importorskip("gradio")
        bound = bind("127.0.0.1", 0)
        server = uvicorn.Server(configure(make_application(service, **options), head_seconds=1.0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{bound.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
