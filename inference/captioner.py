"""One object for every system: an image goes in once, then regions are described and phrases are found.

captioner = locap.load("run_folder")
captioner.set_image("photo.jpg")
captioner.caption(boxes=[(10, 20, 200, 180)]).captions
captioner.locate("the red car").plot().save("car.png")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.records import Category, Record
from ..utils.devices import pick_device
from ..utils.errors import UsageError
from .asks import Ask, check_inside
from .engines import Engine, make_engine
from .model_folder import find_model, push_model, read_folder, save_model
from .predictor import record_of_image
from .results import Result

ImageInput = Any  # a path, a PIL image, uint8 (height, width, 3) RGB, or a tensor (3, height, width)
BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """An encoded image; any number of them may be alive, so several users can share a captioner."""

    record: Record
    encoded: Any


class Captioner:
    """A system ready for images and questions.

    Args:
        engine: the system.
        cfg: the resolved configuration it was built from.
    """

    def __init__(self, engine: Engine, cfg: Any) -> None:
        self.engine, self.cfg = engine, cfg
        self._seen: Seen | None = None

    @property
    def categories(self) -> tuple[Category, ...]:
        """The system's classes."""
        return self.engine.categories

    @property
    def takes(self) -> frozenset[str]:
        """The kinds of questions it answers."""
        return self.engine.takes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.engine.model.parameters()).device

    def see(self, image: ImageInput) -> Seen:
        """Encode an image, for any number of calls of `ask`."""
        record = record_of_image(image)
        return Seen(record, self.engine.encode([record]))

    def ask(self, seen: Seen, asks: Sequence[Ask] = ()) -> Result:
        """Answer questions about an encoded image; without any, describe everything.

        Raises:
            UsageError: the system does not take such questions, or one lies outside the image.
        """
        self.check(asks)
        check_inside(asks, seen.record.height, seen.record.width, str(seen.record.image_id))
        (record,) = self.engine.answer(seen.encoded, [seen.record], [asks])
        return Result(record, self.categories, seen.record.read_image(), tuple(asks))

    def check(self, asks: Sequence[Ask]) -> None:
        """Raise UsageError when the system does not take one of these questions."""
        for ask in asks:
            if ask.kind not in self.takes:
                raise UsageError(
                    f"This system takes no {ask.kind}.",
                    value=str(ask),
                    allowed=", ".join(sorted(self.takes)) or "no prompts: it describes everything that it finds",
                )

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

        Args:
            boxes: (x0, y0, x1, y1) each, pixels of the original image.
            points: (x, y) each.
            masks: bool (height, width) or run-length encoded, each.
            prompt: words of one's own instead of the system's, such as a question.

        Returns:
            A region per box, then per point, then per mask.
        """
        asks = [Ask("box", tuple(map(float, box))) for box in boxes]
        asks += [Ask("point", tuple(map(float, point))) for point in points]
        return self.ask(self._current(), asks)

    def caption_everything(self) -> Result:
        """Find everything the system knows to find, and describe it."""
        return self.ask(self._current())

    def locate(self, text: str | Sequence[str]) -> Result:
        """Find what phrases refer to: a region per phrase, with a box and where the system has them a mask."""
        phrases = [text] if isinstance(text, str) else list(text)
        return self.ask(self._current(), [Ask("text", phrase) for phrase in phrases])

    def batch(
        self, items: Iterable[ImageInput | tuple[ImageInput, Sequence[Ask]]], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[Result]:
        """Answer about many images, several at once.

        Args:
            items: images, or (image, questions).
            batch_size: images encoded together.
        """
        for item in items:
            image, asks = item if isinstance(item, tuple) else (item, ())
            yield self.ask(self.see(image), asks)

    def save(self, folder: str | Path, *, license: str = "other") -> Path:
        """Write a model folder, see `save_model`; `load` takes it anywhere."""
        return save_model(self, folder, license=license)

    def push_to_hub(
        self, name: str, *, private: bool = False, token: str | None = None, revision: str | None = None
    ) -> str:
        """Upload a model folder as ``owner/name``, see `push_model`; returns its address."""
        return push_model(self, name, private=private, token=token, revision=revision)

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
        dtype: "auto", "fp32", "bf16" or "fp16"; "auto" is fp32 on a CPU.
        overrides: configuration keys -> values, such as ``{"MODEL.TEXT_DECODER.BEAM_SIZE": 1}``.

    Raises:
        UsageError, CheckpointError, MissingDependencyError: the folder, its weights or the hub cannot be used.
    """
    pairs = [str(part) for item in (overrides or {}).items() for part in item]
    cfg = read_folder(find_model(name_or_path), pairs)
    return Captioner(make_engine(cfg, pick_device(device)), cfg)
