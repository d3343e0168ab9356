"""Images and id maps of strangers: the size is checked before anything is decoded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, LocapError
from .archives import is_member, read_member
from .files import head_bytes, masquerade, require_file, shown

MAX_PIXELS = 64_000_000
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")

_EXIF_ORIENTATION = 274
_TRANSPOSE = {  # EXIF orientation -> what sets the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OTHER_FORMATS = (  # (first bytes, offset, name), only to say what an unreadable image is
    (b"GIF8", 0, "a GIF"),
    (b"%!PS", 0, "PostScript"),
    (b"%PDF", 0, "a PDF"),
    (b"8BPS", 0, "a Photoshop file"),
    (b"<svg", 0, "an SVG"),
    (b"ftyp", 4, "HEIC, AVIF or a video"),
    (b"jP  ", 4, "JPEG 2000"),
)


def read_image(
    path: str | Path, max_pixels: int = MAX_PIXELS, *, expected_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode a JPEG, PNG, WEBP, BMP or TIFF file (told by its first bytes) to uint8 (height, width, 3) RGB.

    Alpha is dropped, palettes go through RGBA, 16-bit values are divided by 257 and rounded (colour PNGs of 16 bits
    per channel are cut to 8 by Pillow); 32-bit and float images have no defined range and are refused. The EXIF
    orientation is applied; of several frames the first is read.

    Args:
        path: the file; or ``<archive>.tar!<name>``, as in all functions here.
        max_pixels: larger images are refused from their header, before anything is decoded.
        expected_size: (height, width) of the annotation; when the stored pixels have it and the upright picture does
            not, the annotation was made on the stored pixels and the EXIF orientation is ignored.

    Raises:
        DataError: missing, truncated, corrupt, too large, or of another format.
    """
    try:
        with _open_image(path, max_pixels, IMAGE_FORMATS) as image:
            return _to_rgb(_upright(image, expected_size), path)
    except LocapError:
        raise
    except Exception as err:  # Pillow's decoders raise whatever they meet: OSError, SyntaxError, struct.error, …
        raise _undecodable(path, err) from None


def read_alpha(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """Return how opaque each pixel of the upright picture is, uint8 (height, width); None where it has no alpha.

    Raises:
        DataError: as `read_image`.
    """
    try:
        with _open_image(path, max_pixels, IMAGE_FORMATS) as image:
            if not (image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info):
                return None
            upright = _upright(image, None)
            whole = upright.convert("LA" if upright.mode == "La" else "RGBA")
            return np.array(whole.getchannel("A"))
    except LocapError:
        raise
    except Exception as err:  # as in `read_image`
        raise _undecodable(path, err) from None


def picture_to_rgb(image: Image.Image, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return an opened picture as `read_image` returns a file, uint8 (height, width, 3) RGB, upright.

    Raises:
        DataError: as there.
    """
    if image.width * image.height > max_pixels:
        raise _too_large("a PIL image", f"{image.width} x {image.height}", max_pixels)
    try:
        return _to_rgb(_upright(image, None), "a PIL image")
    except LocapError:
        raise
    except Exception as err:  # as in `read_image`
        raise _undecodable("a PIL image", err) from None


def read_image_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) of the upright picture that `read_image` decodes, from the file's header.

    Raises:
        DataError: missing, corrupt, too large, or of another format.
    """
    try:
        with _open_image(path, max_pixels, IMAGE_FORMATS) as image:
            turned = _orientation(image) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except LocapError:
        raise
    except Exception as err:  # as in `read_image`
        raise _undecodable(path, err) from None


def read_stored_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[bytes, str]:
    """Return the bytes of an image file as they are, and which of `IMAGE_FORMATS` they are by their header.

    Raises:
        DataError: as `read_image_size`.
    """
    try:
        with _open_image(path, max_pixels, IMAGE_FORMATS) as image:
            return (read_member(path) if is_member(path) else Path(path).read_bytes()), image.format
    except LocapError:
        raise
    except Exception as err:  # as in `read_image`
        raise _undecodable(path, err) from None


def read_id_map(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a panoptic PNG to int32 (height, width), id = R + 256 G + 65536 B; 0 is void.

    Raises:
        DataError: as `read_image`; also when the file is not an 8-bit RGB PNG, whose ids could not be trusted.
    """
    pixels = _read_png(
        path,
        max_pixels,
        "RGB",
        "RGBX",  # as Pillow stores colours: four bytes, one integer
        what="The panoptic segmentation has the wrong format.",
        allowed="an 8-bit RGB PNG with id = R + 256 G + 65536 B",
        fix="point to the panoptic_* folder of the data set, not to its semantic or instance masks",
    )
    return pixels.view("<i4")[..., 0] & 0xFFFFFF


def read_grey(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an 8-bit grey PNG, whose values are data, to uint8 (height, width).

    Raises:
        DataError: as `read_image`; also when the file is no such PNG.
    """
    what = "The image of grey values has the wrong format."
    fix = "save it as 8-bit grey PNG"
    return _read_png(path, max_pixels, "L", "L", what=what, allowed="an 8-bit grey PNG", fix=fix)[..., 0].copy()


def decode_png_mask(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the bytes of a grey PNG to bool (height, width), what is not 0 being set; ``where`` is for messages.

    Raises:
        DataError: they are no grey PNG, or it is too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(where, f"{image.width} x {image.height}", max_pixels)
            if image.mode not in ("1", "L"):
                raise DataError("A mask is no grey PNG.", where=where, value=f"mode {image.mode}", allowed="1 or L")
            return np.array(image) > 0
    except LocapError:
        raise
    except Exception as err:  # as in `read_image`
        raise _undecodable(where, err) from None


def _read_png(
    path: str | Path, max_pixels: int, mode: str, raw: str, *, what: str, allowed: str, fix: str
) -> np.ndarray:
    """Decode a PNG of one mode to uint8 (height, width, channels of ``raw``); refuse any other, which would change."""
    try:
        with _open_image(path, max_pixels, ("PNG", "JPEG")) as image:
            if image.format != "PNG" or image.mode != mode:
                found = f"{image.format}, mode {image.mode}"
                raise DataError(what, where=shown(path), value=found, allowed=allowed, fix=fix)
            pixels = np.frombuffer(image.tobytes("raw", raw), np.uint8).reshape(image.height, image.width, len(raw))
    except LocapError:
        raise
    except Exception as err:  # as in `read_image`
        raise _undecodable(path, err) from None
    return pixels


def _open_image(path: str | Path, max_pixels: int, formats: Sequence[str]) -> Image.Image:
    if is_member(path):
        source = io.BytesIO(read_member(path))
    else:
        require_file(path, what="image")
        source = path
    try:
        image = Image.open(source, formats=formats)
    except Image.UnidentifiedImageError:
        raise _unsupported(path) from None
    except Image.DecompressionBombError as err:
        raise _too_large(path, str(err), max_pixels) from None
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise _too_large(path, f"{width} x {height}", max_pixels)
    return image


def _too_large(path: str | Path, size: str, max_pixels: int) -> DataError:
    return DataError("The image is too large.", where=shown(path), value=size, allowed=f"up to {max_pixels} pixels")


def _unsupported(path: str | Path) -> DataError:
    head = read_member(path, 256) if is_member(path) else head_bytes(path)
    if reason := masquerade(head):
        return DataError(f"The image cannot be read: {reason}.", where=shown(path), fix="fetch the file again")
    kind = next(
        (name for magic, at, name in _OTHER_FORMATS if head[at : at + len(magic)] == magic), "not a known format"
    )
    return DataError(
        f"The image format is not supported: {kind}.",
        where=shown(path),
        allowed=", ".join(IMAGE_FORMATS),
        fix="convert it to PNG",
    )


def _undecodable(path: str | Path, err: Exception) -> DataError:
    return DataError(
        f"The image is truncated or corrupt: {err}.", where=shown(path), fix="fetch the file again or remove its record"
    )


def _upright(image: Image.Image, expected_size: tuple[int, int] | None) -> Image.Image:
    image.load()
    orientation = _orientation(image)
    if orientation not in _TRANSPOSE:
        return image
    stored, swapped = (image.height, image.width), (image.width, image.height)
    if orientation >= 5 and expected_size is not None and stored == tuple(expected_size) != swapped:
        return image
    return image.transpose(_TRANSPOSE[orientation])


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none that means anything."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF in a good image: the pixels stand as they are stored
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):  # PNG has no deeper integers than 16 bits
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode in ("I", "F") or mode.startswith(("I;", "F;")):
        raise DataError(
            "The image has no defined brightness range.",
            where=shown(path),
            value=f"mode {mode}",
            allowed="8-bit or 16-bit images",
            fix="rescale it to 8 bits per channel and save it as PNG",
        )
    if mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
