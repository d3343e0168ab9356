"""Text, JSON and paths of strangers."""

from __future__ import annotations

import pytest

from locap.utils.errors import DataError, UsageError
from locap.utils.untrusted import read_json, read_text, resolve_under


def test_strict_json_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2.5, "é\\n", null, true], "b": {"a": 1}}', encoding="utf-8")
    assert read_json(path) == {"a": [1, 2.5, "é\n", None, True], "b": {"a": 1}}


@pytest.mark.fault("R2")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "HTML page"),
        (b'\xef\xbb\xbf{"a": 1}', "byte-order mark"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b'{"a": 1,\n "b": "caf\xe9"}', "a.json:2:11"),
        (b'{"a": 1,\n "b": [1, 2', "ends too early"),
        (b'{"a": 1,\n "b": oops}', "a.json:2:7"),
        (b'{"NaN": "NaN",\n "b": NaN}', "a.json:2:7"),
        (b'{"b": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"b": 1e999}', "the number 1e999 is too large"),
        (b'{"b": 1, "c": 2, "b": 3}', "the key 'b' occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "Malformed JSON"),
    ],
)
def test_bad_json_names_file_and_reason(tmp_path, content, says):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert says in str(caught.value)
    assert "a.json" in caught.value.where
    assert caught.value.exit_code == 3


@pytest.mark.fault("R2")
def test_size_is_checked_before_reading(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n" * 100)
    with pytest.raises(UsageError, match="too large"):
        read_text(path, 100, error=UsageError)


@pytest.mark.fault("R1")
def test_a_missing_file_names_its_nearest_sibling(tmp_path):
    (tmp_path / "pix2cap_coco_val.json").write_text("{}")
    with pytest.raises(DataError, match=r"did you mean .*pix2cap_coco_val\.json"):
        read_json(tmp_path / "pix2cap_coco_vla.json")
    with pytest.raises(DataError, match="is a directory"):
        read_json(tmp_path)
    with pytest.raises(DataError, match="nearest that exists"):
        read_json(tmp_path / "x" / "y.json")


@pytest.mark.fault("R3")
@pytest.mark.parametrize("name", ["../b.jpg", "/etc/passwd", "a/../../b", "C:\\b.jpg", "..\\b", "", "a\0b", 7, "\\b"])
def test_names_that_leave_their_folder_are_refused(tmp_path, name):
    with pytest.raises(DataError):
        resolve_under(tmp_path, name)


def test_names_inside_a_folder_resolve(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    assert resolve_under(root, "sub/a b's.jpg") == root / "sub" / "a b's.jpg"
    (tmp_path / "link").symlink_to(root)
    assert resolve_under(tmp_path / "link", "sub/a.jpg") == tmp_path / "link" / "sub" / "a.jpg"
    (root / "escape").symlink_to(outside)
    with pytest.raises(DataError, match="symbolic link leads out"):
        resolve_under(root, "escape/secret.jpg")
