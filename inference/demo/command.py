"""The command ``demo``: a page in the browser, and an HTTP service beside it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from ...utils.errors import UsageError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a model folder, run folder, or hub name")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", metavar="DTYPE", help="auto, fp32, bf16 or fp16")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: every machine may connect")
    parser.add_argument("--port", type=int, default=7860, help="where it is taken, the next free one is used")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for them")
    parser.add_argument("--api-key", metavar="KEY", help="clients of the HTTP service must send it")
    parser.add_argument("--name", metavar="NAME", help="of this machine, where users reach it under another one")
    parser.add_argument("--examples", nargs="+", metavar="IMAGE", help="to choose from; default: drawn scenes")
    parser.add_argument("--no-ui", action="store_true", help="only the HTTP service; gradio is not needed")


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit code."""
    from .server import ending_in_order

    with ending_in_order():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from .server import bind, is_open_to_others, make_application, require_packages, serve

    require_packages(not arguments.no_ui)  # told before torch is loaded
    auth = _auth(arguments.auth)
    bound = bind(arguments.host, arguments.port)
    guarded = arguments.api_key or auth if arguments.no_ui else auth
    if is_open_to_others(arguments.host) and not guarded:
        option = "--api-key KEY" if arguments.no_ui else "--auth USER:PASSWORD"
        logger.warning("warning: every machine that reaches %s may use the demo; ask for %s", arguments.host, option)
    app = make_application(
        _service(arguments),
        with_page=not arguments.no_ui,
        auth=auth,
        api_key=arguments.api_key,
        hosts=[arguments.host, *([arguments.name] if arguments.name else [])],
        examples=_examples(arguments.examples),
    )
    _announce(arguments, bound.getsockname()[1])
    serve(app, bound)
    return 0


def _service(arguments: argparse.Namespace) -> Any:
    from ..captioner import load
    from .service import Service

    captioner = load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    return Service(captioner, Path(arguments.model).resolve().name or "locap")


def _examples(paths: list[str] | None) -> list[Any] | None:
    from .uploads import decode_file

    return None if paths is None else [decode_file(path) for path in paths]


def _auth(given: str | None) -> tuple[str, str] | None:
    if given is None:
        return None
    user, colon, password = given.partition(":")
    if not (user and colon and password):
        raise UsageError("Not a user and a password.", where="--auth", allowed="USER:PASSWORD")
    return user, password


def _announce(arguments: argparse.Namespace, port: int) -> None:
    if port != arguments.port and arguments.port:
        logger.info("port %s is taken", arguments.port)
    host = "127.0.0.1" if arguments.host in ("0.0.0.0", "::") else arguments.host  # noqa: S104 - compared, not bound
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    what = "HTTP service" if arguments.no_ui else "demo"
    logger.info("%s at %s (Ctrl+C ends it)", what, address)
