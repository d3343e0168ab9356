"""Images of users: bytes or files that a browser or a client sent, decoded through the gate."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path

import numpy as np

from ...utils import untrusted
from ...utils.errors import DataError
from .limits import MAX_IMAGE_PIXELS, MAX_UPLOAD

OPAQUE = 128  # alpha from which a pixel counts as painted


def decode_file(path: str | Path) -> np.ndarray:
    """Return the pixels of an uploaded file, uint8 (height, width, 3) RGB.

    Raises:
        DataError: no image, corrupt, or too large in bytes or pixels.
    """
    _check_bytes(untrusted.require_file(path, what="image"))
    return untrusted.read_image(path, MAX_IMAGE_PIXELS)


def decode_bytes(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the pixels and the alpha channel, uint8 (height, width), where there is one.

    Raises:
        DataError: as `decode_file`.
    """
    _check_bytes(len(data))
    handle, name = tempfile.mkstemp(prefix="locap-upload-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return untrusted.read_image(name, MAX_IMAGE_PIXELS), untrusted.read_alpha(name, MAX_IMAGE_PIXELS)
    finally:
        os.unlink(name)


def decode_data_uri(address: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what a ``data:image/...;base64,...`` address holds, as `decode_bytes`; nothing is ever fetched.

    Raises:
        DataError: another kind of address, no base 64, or as `decode_file`.
    """
    head, comma, body = address.partition(",")
    if not head.lower().startswith("data:") or not comma:
        scheme = address[:40].partition(":")[0]
        raise DataError(
            "Images are not fetched from addresses.", value=f"{scheme}:…", allowed="data:image/png;base64,…"
        )
    if not head.lower().endswith(";base64"):
        raise DataError("The image is not in base 64.", value=head[:80], allowed="data:image/png;base64,…")
    _check_bytes(len(body) * 3 // 4 - 2)
    try:
        return decode_bytes(base64.b64decode(body, validate=True))
    except ValueError as err:
        raise DataError(f"The image is not in base 64: {err}.", allowed="data:image/png;base64,…") from None


def painted(layer: str | Path | bytes) -> np.ndarray:
    """Return where a layer of the brush was painted, bool (height, width)."""
    _, alpha = decode_bytes(layer if isinstance(layer, bytes) else Path(layer).read_bytes())
    if alpha is None:
        raise DataError("The painted layer has no transparent part.", allowed="a layer of the brush")
    return alpha >= OPAQUE


def _check_bytes(count: int) -> None:
    if count > MAX_UPLOAD:
        allowed = f"up to {MAX_UPLOAD // 1_000_000} MB"
        raise DataError("The image file is too large.", value=f"{count / 1e6:.1f} MB", allowed=allowed)
