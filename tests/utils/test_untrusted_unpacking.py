"""Zip archives: only what an honest archive of data holds is unpacked, and only as a whole."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from locap.utils.errors import DataError, MissingDependencyError
from locap.utils.untrusted import unpack, unpacking, zip_members


def pack(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data, zipfile.ZIP_DEFLATED)
    return path


def with_mode(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


@pytest.mark.fault("K3")
@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("../b", b""), "leaves the archive"),
        (("d/../../b", b""), "leaves the archive"),
        (("/etc/b", b""), "leaves the archive"),
        (("C:\\b", b""), "leaves the archive"),
        (("d\\..\\b", b""), "leaves the archive"),
        ((with_mode("d/link", stat.S_IFLNK | 0o777), b"/etc/passwd"), "no plain file"),
        ((with_mode("d/device", stat.S_IFBLK), b""), "no plain file"),
        (("D/A", b"2"), "capitals aside"),
        (("d/bomb", bytes(2**21)), "grows more than 200 fold"),
    ],
)
def test_what_data_has_no_need_of_is_refused_before_anything_is_written(tmp_path, member, message):
    path = pack(tmp_path / "a.zip", ("d/a", b"1"), member)
    with pytest.raises(DataError, match=message):
        unpack(path, "d", tmp_path / "out" / "d")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.fault("K3")
def test_encrypted_members_and_too_many_are_refused(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.zip", ("d/a", b"1"), ("d/b", b"2"))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the central directory
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        zip_members(tmp_path / "b.zip")
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 1)
    with pytest.raises(DataError, match="too many members"):
        zip_members(path)


def test_a_folder_a_file_a_name_and_an_archive_inside_can_be_asked_for(tmp_path):
    inner = pack(tmp_path / "inner.zip", ("p/x.png", b"X"), ("__MACOSX/p", b""))
    path = pack(tmp_path / "a.zip", ("d/a", b"1"), ("d/e/b", b"2"), ("d.txt", b"3"), ("d/i.zip", inner.read_bytes()))
    target = tmp_path / "out"
    target.mkdir()
    assert (unpack(path, "d/e", target / "e") / "b").read_bytes() == b"2"
    assert unpack(path, "d.txt", target / "t").read_bytes() == b"3"
    assert unpack(path, "*/b", target / "n").read_bytes() == b"2"
    assert (unpack(path, "d/i.zip!p", target / "p") / "x.png").read_bytes() == b"X"
    assert sorted(entry.name for entry in target.iterdir()) == ["e", "n", "p", "t"], "nothing temporary is left"
    with pytest.raises(DataError, match="lacks what it should hold") as caught:
        unpack(path, "train2017", target / "q")
    assert (caught.value.value, caught.value.allowed) == ("train2017", "it has d, d.txt")


def test_a_damaged_member_and_a_truncated_archive_leave_nothing(tmp_path):
    path = pack(tmp_path / "a.zip", ("d/a", bytes(range(256)) * 40))
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    (tmp_path / "b.zip").write_bytes(data)
    (tmp_path / "c.zip").write_bytes(data[:-10])
    for name in ("b.zip", "c.zip"):
        with pytest.raises(DataError, match="damaged"):
            unpack(tmp_path / name, "d", tmp_path / "d")
        assert not list(tmp_path.glob(".d*")) + list(tmp_path.glob("d")), name


@pytest.mark.fault("K4")
def test_contents_that_do_not_fit_are_told_before_they_are_written(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.zip", ("d/a", bytes(1000)))
    monkeypatch.setattr(unpacking, "free_bytes", lambda folder: 999)
    with pytest.raises(MissingDependencyError, match="not enough disk space") as caught:
        unpack(path, "d", tmp_path / "d")
    assert caught.value.value == "1,000 bytes are needed, 999 are free"


def test_many_small_members_that_grow_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(80):
            archive.writestr(f"{number}.txt", bytes(2**20))
    with pytest.raises(DataError, match="The archive grows more than 200 fold"):
        zip_members(tmp_path / "a.zip")
