"""Downloads against a server on this machine that behaves as it is told."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import re
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from locap.datasets.prepare import catalogue, download, fetch
from locap.datasets.prepare.catalogue import DataSet, Download
from locap.utils import fault_points
from locap.utils.errors import MissingDependencyError
from locap.utils.untrusted import unpacking

FORK = multiprocessing.get_context("fork")


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


PICTURES = {f"val2017/{k:012d}.jpg": bytes([k]) * 5000 for k in range(40)}
ARCHIVE = zipped(PICTURES)
SHA = hashlib.sha256(ARCHIVE).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends ``data``; ``script`` holds what to do with the next requests, in this order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.ranges, self.etag, self.pause = ARCHIVE, True, '"1"', 0.0
        self.script: list[Callable[[Handler], None]] = []
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/val2017.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if self.server.script:
            self.server.script.pop(0)(self)
        else:
            self.deliver()

    def deliver(self, cut: int | None = None) -> None:
        """Send the data, or what is asked for of them; ``cut`` bytes before the connection is closed."""
        time.sleep(self.server.pause)
        data, wanted = self.server.data, self.headers.get("Range")
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges else 0
        if self.headers.get("If-Range") not in (None, self.server.etag):
            start = 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + cut if cut else None])

    def log_message(self, *_: object) -> None:
        pass


def cut(count: int) -> Callable[[Handler], None]:
    return lambda handler: handler.deliver(cut=count)


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_error(code)


def page(handler: Handler) -> None:
    body = b"<!doctype html><title>Sign in</title>"
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html; charset=utf-8")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def to(url: str) -> Callable[[Handler], None]:
    def redirect(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return redirect


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    waits: list[float] = []
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=waits.append))
    server = Server()
    server.waits = waits
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def tiny(server, monkeypatch) -> DataSet:
    """A set of the catalogue that the server has."""
    made = DataSet(
        "a tiny set", "CC0", "tests", (Download(server.url, {"coco/val2017": "val2017"}, len(ARCHIVE), sha256=SHA),)
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", made)
    return made


def get(root: Path, **options: object) -> None:
    download.carry_out(download.plan(["tiny"], root), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {f"val2017/{path.name}": path.read_bytes() for path in (folder / "coco" / "val2017").iterdir()}


def files(root: Path) -> list[str]:
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(".lock") and "val2017/" not in name)


@pytest.mark.fault("K1")
def test_a_cut_connection_is_taken_up_where_it_ended(server, tmp_path):
    server.script = [cut(50_000), cut(30_000)]
    seen, told = [], []
    path = fetch.fetch(server.url, tmp_path / "a.zip", sha256=SHA, advance=seen.append, told=told.append)
    assert path.read_bytes() == ARCHIVE
    assert [wanted for _, wanted in server.requests] == [None, "bytes=50000-", "bytes=80000-"]
    assert sum(seen) == len(ARCHIVE)
    assert told == [len(ARCHIVE)] * 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.fault("K1")
def test_a_later_call_goes_on_from_the_part(server, tmp_path):
    server.script = [cut(60_000), *[status(503)] * 3]
    with pytest.raises(
        MissingDependencyError, match=r"4 attempts.*503.*60,000 bytes are kept in .*a.zip.part"
    ) as caught:
        fetch.fetch(server.url, tmp_path / "a.zip", sha256=SHA)
    assert caught.value.where == server.url
    assert len(server.waits) == 3, "three more attempts"
    assert sum(server.waits) <= 60
    server.requests.clear()
    assert fetch.fetch(server.url, tmp_path / "a.zip", sha256=SHA).read_bytes() == ARCHIVE
    assert server.requests == [("/val2017.zip", "bytes=60000-")]


@pytest.mark.fault("K1")
def test_two_versions_of_a_file_are_never_joined(server, tmp_path):
    server.script = [cut(60_000), *[status(503)] * 3]
    with pytest.raises(MissingDependencyError):
        fetch.fetch(server.url, tmp_path / "a.zip")
    server.data, server.etag = ARCHIVE[::-1], '"2"'
    assert fetch.fetch(server.url, tmp_path / "a.zip").read_bytes() == ARCHIVE[::-1]


@pytest.mark.fault("K1")
def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges, server.script = False, [cut(60_000)]
    assert fetch.fetch(server.url, tmp_path / "a.zip", sha256=SHA).read_bytes() == ARCHIVE


@pytest.mark.fault("K1")
def test_a_part_that_is_complete_is_used(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(ARCHIVE)
    fetch.fetch(server.url, tmp_path / "a.zip", size=len(ARCHIVE), sha256=SHA)
    assert server.requests == []


@pytest.mark.fault("K1")
@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_will_not_get_better_is_not_repeated(server, tmp_path, code):
    server.script = [status(code)]
    with pytest.raises(MissingDependencyError, match=f"The download failed: {code} ") as caught:
        fetch.fetch(server.url, tmp_path / "a.zip")
    assert (caught.value.where, caught.value.exit_code, len(server.requests)) == (server.url, 5, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("K1")
def test_a_login_page_is_told_from_the_file(server, tmp_path):
    server.script = [to("/login"), page]
    with pytest.raises(MissingDependencyError, match=r"web page instead of the file: a login.*redirected to .*/login"):
        fetch.fetch(server.url, tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())
    server.data = b"<html>a page that says it is a zip file</html>"
    with pytest.raises(MissingDependencyError, match="HTML page"):
        fetch.fetch(server.url, tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("K1")
def test_a_wrong_length_and_a_wrong_checksum_show_both_values(server, tmp_path):
    with pytest.raises(MissingDependencyError, match="another length") as caught:
        fetch.fetch(server.url, tmp_path / "a.zip", size=len(ARCHIVE) + 1)
    assert (caught.value.value, caught.value.allowed) == (f"{len(ARCHIVE):,} bytes", f"{len(ARCHIVE) + 1:,} bytes")
    with pytest.raises(MissingDependencyError, match="wrong sha256") as caught:
        fetch.fetch(server.url, tmp_path / "a.zip", sha256="0" * 64)
    assert (caught.value.value, caught.value.allowed) == (
        f"{len(ARCHIVE):,} bytes, sha256 {SHA}",
        f"sha256 {'0' * 64}",
    )
    with pytest.raises(MissingDependencyError, match="wrong md5"):
        fetch.fetch(server.url, tmp_path / "a.zip", md5="0" * 32)
    assert not list(tmp_path.iterdir()), "nothing can go on from a wrong file"


@pytest.mark.fault("K1")
def test_a_server_that_falls_silent_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.1)
    silence = threading.Event()
    server.script = [lambda handler: silence.wait(5)]
    assert fetch.fetch(server.url, tmp_path / "a.zip", sha256=SHA).read_bytes() == ARCHIVE
    silence.set()
    assert len(server.requests) == 2


@pytest.mark.fault("K1")
def test_only_https_is_followed(server, tmp_path):
    server.script = [to("http://example.org/a.zip")]
    with pytest.raises(MissingDependencyError, match="https only"):
        fetch.fetch(server.url, tmp_path / "a.zip")
    with pytest.raises(MissingDependencyError, match="https only"):
        fetch.fetch("file:///etc/passwd", tmp_path / "a.zip", any_http=True)
    assert not (tmp_path / "a.zip").exists()


def test_the_original_layout_results_and_is_not_fetched_again(tiny, server, tmp_path):
    get(tmp_path)
    assert contents(tmp_path) == PICTURES
    assert files(tmp_path) == []
    assert download.plan(["tiny"], tmp_path) == []
    assert download.plan(["tiny"], tmp_path / "coco") == [], "<root>/val2017 is accepted as well"
    assert len(server.requests) == 1


def test_archives_are_kept_where_asked(tiny, tmp_path):
    get(tmp_path, keep_archives=True)
    assert files(tmp_path) == ["downloads/tiny/val2017.zip"]


def test_what_a_person_put_there_is_checked_and_used(tiny, server, tmp_path):
    place = tmp_path / "downloads" / "tiny" / "val2017.zip"
    place.parent.mkdir(parents=True)
    place.write_bytes(ARCHIVE)
    get(tmp_path)
    assert contents(tmp_path) == PICTURES
    assert server.requests == []
    assert place.read_bytes() == ARCHIVE, "it is not locap's to delete"


def test_a_wrong_file_that_a_person_put_there_is_refused_but_kept(tiny, server, tmp_path):
    place = tmp_path / "downloads" / "tiny" / "val2017.zip"
    place.parent.mkdir(parents=True)
    place.write_bytes(ARCHIVE + b"!")
    with pytest.raises(MissingDependencyError, match=r"wrong length[^$]*move it away"):
        get(tmp_path)
    assert place.read_bytes() == ARCHIVE + b"!"


def test_a_mirror_has_the_same_files_by_set(tiny, server, tmp_path):
    (step,) = download.plan(["tiny"], tmp_path, server.url.rpartition("/")[0] + "/mirror/")
    download.carry_out([step], any_http=True)
    assert [path for path, _ in server.requests] == ["/mirror/tiny/val2017.zip"]
    assert contents(tmp_path) == PICTURES


@pytest.mark.fault("K1")
def test_without_network_it_says_which_file_goes_where(tiny, server, tmp_path):
    server.script = [status(404)]
    with pytest.raises(MissingDependencyError) as caught:
        get(tmp_path)
    text = str(caught.value)
    assert text.startswith("The download failed: 404 Not Found.")
    assert f"  {server.url}\n    {len(ARCHIVE):,} bytes, sha256 {SHA}\n" in text
    assert f"    -> {tmp_path}/downloads/tiny/val2017.zip\n" in text
    for word in ("run the command again", "https_proxy", "--mirror URL", "URL/tiny/val2017.zip"):
        assert word in text
    assert caught.value.exit_code == 5


@pytest.mark.fault("K2")
def test_of_two_processes_one_downloads(tiny, server, tmp_path):
    server.pause = 0.3
    processes = [FORK.Process(target=get, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.requests) == 1
    assert contents(tmp_path) == PICTURES


@pytest.mark.fault("K4")
def test_space_is_asked_for_before_anything_starts(tiny, server, tmp_path, monkeypatch):
    steps = download.plan(["tiny"], tmp_path)
    monkeypatch.setattr(unpacking, "free_bytes", lambda folder: 2 * len(ARCHIVE))
    download.require_room(steps)
    monkeypatch.setattr(unpacking, "free_bytes", lambda folder: 2 * len(ARCHIVE) - 1)
    with pytest.raises(MissingDependencyError, match="not enough disk space for the archives and what is in them"):
        download.require_room(steps)
    monkeypatch.setattr(unpacking, "free_bytes", lambda folder: len(ARCHIVE) - 1)
    with pytest.raises(MissingDependencyError, match=r"not enough disk space for val2017.zip"):
        download.carry_out(steps)  # the size may not be published: the server's word counts
    assert files(tmp_path) == []


@pytest.mark.fault("K4")
def test_a_disk_that_fills_up_on_the_way_keeps_the_part(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAP_FAULT", "download.chunk:enospc")
    fault_points.activate()
    with pytest.raises(MissingDependencyError, match="cannot be written: No space left on device"):
        get(tmp_path)
    monkeypatch.delenv("LOCAP_FAULT")
    fault_points.activate()
    get(tmp_path)
    assert contents(tmp_path) == PICTURES


def with_fault(fault: str, root: Path) -> None:
    import os

    os.environ["LOCAP_FAULT"] = fault
    fault_points.activate()
    get(root)


@pytest.mark.fault("K5")
@pytest.mark.parametrize("fault", ["download.chunk:kill", "archive.member@1:kill", "archive.member@17:kill",
                                   "archive.rename:kill"])  # fmt: skip
def test_killed_on_the_way_the_next_call_repeats_cleanly(tiny, server, tmp_path, fault):
    process = FORK.Process(target=with_fault, args=(fault, tmp_path))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "coco" / "val2017").exists(), "never half of it"
    get(tmp_path)
    assert contents(tmp_path) == PICTURES
    assert [entry.name for entry in (tmp_path / "coco").iterdir()] == ["val2017"]
    assert len(server.requests) == (2 if fault.startswith("download") else 1), "an archive that is there is used"
