"""The server: the page and the HTTP service in one application, on one port."""

from __future__ import annotations

import atexit
import errno
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import MissingDependencyError, UsageError
from .guard import Guard
from .limits import HEAD_SECONDS, MAX_SESSIONS, MAX_UPLOAD, SWEEP_SECONDS
from .service import Service

logger = logging.getLogger(__name__)
PORTS = 100  # tried from the wanted one on


def require_packages(with_page: bool) -> None:
    """Import what the server needs, with everything that would report to somebody switched off.

    Raises:
        MissingDependencyError: gradio is missing; or, without the page, FastAPI or uvicorn.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = folder = tempfile.mkdtemp(prefix="locap-demo-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401

        if with_page:
            import gradio  # noqa: F401
    except ModuleNotFoundError as err:
        fix = 'pip install "locap[demo]"' if with_page else "pip install fastapi uvicorn"
        raise MissingDependencyError(f"The demo needs the package {err.name}.", fix=fix) from None


def make_application(
    service: Service,
    *,
    with_page: bool = True,
    auth: tuple[str, str] | None = None,
    api_key: str | None = None,
    hosts: Sequence[str] = (),
    examples: Sequence[np.ndarray] | None = None,
    sweep_seconds: float = SWEEP_SECONDS,
    **keep: float,
) -> Any:
    """Return the ASGI application.

    Args:
        service: the system.
        with_page: whether there is a page, which takes gradio.
        auth: (user, password).
        api_key: of the HTTP service.
        hosts: names under which the server may be reached, beside addresses in numbers and this machine's own names.
        examples: images to choose from; None draws scenes.
        sweep_seconds: between two looks at what is kept for users.
        keep: limits of the `Sweeper`.
    """
    require_packages(with_page)
    from .endpoint import make_app

    app = make_app(service, api_key=api_key, auth=auth)
    if with_page:
        from gradio.utils import get_upload_folder

        from .sweeping import Sweeper

        page, blocks = _mount_page(app, service, auth, examples)
        app.state.sweeper = Sweeper(page, blocks, Path(get_upload_folder()), **keep)
        app.state.sweeper.start(sweep_seconds)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _mount_page(app: Any, service: Service, auth: Any, examples: Sequence[np.ndarray] | None) -> tuple[Any, Any]:
    """Add the page; returns it, and what gradio made of it."""
    import gradio

    from .page import CSS, make_page

    page = make_page(service, examples)
    blocks = page.build()
    blocks.state_session_capacity = MAX_SESSIONS
    fonts = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = gradio.themes.Default(primary_hue="indigo", neutral_hue="slate", font=fonts[0], font_mono=fonts[1])
    gradio.mount_gradio_app(
        app, blocks, "/", auth=auth, max_file_size=MAX_UPLOAD, show_error=False, ssr_mode=False, run_history=False,
        footer_links=[], enable_monitoring=False, pwa=False, mcp_server=False, theme=theme, css=CSS, allowed_paths=[],
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )  # fmt: skip
    blocks.has_launched = True  # from here on gradio, too, checks which files it is asked for
    return page, blocks


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the port, or to the next free one.

    Raises:
        UsageError: no such address here, or no free port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(port, min(port + PORTS, 65_536)) if port else [0]:
        taken = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, number))
            taken.listen(128)
            return taken
        except socket.gaierror:
            taken.close()
            raise UsageError("No such address.", where="--host", value=host, allowed="127.0.0.1, 0.0.0.0, …") from None
        except OSError as err:
            taken.close()
            if err.errno != errno.EADDRINUSE and not isinstance(err, PermissionError):
                reason = f"The server cannot be bound there: {err.strerror}."
                raise UsageError(reason, where="--host", value=host, allowed="an address of this machine") from None
    raise UsageError("No port is free.", where="--port", value=port, allowed=f"one of {PORTS} from there on")


def is_open_to_others(host: str) -> bool:
    """Whether other machines can reach what is bound to this address."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Within, the signal that ends a service ends it as Ctrl+C does: what stands at exit, such as files, is cleared."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(app: Any, bound: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    uvicorn.Server(configure(app)).run(sockets=[bound])


def configure(app: Any, head_seconds: float = HEAD_SECONDS) -> Any:
    """Return how uvicorn serves: without a log of requests, and not to who connects and then says nothing.

    Args:
        app: what is served.
        head_seconds: in which the head of a connection's first request must be there.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, ws="none")

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(head_seconds, lambda: transport.close() if self.cycle is None else None)

    config.http = Protocol
    return config
