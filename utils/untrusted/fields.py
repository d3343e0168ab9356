"""Fields of parsed JSON: there, and of the right type, or a message that names the place."""

from __future__ import annotations

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


def objects(document: Any, where: str, key: str | None = None) -> list[tuple[dict[str, Any], str]]:
    """Return the objects of a list, or of the list under ``key``, each with its place.

    Raises:
        DataError: there is no such list, or an item is no object.
    """
    name = "list" if key is None else key
    items = get({name: document} if key is None else document, name, (list,), where)
    places = [f"{'' if key is None else key}[{i}]" for i in range(len(items))]
    return [
        (get({place: item}, place, (dict,), where), f"{where}: {place}")
        for place, item in zip(places, items, strict=True)
    ]
