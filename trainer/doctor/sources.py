"""Data sets, the Hugging Face hub and its cache."""

from __future__ import annotations

import functools
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ...utils.folders import cache_folder
from . import compute
from .lines import BROKEN, MISSING, OK, Line, locap_command

ROOT_VARIABLES = ("DETECTRON2_DATASETS", "DATASETS")  # as datasets/readers/whereabouts.py, whose import loads torch
HUB_SECONDS = 3.0
_TRUE = ("1", "on", "yes", "true")


def data() -> Iterator[Line]:
    """The folders that hold the data sets, and which are there."""
    given = {name: os.environ[name] for name in ROOT_VARIABLES if os.environ.get(name)}
    if not given:
        fix = f"export {ROOT_VARIABLES[0]}=<folder that holds coco/>; {locap_command('data list')}"
        yield Line("data root", MISSING, f"neither {' nor '.join(ROOT_VARIABLES)} is set; drawn scenes need none", fix)
        return
    for name, folder in given.items():
        if Path(folder).expanduser().is_dir():
            yield Line(name, OK, folder)
        else:
            yield Line(name, BROKEN, f"{folder} does not exist", f"mkdir -p {folder}; or export {name}=<your folder>")
    found = compute.answers()["data"]
    if "error" in found:
        yield Line("data sets", BROKEN, f"not checked: {found['error']}", "see the lines of torch and of the packages")
        return
    present, count = found["value"]["present"], found["value"]["known"]
    if present:
        yield Line("data sets", OK, f"{len(present)} of {count} known by name: {', '.join(present)}")
    else:
        yield Line("data sets", MISSING, f"none of {count} known by name", locap_command("data list"))


@functools.cache
def ask_hub() -> tuple[threading.Thread | None, list[str]]:
    """Send one request to the hub in the background; its outcome is the only item of the list."""
    outcome: list[str] = []
    if is_offline():
        return None, outcome
    thread = threading.Thread(target=lambda: outcome.append(_request()), daemon=True)  # a name server may not answer
    thread.start()
    return thread, outcome


def is_offline() -> bool:
    """Whether the hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").casefold() in _TRUE


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _request() -> str:
    url = _endpoint()
    if not url.startswith(("https://", "http://")):
        return f"HF_ENDPOINT is no address: {url!r}"
    request = urllib.request.Request(f"{url}/api/models/bert-base-uncased", method="HEAD")  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):  # noqa: S310 - checked above
            return ""
    except urllib.error.HTTPError as err:
        return "" if err.code < 500 else f"{url} answers {err.code}"
    except (OSError, ValueError) as err:
        return f"{url} cannot be reached: {getattr(err, 'reason', None) or err}"


def hub() -> Iterator[Line]:
    """Whether weights and tokenizers can be fetched."""
    thread, outcome = ask_hub()
    if thread is None:
        yield Line("hub", OK, "HF_HUB_OFFLINE is set: only what is cached is used")
        return
    thread.join(HUB_SECONDS)
    reason = outcome[0] if outcome else f"{_endpoint()} did not answer within {HUB_SECONDS:g} s"
    if not reason:
        yield Line("hub", OK, f"{_endpoint()} answers")
        return
    fix = "export HF_ENDPOINT=<a mirror>, or HTTPS_PROXY=<a proxy>; with all in the cache: export HF_HUB_OFFLINE=1"
    yield Line("hub", MISSING, reason, fix)


def hub_cache() -> Path:
    """Return the folder of what was fetched from the hub."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def caches() -> Iterator[Line]:
    """What is in the caches."""
    folder = hub_cache()
    count = sum(1 for entry in folder.glob("models--*")) if folder.is_dir() else 0
    yield Line("cache of the hub", OK, f"{folder}, {count} models")
    yield Line("cache of locap", OK, str(cache_folder()) + ("" if cache_folder().is_dir() else ", not there yet"))
