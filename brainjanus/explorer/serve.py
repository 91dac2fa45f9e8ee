"""`brainjanus explore`: the page and its API, served until Ctrl-C."""

import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from brainjanus.core.errors import UserError
from brainjanus.core.processes import check_alone
from brainjanus.outputs import check_device

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    run: Path | str,
    dataset: Path | str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    device: str = "cpu",
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a run until it is interrupted. ready: told the address once it is listened to.

    token: that requests have to bring; where other machines can ask, one is made if none is given. device: cpu or cuda.

    Raises UserError without FastAPI and uvicorn, for a run that cannot be opened, a port that is taken, or a device
    that is not there.
    """
    check_alone("explore")
    check_device(device)
    try:
        import uvicorn

        from brainjanus.explorer.api import check_token, make_app
    except ImportError as error:
        raise UserError(
            f"explore: expected FastAPI and uvicorn, got none ({error}). Install them with: pip install "
            "'brainjanus[explore]'"
        ) from error
    from brainjanus.explorer.session import Explorer

    if token is not None:
        check_token(token)
    if host not in LOOPBACK and token is None:
        token = secrets.token_urlsafe(16)
    listening = listen(host, port)
    with listening:
        app = make_app(Explorer(run, dataset, device=device), token=token)
        where = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = f"http://{where}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
        if host not in LOOPBACK:
            print(f"brainjanus: listens on {host}; whoever has the token may ask", file=sys.stderr)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        (ready or (lambda address: print(address, flush=True)))(address)
        with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
            server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError if the port is taken, or the host is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"explore --host {host} --port {port}: expected a port of this machine that is free, got '{error}'. Give "
            "another --port (0 takes any), or another --host."
        ) from error
