"""Fields of parsed JSON: there, and of the right type, or a message that names the place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import DataError


def get(body: Any, key: str, types: tuple[type, ...], where: str) -> Any:
    """Return ``body[key]``; a whole number written as 7.0 is 7 where an int is asked for.

    Raises:
        DataError: it is missing, or of none of the types (a bool is no number).
    """
    value = body.get(key) if isinstance(body, dict) else None
    if isinstance(value, float) and float not in types and int in types and value.is_integer():
        return int(value)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        names = " or ".join(kind.__name__ for kind in types)
        raise DataError(f'"{key}" is missing or of the wrong type.', where=where, value=value, allowed=names)
    return value


def each_object(document: Any, where: str, key: str | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of a list, or of the list under ``key``, each with its place.

    Raises:
        DataError: there is no such list, or an item is no object.
    """
    name = "list" if key is None else key
    for i, item in enumerate(get({name: document} if key is None else document, name, (list,), where)):
        place = f"{'' if key is None else key}[{i}]"
        if not isinstance(item, dict):
            raise DataError(f'"{place}" is missing or of the wrong type.', where=where, value=item, allowed="dict")
        yield item, f"{where}: {place}"


def objects(document: Any, where: str, key: str | None = None) -> list[tuple[dict[str, Any], str]]:
    """Return what `each_object` yields."""
    return list(each_object(document, where, key))
