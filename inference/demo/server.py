"""The server: the page and the HTTP service in one application, on one port."""

from __future__ import annotations

import atexit
import errno
import ipaddress
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...utils.errors import MissingDependencyError, UsageError
from .guard import Guard
from .limits import MAX_SESSIONS, MAX_UPLOAD
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
    **keep: int,
) -> Any:
    """Return the ASGI application.

    Args:
        service: the system.
        with_page: whether there is a page, which takes gradio.
        auth: (user, password).
        api_key: of the HTTP service.
        hosts: names under which the server may be reached, beside addresses in numbers and this machine's own names.
        examples: images to choose from; None draws scenes.
        keep: ``keep_seconds`` and ``sweep_seconds`` of uploads.
    """
    require_packages(with_page)
    from .endpoint import make_app

    app = make_app(service, api_key=api_key, auth=auth)
    if with_page:
        _mount_page(app, service, auth, examples, keep)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _mount_page(
    app: Any, service: Service, auth: Any, examples: Sequence[np.ndarray] | None, keep: dict[str, int]
) -> None:
    import gradio

    from .page import CSS, build_page

    page = build_page(service, examples, **keep)
    page.state_session_capacity = MAX_SESSIONS
    fonts = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = gradio.themes.Default(primary_hue="indigo", neutral_hue="slate", font=fonts[0], font_mono=fonts[1])
    gradio.mount_gradio_app(
        app, page, "/", auth=auth, max_file_size=MAX_UPLOAD, show_error=False, ssr_mode=False, run_history=False,
        footer_links=[], enable_monitoring=False, pwa=False, mcp_server=False, theme=theme, css=CSS, allowed_paths=[],
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )  # fmt: skip
    page.has_launched = True  # from here on gradio, too, checks which files it is asked for


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


def serve(app: Any, bound: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[bound])
