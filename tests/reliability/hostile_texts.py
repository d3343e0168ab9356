"""Configurations, annotations and masks that strangers might send."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from locap.datasets.records import read_records
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.utils.config import load_config
from locap.utils.errors import DataError, UsageError
from locap.utils.untrusted import (
    compressed_rle,
    decode_rle,
    polygons_to_mask,
    polygons_to_rle,
    read_json,
    read_json_lines,
)

from .hostile_weights import Hostile

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"
HTML = b"<!DOCTYPE html><html><body>Please sign in</body></html>"


def sparse(path: Path, size: int) -> Path:
    """Write a file that is large and takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def configurations(folder: Path) -> Iterator[Hostile]:
    """Yield YAML that a user was given."""
    bomb = ["A0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"A{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    merge = ["A0: &a0 {x0: 1}"] + [f"A{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], x{i}: 1}}" for i in range(1, 40)]
    ran, named = folder / "ran_yaml", "MODEL: {NAME: pix2cap_model}\n"
    texts: dict[str, str | bytes] = {
        "alias bomb": "\n".join(bomb),
        "merge bomb": "\n".join(merge),
        "python object": f"SAVE_DIR: !!python/object/apply:os.system ['touch {ran}']\n",
        "python object of the new kind": f"SAVE_DIR: !!python/object/new:os.system ['touch {ran}']\n",
        "python name": "SAVE_DIR: !!python/name:os.system\n",
        "python module": "SAVE_DIR: !!python/module:antigravity\n",
        "tag of its own": "%TAG ! tag:yaml.org,2002:python/\n---\nSAVE_DIR: !object/apply:os.system [x]\n",
        "binary": "SAVE_DIR: !!binary aGVsbG8=\n",
        "reference to the environment": named + "SAVE_DIR: ${oc.env:HOME}\n",
        "reference to itself": named + "SAVE_DIR: ${SAVE_DIR}\n",
        "reference that decodes": named + "SAVE_DIR: ${oc.decode:'1'}\n",
        "holds itself": "SEED: &a [*a]\n",
        "deep list": "SEED: " + "[" * 50_000,
        "deep mapping": "SEED: " + "{a: " * 50_000,
        "wide": "".join(f"K{i}: 1\n" for i in range(60_000)),
        "long line": "SAVE_DIR: " + "x" * 2_000_000,
        "long key": "x" * 900_000 + ": 1\n",
        "control characters": b"SEED: \x00\x07\x1b[31m\n",
        "UTF-16": (named + "SEED: 1\n").encode("utf-16"),
        "Latin-1": b"SAVE_DIR: caf\xe9\n",
        "surrogates": b"SAVE_DIR: \xed\xa0\x80\n",
        "Git LFS pointer": LFS,
        "HTML": HTML,
        "two documents": named + "---\n" + named,
        "a list": "- SEED\n",
        "includes a password file": "_base_: /etc/passwd\n",
        "includes a device": "_base_: /dev/zero.yaml\n",
        "includes itself": "_base_: includes_itself.yaml\n",
        "includes itself many times": "_base_: [" + ", ".join(["includes_itself_many_times.yaml"] * 50) + "]\n",
        "keys of Python": named + "__class__: {__init__: {__globals__: 1}}\n",
        "a key given twice": named + "SEED: 1\nSEED: 2\n",
        "a large number": named + "SEED: " + "9" * 5000 + "\n",
        "not a number": named + "SOLVER: {BASE_LR: .nan}\n",
        "quadratic quotes": named + "SAVE_DIR: " + "'" * 100_001 + "\n",
        "anchors": "".join(f"K{i}: &a{i} x\n" for i in range(9000)),
    }

    def load(path: Path) -> Any:
        return load_config([path], model_schemas=MODEL_SCHEMAS)

    for name, text in texts.items():
        path = folder / f"{name.replace(' ', '_')}.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        yield Hostile(name, path, load, UsageError)
    yield Hostile("a hundred megabytes", sparse(folder / "large.yaml", 10**8), load, UsageError)


def annotations(folder: Path) -> Iterator[Hostile]:
    """Yield JSON that claims to be annotations or predictions."""
    good = json.dumps({"a": [1, 2, {"b": "c"}]}).encode()
    contents = {
        "empty": b"",
        "Git LFS pointer": LFS,
        "HTML": b"\r\n " + HTML,
        "UTF-16": good.decode().encode("utf-16"),
        "UTF-32": good.decode().encode("utf-32"),
        "byte-order mark": b"\xef\xbb\xbf" + good,
        "Latin-1": b'{"a": "caf\xe9"}',
        "overlong UTF-8": b'{"a": "\xc0\xaf"}',
        "deep lists": b"[" * 200_000,
        "deep objects": b'{"a":' * 200_000,
        "not a number": b'{"a": NaN}',
        "infinity": b'{"a": [1, -Infinity]}',
        "overflows": b'{"a": 1e999}',
        "a number of many digits": b"1" * 1_000_000,
        "one key twice": b'{"a": 1, "a": 2}',
        "truncated": good[:-3],
        "truncated text": b'{"a": "bc',
        "trailing text": good + b" x",
        "trailing comma": b'{"a": 1,}',
        "comment": b'{"a": 1 /* x */}',
        "single quotes": b"{'a': 1}",
        "NUL": b'{"a": "\x00"}',
        "nothing but spaces": b" " * 1_000_000,
        "a pickle": b"\x80\x04]\x94.",
        "gzip": b"\x1f\x8b\x08\x00" + bytes(40),
        "zeros": bytes(1000),
        "random bytes": bytes(range(256)) * 40,
        "a number": b"7",
        "an empty list": b"[]",
        "a list of nothing": b"[null, null]",
        "records that are numbers": b'{"locap_records": 1, "records": [1]}',
    }
    for name, content in contents.items():
        path = folder / f"{name.replace(' ', '_')}.json"
        path.write_bytes(content)
        yield Hostile(f"{name}, as predictions", path, lambda p: read_records(p), DataError)
    for name in ("deep lists", "not a number", "Latin-1", "one key twice", "truncated"):
        path = folder / f"{name.replace(' ', '_')}.json"
        yield Hostile(f"{name}, by line", path, lambda p: read_json_lines(p), DataError)
    large = sparse(folder / "large.json", 2**31 + 1)
    yield Hostile("two gigabytes", large, lambda p: read_records(p), DataError)


def masks(folder: Path) -> Iterator[Hostile]:
    """Yield run lengths and polygons inside sound JSON."""
    encodings: dict[str, Any] = {
        "size of forty gigapixels": ([200_000, 200_000], "0"),
        "size of nothing": ([0, 4], []),
        "negative size": ([-2, -2], [4]),
        "one side": ([4], [4]),
        "three sides": ([2, 2, 1], [4]),
        "size in fractions": ([2.5, 2], [5]),
        "size as text": ("22", [4]),
        "size that overflows": ([2**32, 2**32], [0]),
        "no size": (None, [4]),
        "too few": ([2, 2], [3]),
        "too many": ([2, 2], [5]),
        "negative run": ([2, 2], [-1, 5]),
        "runs that overflow": ([2, 2], [2**63 - 1, 2**63 - 1, 6]),
        "runs of many digits": ([2, 2], [10**30]),
        "runs that are texts": ([2, 2], ["4"]),
        "runs that are lists": ([2, 2], [[4]]),
        "runs that are true": ([2, 2], [True] * 4),
        "fractional runs": ([2, 2], [1.5, 2.5]),
        "no runs": ([2, 2], None),
        "empty text": ([2, 2], ""),
        "garbage text": ([2, 2], "\x7f\x7f\x7f"),
        "text of another alphabet": ([2, 2], "ж" * 8),
        "text that never ends": ([2, 2], "o" * 400_000),
        "short text": ([2, 2], "1"),
        "text of huge runs": ([2, 2], "ooooooO0"),
        "a million empty runs too many": ([2, 2], [0] * 1_000_000 + [5]),
    }
    for name, (size, counts) in encodings.items():
        path = folder / f"rle_{name.replace(' ', '_')}.json"
        path.write_text(json.dumps({"size": size, "counts": counts}))
        yield Hostile(f"{name}, decoded", path, lambda p: decode_rle(read_json(p)), DataError)
        yield Hostile(f"{name}, compared", path, lambda p: compressed_rle(read_json(p)), DataError)
    yield from _polygons(folder)


def _polygons(folder: Path) -> Iterator[Hostile]:
    far = "the points are drawn in as far as twice the image"
    shapes: dict[str, tuple[Any, str]] = {
        "no polygon": ([], ""),
        "empty polygon": ([[]], ""),
        "one point": ([[1, 1]], ""),
        "two points": ([[1, 1, 2, 2]], ""),
        "odd length": ([[1, 1, 2, 2, 3, 3, 4]], ""),
        "texts": ([["a"] * 6], ""),
        "nothing": ([[None] * 6], ""),
        "nested": ([[[1, 1], [2, 2], [3, 1]]], ""),
        "a number": (7, ""),
        "too many points": ([[0.5] * 200_002], ""),
        "too many polygons": ([[1, 1, 5, 1, 5, 5]] * 40_000, ""),
        "digits without end": ([[10**400, 0, 1, 1, 2, 2]], ""),
        "far away": ([[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12]], far),
        "as far as numbers go": ([[-1.7e308, 0, 1.7e308, 0, 0, 1.7e308]], far),
        "crossing itself": ([[0, 0, 8, 8, 8, 0, 0, 8]], "even-odd filling is defined for it"),
        "without area": ([[3, 3, 3, 3, 3, 3]], "its mask is empty"),
        "many sides": ([[float(i % 9) for i in range(20_000)]], "it is within the limit"),
    }

    def opener(function: Callable) -> Callable[[Path], Any]:
        return lambda path: function(read_json(path), 8, 8)

    for name, (polygons, opens) in shapes.items():
        path = folder / f"polygon_{name.replace(' ', '_')}.json"
        path.write_text(json.dumps(polygons))
        for function in (polygons_to_mask, polygons_to_rle):
            yield Hostile(f"{name}, {function.__name__}", path, opener(function), None if opens else DataError, opens)
