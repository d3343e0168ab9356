"""The page in the browser, of gradio's core components; what happens behind it is in `Callbacks`."""

from __future__ import annotations

import html
from abc import ABCMeta
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from fastapi import HTTPException
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs
from gradio.utils import get_upload_folder

from ...datasets.shapes import Shapes
from ...utils.errors import LocapError, UsageError
from ...utils.untrusted import resolve_under
from .callbacks import HEADERS, HINTS, Callbacks, Desk
from .keeping import Kept
from .limits import (
    KEEP_SECONDS,
    MAX_CHARACTERS,
    MAX_LAYERS,
    MAX_PAINTING_BYTES,
    MAX_PAINTINGS,
    MAX_SESSION_BYTES,
    MAX_SESSIONS,
    MAX_WAITING,
)  # fmt: skip
from .service import Service, friendly

SCENES, SCENE_SIDE = 5, 384
DESCRIBE, ASK = "Describe", "Ask"
MAX_NAME = 64  # letters, of a session or a painting
CSS = """
.gradio-container {max-width: min(1240px, 100vw) !important; margin: auto}
#heading h1 {margin: 0} #heading p {margin: 0; opacity: .7}
#examples .grid-wrap {max-height: 110px; min-height: 0}
#mode .wrap, #style .wrap {flex-wrap: wrap}
.row > .column, .row > .column > * {min-width: min(320px, 100%) !important; max-width: 100%}
#caption textarea {font-size: 1.15em; line-height: 1.5}
"""


class _UploadedFiles:
    """Files that this page itself took; nothing is fetched, nothing else on this machine is opened."""

    is_template = True  # drawn as the component it derives from

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """Refuse addresses, and files beside the uploads."""
        if url_or_file_path is None:
            return None
        folder = Path(get_upload_folder()).resolve()
        try:
            path = resolve_under(folder, str(Path(str(url_or_file_path)).relative_to(folder)))
        except (ValueError, LocapError):
            raise gradio.Error("Only files uploaded here are opened.", print_exception=False) from None
        return await super().async_move_resource_to_block_cache(str(path))


class _ImageFile(_UploadedFiles):
    def preprocess(self, payload: Any) -> str | None:
        """Return the file, undecoded."""
        return None if payload is None else payload.path

    def get_block_name(self) -> str:
        """Return the name of the component in the browser."""
        return "image"


class _PaintingFiles(_UploadedFiles):
    """The brush; what it sends ahead of a question is bounded, in one place for the copies gradio makes per user."""

    kept = Kept(MAX_PAINTINGS, MAX_PAINTING_BYTES, KEEP_SECONDS)

    @property
    def blob_storage(self) -> Kept:
        """What was sent and not yet asked about."""
        return self.kept

    @blob_storage.setter
    def blob_storage(self, empty: dict[str, Any]) -> None:
        """Gradio gives every component an unbounded one."""

    @server
    def accept_blobs(self, data: AcceptBlobs) -> None:
        """Take a layer, see `gradio.ImageEditor`, which takes as many as it is told."""
        sent = getattr(data, "data", None)
        sent = sent if isinstance(sent, dict) else {}
        index = sent.get("index")
        known = isinstance(sent.get("id"), str) and len(sent["id"]) <= MAX_NAME and len(data.files) == 1
        if not known or (index not in (None, "", "null") and not (str(index).isdecimal() and int(index) < MAX_LAYERS)):
            raise HTTPException(400, "Not a painting.")
        super().accept_blobs(data)

    def convert_and_format_image(self, file: Any, flatten_on_white: bool = False) -> str | bytes | None:
        """Return the file of a layer, or its bytes, undecoded."""
        return file if file is None or isinstance(file, (bytes, bytearray, memoryview)) else file.path

    def get_block_name(self) -> str:
        """Return the name of the component in the browser."""
        return "imageeditor"


def _component(name: str, changes: type, component: type) -> type:
    """Derive a component; not by ``class``, for which gradio writes a file of type hints beside this one."""
    return ABCMeta.__new__(type(component), name, (changes, component), {"__module__": __name__})


UploadedImage = _component("UploadedImage", _ImageFile, gradio.Image)
UploadedPainting = _component("UploadedPainting", _PaintingFiles, gradio.ImageEditor)


class Page:
    """Connects gradio's events to the callbacks; every function here only translates values.

    Args:
        callbacks: what happens.
    """

    def __init__(self, callbacks: Callbacks) -> None:
        self.callbacks = callbacks
        self.desks = Kept(MAX_SESSIONS, MAX_SESSION_BYTES, KEEP_SECONDS)  # session -> Desk
        self.asks_words = "prompt" in callbacks.service.takes

    def build(self) -> gradio.Blocks:
        """Return the page."""
        with gradio.Blocks(title=f"locap · {self.callbacks.service.name}", analytics_enabled=False) as page:
            self._lay_out()
            self._connect()
        page.queue(max_size=MAX_WAITING, default_concurrency_limit=None)  # who is next is the service's business
        return page

    def _lay_out(self) -> None:
        service = self.callbacks.service
        self.chosen = gradio.Number(0, visible="hidden")  # how many places were chosen by clicks
        gradio.Markdown(f"# locap\nDescribe regions of an image · {service.name}", elem_id="heading")
        with gradio.Row():
            with gradio.Column(scale=1):
                self._lay_out_questions()
            with gradio.Column(scale=1):
                self._lay_out_answers()

    def _lay_out_questions(self) -> None:
        modes = self.callbacks.modes
        self.mode = gradio.Radio(modes, value=modes[0], show_label=False, container=False, elem_id="mode")
        self.hint = gradio.Markdown(HINTS[modes[0]], elem_id="hint")
        self.image = UploadedImage(
            sources=["upload", "clipboard"], show_label=False, height=400, format="jpeg", buttons=[], elem_id="image"
        )
        self.painting = UploadedPainting(
            sources=[], show_label=False, height=460, visible=False, transforms=[], layers=False, format="png",
            brush=gradio.Brush(colors=["#ff4060"], color_mode="fixed"), buttons=[], elem_id="painting",
        )  # fmt: skip
        self.phrase = gradio.Textbox(
            label="Phrase", placeholder="the red circle", visible=False, max_length=MAX_CHARACTERS, elem_id="phrase"
        )
        self.style = gradio.Radio([DESCRIBE, ASK], value=DESCRIBE, show_label=False, container=False,
                                  visible=self.asks_words, elem_id="style")  # fmt: skip
        self.question = gradio.Textbox(
            label="Question", placeholder="What is it made of?", visible=False, max_length=MAX_CHARACTERS
        )
        with gradio.Row():
            self.place = gradio.Textbox(
                label="Place (pixels)", placeholder="x0 y0 x1 y1", max_lines=1, scale=3, elem_id="place",
                visible=_has_place(modes[0]), max_length=200,
            )  # fmt: skip
            self.button = gradio.Button("Caption", variant="primary", scale=1, min_width=110, elem_id="button")
        if len(self.callbacks.examples):
            self.examples = gradio.Gallery(
                [np.asarray(image) for image in self.callbacks.examples], columns=5, height=112, show_label=False,
                allow_preview=False, interactive=False, buttons=[], object_fit="cover", elem_id="examples",
            )  # fmt: skip

    def _lay_out_answers(self) -> None:
        self.text = gradio.Textbox(
            label="Caption", lines=3, max_lines=8, interactive=False, buttons=["copy"], elem_id="caption"
        )
        self.picture = gradio.Image(
            show_label=False, interactive=False, height=400, format="png", buttons=["download", "fullscreen"],
            elem_id="picture",
        )  # fmt: skip
        self.table = gradio.Dataframe(
            headers=HEADERS, datatype="str", type="array", interactive=False, wrap=True, label="Regions",
            column_widths=["7%", "18%", "11%", "20%", "44%"], elem_id="table", max_height=260,
        )  # fmt: skip

    def _connect(self) -> None:
        light: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        opened = [self.image, self.painting, self.place, self.text, self.picture, self.table]
        shown = [self.image, self.painting, self.phrase, self.place, self.hint, self.style, self.question]
        asked = [self.mode, self.place, self.painting, self.phrase, self.style, self.question]
        answer: dict[str, Any] = {
            "fn": self.answer, "inputs": asked, "outputs": [self.picture, self.text, self.table],
            "show_progress_on": self.text,
        }  # fmt: skip
        self.image.upload(self.open_file, self.image, opened, api_name="open_image")
        self.image.clear(self.clear, None, opened, **light)
        if len(self.callbacks.examples):
            self.examples.select(self.open_example, None, opened, api_visibility="private")
        self.image.select(self.click, [self.mode, self.chosen], [self.image, self.place, self.chosen], **light)
        self.mode.change(self.change_mode, [self.mode, self.style], shown, **light)
        self.style.change(lambda style: gradio.update(visible=style == ASK), self.style, self.question, **light)
        self.chosen.change(**answer, api_visibility="private")
        self.button.click(**answer, api_name="caption")
        for box in (self.phrase, self.place, self.question):
            box.submit(**answer, api_visibility="private")

    def open_file(self, path: str | None, request: gradio.Request) -> tuple[Any, ...]:
        """Take an uploaded image."""
        return self._opened(request, lambda: self.callbacks.open_file(path))

    def open_example(self, event: gradio.SelectData, request: gradio.Request) -> tuple[Any, ...]:
        """Take an example."""
        return self._opened(request, lambda: self.callbacks.open_example(int(event.index)))

    def clear(self, request: gradio.Request) -> tuple[Any, ...]:
        """Forget the image."""
        self.desks.pop(_session(request), None)
        return None, None, "", "", None, []

    def click(self, mode: str, chosen: int, event: gradio.SelectData, request: gradio.Request) -> tuple[Any, ...]:
        """Take a click; a place that is complete is asked about."""
        desk, place = _told(lambda: self.callbacks.click(self._desk(request), mode, *event.index[:2]))
        self.desks[_session(request)] = desk
        return np.asarray(self.callbacks.marked(desk, mode, place)), place, chosen + bool(place)

    def change_mode(self, mode: str, style: str, request: gradio.Request) -> tuple[Any, ...]:
        """Show what the mode needs."""
        desk = self._desk(request)
        brush, words = mode == "Brush", self.asks_words and mode in ("Box", "Point", "Brush")
        return (
            gradio.update(visible=not brush, value=None if desk is None else desk.shown),
            gradio.update(visible=brush, value=_canvas(desk)),
            gradio.update(visible=mode == "Phrase"),
            gradio.update(visible=_has_place(mode), value=""),
            HINTS[mode],
            gradio.update(visible=words),
            gradio.update(visible=words and style == ASK),
        )

    def answer(
        self, mode: str, place: str, painting: Any, phrase: str, style: str, question: str, request: gradio.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the picture, the captions and the table."""
        answers = self.callbacks.answer(
            self._desk(request),
            mode,
            place=place,
            layers=(painting or {}).get("layers", ()),
            phrase=phrase,
            question=question if self.asks_words and style == ASK and mode != "Everything" else None,
        )
        try:
            while (answer := _told(lambda: next(answers, None))) is not None:
                picture = gradio.skip() if answer.picture is None else answer.picture
                yield picture, answer.text, answer.rows
        finally:
            answers.close()  # a user who leaves ends the generation

    def _desk(self, request: gradio.Request) -> Desk | None:
        return self.desks.get(_session(request))

    def _opened(self, request: gradio.Request, take: Callable[[], Desk | None]) -> tuple[Any, ...]:
        desk = _told(take)
        if desk is None:
            return self.clear(request)
        self.desks[_session(request)] = desk
        return desk.shown, _canvas(desk), "", "", None, []


def make_page(service: Service, examples: Sequence[np.ndarray] | None = None) -> Page:
    """Return the page of a service.

    Args:
        service: the system.
        examples: images to choose from, uint8 (height, width, 3) RGB; None draws scenes.
    """
    if examples is None:
        scenes = Shapes(SCENES, seed=2, split="test", image_size=SCENE_SIDE)
        examples = [scenes[index].read_image() for index in range(SCENES)]
    return Page(Callbacks(service, examples))


def _session(request: gradio.Request) -> str:
    """Return whose desk it is; a page has a session, and so have clients that wait in line."""
    return _told(lambda: _checked_session(request.session_hash))


def _checked_session(name: str | None) -> str:
    if not name or len(name) > MAX_NAME:
        raise UsageError("This request is of no session.", allowed="requests that wait in line")
    return name


def _canvas(desk: Desk | None) -> dict[str, Any] | None:
    return None if desk is None else {"background": desk.shown, "layers": [], "composite": None}


def _has_place(mode: str) -> bool:
    return mode in ("Box", "Point")


def _told(function: Callable[[], Any]) -> Any:
    """Call a function; a user error is shown on the page, where text is HTML."""
    try:
        return function()
    except LocapError as err:
        raise gradio.Error(html.escape(friendly(err)), print_exception=False) from None
