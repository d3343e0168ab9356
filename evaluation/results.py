"""What a protocol hands back, and what every protocol object has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..datasets.records import Category, Record
from ..utils.errors import DataError, UsageError, nearest

ImageId = int | str
State = dict[str, Any]


Row = tuple[Any, ...]


class LaterRows(Sequence[Row]):
    """Rows that are made when they are first asked for: of many predictions they take longer than the figures."""

    def __init__(self, make: Callable[[], list[Row]]) -> None:
        self._make, self._rows = make, None

    def __getitem__(self, index: int | slice) -> Any:
        if self._rows is None:
            self._rows = self._make()
        return self._rows[index]

    def __len__(self) -> int:
        return len(self[:])

    def __eq__(self, other: object) -> bool:
        return self[:] == other[:] if isinstance(other, (LaterRows, list)) else NotImplemented

    __hash__ = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain values under named columns."""

    columns: tuple[str, ...]
    rows: Sequence[Row]


@dataclass(slots=True)
class ProtocolResult:
    """The figures of one protocol on one set of predictions.

    Attributes:
        figures: name -> value; fractions (a perfect prediction scores 1), CIDEr alone reaches 10.
        tables: breakdowns, e.g. per class.
        counts: how many images, segments, matches … the figures rest on.
        unavailable: figure, or the part that is only approximate -> what the machine lacks for it (Java, …); the
            command then leaves with exit code 5.
        undefined: figure -> why the data give no such figure. Neither kind is in ``figures``.
        notes: what a reader of the figures must know.
        regions: one row per region, for the CSV.
    """

    protocol: str
    variant: str
    figures: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    regions: Table | None = None


class ImageEvaluator(ABC):
    """A protocol whose memory is one small JSON-able entry per image.

    Entries are merged by image id and read in a fixed order, so any number of ranks gives the figures of one rank
    to the last bit, whatever the order of the images.

    Args:
        categories: the classes of the data set.
        variant: one of the protocol's ``variants``.
        image_order: the ids of all images in the order of the ground truth, for the variants whose figures depend on
            it; they use the order of the ids when it is not given.

    Raises:
        UsageError: the protocol has no such variant.
    """

    protocol: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ("standard",)
    options: ClassVar[Mapping[str, str]] = {}  # keyword argument that a command line may give -> what it is
    decisive: ClassVar[tuple[str, ...]] = ()  # options that change what the figures mean; result files name only these

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
    ) -> None:
        if variant not in self.variants:
            close = nearest(str(variant), self.variants)
            raise UsageError(
                f"The protocol {self.protocol} has no such variant.",
                value=variant,
                allowed=", ".join(self.variants),
                fix=f"use {close}" if close else None,
            )
        self.variant = variant
        self.categories = {category.id: category for category in categories}
        self.image_order = image_order
        self._entries: dict[ImageId, Any] = {}

    def update(self, record: Record, prediction: Record) -> None:
        """Measure one image.

        Raises:
            DataError: the two are of different images or sizes, or the image has been measured before.
        """
        where = f"image_id {record.image_id}"
        if record.image_id != prediction.image_id:
            raise DataError(
                "A prediction was paired with another image's ground truth.", where=where, value=prediction.image_id
            )
        if (record.height, record.width) != (prediction.height, prediction.width):
            raise DataError(
                "The prediction has another size than its image.",
                where=where,
                value=f"height {prediction.height}, width {prediction.width}",
                allowed=f"height {record.height}, width {record.width}",
            )
        self._require_new([record.image_id])
        self._entries[record.image_id] = self._measure(record, prediction)

    def warm_up(self) -> None:  # noqa: B027 - most protocols have nothing to start
        """Start what takes long to start, in the background; does nothing when the machine lacks it."""

    def merge(self, other: ImageEvaluator) -> None:
        """Take over the images measured by another object of this protocol; none may have been measured by both."""
        self.merge_state(other.state())

    def state(self) -> State:
        """Return the memory as plain JSON values, for `merge_state` on another rank."""
        return {
            "protocol": self.protocol,
            "variant": self.variant,
            "images": [[image_id, entry] for image_id, entry in self._entries.items()],
        }

    def merge_state(self, state: Mapping[str, Any]) -> None:
        """Add the images of another rank's `state`.

        Raises:
            DataError: an image is in both, or the state is another protocol's.
        """
        if (state["protocol"], state["variant"]) != (self.protocol, self.variant):
            raise DataError(
                "The state belongs to another protocol.",
                value=f"{state['protocol']} ({state['variant']})",
                allowed=f"{self.protocol} ({self.variant})",
            )
        images = [(image_id, entry) for image_id, entry in state["images"]]
        self._require_new([image_id for image_id, _ in images])
        self._entries.update(images)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Forget everything and take over `state`."""
        self._entries = {}
        self.merge_state(state)

    @abstractmethod
    def compute(self) -> ProtocolResult:
        """Return the figures over all images measured or merged so far."""

    @abstractmethod
    def _measure(self, record: Record, prediction: Record) -> Any:
        """Return the JSON-able entry of one image."""

    def _ordered(self, *, as_ground_truth: bool = False) -> list[tuple[ImageId, Any]]:
        """Return (image id, entry) in the order of the ids, or in that of the ground truth where it is known."""
        ids = sorted(self._entries, key=id_key)
        if as_ground_truth and self.image_order is not None:
            rank = {image_id: index for index, image_id in enumerate(self.image_order)}
            ids.sort(key=lambda image_id: rank.get(image_id, len(rank)))
        return [(image_id, self._entries[image_id]) for image_id in ids]

    def _require_new(self, ids: Sequence[ImageId]) -> None:
        twice = [image_id for image_id in ids if image_id in self._entries]
        if not twice and len(set(ids)) < len(ids):
            twice = [image_id for image_id in set(ids) if list(ids).count(image_id) > 1]
        if twice:
            raise DataError(
                f"{len(twice)} image(s) were evaluated twice.",
                where=f"protocol {self.protocol}",
                value=first_ids(twice),
                allowed="each image once",
            )


def id_key(image_id: ImageId) -> tuple[bool, ImageId]:
    """Return a sort key under which numbers come before strings."""
    return (isinstance(image_id, str), image_id)


def first_ids(ids: Sequence[ImageId], limit: int = 5) -> str:
    """Return the first ids for a message: ``7, 12, 15, … (40 in all)``."""
    shown = ", ".join(str(image_id) for image_id in sorted(ids, key=id_key)[:limit])
    return shown if len(ids) <= limit else f"{shown}, … ({len(ids)} in all)"
