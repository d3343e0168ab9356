"""The page as gradio serves it: what it opens, keeps, sends away, and where it listens."""

from __future__ import annotations

import html
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from locap import entry
from locap.inference.demo import command, server
from locap.inference.demo.limits import MAX_WAITING
from locap.utils.errors import MissingDependencyError, UsageError

pytest.importorskip("gradio")
UPLOAD = "/gradio_api/upload"


class User:
    """A browser's session without a browser."""

    def __init__(self, address: str, name: str) -> None:
        import httpx

        self.http, self.session = httpx.Client(base_url=address, timeout=30), name
        config = self.http.get("/config").json()
        self.functions = {function["api_name"]: function["id"] for function in config["dependencies"]}
        self.parts = {part["type"]: part["id"] for part in config["components"]}

    def upload(self, data: bytes, name: str = "a.png") -> str:
        return self.http.post(UPLOAD, files={"files": (name, data)}).raise_for_status().json()[0]

    def call(self, function: str, *values: object) -> dict:
        """Return the last message of a call: its ``output`` and whether it was a ``success``."""
        body = {"data": list(values), "fn_index": self.functions[function], "session_hash": self.session}
        joined = self.http.post("/gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            return {"success": False, "output": {"error": joined.text}}
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("no answer")

    def open(self, path: str, **more: object) -> dict:
        return self.call("open_image", {"path": path, "meta": {"_type": "gradio.FileData"}, **more})

    def caption(self, place: str = "0 0 60 40", mode: str = "Box", phrase: str = "") -> dict:
        return self.call("caption", mode, place, None, phrase, "Describe", "")


def said(message: dict) -> str:
    return message["output"]["data"][1] if message["success"] else html.unescape(message["output"]["error"] or "")


@pytest.fixture
def visit(serve, service):
    address = serve(service)
    return lambda name: User(address, name)


@pytest.mark.fault("J10")
def test_users_have_nothing_in_common(visit, kit):
    ann, bob, eve = visit("ann"), visit("bob"), visit("eve")
    for user, red in ((ann, 10), (bob, 200)):
        assert user.open(user.upload(kit.png(kit.plain(red, 0, 0))))["success"]
    for _ in range(2):
        assert said(ann.caption()) == "rgb 10 0 0"
        assert said(bob.caption()) == "rgb 200 0 0"
    assert "no image yet" in said(eve.caption())


@pytest.mark.fault("J10")
def test_uploads_are_deleted(serve, service, kit, tmp_path):
    user = User(serve(service, keep_seconds=1, sweep_seconds=1), "ann")
    path = Path(user.upload(kit.png(kit.plain(1, 1, 1))))
    assert path.is_relative_to(tmp_path / "uploads")
    assert user.open(str(path))["success"]
    for _ in range(80):
        if not path.exists():
            break
        time.sleep(0.1)
    assert not path.exists()


@pytest.mark.fault("J10")
def test_the_desk_unused_the_longest_makes_place(service, kit, serve, monkeypatch):
    from locap.inference.demo import page

    monkeypatch.setattr(page, "MAX_SESSION_BYTES", 40_000)  # three images, each seen and shown
    address = serve(service)
    users = [User(address, name) for name in ("ann", "bob", "eve")]
    for user in users:
        for _ in range(3):  # another image takes the place of the one before
            user.open(user.upload(kit.png(kit.plain(7, 7, 7))))
    assert "no longer" in said(users[0].caption())
    assert [said(user.caption()) for user in users[1:]] == ["rgb 7 7 7"] * 2


def sent_painting(user, layer, **more):
    data = {"component_id": user.parts["imageeditor"], "session_hash": user.session, "fn_name": "accept_blobs"}
    data |= {"id": "p1", "type": "layer", "index": "0", **more}
    return user.http.post("/gradio_api/component_server", data=data, files={"file": ("a.png", layer)})


def test_a_painting_is_sent_ahead_and_bounded(visit, kit):
    from locap.inference.demo.limits import MAX_LAYERS, MAX_PAINTINGS
    from locap.inference.demo.page import UploadedPainting

    user = visit("ann")
    user.open(user.upload(kit.png(kit.plain(1, 2, 3))))
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[:9, :9] = 255
    assert sent_painting(user, kit.png(layer)).status_code == 200
    answer = user.call("caption", "Brush", "", {"id": "p1", "background": None, "layers": [], "composite": None}, "",
                       "Describe", "")  # fmt: skip
    assert said(answer) == "rgb 1 2 3"
    assert "p1" not in UploadedPainting.kept
    for number in range(MAX_PAINTINGS + 5):
        sent_painting(user, b"abc", id=f"p{number}")
    assert len(UploadedPainting.kept) == MAX_PAINTINGS
    for wrong in ({"index": "1000000000"}, {"index": str(MAX_LAYERS)}, {"index": "-1"}, {"id": "p" * 1000}):
        assert sent_painting(user, b"abc", **wrong).status_code >= 400, wrong
    UploadedPainting.kept.clear()


@pytest.mark.fault("J1")
def test_large_uploads_are_refused(visit):
    user = visit("ann")
    for size in (20_000_100, 60_000_000):
        assert user.http.post(UPLOAD, files={"files": ("a.png", bytes(size))}).status_code == 413
    assert user.http.get("/healthz").status_code == 200


@pytest.mark.fault("J2")
def test_only_uploads_are_opened(visit, kit, tmp_path):
    user = visit("ann")
    secret = tmp_path / "secret.png"
    secret.write_bytes(kit.png(kit.plain(1, 2, 3)))
    folder = tmp_path / "uploads"
    for path in (str(secret), "/etc/passwd", f"{folder}/../secret.png", "../secret.png", "C:\\boot.ini", "NUL", ""):
        assert not user.open(path)["success"], path
    uploaded = Path(user.upload(kit.png(kit.plain(5, 5, 5))))
    (uploaded.parent / "link.png").symlink_to(secret)
    assert not user.open(str(uploaded.parent / "link.png"))["success"]
    assert user.open(str(uploaded))["success"]


@pytest.mark.fault("J2")
def test_no_other_file_is_served(visit, tmp_path):
    user = visit("ann")
    (tmp_path / "secret.txt").write_text("secret words")
    places = (
        f"{tmp_path}/secret.txt",
        "/etc/passwd",
        "../../../../../etc/passwd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        f"{tmp_path}/uploads/../secret.txt",
        "file:///etc/passwd",
        str(Path(server.__file__)),
    )
    routes = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/")
    for place in [route + place for route in routes for place in places]:
        response = user.http.get(place)
        assert response.status_code in (403, 404), place
        assert "root:" not in response.text
        assert "secret words" not in response.text


@pytest.mark.fault("J2")
def test_uploads_stay_in_their_folder(visit, kit, tmp_path):
    user = visit("ann")
    for name in ("../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "CON.png", "a\x00.png", "ü" * 300):
        response = user.http.post(UPLOAD, files={"files": (name, kit.png(kit.plain(5, 5, 5)))})
        for path in response.json() if response.status_code == 200 else []:
            assert Path(path).resolve().is_relative_to((tmp_path / "uploads").resolve())
    assert not list(tmp_path.glob("*.png"))
    assert user.http.get("/healthz").status_code == 200


@pytest.mark.fault("J3")
def test_addresses_are_not_opened(visit):
    user = visit("ann")
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        here = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        for address in (here, "http://169.254.169.254/x", "file:///etc/passwd", "gopher://127.0.0.1/x"):
            for message in (user.open(address), user.open(address, url=address)):
                assert not message["success"]
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.fault("J4")
def test_files_that_are_no_images(visit, kit):
    user = visit("ann")
    good = kit.png(kit.plain(1, 2, 3))
    bomb = kit.png(np.zeros((9000, 9000), np.uint8))
    for data, message in ((b"<html>", "cannot be read"), (good[:60], "truncated or corrupt"), (bomb, "too large")):
        answer = user.open(user.upload(data))
        assert message in said(answer)
        assert "/" not in said(answer).replace("8/", "")
    for pixels in (kit.plain(1, 2, 3, height=1, width=1), np.full((4, 4, 4), 255, np.uint8)):
        assert user.open(user.upload(kit.png(pixels)))["success"]


@pytest.mark.fault("J5")
def test_words_are_escaped_on_the_page(visit, kit):
    user = visit("ann")
    user.open(user.upload(kit.png(kit.plain(1, 2, 3))))
    error = user.caption("<script>alert(1)</script>")["output"]["error"]
    assert "<" not in error
    for place in ("nan 0 5 5", "1 2", "99 99 120 120"):
        assert not user.caption(place)["success"], place
    assert said(user.caption("60 40 -5 -5")) == "rgb 1 2 3"
    assert "too long" in said(user.caption(mode="Phrase", phrase="a" * 1_000_000))
    assert "Too many" in said(user.caption(mode="Phrase", phrase="a\n" * 900))


@pytest.mark.fault("J8")
def test_a_failure_is_told_by_its_number(visit, kit, colours, caplog):
    user = visit("ann")
    user.open(user.upload(kit.png(kit.plain(1, 2, 3))))
    colours.fault = RuntimeError("secret")
    with caplog.at_level(logging.ERROR, "locap"):
        message = said(user.caption())
    assert "(request " in message
    assert "secret" not in message
    assert message.split("(request ")[1].split(")")[0] in caplog.text
    assert said(user.caption()) == "rgb 1 2 3"


@pytest.mark.fault("J7")
def test_closing_the_page_ends_the_generation(visit, kit, colours):
    user = visit("ann")
    user.open(user.upload(kit.png(kit.plain(1, 2, 3))))
    colours.words, colours.pause = 5000, 0.02
    data = ["Box", "0 0 9 9", None, "", "Describe", ""]
    body = {"data": data, "fn_index": user.functions["caption"], "session_hash": user.session}
    user.http.post("/gradio_api/queue/join", json=body)
    with user.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": user.session}) as stream:
        next(line for line in stream.iter_lines() if "process_generating" in line)
    written = -1
    while written != colours.written:
        written = colours.written
        time.sleep(0.5)
    assert written < 500


@pytest.mark.fault("J11")
def test_no_request_leaves_the_machine(serve, service, kit, monkeypatch):
    tried = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def checked_connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise OSError("blocked")
        return connect(self, address)

    def checked_look_up(host, *arguments, **options):
        if host not in ("127.0.0.1", "::1", "localhost", None):
            tried.append(host)
            raise socket.gaierror("blocked")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", checked_connect)
    monkeypatch.setattr(socket, "getaddrinfo", checked_look_up)
    user = User(serve(service), "ann")
    user.open(user.upload(kit.png(kit.plain(1, 2, 3))))
    assert said(user.caption()) == "rgb 1 2 3"
    time.sleep(0.5)
    assert tried == []
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert user.http.get("/monitoring").status_code != 200
    assert 'analytics_enabled":true' not in user.http.get("/config").text.replace(" ", "")


@pytest.mark.fault("J11")
def test_pages_of_other_sites_get_nothing(visit):
    user = visit("ann")
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        assert user.http.get("/config", headers=headers).status_code == 403
        assert user.http.post(UPLOAD, headers=headers).status_code == 403
    assert "access-control-allow-origin" not in user.http.get("/config").headers


def test_the_password_is_asked_for(serve, service):
    import httpx

    address = serve(service, auth=("ann", "pw"))
    assert httpx.get(f"{address}/config").status_code == 401
    assert httpx.post(f"{address}{UPLOAD}").status_code == 401
    assert httpx.get(f"{address}/v1/models").status_code == 401


@pytest.mark.fault("J9")
def test_the_next_free_port():
    with server.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with server.bind("127.0.0.1", port) as other:
            assert port < other.getsockname()[1] < port + server.PORTS
    with pytest.raises(UsageError, match="No such address"):
        server.bind("no.such.host.invalid", 7860)


@pytest.mark.fault("J9")
@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ([], False),
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--auth", "ann:pw"], False),
        (["--host", "0.0.0.0", "--no-ui"], True),
        (["--host", "0.0.0.0", "--no-ui", "--api-key", "k"], False),
    ],
)
def test_where_it_listens(service, monkeypatch, caplog, options, warned):
    bound = []
    monkeypatch.setattr(command, "_service", lambda arguments: service)
    monkeypatch.setattr(server, "serve", lambda app, taken: bound.append(taken))
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with caplog.at_level(logging.INFO, "locap"):
            arguments = entry.make_parser().parse_args(["demo", "--model", "x", "--port", str(port), *options])
            assert command.run(arguments) == 0
    host, used = bound[0].getsockname()
    bound[0].close()
    assert host == ("127.0.0.1" if not options else "0.0.0.0")
    assert used > port
    assert f"port {port} is taken" in caplog.text
    assert f"http://127.0.0.1:{used}" in caplog.text
    assert ("every machine" in caplog.text) is warned
    assert not hasattr(arguments, "share")


def refused_head(address, seconds):
    """Send half a head; whether the server hangs up within so many seconds."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.")
        return slow.recv(100) == b""


@pytest.mark.fault("J1")
def test_who_says_nothing_is_hung_up_on(serve, service):
    assert refused_head(serve(service, with_page=False), 5)


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_service_manager_ends_it_in_order():
    """So that what is registered for the exit, such as deleting uploads, is done."""
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)), server.ending_in_order():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_wrong_password_argument():
    with pytest.raises(UsageError, match="USER:PASSWORD"):
        command._auth("ann")


@pytest.mark.parametrize(("missing", "with_page"), [("gradio", True), ("fastapi", False)])
def test_missing_packages(monkeypatch, missing, with_page):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=missing) as err:
        server.require_packages(with_page)
    assert ("locap[demo]" in str(err.value)) is with_page


def test_without_the_page_gradio_is_not_needed(service, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    server.make_application(service, with_page=False)


@pytest.mark.fault("J6")
def test_the_queue_of_the_page_is_bounded(service):
    """One line for the page and the HTTP service: the service's own, which the page does not hold back."""
    from locap.inference.demo.page import make_page

    page = make_page(service, []).build()
    assert page._queue.max_size == MAX_WAITING
    assert page._queue.default_concurrency_limit is None
    assert {function.concurrency_limit for function in page.fns.values()} == {"default"}
