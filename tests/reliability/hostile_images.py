"""Images that strangers might send."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from locap.utils.errors import DataError
from locap.utils.untrusted import read_grey, read_id_map, read_image, read_image_size

from .hostile_texts import HTML, LFS, sparse
from .hostile_weights import Hostile

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


def encoded(form: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """Return noise as a file."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *between: bytes, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    """Return a PNG with the header, chunks and compressed data as given."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(**tags: int) -> bytes:
    """Return a TIFF of numbered tags without pixels: width 256, length 257, bits 258, compression 259, strips 273."""
    entries = sorted((int(number[1:]), value) for number, value in tags.items())
    body = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in entries)
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(entries)) + body + bytes(4)


def _bombs() -> dict[str, bytes]:
    jpeg = bytearray(encoded("JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65_500, 65_500)
    bitmap = bytearray(encoded("BMP"))
    bitmap[18:26] = struct.pack("<ii", 60_000, 60_000)
    text = zlib.compress(bytes(200_000_000))
    return {
        "PNG of 900 megapixels": png(30_000, 30_000),
        "PNG of 169 megapixels": png(13_000, 13_000),
        "PNG as large as can be": png(2**31 - 1, 2**31 - 1),
        "PNG of no size": png(0, 0),
        "PNG with text that swells": png(8, 8, chunk(b"zTXt", b"a\0\0" + text)),
        "PNG with a profile that swells": png(8, 8, chunk(b"iCCP", b"a\0\0" + text)),
        "PNG with too little data": png(1000, 1000, data=bytes(10)),
        "PNG of an unknown depth": png(8, 8, depth=7, data=bytes(500)),
        "PNG of unknown colours": png(8, 8, color=5, data=bytes(500)),
        "JPEG of 4 gigapixels": bytes(jpeg),
        "BMP of 3.6 gigapixels": bytes(bitmap),
        "TIFF of 10 gigapixels": tiff(t256=100_000, t257=100_000, t258=8, t259=1, t262=1, t273=8, t278=1, t279=8),
        "TIFF of no size": tiff(t256=0, t257=0, t258=8, t259=1, t262=1),
        "TIFF of strips elsewhere": tiff(t256=8, t257=8, t258=8, t259=1, t262=1, t273=2**31, t278=8, t279=64),
        "TIFF of an unknown compression": tiff(t256=8, t257=8, t258=8, t259=77, t262=1, t273=8, t278=8, t279=64),
        "TIFF that points to itself": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    }


def _strangers() -> dict[str, bytes]:
    gif = io.BytesIO()
    frames = [Image.new("P", (8, 8), index) for index in range(40)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    return {
        "nothing": b"",
        "HTML": HTML,
        "Git LFS pointer": LFS,
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch ran) system\n",
        "PDF": b"%PDF-1.7\n1 0 obj\n<< /OpenAction 2 0 R >>\n",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "SVG after a declaration": b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>",
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(60),
        "AVIF": b"\0\0\0\x1cftypavif" + bytes(60),
        "Photoshop": b"8BPS\0\1" + bytes(60),
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
        "animation": gif.getvalue(),
        "icon": b"\0\0\1\0\xff\xff" + bytes(400),
        "sun raster": b"\x59\xa6\x6a\x95" + b"\x7f\xff\xff\xff" * 7,
        "FLI": struct.pack("<IHHHH", 128, 0xAF11, 9, 9, 9) + bytes(120),
        "a pickle": b"\x80\x04cos\nsystem\n",
        "a script": b"#!/bin/sh\ntouch ran\n",
        "zeros": bytes(4096),
    }


def images(folder: Path) -> Iterator[Hostile]:
    """Yield files called .jpg whose content is another matter."""
    contents = _bombs() | _strangers()
    for form in FORMATS:
        whole = encoded(form)
        contents[f"{form}, only its beginning"] = whole[:20]
        contents[f"{form}, the first half"] = whole[: len(whole) // 2]
        contents[f"{form}, zeros instead of its middle"] = whole[:40] + bytes(len(whole) - 40)
    opening = {  # what Pillow makes of them is defined
        "BMP, zeros instead of its middle": "its pixels are black: a bitmap has no checksum",
        "WEBP, zeros instead of its middle": "zeros are pixels: a lossy WEBP has no checksum",
    }
    for name, content in contents.items():
        path = folder / f"{name.replace(' ', '_').replace(',', '')}.jpg"
        path.write_bytes(content)
        reason = opening.get(name, "")
        yield Hostile(name, path, read_image, None if reason else DataError, reason)
    for name in ("PNG of 900 megapixels", "JPEG of 4 gigapixels", "PostScript", "animation"):
        path = folder / f"{name.replace(' ', '_')}.jpg"
        for read in (read_id_map, read_image_size, read_grey):
            yield Hostile(f"{name}, {read.__name__}", path, read, DataError)
    yield Hostile("a gigabyte of nothing", sparse(folder / "large.jpg", 10**9), read_image, DataError)
