"""How detectron2 numbers classes, and how the library is imported: only where it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..utils.errors import DataError, MissingDependencyError
from .records import Category

LABEL_DIVISOR = 1000  # of panoptic maps without a list: class * divisor + number


def library(name: str) -> ModuleType:
    """Import a module of detectron2, such as "structures".

    Raises:
        MissingDependencyError: detectron2, or a package that it needs, is not installed.
    """
    try:
        return importlib.import_module(f"detectron2.{name}")
    except ModuleNotFoundError as err:
        raise MissingDependencyError(
            "detectron2 cannot be imported.",
            value=f"no module named {err.name}",
            fix="see requirements/detectron2.txt",
        ) from None


@dataclass(frozen=True, slots=True)
class Classes:
    """How detectron2 numbers the classes of a data set.

    Attributes:
        categories: the classes.
        things, stuff: number -> category id. Panoptic data of the "standard" kind numbers both together; the
            "separated" kind, as Panoptic FPN needs it, each on its own, stuff from 1.
    """

    categories: tuple[Category, ...]
    things: Mapping[int, int]
    stuff: Mapping[int, int]

    @classmethod
    def of(cls, categories: Sequence[Category] | Classes) -> Classes:
        """Number categories in their order, things and stuff together."""
        if isinstance(categories, Classes):
            return categories
        numbered = list(enumerate(categories))
        return cls(
            tuple(categories),
            {number: category.id for number, category in numbered if category.is_thing},
            {number: category.id for number, category in numbered if not category.is_thing},
        )

    @classmethod
    def of_metadata(cls, metadata: Any) -> Classes:
        """Read an entry of the MetadataCatalog; a class without an id of its data set has its number as id.

        Raises:
            DataError: it names no classes, or two have the same id.
        """
        things, stuff = _stated(metadata, "thing"), _stated(metadata, "stuff")
        stuff = {number: category for number, category in stuff.items() if category.name != "things"}
        if {(c.id, c.name) for c in things.values()} == {(c.id, c.name) for c in stuff.values()}:
            stuff = {}  # one list under both names, and nothing that tells them apart
        categories = (*things.values(), *stuff.values())
        if not categories or len({category.id for category in categories}) < len(categories):
            raise DataError(
                "An entry of the MetadataCatalog needs classes with distinct ids.",
                where=str(getattr(metadata, "name", "")),
                value=[category.name for category in categories][:5],
                allowed="thing_classes or stuff_classes; with both also <kind>_dataset_id_to_contiguous_id",
            )
        ids = ({number: category.id for number, category in kind.items()} for kind in (things, stuff))
        return cls(categories, *ids)

    def number_of(self, category_id: int | None, where: str) -> tuple[int, bool]:
        """Return the number of a category and whether it is a thing; no category is the only one there is."""
        if category_id is None and len(self.categories) == 1:
            category_id = self.categories[0].id
        for kind in (self.things, self.stuff):
            for number, known in kind.items():
                if known == category_id:
                    return number, kind is self.things
        raise DataError("A region has no category of the data set.", where=where, value=category_id)

    def id_of(self, number: int, is_thing: bool | None, where: str) -> int:
        """Return the id of a class; where things and stuff are numbered together, ``is_thing`` may be None or wrong."""
        first, second = (self.stuff, self.things) if is_thing is False else (self.things, self.stuff)
        if number in first or number in second:
            return first[number] if number in first else second[number]
        known = sorted({*self.things, *self.stuff})
        raise DataError("A class is not known.", where=where, value=number, allowed=f"{known[0]} to {known[-1]}")


def _stated(metadata: Any, kind: str) -> dict[int, Category]:
    """Return number -> category of a kind; those that the ids do not mention belong to the other kind."""
    names = getattr(metadata, f"{kind}_classes", None) or []
    colors = getattr(metadata, f"{kind}_colors", None) or [None] * len(names)
    ids = getattr(metadata, f"{kind}_dataset_id_to_contiguous_id", None)
    numbers = {number: number for number in range(len(names))} if ids is None else {n: i for i, n in ids.items()}
    return {
        number: Category(category_id, names[number], kind == "thing", tuple(colors[number]) if colors[number] else None)
        for number, category_id in sorted(numbers.items())
        if number < len(names)
    }
