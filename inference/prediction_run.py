"""Many images in, a line of predictions and a picture each out."""

from __future__ import annotations

import itertools
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..datasets.readers import SHAPES_SPLITS, open_dataset
from ..datasets.readers.own_files import open_file
from ..datasets.readers.record_file import header
from ..datasets.records import Category, Record, Region, encode_mask
from ..datasets.shapes import Shapes
from ..modeling.systems import find_system
from ..utils import untrusted
from ..utils.errors import DataError, LocapError, UsageError
from ..utils.files import atomic_path, write_text
from ..utils.progress import ProgressBar
from .asks import Ask, check_inside
from .captioner import BATCH_SIZE, Captioner, pick_dtype
from .engines import make_engine
from .html_page import figures_page, result_figure
from .results import Result

MOST_TABLES = 10  # images up to which each has a table on the terminal
MOST_ON_PAGE = 100
_PICTURES_AHEAD = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about an image.

    Attributes:
        image: its file; or a record that has it.
        asks: empty: everything.
        ids: of the regions asked about, where a file gave them.
    """

    image: str | Record
    asks: tuple[Ask, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def path(self) -> str | None:
        """The image's file, if it is one."""
        image = self.image if isinstance(self.image, str) else self.image.image
        return image if isinstance(image, str) else None

    @property
    def name(self) -> str:
        """Of the image."""
        return self.path or str(self.image.image_id)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is written where.

    Attributes:
        folder: the folder.
        name: of the files, without suffix; None: ``predictions``, and each picture has its image's.
        pictures: draw each image.
        page: write ``index.html`` of the first `MOST_ON_PAGE` images.
    """

    folder: Path
    name: str | None = None
    pictures: bool = True
    page: bool = False


def questions(
    cfg: Any,
    images: Sequence[str],
    asks: Sequence[Ask],
    *,
    regions: str | None = None,
    prompt: str | None = None,
    normalized: bool = False,
) -> list[Question]:
    """Return the questions of a command line.

    Args:
        cfg: the configuration, whose first test image is taken where no image is given.
        images: files.
        asks: about each of them.
        regions: a file of one's own (`open_file`): its images, and a question per region; in place of images and asks.
            What is answered keeps the ids of images and regions, so the answers can be evaluated against the file.
        prompt: words of one's own about each region of the file.
        normalized: boxes and points are shares of width and height.

    Raises:
        DataError: the record file cannot be read.
        UsageError: a box or point lies outside an image.
    """
    if regions is not None:
        reader = open_file(regions, cfg.DATASETS.ROOT or None)
        return [_of_record(reader[index], prompt) for index in range(len(reader))]
    if not images:
        return [Question(first_test_image(cfg), tuple(asks))]
    return [Question(image, _placed(asks, image, normalized)) for image in images]


def _of_record(record: Record, prompt: str | None) -> Question:
    image = Record(record.image_id, record.height, record.width, record.image)
    asks = tuple(_ask_of(region, record, prompt) for region in record.regions)
    return Question(image, asks, tuple(region.id for region in record.regions))


def _ask_of(region: Region, record: Record, prompt: str | None) -> Ask:
    """Return the question that a region's geometry, or its words, put; a box that leaves the image is cut."""
    if region.mask is not None or (record.id_map is not None and region.box_xyxy is None):
        return Ask("mask", region.mask or encode_mask(record.read_mask(region)), prompt)
    if region.box_xyxy is not None:
        x0, y0, x1, y1 = region.box_xyxy
        inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(record.width)), min(y1, float(record.height)))
        return Ask("box", inside if inside[0] < inside[2] and inside[1] < inside[3] else region.box_xyxy, prompt)
    if region.points:
        return Ask("point", region.points[0], prompt)
    if region.expressions:
        return Ask("text", region.expressions[0])
    raise DataError(
        "A region has neither a place nor an expression.", where=f"image {record.image_id}, region {region.id}"
    )


def _placed(asks: Sequence[Ask], image: str, normalized: bool) -> tuple[Ask, ...]:
    """Return the questions in the image's pixels; an image that cannot be read is found when its turn comes."""
    if not any(ask.kind in ("box", "point") for ask in asks):
        return tuple(asks)
    try:
        height, width = untrusted.read_image_size(image)
    except LocapError:
        return tuple(asks)
    if normalized:
        asks = [_scaled(ask, width, height) for ask in asks]
    check_inside(asks, height, width, Path(image).name)
    return tuple(asks)


def _scaled(ask: Ask, width: int, height: int) -> Ask:
    if ask.kind not in ("box", "point"):
        return ask
    sides = itertools.cycle((width, height))
    return replace(ask, value=tuple(share * side for share, side in zip(ask.value, sides, strict=False)))


def first_test_image(cfg: Any) -> Record:
    """Return the first record of DATASETS.TEST."""
    if not cfg.DATASETS.TEST:
        raise UsageError("There is no image.", fix="give an image file, or name a data set in DATASETS.TEST")
    name = cfg.DATASETS.TEST[0].rpartition(":")[2]  # a task may stand before it
    if name in SHAPES_SPLITS:
        return Shapes(1, seed=cfg.SHAPES.SEED, split=SHAPES_SPLITS[name], image_size=cfg.SHAPES.IMAGE_SIZE)[0]
    return open_dataset(name, cfg.DATASETS.ROOT or None)[0]


def predict_images(
    cfg: Any,
    asked: Sequence[Question],
    outputs: Outputs,
    *,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    batch_size: int = 0,
    inputs: Sequence[str] = (),
) -> int:
    """Answer the questions and write the answers as they come; returns the exit code.

    An image that cannot be read costs itself: it is told, the others go on, and the exit code is 3. When there is only
    one image, its error is the command's.

    Args:
        cfg: the resolved configuration; RESUME_FROM names the weights.
        asked: the images and what is asked about each.
        outputs: see there.
        device, dtype: what to compute on and with.
        batch_size: images at once; 0: `BATCH_SIZE`, or one when there is only one.
        inputs: files besides the images that are read, and never written over.

    Raises:
        UsageError: the predictions would be written over what is read.
    """
    check_answerable(cfg, [ask for question in asked for ask in question.asks])
    captioner = Captioner(make_engine(cfg, device), cfg, pick_dtype(dtype, torch.device(device)))
    size = batch_size or min(BATCH_SIZE, len(asked))
    own = {Path(path).resolve() for path in (*(question.path for question in asked), *inputs) if path}
    with Writer(outputs, captioner.categories, len(asked), own) as writer:
        for result in captioner.batch(writer.handed_out(asked), batch_size=size, on_error=writer.skip):
            writer.write(result)
    return writer.exit_code


def check_answerable(cfg: Any, asks: Sequence[Ask]) -> None:
    """Raise UsageError when the configured system takes no such questions; before anything is loaded."""
    takes = find_system(cfg.MODEL.NAME).takes(cfg)
    for ask in asks:
        for kind in [ask.kind] + (["prompt"] if ask.prompt is not None else []):
            if kind not in takes:
                raise UsageError(
                    f"This system takes no {kind}.",
                    where=f"--{kind}",
                    value=cfg.MODEL.NAME,
                    allowed=", ".join(f"--{kind}" for kind in sorted(takes)) or "no prompts: it describes all it finds",
                    fix=f"leave out --{kind}",
                )


@dataclass(slots=True)
class Writer(AbstractContextManager):
    """Writes results in the order of the questions: the line first, then the picture, drawn beside the next images.

    Memory does not grow with the number of images: a few pictures are ahead at most, and the page keeps figures.

    Attributes:
        images: files that are read, and never written over.
        skipped: (image, exit code) of those that could not be read; errors themselves would keep pixels alive.
    """

    outputs: Outputs
    categories: Sequence[Category]
    total: int
    images: Set[Path] = frozenset()
    skipped: list[tuple[str, int]] = field(default_factory=list)
    _pending: deque[Question] = field(default_factory=deque)
    _drawing: deque[Future] = field(default_factory=deque)
    _taken: set[str] = field(default_factory=set)
    _ids: set[int | str] = field(default_factory=set)
    _figures: list[str] = field(default_factory=list)
    _written: int = 0
    _file: Any = None
    _pool: ThreadPoolExecutor | None = None
    _bar: ProgressBar | None = None

    def __enter__(self) -> Writer:
        for path in (self.path, *([self.outputs.folder / "index.html"] if self.outputs.page else [])):
            if path.resolve() in self.images:
                fix = "give another --output folder, or another --name"
                raise UsageError("A file that is read would be written over.", value=str(path), fix=fix)
        self._pool = ThreadPoolExecutor(1)
        self._bar = ProgressBar("predicting", self.total)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._bar.close()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if self._file is not None:
            self._file.close()
        if kind is None:
            while self._drawing:
                self._drawing.popleft().result()
            self._finish()

    @property
    def exit_code(self) -> int:
        """0, or that of the first image that was left out."""
        return self.skipped[0][1] if self.skipped else 0

    @property
    def path(self) -> Path:
        """Of the predictions."""
        return self.outputs.folder / f"{self.outputs.name or 'predictions'}.jsonl"

    def handed_out(self, asked: Iterable[Question]) -> Iterator[tuple[Any, tuple[Ask, ...]]]:
        """Yield what `Captioner.batch` takes, and remember what is under way."""
        for question in asked:
            self._pending.append(question)
            yield question.image, question.asks

    def skip(self, item: Any, error: Exception) -> None:
        """Leave an image out; that of a single one is raised."""
        if not isinstance(error, LocapError) or self.total == 1:
            raise error
        question = next(q for q in self._pending if q.image is item[0])
        self._pending.remove(question)
        self.skipped.append((question.name, error.exit_code))
        _log.warning("left out: %s: %s", question.name, " ".join(str(error).split()))
        self._bar.advance(1, f"{len(self.skipped)} left out")

    def write(self, result: Result) -> None:
        """Write the next result."""
        question = self._pending.popleft()
        self._append(replace(result, record=self._identified(result.record, question)).to_json())
        stem = self._unused(self.outputs.name or Path(question.name).stem)
        if self.outputs.pictures:
            self._draw(result, self.outputs.folder / f"{stem}.png")
        if self.outputs.page and len(self._figures) < MOST_ON_PAGE:
            self._figures.append(result_figure(result))
        if self.total <= MOST_TABLES:
            result.print(Console())
        self._written += 1
        self._bar.advance()

    def _identified(self, record: Record, question: Question) -> Record:
        """Return the record as it is stored: with its file, an id that no other has, and ids of regions as asked."""
        image_id = record.image_id
        if isinstance(question.image, str) and image_id in self._ids:  # of another folder
            names = itertools.chain([question.name], (f"{question.name} ({n})" for n in itertools.count(2)))
            image_id = next(name for name in names if name not in self._ids)
        self._ids.add(image_id)
        regions = record.regions
        if question.ids:
            regions = [replace(region, id=number) for region, number in zip(regions, question.ids, strict=True)]
        return replace(record, image_id=image_id, image=question.path, regions=regions)

    def _append(self, line: dict[str, Any]) -> None:
        """Write one whole line; nothing is there before the first image is through."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
            self._write_line(header(self.categories, {}))
        self._write_line(line)

    def _write_line(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def _draw(self, result: Result, path: Path) -> None:
        def draw() -> None:
            with atomic_path(path) as temporary:
                result.plot().save(temporary, compress_level=1)  # half the time of a picture, a fifth more bytes

        self._drawing.append(self._pool.submit(draw))
        while len(self._drawing) > _PICTURES_AHEAD:
            self._drawing.popleft().result()

    def _unused(self, stem: str) -> str:
        """Return the stem, with a number where it is taken or its picture would be one of the images, and take it."""
        for chosen in itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2))):
            if chosen not in self._taken and (self.outputs.folder / f"{chosen}.png").resolve() not in self.images:
                break
        self._taken.add(chosen)
        return chosen

    def _finish(self) -> None:
        if self._figures:
            write_text(self.outputs.folder / "index.html", figures_page(self._figures, "locap: predictions"))
        if self._written:
            pictures = f", pictures in {self.outputs.folder}" if self.outputs.pictures else ""
            _log.info("written: %s (%d images)%s", self.path, self._written, pictures)
        if self.skipped:
            _log.warning("%d of %d images could not be read: %s", len(self.skipped), self.total, self._names())

    def _names(self) -> str:
        names = [name for name, _ in self.skipped[:5]]
        return ", ".join(names) + (", ..." if len(self.skipped) > 5 else "")
