"""One file from the web: resumed where it was cut, repeated when the network failed, checked before it is believed."""

from __future__ import annotations

import hashlib
import http.client
import logging
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from ...utils.errors import MissingDependencyError
from ...utils.fault_points import reach
from ...utils.untrusted import require_space
from ...utils.untrusted.files import head_bytes, masquerade

TIMEOUT_SECONDS = 30.0  # without a byte
RETRIES = 3  # in a row without progress
PROGRESS = 2**20  # bytes after which failures are counted anew
LONGEST_WAIT = 20.0  # seconds, so at most 60 in a row
_CHUNK = 2**18
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WORTH_REPEATING = (408, 425, 429, 500, 502, 503, 504)
_NETWORK = (OSError, http.client.HTTPException)
Advance = Callable[[int], None]
_log = logging.getLogger(__name__)


class _Counter:
    """Tells how far it is; what a repeated attempt starts with is not counted twice."""

    def __init__(self, advance: Advance, told: Advance) -> None:
        self._advance, self.told, self._seen = advance, told, 0

    def reached(self, count: int) -> None:
        self._advance(count - self._seen)
        self._seen = count


class _CutShort(OSError):
    """The connection ended before the file did."""


def fetch(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    any_http: bool = False,
    advance: Advance = lambda count: None,
    told: Advance = lambda total: None,
) -> Path:
    """Bring a file to ``path``; until it is complete and checked it is ``<path>.part``, where a later call goes on.

    Args:
        url: https; http of this machine only, unless ``any_http``.
        path: of the file.
        size: its exact length in bytes, if published; else the server's word is taken.
        md5, sha256: as published.
        any_http: http was asked for explicitly.
        advance: told the bytes that have come, those of an earlier call first.
        told: told the length that the server names, 0 where it names none.

    Raises:
        MissingDependencyError: it cannot be had; says what came and what was expected.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = urllib.request.build_opener(_Redirects(any_http))
    _require_safe(url, any_http)
    counter = _Counter(advance, told)
    _repeat(lambda: _attempt(opener, url, part, size, counter), url, part)
    check(part, url, size=size, md5=md5, sha256=sha256)
    part.replace(path)
    _tag(part).unlink(missing_ok=True)
    return path


def check(
    path: Path,
    url: str,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    keep: bool = False,
) -> None:
    """Compare a file with what is published about it; it is deleted when it is another, unless ``keep``.

    Raises:
        MissingDependencyError: wrong length or checksum, with both values.
    """
    actual, wanted = path.stat().st_size, f"{size:,} bytes" if size else None
    if size is not None and actual != size:
        raise _refused(path, "The download has the wrong length", url, f"{actual:,} bytes", wanted, keep)
    if reason := masquerade(head_bytes(path)):
        raise _refused(path, f"The download is not the file: {reason}", url, f"{actual:,} bytes", wanted, keep)
    for kind, digest in (("sha256", sha256), ("md5", md5)):
        if digest and (found := file_digest(path, kind)) != digest:
            value = f"{actual:,} bytes, {kind} {found}"
            raise _refused(path, f"The download has the wrong {kind}", url, value, f"{kind} {digest}", keep)


def file_digest(path: Path, kind: str = "sha256", advance: Advance = lambda count: None) -> str:
    """Return the checksum of a file, as hexadecimal digits."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
            advance(len(data))
    return digest.hexdigest()


def _refused(path: Path, what: str, url: str, value: str, allowed: str | None, keep: bool) -> MissingDependencyError:
    fix = "move it away, or put the right file there" if keep else None
    if not keep:
        path.unlink()
        _tag(path).unlink(missing_ok=True)
    return MissingDependencyError(f"{what}.", where=url, value=value, allowed=allowed, fix=fix)


def _repeat(attempt: Callable[[], None], url: str, part: Path) -> None:
    failures, before = 0, _length(part)
    while True:
        try:
            return attempt()
        except urllib.error.HTTPError as err:
            problem, final = f"{err.code} {err.reason}", err.code not in _WORTH_REPEATING
        except _NETWORK as err:
            if isinstance(err, OSError) and err.filename is not None:
                raise _unwritable(part, err) from err
            problem, final = str(getattr(err, "reason", None) or err) or type(err).__name__, False
        now = _length(part)
        failures = 1 if now - before >= PROGRESS else failures + 1
        before = now
        if final or failures > RETRIES:
            kept = f"; {now:,} bytes are kept in {part}, a later call goes on from there" if now else ""
            again = "" if final else f" ({RETRIES + 1} attempts)"
            raise MissingDependencyError(f"The download failed{again}: {problem}{kept}.", where=url)
        wait = min(LONGEST_WAIT, 2.0**failures * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, no secret
        _log.info("%s: %s; again in %.0f s", url, problem, wait)
        time.sleep(wait)


def _unwritable(part: Path, err: OSError) -> MissingDependencyError:
    return MissingDependencyError(f"The download cannot be written: {err.strerror}.", where=str(part))


def _attempt(opener: urllib.request.OpenerDirector, url: str, part: Path, size: int | None, counter: _Counter) -> None:
    have = _length(part)
    if have and size is not None and have >= size:
        return  # complete, or too long, as the check will find
    headers = {"User-Agent": "locap", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    if have:
        request.add_header("Range", f"bytes={have}-")
        if _tag(part).is_file():
            request.add_header("If-Range", _tag(part).read_text(encoding="latin-1"))
    try:
        answer = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as err:
        if err.code != 416 or not have:
            raise
        if err.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.unlink()  # longer than the file: of another version
        raise _CutShort("the part of an earlier call does not fit; it starts anew") from None
    with answer:
        _receive(answer, url, part, size, have if answer.status == 206 else 0, counter)


def _receive(
    answer: http.client.HTTPResponse, url: str, part: Path, size: int | None, have: int, counter: _Counter
) -> None:
    if have and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
        part.unlink()
        raise _CutShort("the server sent another range than was asked for; it starts anew")
    _require_no_page(answer, url)
    told = answer.headers.get("Content-Length")
    total = have + int(told) if told else None
    if size is not None and total is not None and total != size:
        raise MissingDependencyError(
            "The server offers a file of another length.",
            where=url,
            value=f"{total:,} bytes",
            allowed=f"{size:,} bytes",
        )
    require_space(part.parent, (total or 0) - have, part.name.removesuffix(".part"))
    _write_tag(answer, part)
    counter.told(total or 0)
    counter.reached(have)
    with part.open("ab" if have else "wb") as file:
        while data := answer.read(_CHUNK):
            reach("download.chunk")
            _write(file, data, part)
            have += len(data)
            counter.reached(have)
    if total is not None and _length(part) < total:
        raise _CutShort(f"the connection was cut after {_length(part):,} of {total:,} bytes")


def _write(file: object, data: bytes, part: Path) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as err:
        raise OSError(err.errno, err.strerror, str(part)) from err  # told from errors of the network by its name


def _require_no_page(answer: http.client.HTTPResponse, url: str) -> None:
    kind = (answer.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        moved = f", redirected to {answer.url}" if answer.url != url else ""
        told = answer.headers.get("Content-Length")
        raise MissingDependencyError(
            f"The server sent a web page instead of the file: a login, a form or an error{moved}.",
            where=url,
            value=f"{kind}, {told or 'unknown'} bytes",
        )


def _write_tag(answer: http.client.HTTPResponse, part: Path) -> None:
    """Keep what tells this version of the file from a later one, so that two are never joined."""
    etag = answer.headers.get("ETag") or ""
    mark = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
    if mark:
        _tag(part).write_text(mark, encoding="latin-1")
    else:
        _tag(part).unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, any_http: bool) -> None:
        self._any_http = any_http

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _require_safe(newurl, self._any_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_safe(url: str, any_http: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and (any_http or parts.hostname in _LOOPBACK)):
        return
    raise MissingDependencyError(
        "Data sets are fetched by https only.", where=url, fix="--mirror may name an http server"
    )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")
