"""Models from and to the hub: a server on this machine that speaks its protocol, and what the hub may answer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from locap.utils.errors import LocapError, MissingDependencyError, UsageError
from locap.utils.hub import download_model, from_hub, split_model_name, upload_folder

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.yaml": b"MODEL: {NAME: pix2cap_model}\n",
    "model.safetensors": b"weights",
    "README.md": b"# a card\n",
    "tokenizer/vocab.txt": b"[PAD]\n",
    "modeling.py": b"raise SystemExit('code was run')",
    "pytorch_model.bin": b"a pickle",
    "tokenizer/run.py": b"code",
    "checkpoints/step.safetensors": b"would make it look like a run of one's own",
}
ROOT = Path(__file__).resolve().parents[2]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: what is in a repository, and its files."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        content, kind = None, "application/json"
        if path.startswith("/api/models/owner/name/tree/"):
            rows = [{"type": "file", "path": p, "size": len(b), "oid": _oid(b)} for p, b in FILES.items()]
            content = json.dumps(rows).encode()
        elif path in (
            "/api/models/owner/name",
            "/api/models/owner/name/revision/v2",
            f"/api/models/owner/name/revision/{SHA}",
        ):
            siblings = [{"rfilename": name} for name in FILES]
            content = json.dumps(
                {"id": "owner/name", "modelId": "owner/name", "sha": SHA, "siblings": siblings}
            ).encode()
        elif path.startswith(f"/owner/name/resolve/{SHA}/"):
            content, kind = FILES.get(path.removeprefix(f"/owner/name/resolve/{SHA}/")), "application/octet-stream"
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("Content-Type", kind)
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("ETag", f'"{_oid(content or b"")}"')
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The address of a hub on this machine, and what it has been asked."""
    handler = type("Handler", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


SCRIPT = """
import sys, importlib.util
root = sys.argv[1]
spec = importlib.util.spec_from_file_location("locap", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["locap"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from locap.utils.hub import download_model
print(download_model("owner/name", sys.argv[2] or None))
"""


def test_only_safe_files_are_downloaded_and_then_no_network_is_needed(hub, tmp_path):
    address, asked = hub

    def download(endpoint: str, revision: str = "") -> Path:
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        words = [sys.executable, "-c", SCRIPT, str(ROOT), revision]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip().splitlines()[-1])

    folder = download(address, "v2")
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    safe = ("config.yaml", "model.safetensors", "README.md", "tokenizer/vocab.txt")
    assert found == {name: FILES[name] for name in safe}
    assert [path for path in asked if "/resolve/" in path and path.endswith((".py", ".bin"))] == []
    assert from_hub(folder)
    assert download(address) == folder
    (folder.parents[1] / "refs").mkdir(exist_ok=True)
    (folder.parents[1] / "refs" / "main").write_text(SHA)
    assert download("http://127.0.0.1:9") == folder, "what is cached needs no network"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.2", ("owner/name", "v1.2")),
        ("name", None),
        ("./owner/name", None),
        ("owner/name/more", None),
        ("../name", None),
        ("owner/..", None),
    ],
)
def test_names(name, parts):
    assert split_model_name(name) == parts


def answer(status: int, kind: str = "HfHubHTTPError") -> Exception:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
    return getattr(errors, kind)("no", response=response)


def test_a_repository_of_something_else_is_told_before_anything_is_downloaded(monkeypatch):
    class Info:
        sha, siblings = SHA, [type("File", (), {"rfilename": "pytorch_model.bin"})]

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, revision, timeout: Info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("downloaded"))
    with pytest.raises(UsageError, match=r"holds no model folder of locap: config\.yaml, model\.safetensors missing"):
        download_model("owner/name")


def test_an_absent_revision_is_told(monkeypatch):
    def absent(self, name, revision, timeout):
        raise answer(404, "RevisionNotFoundError")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", absent)
    with pytest.raises(UsageError, match="has no such revision"):
        download_model("owner/name", "v9")


@pytest.fixture
def api(monkeypatch) -> dict[str, object]:
    """The calls that an upload makes, and which of them fails with what."""
    state: dict[str, object] = {"calls": []}

    def fake(name: str, result: object):
        def call(self, *arguments, **options):
            state["calls"].append((name, arguments, options, self.token))
            if name in state:
                raise state[name]
            return result

        return call

    for name, result in (("whoami", {"name": "owner"}), ("create_repo", "https://hub/owner/name")):
        monkeypatch.setattr(huggingface_hub.HfApi, name, fake(name, result))
    for name in ("create_branch", "upload_folder"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, fake(name, None))
    return state


def test_an_upload_makes_the_repository_and_sends_the_folder(api, tmp_path):
    url = upload_folder(lambda: tmp_path, "owner/name", private=True, token="secret", revision="v2")
    assert url == "https://hub/owner/name"
    names = [name for name, *_ in api["calls"]]
    assert names == ["whoami", "create_repo", "create_branch", "upload_folder"]
    _, repo, branch, upload = api["calls"]
    assert repo[1:3] == (("owner/name",), {"private": True, "exist_ok": True})
    assert branch[2]["branch"] == upload[2]["revision"] == "v2"
    assert upload[2]["folder_path"] == tmp_path
    assert {token for *_, token in api["calls"]} == {"secret"}


@pytest.mark.parametrize(
    ("call", "error", "kind", "says"),
    [
        ("whoami", errors.LocalTokenNotFoundError("no"), MissingDependencyError, "`hf auth login`"),
        ("whoami", answer(401), MissingDependencyError, "the hub does not know this token"),
        ("create_repo", answer(403), UsageError, "may not write to this repository"),
        ("upload_folder", answer(403), UsageError, "`hf auth whoami` shows who you are"),
        ("whoami", errors.OfflineModeIsEnabled("off"), MissingDependencyError, "hf upload owner/name <folder>"),
        ("create_repo", httpx.ConnectError("no route"), MissingDependencyError, "the hub cannot be reached"),
        ("upload_folder", answer(500), MissingDependencyError, "the hub answers 500"),
    ],
)
def test_what_the_hub_refuses_is_told_with_the_way_out(api, tmp_path, call, error, kind, says):
    api[call] = error
    with pytest.raises(kind) as caught:
        upload_folder(lambda: tmp_path, "owner/name", token="secret")
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, LocapError)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("name", ["name", "owner/name@v1", "a/b/c", "owner/", "../x"])
def test_a_wrong_name_is_refused_before_anything_is_written(api, name):
    with pytest.raises(UsageError, match="no name of a repository"):
        upload_folder(lambda: pytest.fail("written"), name)
    assert api["calls"] == []
