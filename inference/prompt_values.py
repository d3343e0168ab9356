"""Boxes, points and masks as users have them: lists, arrays, tensors, run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..datasets.records import encode_mask
from ..utils import untrusted
from ..utils.errors import UsageError

Numbers = Sequence[Sequence[float]] | np.ndarray | Tensor


def boxes_of(given: Numbers) -> list[tuple[float, ...]]:
    """Return boxes (x0, y0, x1, y1) as tuples.

    Raises:
        UsageError: they are not N rows of four numbers.
    """
    return _rows(given, 4, "boxes", "(x0, y0, x1, y1)")


def points_of(given: Numbers) -> list[tuple[float, ...]]:
    """Return points (x, y) as tuples; raises as `boxes_of`."""
    return _rows(given, 2, "points", "(x, y)")


def masks_of(given: Sequence[Any] | np.ndarray | Tensor) -> list[Mapping[str, Any]]:
    """Return masks run-length encoded.

    Args:
        given: N of them: bool (height, width), or 0 and 1 or 255 as uint8, or run-length encoded.

    Raises:
        UsageError: one is nothing of the kind.
        DataError: a run-length encoding is damaged.
    """
    allowed = "bool masks (N, height, width), or run-length encoded ones, in a list"
    if isinstance(given, Mapping) or (isinstance(given, (np.ndarray, Tensor)) and given.ndim != 3 and len(given)):
        value = "one run-length encoded mask" if isinstance(given, Mapping) else f"shape {tuple(given.shape)}"
        raise UsageError("Not a list of masks.", where="masks", value=value, allowed=allowed, fix="masks=[mask]")
    return [_mask(mask, f"masks[{index}]") for index, mask in enumerate(given)]


def _mask(mask: Any, where: str) -> Mapping[str, Any]:
    if isinstance(mask, Mapping):
        counts = mask.get("counts")
        if isinstance(counts, list):  # plain run lengths, as in COCO's crowds
            return encode_mask(untrusted.decode_rle(mask))
        mask = {**mask, "counts": counts.decode("ascii", "replace")} if isinstance(counts, bytes) else mask
        untrusted.decode_rle(mask)
        return mask
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    plain = values.dtype == bool or (values.dtype == np.uint8 and np.isin(values, (0, 1, 255)).all())
    if values.ndim != 2 or not plain:
        value = f"{values.dtype}, shape {tuple(values.shape)}"
        allowed = "bool (height, width), True inside; or run-length encoded"
        raise UsageError("Not a mask.", where=where, value=value, allowed=allowed, fix="mask > 0.5 makes it bool")
    return encode_mask(values > 0)


def _rows(given: Numbers, length: int, name: str, form: str) -> list[tuple[float, ...]]:
    values = given.detach().cpu().tolist() if isinstance(given, Tensor) else given
    try:
        rows = np.array(values, float)
    except (TypeError, ValueError):
        raise UsageError(f"Not a list of {name}.", where=name, value=given, allowed=f"{form} each") from None
    if rows.ndim == 1 and not rows.size:
        return []
    if rows.ndim != 2 or rows.shape[1] != length:
        fix = f"{name}=[{form}]" if rows.shape == (length,) else None
        raise UsageError(
            f"Not a list of {name}.", where=name, value=f"shape {rows.shape}", allowed=f"{form} each", fix=fix
        )
    return [tuple(row) for row in rows.tolist()]
