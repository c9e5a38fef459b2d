"""Who may ask a service: a token beyond this machine, and no page of another site in a browser on it."""

import base64
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from preprocessing import InputError

LEAST_TOKEN = 16
"""Characters of a token."""
OPEN = ("/health",)
"""What is answered without a token: it says nothing of films, and containers ask for it."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether an address reaches nobody but this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name may be anybody's
        return False


def read_token(file: Path) -> str:
    """Return the token in a file; raises InputError where there is none, or a short one."""
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "it is not plain ASCII"
        raise InputError(f"--token-file {file}: {reason}; `openssl rand -hex 32 > {file}` makes one") from None
    if len(token) < LEAST_TOKEN or not token.isprintable() or " " in token:
        raise InputError(
            f"--token-file {file}: a token has {LEAST_TOKEN} or more characters without spaces; "
            f"`openssl rand -hex 32 > {file}` makes one"
        )
    return token


class Access:
    """Answers 401 to whom the token is missing, and 403 to a page of another site.

    Bearer (RFC 6750) for programs; Basic (RFC 7617) with any user and the token as password for a browser. A browser on
    this machine would let any page talk to a service on its loopback: Origin has to be the service's own, and without a
    token Host has to name this machine, as a name that is made to lead here (DNS rebinding) does not.
    """

    def __init__(self, app: App, token: str | None, refused: Callable[[int], None]) -> None:
        """`refused` is told of each refusal by its status."""
        self._app, self._token, self._refused = app, token, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope["headers"])
        if not self._is_own(headers.get("host", ""), headers.get("origin")):
            await self._refuse(send, 403, "pages of other sites are not answered")
        elif self._token is not None and scope["path"] not in OPEN and not self._admits(headers.get("authorization")):
            await self._refuse(send, 401, "a token is needed: Authorization: Bearer TOKEN, or TOKEN as password")
        else:
            await self._app(scope, receive, _unkept(send))

    def _is_own(self, host: str, origin: str | None) -> bool:
        """Whether a request is meant for this service, by the name that it gives and the page that it comes from."""
        try:
            place, name = urlsplit(origin or "").netloc, urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return (origin is None or place == host) and (self._token is not None or is_loopback(name))

    def _admits(self, authorization: str | None) -> bool:
        assert self._token is not None
        kind, _, given = (authorization or "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")[2]
            except ValueError:
                given = ""
        elif kind.lower() != "bearer":
            given = ""
        return hmac.compare_digest(given.strip().encode(), self._token.encode())

    async def _refuse(self, send: Send, status: int, reason: str) -> None:
        self._refused(status)
        body = f'{{"detail": "{reason}"}}'.encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers += [(b"www-authenticate", b"Bearer"), (b"www-authenticate", b'Basic realm="anomaly"')]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _unkept(send: Send) -> Send:
    """Let no cache keep an answer: it may be of a patient."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept_out = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", ()), *kept_out]}
        await send(message)

    return sending


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}
