"""Tar archives of strangers: what is read, and what is refused before anything else happens."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from locap.utils.errors import DataError
from locap.utils.untrusted import (
    ArchiveMember,
    archives,
    member_at,
    read_id_map,
    read_image,
    read_image_size,
    read_member,
    read_stored_image,
    scan_tar,
)


def pack(path: Path, *members: tuple, format: int = tarfile.PAX_FORMAT) -> Path:
    """Write members (name, content), or (name, content, changes of its header)."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, content, *changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in (changes[0] if changes else {}).items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content) if info.type == tarfile.REGTYPE else None)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {name: read_member(member_at(path, start)) for name, start in scan_tar(path)}


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(scan_tar(path))
    assert str(path) in caught.value.where
    return caught.value


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read(tmp_path, format):
    names = ["a.txt", "folder/b.json", "f" * 90 + "/" + "long" * 20, "x" * 512, "größe.txt"]
    names.remove("x" * 512) if format == tarfile.USTAR_FORMAT else None
    wanted = {name: name.encode() * count for count, name in enumerate(names)}
    path = pack(tmp_path / "a.tar", ("folder", b"", {"type": tarfile.DIRTYPE}), *wanted.items(), format=format)
    assert contents(path) == wanted
    with tarfile.open(path) as tar:
        assert sorted(member.name for member in tar if member.isfile()) == sorted(wanted)


def test_a_member_is_a_text_that_survives_a_trip(tmp_path):
    path = pack(tmp_path / "a.tar", ("x", b"1"), ("y.bin", b"data"))
    (_, _), (_, start) = scan_tar(path)
    member = member_at(path, start)
    again = pickle.loads(pickle.dumps(member))
    assert member == f"{path}!y.bin"
    assert isinstance(again, ArchiveMember)
    assert (again.start, again.name) == (start, "y.bin")
    assert read_member(again, 2) == b"da"
    assert read_member(str(member) + "") == b"data"
    with pytest.raises(DataError, match="no such member"):
        read_member(f"{path}!z")
    with pytest.raises(DataError, match="does not exist"):
        read_member(f"{tmp_path}/b.tar!z")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("/etc/passwd", b""), "leaves the archive"),
        (("a/../../b", b""), "leaves the archive"),
        (("..\\b", b""), "leaves the archive"),
        (("C:b", b""), "leaves the archive"),
        (("../folder", b"", {"type": tarfile.DIRTYPE}), "leaves the archive"),
        (("l", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), "no plain file.*symbolic link"),
        (("l", b"", {"type": tarfile.LNKTYPE, "linkname": "ok"}), "no plain file.*hard link"),
        (("l", b"", {"type": tarfile.SYMTYPE, "linkname": "x" * 300}), "no plain file"),
        (("d", b"", {"type": tarfile.BLKTYPE}), "no plain file"),
        (("d", b"", {"type": tarfile.CHRTYPE}), "no plain file"),
        (("d", b"", {"type": tarfile.FIFOTYPE}), "no plain file"),
        (("d", b"", {"type": tarfile.GNUTYPE_SPARSE}), "no plain file.*sparse"),
        (("d", b"", {"pax_headers": {"GNU.sparse.major": "1"}}), "no plain file.*sparse"),
        (("d", b"", {"pax_headers": {"linkpath": "/etc"}}), "no plain file"),
        (("d", b"", {"pax_headers": {"path": "../d"}}), "leaves the archive"),
        (("d", b"", {"pax_headers": {"size": "-1"}}), "bad size"),
        (("d", b"", {"pax_headers": {"size": str(10**15)}}), "too large"),
        (("d", b"", {"pax_headers": {"comment": "x" * 70_000}}), "too large"),
        (("ok", b"again"), "occurs twice"),
        (("./../ok", b""), "leaves the archive"),
    ],
)
@pytest.mark.fault("K3")
def test_what_data_has_no_need_of_is_refused(tmp_path, member, message):
    error = refusal(pack(tmp_path / "a.tar", ("ok", b"1"), member))
    assert re.search(message, str(error), re.DOTALL), error
    assert int(error.where.rpartition(" ")[2]) in (1024, 1536, 2048), "the member, or what its header extends"
    assert not (tmp_path / "b").exists()


@pytest.mark.fault("K3")
def test_large_claims_cost_nothing(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.tar", ("big", b"x" * 100), ("more", b""))
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 99)
    assert "100 bytes" in refusal(path).value
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 100)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    assert "too many" in refusal(path).what


def test_a_global_header_may_comment_but_not_rename(tmp_path):
    def with_global(headers):
        path = tmp_path / "g.tar"
        with tarfile.open(path, "w", pax_headers=headers) as tar:
            tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
        return path

    assert contents(with_global({"comment": "0123"})) == {"a": b""}
    assert "alike" in refusal(with_global({"path": "b"})).what


def test_every_truncation_is_noticed_with_its_byte(tmp_path):
    path = pack(tmp_path / "a.tar", ("a", b"x" * 700), ("b" * 200, b"y" * 10))
    whole = path.read_bytes()
    end = max(at for at in range(len(whole)) if whole[at]) // 512 * 512 + 512  # of the last member
    for length in range(0, end, 61):
        path.write_bytes(whole[:length])
        error = refusal(path)
        assert "truncated" in error.what or "empty" in error.what
        assert length == 0 or f"byte {length}" in error.where
    path.write_bytes(whole[:end])
    assert "its end is missing" in refusal(path).what
    path.write_bytes(whole[: end + 512])
    assert len(contents(path)) == 2


def test_a_damaged_header_is_not_the_end(tmp_path):
    """The standard library would silently stop there."""
    path = pack(tmp_path / "a.tar", ("a", b"x"), ("b", b"y"), ("c", b"z"))
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 0xFF
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 1
    error = refusal(path)
    assert "damaged" in error.what
    assert "byte 1024" in error.where


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x1f\x8b\x08" + bytes(600), "compressed"),
        (b"BZh9" + bytes(600), "compressed"),
        (b"PK\x03\x04" + bytes(600), "damaged"),
        (b"x" * 512, "damaged"),
    ],
)
def test_other_files_are_told_apart(tmp_path, data, message):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    assert message in refusal(path).what


def test_joined_archives_are_refused(tmp_path):
    path = pack(tmp_path / "a.tar", ("a", b"x"))
    path.write_bytes(path.read_bytes() * 2)
    assert "two joined" in refusal(path).what


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_noise_is_read_or_refused_but_never_crashes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("noise") / "a.tar"
    whole = bytearray(pack(path, ("a", b"x" * 600), ("b" * 200, b"y")).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 3600))
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with suppress(DataError):  # anything else is a defect
        assert all(len(content) <= len(whole) for content in contents(path).values())


def test_images_are_decoded_in_the_archive_as_from_a_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    files = {}
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG")):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        (tmp_path / name).write_bytes(file.getvalue())
        files[name] = file.getvalue()
    path = pack(tmp_path / "a.tar", *files.items(), ("bad.png", files["a.png"][:60]), ("gif.png", b"GIF89a"))
    for name, data in files.items():
        member = f"{path}!{name}"
        np.testing.assert_array_equal(read_image(member), read_image(tmp_path / name))
        assert read_image_size(member) == (5, 7)
        assert read_stored_image(member) == read_stored_image(tmp_path / name) == (data, kind_of(name))
    np.testing.assert_array_equal(read_id_map(f"{path}!a.png"), read_id_map(tmp_path / "a.png"))
    with pytest.raises(DataError, match=r"truncated or corrupt(.|\n)*a\.tar!bad\.png"):
        read_image(f"{path}!bad.png")
    with pytest.raises(DataError, match=r"a GIF(.|\n)*a\.tar!gif\.png"):
        read_image(f"{path}!gif.png")
    with pytest.raises(DataError, match="too large"):
        read_image(f"{path}!a.png", max_pixels=34)


def kind_of(name: str) -> str:
    return {"png": "PNG", "jpg": "JPEG"}[name[-3:]]


def test_a_changed_archive_is_noticed(tmp_path):
    path = pack(tmp_path / "a.tar", ("a", b"1" * 600), ("b", b"2"))
    member = member_at(path, dict(scan_tar(path))["b"])
    archives._open.files.clear()
    os.replace(pack(tmp_path / "b.tar", ("c", b"1" * 600), ("d", b"2")), path)
    with pytest.raises(DataError, match="was changed"):
        read_member(member)
    archives._open.files.clear()
    path.write_bytes(path.read_bytes()[:1536])
    with pytest.raises(DataError, match="truncated"):
        read_member(member)


def open_descriptors(folder: Path) -> int:
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sum(link.startswith(str(folder)) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_few_archives_are_open_at_any_time(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_OPEN", 3)
    paths = [pack(tmp_path / f"{i}.tar", ("a", b"%d" % i)) for i in range(8)]
    most = 0
    for i, path in enumerate(paths * 2):
        assert read_member(member_at(path, 0)) == b"%d" % (i % 8)
        most = max(most, open_descriptors(tmp_path))
    assert most == 3


def test_threads_and_forked_processes_do_not_disturb_each_other(tmp_path):
    path = pack(tmp_path / "a.tar", *((f"{i}", bytes([i]) * 5000) for i in range(40)))
    places, wrong = list(scan_tar(path)), []

    def read_all() -> None:
        for _ in range(10):
            wrong.extend(name for name, at in places if read_member(member_at(path, at)) != bytes([int(name)]) * 5000)

    read_member(member_at(path, 0))
    threads = [threading.Thread(target=read_all) for _ in range(4)]
    child = os.fork()
    if child == 0:
        read_all()
        os._exit(bool(wrong))
    for thread in threads:
        thread.start()
    read_all()
    for thread in threads:
        thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not wrong
