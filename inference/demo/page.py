"""The page in the browser, of gradio's core components; what happens behind it is in `Callbacks`."""

from __future__ import annotations

import html
from abc import ABCMeta
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from gradio.utils import get_upload_folder

from ...datasets.shapes import Shapes
from ...utils.errors import LocapError
from ...utils.untrusted import resolve_under
from .callbacks import HEADERS, HINTS, Callbacks, Desk
from .limits import KEEP_SECONDS, MAX_CHARACTERS, MAX_WAITING
from .service import Service, friendly

SCENES, SCENE_SIDE = 5, 384
SWEEP_SECONDS = 600
DESCRIBE, ASK = "Describe", "Ask"
CSS = """
.gradio-container {max-width: 1240px !important; margin: auto}
#heading h1 {margin: 0} #heading p {margin: 0; opacity: .7}
#examples .grid-wrap {max-height: 110px; min-height: 0}
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
        self.asks_words = "prompt" in callbacks.service.takes

    def build(self, keep_seconds: int = KEEP_SECONDS, sweep_seconds: int = SWEEP_SECONDS) -> gradio.Blocks:
        """Return the page; uploads and encoded images are forgotten after ``keep_seconds``."""
        name = f"locap · {self.callbacks.service.name}"
        with gradio.Blocks(title=name, analytics_enabled=False, delete_cache=(sweep_seconds, keep_seconds)) as page:
            self._lay_out(keep_seconds)
            self._connect()
        page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
        return page

    def _lay_out(self, keep_seconds: int) -> None:
        service = self.callbacks.service
        self.desk = gradio.State(None, time_to_live=keep_seconds)
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
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        light: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        opened = [self.desk, self.image, self.painting, self.place, self.text, self.picture, self.table]
        shown = [self.image, self.painting, self.phrase, self.place, self.hint, self.style, self.question]
        asked = [self.desk, self.mode, self.place, self.painting, self.phrase, self.style, self.question]
        answer: dict[str, Any] = {
            "fn": self.answer, "inputs": asked, "outputs": [self.picture, self.text, self.table], **model
        }  # fmt: skip
        self.image.upload(self.open_file, self.image, opened, api_name="open_image", **model)
        self.image.clear(self.clear, None, opened, **light)
        if len(self.callbacks.examples):
            self.examples.select(self.open_example, None, opened, api_visibility="private", **model)
        inputs = [self.desk, self.mode, self.chosen]
        self.image.select(self.click, inputs, [self.desk, self.image, self.place, self.chosen], **light)
        for change in (self.mode.change, self.style.change):
            change(self.change_mode, [self.desk, self.mode, self.style], shown, **light)
        self.chosen.change(**answer, api_visibility="private")
        self.button.click(**answer, api_name="caption")
        for box in (self.phrase, self.place, self.question):
            box.submit(**answer, api_visibility="private")

    def open_file(self, path: str | None) -> tuple[Any, ...]:
        """Take an uploaded image."""
        return self._opened(lambda: self.callbacks.open_file(path))

    def open_example(self, event: gradio.SelectData) -> tuple[Any, ...]:
        """Take an example."""
        return self._opened(lambda: self.callbacks.open_example(int(event.index)))

    def clear(self) -> tuple[Any, ...]:
        """Forget the image."""
        return None, None, None, "", "", None, []

    def click(self, desk: Desk | None, mode: str, chosen: int, event: gradio.SelectData) -> tuple[Any, ...]:
        """Take a click; a place that is complete is asked about."""
        desk, place = _told(lambda: self.callbacks.click(desk, mode, *event.index[:2]))
        return desk, np.asarray(self.callbacks.marked(desk, mode, place)), place, chosen + bool(place)

    def change_mode(self, desk: Desk | None, mode: str, style: str) -> tuple[Any, ...]:
        """Show what the mode needs."""
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
        self, desk: Desk | None, mode: str, place: str, painting: Any, phrase: str, style: str, question: str
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the picture, the captions and the table."""
        answers = self.callbacks.answer(
            desk,
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

    def _opened(self, take: Callable[[], Desk | None]) -> tuple[Any, ...]:
        desk = _told(take)
        if desk is None:
            return self.clear()
        return desk, desk.shown, _canvas(desk), "", "", None, []


def build_page(service: Service, examples: Sequence[np.ndarray] | None = None, **keep: int) -> gradio.Blocks:
    """Return the page of a service.

    Args:
        service: the system.
        examples: images to choose from, uint8 (height, width, 3) RGB; None draws scenes.
        keep: see `Page.build`.
    """
    if examples is None:
        scenes = Shapes(SCENES, seed=2, split="test", image_size=SCENE_SIDE)
        examples = [scenes[index].read_image() for index in range(SCENES)]
    return Page(Callbacks(service, examples)).build(**keep)


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
