"""Images and id maps of strangers: what works, with golden pixels, and what is refused, with the message."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from locap.utils.errors import DataError
from locap.utils.untrusted import read_alpha, read_grey, read_id_map, read_image, read_image_size

RGB = (10, 200, 30)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_rgb_is_read_exactly(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    read = read_image(save(tmp_path / f"a.{suffix}", pixels))
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats_are_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (9, 6), RGB).save(path, quality=95)
    read = read_image(path)
    assert read.shape == (6, 9, 3)
    assert np.abs(read.astype(int) - RGB).max() <= 3


@pytest.mark.fault("E3")
@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("L", 77, "png", (77, 77, 77)),
        ("L", 77, "jpg", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (77, 0), "png", (77, 77, 77)),
        ("RGBA", (*RGB, 0), "png", RGB),  # hidden colours under full transparency stay
        ("RGBA", (*RGB, 128), "tiff", RGB),
        ("CMYK", (0, 255, 255, 0), "tiff", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "jpg", (254, 0, 0)),
        ("I;16", 0, "png", (0, 0, 0)),
        ("I;16", 128, "png", (0, 0, 0)),
        ("I;16", 129, "png", (1, 1, 1)),
        ("I;16", 257 * 90, "tiff", (90, 90, 90)),
        ("I;16", 65535, "png", (255, 255, 255)),
    ],
)
def test_modes_have_golden_pixels(tmp_path, mode, color, suffix, expected):
    path = tmp_path / f"a.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.full((6, 8), color, np.uint16)).save(path)
    else:
        Image.new(mode, (8, 6), color).save(path)
    read = read_image(path)
    assert read.shape == (6, 8, 3)
    assert np.abs(read.astype(int) - expected).max() <= (1 if suffix == "jpg" else 0)


@pytest.mark.fault("E3")
def test_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, *RGB])
    image.save(tmp_path / "a.png", transparency=1)
    assert (read_image(tmp_path / "a.png") == RGB).all()


@pytest.mark.fault("E3")
@pytest.mark.parametrize("value", [np.float32(0.5), np.int32(70_000)])
def test_images_without_a_brightness_range_are_refused(tmp_path, value):
    path = save(tmp_path / "a.tiff", np.full((4, 4), value))
    with pytest.raises(DataError, match="no defined brightness range"):
        read_image(path)


UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
STORED = {  # what a camera stores for each EXIF orientation so that the upright picture is UPRIGHT
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
    99: UPRIGHT,
}


@pytest.mark.fault("E4")
@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_is_applied_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(STORED[orientation]), exif=exif)
    np.testing.assert_array_equal(read_image(path), UPRIGHT)
    np.testing.assert_array_equal(read_image(path, expected_size=(2, 3)), UPRIGHT)
    assert read_image_size(path) == (2, 3)


def test_a_size_is_read_only_from_images(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="not supported"):
        read_image_size(path)
    with pytest.raises(DataError, match="does not exist"):
        read_image_size(tmp_path / "b.png")
    with pytest.raises(DataError, match="too large"):
        read_image_size(save(path, UPRIGHT), max_pixels=5)


@pytest.mark.fault("E4")
def test_exif_is_ignored_where_the_annotation_was_made_on_the_stored_pixels(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = save(tmp_path / "a.png", np.ascontiguousarray(STORED[6]), exif=exif)
    np.testing.assert_array_equal(read_image(path, expected_size=(3, 2)), STORED[6])


@pytest.mark.fault("E4")
def test_broken_exif_does_not_spoil_the_image(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8), RGB).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert read_image(path).shape == (8, 8, 3)


def noise(path):
    return save(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.fault("E1")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
def test_truncated_images_are_named(tmp_path, name):
    path = noise(tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    if name != "a.webp":  # its decoder cannot even identify the file
        assert "truncated or corrupt" in caught.value.what
        assert "fetch the file again" in caught.value.fix


@pytest.mark.fault("E1")
def test_a_bad_checksum_is_reported(tmp_path):
    path = noise(tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="truncated or corrupt"):
        read_image(path)


@pytest.mark.fault("E1", "E8")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"<html><body>404</body></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"8BPS\0\1", "Photoshop"),
        (b"<svg xmlns='x'>", "SVG"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"hello", "not a known format"),
    ],
)
def test_other_files_with_an_image_name_are_recognised(tmp_path, content, says):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_image(path)


@pytest.mark.fault("E7", "E8")
def test_gif_is_refused_by_its_content(tmp_path):
    Image.new("P", (4, 4)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"not supported: a GIF(.|\n)*convert it to PNG"):
        read_image(tmp_path / "a.png")


@pytest.mark.fault("E7")
@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (13_000, 13_000)])
def test_bombs_are_refused_from_the_header(tmp_path, width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(DataError, match="too large"):
        read_image(path)


@pytest.mark.fault("E9", "E10")
def test_missing_and_oddly_named_images(tmp_path):
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "no\nthing.jpg")
    assert "The image does not exist" in caught.value.what
    assert "\\n" in caught.value.where
    assert "\n" not in caught.value.where
    with pytest.raises(DataError, match="directory"):
        read_image(tmp_path)
    for name in (
        b"a 'b' \xc3\xbc.png",
        b'a "b" $(c).png',
        b"a\nb.png",
        b"caf\xe9.png",
        b"-rf.png",
        b"x" * 251 + b".png",
    ):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(save(tmp_path / "plain.png", UPRIGHT).read_bytes())
        assert read_image(path).shape == (2, 3, 3)
        path.write_bytes(b"x")
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert caught.value.where.isprintable()
        assert str(caught.value).isprintable() or "\n  where" in str(caught.value)
        str(caught.value).encode()  # a terminal can show it


def test_id_map_uses_all_three_channels(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65_536 + 7, 256**3 - 1]])
    path = save(tmp_path / "a.png", np.stack([ids % 256, ids // 256 % 256, ids // 65_536], -1).astype(np.uint8))
    read = read_id_map(path)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, ids)


@pytest.mark.fault("E11")
@pytest.mark.parametrize("kind", ["L", "I;16", "P", "RGBA", "jpg"])
def test_id_maps_of_other_kinds_are_refused(tmp_path, kind):
    path = tmp_path / ("a.jpg" if kind == "jpg" else "a.png")
    if kind == "I;16":
        Image.fromarray(np.ones((4, 4), np.uint16)).save(path)
    else:
        Image.new("RGB" if kind == "jpg" else kind, (4, 4)).save(path)
    with pytest.raises(DataError, match=r"wrong format(.|\n)*8-bit RGB PNG"):
        read_id_map(path)


def test_grey_values_are_read_as_stored(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    read = read_grey(save(tmp_path / "a.png", values))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values)
    with pytest.raises(DataError, match=r"wrong format(.|\n)*8-bit grey PNG"):
        read_grey(save(tmp_path / "b.png", UPRIGHT))


def test_alpha_is_read_where_there_is_some(tmp_path):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[..., :3]).save(tmp_path / "rgb.png")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.save(tmp_path / "palette.png", transparency=0)
    (tmp_path / "broken.png").write_bytes((tmp_path / "rgba.png").read_bytes()[:50])
    np.testing.assert_array_equal(read_alpha(tmp_path / "rgba.png"), pixels[..., 3])
    assert read_alpha(tmp_path / "rgb.png") is None
    assert read_alpha(tmp_path / "palette.png").min() == 0
    with pytest.raises(DataError, match="truncated or corrupt"):
        read_alpha(tmp_path / "broken.png")
    with pytest.raises(DataError, match="too large"):
        read_alpha(tmp_path / "rgba.png", max_pixels=23)
