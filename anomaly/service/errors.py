"""How requests are refused over HTTP: each status with one line, in the answer and in the service's description."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from anomaly.runs import Record
from anomaly.service.access import OPEN
from anomaly.service.service import Service
from preprocessing.wording import did_you_mean

_UNKNOWN = "unknown_option"


class Error(Record):
    """The answer to a request that is refused."""

    detail: str
    """One line: what, and what to do."""


Answers = dict[int | str, dict[str, Any]]
_STATUSES = {
    400: "No film in the body, or a body that is not what its headers say",
    401: "The token is missing or wrong",
    403: "A page of another site asks",
    404: "No such film, or no longer; nothing of this kind was made of it",
    408: "The body did not arrive within --timeout",
    409: "The film is not scored yet",
    413: "A film of more bytes than --max-bytes",
    422: "An option that there is not, or a value that it does not take",
    429: "The queue is full; Retry-After says in how many seconds to try again",
    507: "The disk is full",
}


def errors(*statuses: int) -> Answers:
    """Return what the description says of refusals."""
    return {status: {"model": Error, "description": _STATUSES[status]} for status in statuses}


def answer_wrong_options(app: FastAPI, service: Service) -> None:
    """Let an application answer a wrong option or value with 422 and one line."""

    @app.exception_handler(RequestValidationError)
    async def refuse_values(request: Request, error: RequestValidationError) -> JSONResponse:
        """Say in one line what is wrong with a request's options."""
        if request.method == "POST":
            service.audit.log("refused", origin="http", status=422)
        return JSONResponse({"detail": "; ".join(map(_said, error.errors()))}, 422)


def _said(error: dict[str, Any]) -> str:
    """Say in words what a value should have been, and what it is."""
    message, name = " ".join(error["msg"].split()), error["loc"][-1]
    if error["type"] == _UNKNOWN:
        return message
    return f"{name}: {message[:1].lower()}{message[1:]}, not {str(error['input'])[:40]!r}"


def known_options(request: Request) -> None:
    """Refuse what is no option of a request, which would do nothing: `heatmaps=true`."""
    if request.url.path in OPEN:  # a monitor may add what it likes
        return
    known = [one.alias for one in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "there are none"
            reason = f"no option {name[:40]!r}{did_you_mean(name, known)}; {there}"
            raise RequestValidationError([{"type": _UNKNOWN, "loc": ("query",), "msg": reason, "input": name}])
