"""Weights that strangers might send: each is written to a folder, with the error that opening it has to end with."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

GOOD = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}
EXTENSION = 0x70  # of posix.system, in the process that opens the file


class Hostile(NamedTuple):
    """A file and how to open it; ``opens`` says why it may be opened."""

    name: str
    path: Path
    open: Callable[[Path], Any]
    error: type[Exception] | None
    opens: str = ""


def text(value: str) -> bytes:
    """Return the operation that puts a text on the stack."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def calls(sentinel: Path) -> dict[str, bytes]:
    """Return name -> operations that leave the sentinel behind when they are carried out by `pickle.loads`."""
    shell, python = f"touch '{sentinel}'", f"open({str(sentinel)!r}, 'w').close()"
    evil = b"\x80\x02cposix\nsystem\n" + text(shell) + b"\x85R."
    deferred = f"__import__('os').system({shell!r})"

    def call(module: str, name: str, *arguments: bytes) -> bytes:
        return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"

    def raw(value: bytes) -> bytes:  # bytes in protocol 2
        return call("_codecs", "encode", text(value.decode("latin1")), text("latin1"))

    return {
        "os.system": call("os", "system", text(shell)),
        "posix.system": call("posix", "system", text(shell)),
        "eval": call("builtins", "eval", text(python)),
        "exec": call("builtins", "exec", text(python)),
        "eval by its old name": call("__builtin__", "eval", text(python)),
        "subprocess": call("subprocess", "getoutput", text(shell)),
        "open": call("builtins", "open", text(str(sentinel)), text("w")),
        "mkdir": call("os", "mkdir", text(str(sentinel))),
        "timeit": call("timeit", "timeit", text("pass"), text(python)),
        "getattr chain": b"cbuiltins\ngetattr\n(cbuiltins\ngetattr\n(cos\npath\n" + text("os") + b"tR" + text("system")
        + b"tR" + text(shell) + b"\x85R",
        "getattr, imported": b"cbuiltins\ngetattr\n(cimportlib\nimport_module\n(" + text("os") + b"tR" + text("system")
        + b"tR" + text(shell) + b"\x85R",
        "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(shell) + b"\x85R",
        "dotted stack global": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + text(shell) + b"\x85R",
        "instance operation": b"(" + text(shell) + b"ios\nsystem\n",
        "object operation": b"(cos\nsystem\n" + text(shell) + b"o",
        "extension code": b"\x82" + bytes([EXTENSION]) + text(shell) + b"\x85R",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(" + text(shell) + b"ltRtR",
        "pickle in a pickle": call("pickle", "loads", raw(evil)),
        "storage from bytes": call("torch.storage", "_load_from_bytes", raw(bare(evil))),
        "numpy.load": call("numpy", "load", call("_io", "BytesIO", raw(evil)), b"N\x88"),
        "partial": b"cfunctools\npartial\n(cos\nsystem\n" + text(shell) + b"tR)R",
        "state of an object": b"ccollections\nOrderedDict\n)R}" + text("x") + call("builtins", "eval", text(deferred))
        + b"sb",
        "parameter of a call": call("torch._utils", "_rebuild_parameter", call("os", "system", text(shell)), b"\x88N"),
    }  # fmt: skip


def bare(pickled: bytes) -> bytes:
    """Return a file in PyTorch's old format: magic number, protocol, system, content, storages."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(parts) + pickled + pickle.dumps([], 2)


def archive(members: dict[str, bytes], folder: str = "archive", compress: bool = False) -> bytes:
    """Return a file in PyTorch's present format."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        for name, content in {"version": b"3\n", "byteorder": b"little", **members}.items():
            file.writestr(f"{folder}/{name}", content)
    return buffer.getvalue()


def good_archive() -> dict[str, bytes]:
    """Return the members of a file that holds the good tensors."""
    buffer = io.BytesIO()
    torch.save(GOOD, buffer)
    with zipfile.ZipFile(buffer) as file:
        return {name.split("/", 1)[1]: file.read(name) for name in file.namelist()}


def tensor(size: str, stride: str, numel: int = 6, offset: int = 0, location: str = "cpu") -> bytes:
    """Return a pickle of {"weight": a tensor over storage 0}, sizes as Python literals."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text(location)
    storage += pickle.dumps(numel, 2)[2:-1] + b"tQ"
    sizes = b"".join(pickle.dumps(tuple(json.loads(f"[{part}]")), 2)[2:-1] for part in (size, stride))
    return (
        b"\x80\x02}" + text("weight") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
        + pickle.dumps(offset, 2)[2:-1] + sizes + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


def executing(folder: Path, load: Callable) -> Iterator[Hostile]:
    """Yield pickles that call something, in every container that weights come in."""
    containers = {
        "pt": lambda body: archive({"data.pkl": body}),
        "pth": bare,
        "bin": lambda body: body,
        "pkl": lambda body: body,
    }
    for index, suffix in enumerate(containers):
        for name in calls(folder):
            stem = f"{name.replace(' ', '_')}"
            operations = calls(folder / f"ran_{index}_{stem}")[name]
            body = b"\x80\x02}" + text("weight") + operations + b"s."
            path = folder / f"{stem}.{suffix}"
            path.write_bytes(containers[suffix](body))
            yield Hostile(f"{name} in .{suffix}", path, load, error_of_weights())


def error_of_weights() -> type[Exception]:
    """Return what refused weights raise."""
    from locap.utils.errors import CheckpointError

    return CheckpointError


def archives(folder: Path, load: Callable) -> Iterator[Hostile]:
    """Yield archives whose parts are not what they should be."""
    evil = b"\x80\x02" + calls(folder / "ran_archive")["posix.system"] + b"."
    good, zeros = good_archive(), bytes(24)
    huge = str(2**40)
    files = {
        "persistent id is no tuple": archive({"data.pkl": b"\x80\x02}" + text("weight") + text("storage") + b"Qs."}),
        "persistent id of protocol 0": archive({"data.pkl": b"Pstorage\n."}),
        "persistent id names a call": archive({"data.pkl": b"\x80\x02(" + text("storage") + evil[2:-1] + b"tQ."}),
        "storage of an unknown kind": archive({"data.pkl": tensor("2, 3", "3, 1").replace(b"FloatStorage", b"load")}),
        "storage elsewhere": archive({"data.pkl": tensor("2, 3", "3, 1").replace(text("0"), text("../x"))}),
        "storage on a device that is not there": archive(
            {"data.pkl": tensor("2, 3", "3, 1", location="cuda:99"), "data/0": zeros}
        ),
        "expanded to a tebi": archive({"data.pkl": tensor(huge, "0"), "data/0": zeros}),
        "expanded and of the model's name": archive({"data.pkl": tensor(f"2, {huge}", "0, 0"), "data/0": zeros}),
        "longer than its storage": archive({"data.pkl": tensor("1000000", "1"), "data/0": zeros}),
        "negative stride": archive({"data.pkl": tensor("2, 3", "-3, 1"), "data/0": zeros}),
        "negative size": archive({"data.pkl": tensor("-2, 3", "3, 1"), "data/0": zeros}),
        "negative offset": archive({"data.pkl": tensor("2, 3", "3, 1", offset=-4), "data/0": zeros}),
        "offset beyond its storage": archive({"data.pkl": tensor("2, 3", "3, 1", offset=2**40), "data/0": zeros}),
        "sizes that overflow": archive({"data.pkl": tensor(f"{2**62}, 4", "4, 1"), "data/0": zeros}),
        "storage that claims more": archive({"data.pkl": tensor("2, 3", "3, 1", numel=2**40), "data/0": zeros}),
        "storage that claims less": archive({"data.pkl": tensor("2, 3", "3, 1", numel=-1), "data/0": zeros}),
        "strided over and over": archive({"data.pkl": tensor("3, 3", "1, 1", numel=6), "data/0": zeros}),
        "swells": archive({"data.pkl": tensor("2, 3", "3, 1"), "data/0": bytes(2 * 10**8)}, compress=True),
        "no content": archive({}),
        "a script": archive(good | {"constants.pkl": evil, "code/__torch__.py": b"import os"}),
        "memo of an impossible index": archive({"data.pkl": b"\x80\x02}r\xff\xff\xff\x7f."}),
        "holds itself": archive({"data.pkl": b"\x80\x02}q\x00" + text("model") + b"h\x00s."}),
        "a list": archive({"data.pkl": pickle.dumps([1, 2], 2)}),
        "cut in the middle": archive(good)[: len(archive(good)) // 2],
        "an archive's beginning": b"PK\x03\x04" + bytes(500),
        "entries that never end": b"PK\x05\x06" + b"\xff" * 18 + archive(good),
    }  # fmt: skip
    for order in ("evil first", "evil last"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            bodies = [evil, good["data.pkl"]] if order == "evil first" else [good["data.pkl"], evil]
            for number, body in enumerate(bodies):
                file.writestr(f"{'archive' if number == 0 else 'other'}/data.pkl", body)
            for name, content in good.items():
                if name != "data.pkl":
                    file.writestr(f"archive/{name}", content)
        files[f"two contents, {order}"] = buffer.getvalue()
    for name, content in files.items():
        path = folder / f"{name.replace(' ', '_')}.pt"
        path.write_bytes(content)
        yield Hostile(name, path, load, error_of_weights())


def safetensors(folder: Path, load: Callable) -> Iterator[Hostile]:
    """Yield abused headers."""
    weight = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    bias = {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]}

    def made(header: Any, data: bytes = bytes(32)) -> bytes:
        body = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(body)) + body + data

    both = {"weight": weight, "bias": bias}
    files = {
        "header longer than the file": struct.pack("<Q", 10**6) + b"{}",
        "header of ten gigabytes": struct.pack("<Q", 10**10) + b"{" + bytes(100),
        "header as long as can be": b"\xff" * 8 + b"{}",
        "header of no length": bytes(8),
        "shorter than its length": b"\x08\x00",
        "header is no JSON": made(b"{'weight': 1}"),
        "header is a list": made([1, 2]),
        "header nested deeply": made(b'{"a":' + b"[" * 100_000),
        "header in UTF-16": made(json.dumps(both).encode("utf-16")),
        "unknown type": made({**both, "bias": {**bias, "dtype": "F13"}}),
        "shape and bytes disagree": made({**both, "bias": {**bias, "shape": [3]}}),
        "shape overflows": made({**both, "bias": {**bias, "shape": [2**40, 2**40]}}),
        "shape is negative": made({**both, "bias": {**bias, "shape": [-2]}}),
        "shape is huge": made({**both, "bias": {**bias, "shape": [2**40]}}),
        "bytes overlap": made({**both, "bias": {**bias, "data_offsets": [20, 28]}}),
        "bytes with a hole": made({**both, "bias": {**bias, "data_offsets": [28, 36]}}, bytes(36)),
        "bytes beyond the end": made(both, bytes(28)),
        "bytes left over": made(both, bytes(64)),
        "bytes backwards": made({**both, "bias": {**bias, "data_offsets": [32, 24]}}),
        "one name twice": made(
            b'{"weight":' + json.dumps(weight).encode() + b',"weight":' + json.dumps(bias).encode() + b"}"
        ),
        "strange metadata": made({"__metadata__": {"a": {"b": 1}}, **both}),
        "a pickle by this name": pickle.dumps({"weight": 1}),
        "an archive by this name": archive(good_archive()),
        "huge and empty": made({"weight": {"dtype": "F32", "shape": [2**50, 0], "data_offsets": [0, 0]}}, b""),
    }
    for name, content in files.items():
        path = folder / f"{name.replace(' ', '_')}.safetensors"
        path.write_bytes(content)
        yield Hostile(name, path, load, error_of_weights())


def arrays(folder: Path, load: Callable) -> Iterator[Hostile]:
    """Yield archives of NumPy arrays."""

    def array(header: str, data: bytes = bytes(24)) -> bytes:
        body = header.encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body + data

    def packed(member: bytes, name: str = "weight.npy", compress: bool = False) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
            file.writestr(name, member)
        return buffer.getvalue()

    described = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}".format
    evil = pickle.dumps(np.array([1], dtype=object), 2)
    files = {
        "array of objects": packed(array(described("'|O'", "(1,)"), evil)),
        "array of a tebi": packed(array(described("'<f4'", f"({2**40},)"))),
        "array of a negative size": packed(array(described("'<f4'", "(-6,)"))),
        "array that overflows": packed(array(described("'<f4'", f"({2**62}, 4)"))),
        "array header that calls": packed(array(f"__import__('os').system('touch {folder / 'ran_array'}')")),
        "array of an unknown type": packed(array(described("'<q99'", "(6,)"))),
        "array cut off": packed(array(described("'<f4'", "(6,)"), bytes(8))),
        "array of texts": packed(array(described("'<U2'", "(3,)"))),
        "member that is no array": packed(b"cos\nsystem\n"),
        "archive that swells": packed(array(described("'|u1'", f"({10**8},)"), bytes(10**8)), compress=True),
        "a lone array by this name": array(described("'<f4'", "(2, 3)")),
        "member that climbs": packed(array(described("'<f4'", "(2, 3)")), "../../weight.npy"),
    }
    for name, content in files.items():
        path = folder / f"{name.replace(' ', '_')}.npz"
        path.write_bytes(content)
        yield Hostile(name, path, load, error_of_weights())
