"""Pickles of plain values are read; anything that could import, call or exhaust is not."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locap.utils.errors import DataError
from locap.utils.untrusted import read_plain_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner),
    max_leaves=12,
)


class Runs:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.fixture
def write(tmp_path):
    def write(data: bytes):
        path = tmp_path / "refs.p"
        path.write_bytes(data)
        return path

    return write


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.sampled_from([0, 1, 2]))
def test_plain_values_come_back(tmp_path_factory, value, protocol):
    path = tmp_path_factory.mktemp("pickle") / "a.p"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(path) == value


@settings(max_examples=150, deadline=None)
@given(PLAIN, st.sampled_from([0, 1, 2]), st.integers(0, 200), st.binary(max_size=3))
def test_damaged_files_are_refused_or_read(tmp_path_factory, value, protocol, place, damage):
    path = tmp_path_factory.mktemp("pickle") / "a.p"
    data = pickle.dumps(value, protocol)
    path.write_bytes(data[:place] + damage + data[place + len(damage) :])
    with contextlib.suppress(DataError):
        read_plain_pickle(path)


def test_texts_of_python_2(write):
    assert read_plain_pickle(write(b"(lp0\nS'left man'\np1\naI7\na.")) == ["left man", 7]


@pytest.mark.fault("H4")
@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize("value", [Runs(), OrderedDict(a=1), {1, 2}, b"bytes", [os.path.join]])
def test_what_needs_an_import_is_refused_and_named(write, value, protocol):
    with pytest.raises(DataError, match=r"(?s)more than plain values.*refs\.p: byte \d+.*(GLOBAL|REDUCE)"):
        read_plain_pickle(write(pickle.dumps(value, protocol)))


def shared_lists(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


def endless() -> list:
    value: list = []
    value.append(value)
    return value


@pytest.mark.fault("H4")
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pickle.dumps([1], 4), "more than plain|too new"),
        (b"\x80\x03]q\x00.", "(?s)too new.*3"),
        (pickle.dumps(["a" * 40], 2)[:-8], "Malformed pickle"),
        (b"", "empty"),
        (b"not a pickle", "Malformed|more than plain"),
        (b"]r\xff\xff\xff\x7f.", "impossible index"),
        (pickle.dumps(shared_lists(60), 2), "over and over"),
        (pickle.dumps(endless(), 2), "over and over"),
        (b"h\x05.", "Malformed pickle"),
        (b"]p99999\n.", "impossible index"),
        (b"]p-1\n.", "no number"),
        (b"]p7", "ends too early"),
        (b"\x80", "ends too early|Malformed"),
        (b"X\xff\xff\xff\xffa.", "ends too early"),
        (b"\xfe", "no operation"),
        (b"}]]s.", "Malformed pickle"),
    ],
)
def test_hostile_and_broken_files(write, data, says):
    with pytest.raises(DataError, match=says):
        read_plain_pickle(write(data))


def test_large_files_are_refused_unread(write):
    with pytest.raises(DataError, match=r"(?s)too large.*up to 10 bytes"):
        read_plain_pickle(write(pickle.dumps(list(range(100)), 2)), max_bytes=10)
