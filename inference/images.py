"""Images as users have them, as records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..datasets.checks import read_checked_image
from ..datasets.records import Record
from ..utils import untrusted
from ..utils.errors import DataError, UsageError

ImageInput = str | Path | Image.Image | np.ndarray | Tensor | Record
LAYOUTS = "(height, width, 3) or (3, height, width)"


def record_of_image(image: ImageInput) -> Record:
    """Return a record without regions around the pixels of an image.

    Args:
        image: a file; a PIL image; RGB pixels as array or tensor, (height, width, 3) or (3, height, width), uint8 from
            0 to 255 or float from 0 to 1; or a record, whose image is read. Files and PIL images are set upright as
            their EXIF orientation says. Of pixels that could be read either way, an array has its colours last and a
            tensor first.

    Raises:
        DataError: the file cannot be read as an image, or the pixels are none.
        UsageError: it is nothing of the kind.
    """
    if isinstance(image, Record):
        return Record(image.image_id, image.height, image.width, read_checked_image(image))
    if isinstance(image, (str, Path)):
        return _record(Path(image).name, _read(image))
    if isinstance(image, Image.Image):
        return _record("image", untrusted.picture_to_rgb(image))
    if isinstance(image, Tensor):
        values = image.detach().cpu()
        return _record("image", _pixels(values.float().numpy() if values.is_floating_point() else values.numpy(), 0))
    if isinstance(image, np.ndarray):
        return _record("image", _pixels(image, 2))
    kinds = "a path, a PIL image, a numpy array, a tensor or a record"
    raise UsageError("Not an image.", value=type(image).__name__, allowed=kinds)


def _record(name: str, pixels: np.ndarray) -> Record:
    return Record(name, *pixels.shape[:2], image=pixels)


def _read(path: str | Path) -> np.ndarray:
    scheme, separator, _ = str(path).partition(":/")  # of a Path, too, which loses a slash
    if separator and scheme.isalnum() and len(scheme) > 1:
        fix = "download it first (curl -O URL) and give the file"
        raise UsageError("Images are not fetched from the network.", value=str(path), allowed="a file", fix=fix)
    return untrusted.read_image(path)


def _pixels(values: np.ndarray, channels: int) -> np.ndarray:
    """Return uint8 (height, width, 3); ``channels`` is where the colours stand if both ends could be colours."""
    shape = values.shape
    places = [axis for axis in (channels, 2 - channels) if values.ndim == 3 and shape[axis] == 3]
    if not places or not values.size:
        fix = "one image at a time: pixels[0]" if values.ndim == 4 else 'Image.fromarray(pixels).convert("RGB")'
        raise DataError("Not the pixels of an RGB image.", value=f"shape {tuple(shape)}", allowed=LAYOUTS, fix=fix)
    pixels = _as_bytes(values)
    pixels = pixels if places[0] == 2 else pixels.transpose(1, 2, 0)
    return np.array(pixels, order="C")  # a copy: cameras write the next frame into the same memory


def _as_bytes(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError("Not the pixels of an image.", value=str(values.dtype), allowed="uint8, or float from 0 to 1")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN is not
        raise DataError(
            "The pixels are out of range.",
            value=f"{values.dtype} from {low:g} to {high:g}",
            allowed="float from 0 to 1, or uint8 from 0 to 255",
            fix="(pixels / 255) if they are from 0 to 255; undo a normalisation by mean and standard deviation",
        )
    return np.rint(values * 255).astype(np.uint8)
