"""One object for every system: an image goes in once, then regions are described and phrases are found.

captioner = locap.load("run_folder")
captioner.set_image("photo.jpg")
captioner.caption(boxes=[(10, 20, 200, 180)]).captions
captioner.locate("the red car").plot().save("car.png")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.records import Category, Record
from ..utils.devices import pick_device
from ..utils.errors import LocapError, UsageError
from .asks import Ask, check_ask, check_inside, check_words
from .engines import Engine, device_of, engine_of, make_engine
from .images import ImageInput, record_of_image
from .model_folder import find_model, push_model, read_folder, save_model
from .prompt_values import boxes_of, masks_of, points_of
from .results import Result
from .streams import Follow, changed_texts, stream_texts

BATCH_SIZE = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Item = ImageInput | tuple[ImageInput, Sequence[Ask]]


@dataclass(frozen=True, slots=True)
class Seen:
    """An encoded image; any number of them may be alive, so several users can share a captioner."""

    record: Record
    encoded: Any


class Captioner:
    """A system ready for images and questions.

    Several threads may share one: each image is encoded and each question answered under a lock. `see` and `ask` keep
    no state; `set_image` and what follows it are for one user.

    Args:
        engine: the system.
        cfg: the resolved configuration it was built from.
        dtype: what it computes in; the weights stay as they are.
    """

    def __init__(self, engine: Engine, cfg: Any, dtype: torch.dtype = torch.float32) -> None:
        self.engine, self.cfg, self.dtype = engine, cfg, dtype
        self._seen: Seen | None = None
        self._lock = threading.RLock()

    @classmethod
    def of_model(cls, model: nn.Module, cfg: Any, categories: Sequence[Category], *, dtype: str = "auto") -> Captioner:
        """Return a captioner of a model in memory, which stays on its device and goes into evaluation mode."""
        return cls(engine_of(model, cfg, categories), cfg, pick_dtype(dtype, device_of(model)))

    @property
    def model(self) -> nn.Module:
        """The system itself."""
        return self.engine.model

    @property
    def categories(self) -> tuple[Category, ...]:
        """The system's classes."""
        return self.engine.categories

    @property
    def takes(self) -> frozenset[str]:
        """The kinds of questions it answers: some of "box", "point", "mask", "text", and "prompt" (own words)."""
        return self.engine.takes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self.engine.model)

    def see(self, image: ImageInput) -> Seen:
        """Encode an image, for any number of calls of `ask`.

        Args:
            image: see `record_of_image`.

        Raises:
            DataError, UsageError: it is no image.
        """
        record = record_of_image(image)
        with self._computing():
            return Seen(record, self.engine.encode([record]))

    def ask(self, seen: Seen, asks: Sequence[Ask] = (), watch: Follow | None = None) -> Result:
        """Answer questions about an encoded image, all in one search; without any, describe everything.

        Args:
            seen: the image.
            asks: the questions.
            watch: is called after every step of the writing with the (region, text so far) that have changed, perhaps
                none, as `stream` yields them; what it raises ends the writing, and is raised here.

        Raises:
            UsageError: the system does not take such questions, or one lies outside the image.
        """
        self._check_about(seen.record, asks)
        look = None if watch is None else changed_texts(watch)
        with self._computing():
            (answered,) = self.engine.answer(seen.encoded, [seen.record], [asks], look)
        return self._result(answered, seen.record, asks)

    def stream(self, seen: Seen, asks: Sequence[Ask] = ()) -> Iterator[tuple[int, str]]:
        """Yield (region, text so far) while the texts are written, each whenever it has changed.

        The last text of a region is its caption. With beams it is the best so far, so earlier words may change.
        Regions count from 0 in the order of the result; -1 stands for words about the whole image. What is found but
        not described, as phrases are, does not appear. Closing the iterator ends the writing within one step.

        Raises:
            UsageError: as `ask`.
        """
        self._check_about(seen.record, asks)
        return stream_texts(lambda watch: self.ask(seen, asks, watch))

    def check(self, asks: Sequence[Ask]) -> None:
        """Raise UsageError when the system does not take one of these questions, or it makes no sense by itself."""
        for ask in asks:
            if not isinstance(ask, Ask):
                raise UsageError("Not a question.", value=ask, allowed='Ask("box", (x0, y0, x1, y1)) and the like')
            wanted = [ask.kind] + (["prompt"] if ask.prompt is not None else [])
            for kind in wanted:
                if kind not in self.takes:
                    raise UsageError(
                        f"This system takes no {kind}.",
                        value=str(ask),
                        allowed=", ".join(sorted(self.takes)) or "no prompts: it describes everything that it finds",
                    )
            check_ask(ask)

    def set_image(self, image: ImageInput) -> Captioner:
        """Encode an image for the questions that follow; returns itself."""
        self._seen = self.see(image)
        return self

    def caption(
        self,
        *,
        boxes: Sequence[Sequence[float]] | np.ndarray | Tensor = (),
        points: Sequence[Sequence[float]] | np.ndarray | Tensor = (),
        masks: Sequence[Any] | np.ndarray | Tensor = (),
        prompt: str | None = None,
    ) -> Result:
        """Describe regions of the image, all in one search.

        Systems that learnt from boxes and points take a mask by its tight box; those that learnt without prompts
        answer with the region of their own that fits best, and say in ``attributes["overlap"]`` how well (0 to 1).

        Args:
            boxes: (x0, y0, x1, y1) each, pixels of the original image; (N, 4) as array or tensor.
            points: (x, y) each.
            masks: bool (height, width) or run-length encoded, each; (N, height, width) as array or tensor.
            prompt: words of one's own instead of the system's, such as a question; without a region, about the whole
                image.

        Returns:
            A region per box, then per point, then per mask.

        Raises:
            UsageError: nothing is asked, or as `ask`.
        """
        seen = self._current()
        if prompt is not None:
            check_words(prompt, "prompt", what="prompt")
        values = [("box", box) for box in boxes_of(boxes)] + [("point", point) for point in points_of(points)]
        asks = [Ask(*value, prompt) for value in [*values, *(("mask", mask) for mask in masks_of(masks))]]
        if not asks and prompt is None:
            fix = "captioner.caption(boxes=[(x0, y0, x1, y1)]), or captioner.caption_everything()"
            raise UsageError("Nothing is asked.", allowed="boxes, points, masks or a prompt", fix=fix)
        whole = Ask("box", (0.0, 0.0, float(seen.record.width), float(seen.record.height)), prompt)
        return self.ask(seen, asks or [whole])

    def caption_everything(self) -> Result:
        """Find everything the system knows to find, and describe it."""
        return self.ask(self._current())

    def locate(self, text: str | Sequence[str]) -> Result:
        """Find what phrases refer to: a region per phrase, with a box and where the system has them a mask."""
        phrases = [text] if isinstance(text, str) or not isinstance(text, Iterable) else list(text)
        if not phrases:
            raise UsageError("Nothing is asked.", allowed="a phrase or several", fix='captioner.locate("the red car")')
        return self.ask(self._current(), [Ask("text", phrase) for phrase in phrases])

    def batch(
        self,
        items: Iterable[Item],
        *,
        batch_size: int = BATCH_SIZE,
        on_error: Callable[[Item, LocapError], None] | None = None,
    ) -> Iterator[Result]:
        """Answer about many images, several at once; one batch of them is in memory at a time.

        Args:
            items: images, or (image, questions).
            batch_size: images encoded, and answered about, together.
            on_error: is told of an item that cannot be used, which is then left out; None: the error is raised, after
                the results of all items before.

        Yields:
            The results, in the order of the items.
        """
        if batch_size < 1:
            raise UsageError("A batch needs an image.", where="batch_size", value=batch_size, allowed="1 or more")
        if isinstance(items, (str, Path)):
            raise UsageError("A batch is a list of images.", where="items", value=str(items), fix="batch([image])")
        return self._batches(items, batch_size, on_error)

    def _batches(self, items: Iterable[Item], batch_size: int, on_error: Any) -> Iterator[Result]:
        group: list[tuple[Item, Record, Sequence[Ask]]] = []
        for item in items:
            try:
                group.append(self._prepared(item))
            except LocapError as err:
                if on_error is None:
                    yield from self._together(group, None)
                    raise
                on_error(item, err)
            if len(group) == batch_size:
                yield from self._together(group, on_error)
                group = []
        yield from self._together(group, on_error)

    def _prepared(self, item: Item) -> tuple[Item, Record, Sequence[Ask]]:
        if isinstance(item, tuple) and len(item) != 2:
            raise UsageError("Not an item of a batch.", value=item, allowed="an image, or (image, [Ask(...), ...])")
        image, asks = item if isinstance(item, tuple) else (item, ())
        record = record_of_image(image)
        self._check_about(record, asks)
        return item, record, asks

    def _together(self, group: list[tuple[Item, Record, Sequence[Ask]]], on_error: Any) -> Iterator[Result]:
        """Answer about a group; where that fails, one by one to find out whose fault it is."""
        if not group:
            return
        items, records, asks = zip(*group, strict=True)
        try:
            with self._computing():
                answered = self.engine.answer(self.engine.encode(records), records, asks)
        except LocapError as err:
            if len(group) > 1:
                answered = None
            elif on_error is None:
                raise
            else:
                return on_error(items[0], err)
        if answered is None:
            for one in group:
                yield from self._together([one], on_error)
        else:
            yield from (self._result(*row) for row in zip(answered, records, asks, strict=True))

    def save(self, folder: str | Path, *, license: str = "other") -> Path:
        """Write a model folder, see `save_model`; `load` takes it anywhere."""
        return save_model(self, folder, license=license)

    def push_to_hub(
        self, name: str, *, private: bool = False, token: str | None = None, revision: str | None = None
    ) -> str:
        """Upload a model folder as ``owner/name``, see `push_model`; returns its address."""
        return push_model(self, name, private=private, token=token, revision=revision)

    def _check_about(self, record: Record, asks: Sequence[Ask]) -> None:
        self.check(asks)
        check_inside(asks, record.height, record.width, str(record.image_id))

    def _result(self, answered: Record, record: Record, asks: Sequence[Ask]) -> Result:
        return Result(answered, self.categories, record.read_image(), tuple(asks))

    def _computing(self) -> ExitStack:
        """One thread at a time, without gradients, in the precision asked for."""
        stack = ExitStack()
        stack.enter_context(self._lock)
        stack.enter_context(torch.inference_mode())
        half = self.dtype != torch.float32
        stack.enter_context(torch.autocast(self.device.type, self.dtype if half else None, enabled=half))
        return stack

    def _current(self) -> Seen:
        if self._seen is None:
            raise UsageError("There is no image yet.", fix='captioner.set_image("photo.jpg")')
        return self._seen


def load(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> Captioner:
    """Return a system ready for images.

    Args:
        name_or_path: a model folder, a run folder, or a name on the Hugging Face hub.
        device: "auto" takes a GPU when there is one.
        dtype: "auto", "fp32", "bf16" or "fp16"; "auto" is bf16 on a GPU that computes in it, else fp32.
        overrides: configuration keys -> values, such as ``{"MODEL.TEXT_DECODER.BEAM_SIZE": 1}``.

    Raises:
        UsageError, CheckpointError, MissingDependencyError: the folder, its weights or the hub cannot be used.
    """
    place = pick_device(device)
    computed = pick_dtype(dtype, place)
    pairs = [str(part) for item in (overrides or {}).items() for part in item]
    cfg = read_folder(find_model(name_or_path), pairs)
    return Captioner(make_engine(cfg, place), cfg, computed)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Return what to compute in; "auto" is bf16 on a GPU that computes in it, else fp32.

    Raises:
        UsageError: there is no such type, or not on this device.
    """
    if wanted == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if wanted not in DTYPES:
        raise UsageError("Unknown type of numbers.", where="dtype", value=wanted, allowed=f"auto, {', '.join(DTYPES)}")
    if wanted == "fp16" and device.type == "cpu":
        raise UsageError("fp16 needs a GPU.", where="dtype", value=wanted, allowed="on a CPU: auto, fp32, bf16")
    return DTYPES[wanted]
