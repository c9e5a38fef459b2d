"""The running service: its ports, its signals, its end."""

import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly.service.access import App
from preprocessing import InputError

if TYPE_CHECKING:
    from uvicorn import Server

KEEP_ALIVE_SECONDS = 5
MOST_CONNECTIONS = 2000
"""More are answered 503 at once."""
BACKLOG = 1024
GRACE_SECONDS = 30
"""For requests that are being answered when the service is told to stop."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises InputError where the address can't be had."""
    listening = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # The protocol is named, as asyncio turns off Nagle's algorithm on such sockets alone: 40 ms an answer.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(BACKLOG)
        return listening
    except (OSError, OverflowError) as error:
        if listening is not None:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{host}:{port} can't be listened on ({reason}); take another --host or --port") from None


def address(listening: socket.socket, *, tls: bool) -> str:
    """Return where it is to be reached."""
    host, port = listening.getsockname()[:2]
    return f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"


def http_server(app: App, tls_cert: Path | None = None, tls_key: Path | None = None) -> "Server":
    """Return the HTTP server of an application; raises InputError where certificate and key don't serve."""
    from uvicorn import Config, Server

    config = Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,  # addresses have no place in a log; the audit log says what happened
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=MOST_CONNECTIONS,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or str(error)
        raise InputError(
            f"--tls-cert {tls_cert}, --tls-key {tls_key}: {reason}; give a PEM certificate and its key"
        ) from None
    return Server(config)


def run_until_stopped(server: "Server", listening: socket.socket, ready: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT, and finish those that have begun."""

    def when_started() -> None:
        while not server.started and not server.should_exit:
            threading.Event().wait(0.01)
        ready()

    # The server raises its signal once more when it is done; by then there is nothing left to interrupt.
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # not the main thread: whoever started it stops it
            before[number] = signal.signal(number, lambda *_: None)
    threading.Thread(target=when_started, daemon=True).start()
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that was not set from Python
