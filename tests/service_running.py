"""A service at work for the tests: real sockets, a real worker process, a client."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi", reason="the service needs the extra: pip install 'xray-anomaly[serve]'")

from anomaly.service.app import create_app  # noqa: E402
from anomaly.service.server import http_server, listen  # noqa: E402
from anomaly.service.service import DEFAULTS, Limits, Service  # noqa: E402

from .service_detectors import OpenFake  # noqa: E402

FAKE = OpenFake()
TOKEN = "0123456789abcdef" * 2


@dataclass
class Running:
    service: Service
    client: Any
    port: int

    def post(self, content: bytes | str, **options: Any) -> Any:
        headers = {"content-type": "application/octet-stream"}
        return self.client.post("/films", content=content, params=options, headers=headers)

    def score(self, content: bytes | str, **options: Any) -> dict[str, Any]:
        (film,) = self.post(content, wait=30, **options).json()["films"]
        return dict(film)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.service.audit.file.read_text().splitlines()]


@contextmanager
def running(
    spool: Path, limits: Limits = DEFAULTS, token: str | None = None, opens: Callable[[], Any] = FAKE
) -> Iterator[Running]:
    service = Service(spool, opens, limits)
    service.start()
    server = http_server(create_app(service, token))
    service.stopping = lambda: server.should_exit
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Running(service, client, port)
    finally:
        server.should_exit = True
        thread.join()
        service.stop()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def raw(port: int, request: bytes, *, shut: bool = False) -> bytes:
    """Send bytes as they are, and return the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        if shut:
            return b""
        answer = b""
        while not answer.endswith(b"}") and (chunk := connection.recv(65536)):
            answer += chunk
        return answer
