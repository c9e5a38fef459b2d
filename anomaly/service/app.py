"""The service over HTTP. Films are written to the spool as they arrive; nothing here decodes one."""

import asyncio
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, StreamingResponse
from starlette.requests import ClientDisconnect

import anomaly
from anomaly.runs import FULL, DiskFull
from anomaly.service.access import Access, App
from anomaly.service.errors import answer_wrong_options, errors, known_options
from anomaly.service.multipart import BadRequest, MultipartFilms
from anomaly.service.pages import MOST_LISTED, api_page, worklist_page
from anomaly.service.queue import QueueFull
from anomaly.service.records import DetectorFacts, FilmAnswer, FilmAnswers, FilmResult, State
from anomaly.service.service import Health, NoRoom, Service
from anomaly.service.spool import Incoming, TooLarge
from preprocessing import InputError

LONGEST_WAIT = 300.0
"""Seconds that a request may wait for its results."""
FIRST_LOOK, LONGEST_LOOK = 0.005, 0.05
"""Seconds between two looks whether a film is scored."""
CLIENT_GONE = 499


class FilmFile(StrEnum):
    """What can be made of a film, beside its scores."""

    PNG = "heatmap.png"
    TIFF = "heatmap.tiff"
    NPY = "heatmap.npy"
    SC = "sc.dcm"
    SEG = "seg.dcm"
    PM = "pm.dcm"
    SR = "sr.dcm"


class Version(DetectorFacts):
    """The answer of /version."""

    version: str
    """Of this program."""


FilmId = Annotated[str, InPath(description="As POST /films gave it")]
_BODY = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"film": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}


def create_app(service: Service, token: str | None = None) -> App:
    """Return the ASGI application of a service that is started; with a token, nobody is answered without it."""
    app = FastAPI(
        title="xray-anomaly",
        version=anomaly.__version__,
        description="Scores X-ray films by how unlike normal ones they are. Not a medical device; for research only.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        responses=errors(401, 403),
        dependencies=[Depends(known_options)],
    )
    answer_wrong_options(app, service)
    _add_films(app, service)
    _add_files(app, service)
    _add_pages(app, service)
    return Access(app, token, lambda status: service.audit.log("refused", origin="http", status=status))


def _add_films(app: FastAPI, service: Service) -> None:
    @app.post(
        "/films",
        status_code=202,
        responses={
            200: {"model": FilmAnswers, "description": "All are scored"},
            **errors(400, 408, 413, 422, 429, 507),
        },
        openapi_extra={"requestBody": _BODY},
    )
    async def post_films(
        request: Request,
        response: Response,
        name: Annotated[str, Query(description="What the film of a raw body is called")] = "film",
        heatmap: Annotated[bool, Query(description="Draw the heatmap too")] = False,
        dicom: Annotated[bool, Query(description="Write the finding as DICOM objects too")] = False,
        wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for the results")] = 0.0,
    ) -> FilmAnswers:
        """Score films: one as a raw body, or several as the file parts of multipart/form-data.

        The answer is 202 with the films' ids, or 200 with their results where all are there within `wait` seconds.
        """
        try:
            ids = await _receive(service, request, name, heatmap=heatmap, dicom=dicom)
        except (InputError, OSError, TimeoutError, ClientDisconnect) as error:
            raise _refusal(service, error) from None
        if wait:
            await _wait(service, ids, wait)
        found = await asyncio.to_thread(lambda: [_answer(service, film_id) for film_id in ids])
        response.status_code = 202 if any(film.state == "waiting" for film in found) else 200
        return FilmAnswers(films=found)

    @app.get("/films", responses=errors(422))
    def get_films(
        state: Annotated[State | None, Query(description="Only those in this state")] = None,
        most: Annotated[int, Query(ge=1, le=MOST_LISTED, description="Of those that came last, at most so many")] = 100,
    ) -> FilmAnswers:
        """Return the films of the spool, the last one first: those that came by DICOM too."""
        found = reversed(service.answers(MOST_LISTED if state else most))
        return FilmAnswers(films=[film for film in found if state in (None, film.state)][:most])

    @app.get("/films/{film_id}", responses=errors(404, 422))
    def get_film(film_id: FilmId) -> FilmAnswer:
        """Return what is known of a film: whether it waits, its score, p-value and flag, or why it has none."""
        return _answer(service, film_id)

    @app.delete("/films/{film_id}", status_code=204, responses=errors(404, 422))
    def delete_film(film_id: FilmId) -> None:
        """Remove a film and all that was made of it."""
        try:
            service.delete(film_id)
        except KeyError:
            raise _unknown(service, film_id) from None


def _add_files(app: FastAPI, service: Service) -> None:
    @app.get("/films/{film_id}/results.zip", response_class=StreamingResponse, responses=errors(404, 409, 422))
    def get_results(film_id: FilmId) -> StreamingResponse:
        """Return all files of a film in one archive: its result, heatmaps, DICOM objects."""
        _answer(service, film_id)
        _result(service, film_id)
        files = sorted(service.spool.path(film_id).glob("result*"))
        named = {"content-disposition": 'attachment; filename="results.zip"'}
        return StreamingResponse(_zip(service, files), media_type="application/zip", headers=named)

    @app.get("/films/{film_id}/{file}", response_class=FileResponse, responses=errors(404, 409, 422))
    def get_file(
        film_id: FilmId,
        file: FilmFile,
        part: Annotated[int, Query(ge=0, le=2, description="1 or 2: of which hand; 0: of the higher score")] = 0,
    ) -> FileResponse:
        """Return a heatmap (PNG: overlay; TIFF, NPY: float32 values) or a DICOM object (SC, SEG, PM, SR) of a film."""
        _answer(service, film_id)
        return FileResponse(_file(service, film_id, file, part), filename=file.value)


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses={503: {"model": Health, "description": "Nothing is scored for now"}})
    def get_health(response: Response) -> Health:
        """Say whether films are scored, and how many wait. Needs no token."""
        health = service.health()
        response.status_code = 200 if health.status == "ok" else 503
        return health

    @app.get("/version")
    def get_version() -> Version:
        """Say which program and which detector this is."""
        assert service.facts is not None
        return Version(version=anomaly.__version__, **service.facts.model_dump())

    @app.get("/worklist", response_class=HTMLResponse, responses=errors(404, 422))
    def get_worklist(
        detector: Annotated[
            str, Query(description="Of which detector, as the page names others; else the present one")
        ] = "",
    ) -> str:
        """Return the page of the films by falling score, of one detector."""
        try:
            return worklist_page(service, detector)
        except KeyError:
            raise HTTPException(
                404, f"no film here was scored by a detector {detector[:40]!r}; see /worklist"
            ) from None

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def get_docs() -> str:
        return api_page(app.openapi())

    @app.get("/", include_in_schema=False)
    def get_root() -> RedirectResponse:
        return RedirectResponse("docs")


# --- receiving ------------------------------------------------------------------------------------------------------


async def _receive(service: Service, request: Request, name: str, *, heatmap: bool, dicom: bool) -> list[str]:
    """Write the films of a request to the spool, all or none, and return their ids."""
    incoming: Sequence[tuple[Incoming, str]] = ()
    kind = request.headers.get("content-type", "")
    ids: list[str] = []
    try:
        async with asyncio.timeout(service.limits.seconds):
            if kind.lower().startswith("multipart/form-data"):
                films = MultipartFilms(kind, service.receive)
                incoming = films.films
                await films.read(request.stream())
            else:
                size = _check_length(service, request.headers.get("content-length"))
                incoming = [(service.receive(size), name)]
                await _write_body(incoming[0][0], request.stream())
        for film, called in incoming:
            ids.append(await asyncio.to_thread(service.accept, film, called, heatmap=heatmap, dicom=dicom))
    except BaseException:
        for film_id in ids:
            service.delete(film_id)
        for film, _ in incoming:
            if film.id not in ids:
                service.refuse(film)
        raise
    return ids


def _check_length(service: Service, length: str | None) -> int:
    """Refuse a raw body by what its header says, before any of it is read; its length, 0 where that is not known."""
    most, size = service.limits.most_bytes, int(length) if length and length.isdigit() else 0
    if size > most:
        raise TooLarge(f"the film has {length} bytes; the limit of --max-bytes is {most}")
    return size


async def _write_body(film: Incoming, body: AsyncIterator[bytes]) -> None:
    async for chunk in body:
        film.write(chunk)
    if not film.size:
        raise BadRequest("an empty body: give the bytes of a film, or films as file parts of multipart/form-data")


async def _wait(service: Service, ids: Sequence[str], seconds: float) -> None:
    """Wait until films are done, for so many seconds at most, or until the service stops."""
    pause, end = FIRST_LOOK, asyncio.get_running_loop().time() + seconds
    while service.unfinished(ids) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(pause)
        pause = min(LONGEST_LOOK, 1.5 * pause)


def _refusal(service: Service, error: BaseException) -> HTTPException:
    """Return the answer to a request whose films are not taken, and log it."""
    full = isinstance(error, (NoRoom, DiskFull)) or (isinstance(error, OSError) and error.errno in FULL)
    status = {QueueFull: 429, TooLarge: 413, BadRequest: 400, TimeoutError: 408, ClientDisconnect: CLIENT_GONE}.get(
        type(error), 507 if full else 500
    )
    service.audit.log("refused", origin="http", status=status)
    if status == 500:
        raise error
    # The connection stays, and what still arrives of the body is dropped: closed, it might take the answer with it.
    headers = {"retry-after": str(error.seconds)} if isinstance(error, QueueFull) else {}
    late = f"the body did not arrive within {service.limits.seconds:g} s, the limit of --timeout"
    detail = late if status == 408 else "the disk is full" if full and not isinstance(error, NoRoom) else str(error)
    return HTTPException(status, detail, headers)


# --- answering ------------------------------------------------------------------------------------------------------


def _answer(service: Service, film_id: str) -> FilmAnswer:
    try:
        return service.answer(film_id)
    except KeyError:
        raise _unknown(service, film_id) from None


def _unknown(service: Service, film_id: str) -> HTTPException:
    keep = f"{service.limits.keep_minutes:g}"
    return HTTPException(404, f"no film {film_id[:40]!r}; results are kept for {keep} minutes (--keep)")


def _result(service: Service, film_id: str) -> FilmResult:
    try:
        return service.result(film_id)
    except KeyError:
        raise HTTPException(409, "the film is not scored yet; GET /films/ID says when it is") from None


def _file(service: Service, film_id: str, file: FilmFile, part: int) -> Path:
    """Return where a file of a film is; HTTPException where there is none."""
    parts = _result(service, film_id).parts
    if part and part not in [one.part for one in parts]:
        there = "it shows one hand or none: leave out part" if len(parts) < 2 else "it has parts 1 and 2"
        raise HTTPException(404, f"no part {part} of this film; {there}")
    having = [one for one in parts if file in one.files and part in (0, one.part)]
    if not having:
        raise HTTPException(
            404, f"no {file.value} of this film{f', part {part}' if part else ''}; {_why(service, film_id, file)}"
        )
    highest = max(having, key=lambda one: one.score).part
    return service.spool.path(film_id) / f"result{f'-{highest}' if highest else ''}_{file.value}"


def _why(service: Service, film_id: str, file: FilmFile) -> str:
    """Say why there is no such file of a film."""
    submission, answer = service.spool.submission(film_id), service.answer(film_id)
    option, asked = ("dicom", submission.dicom) if file.endswith(".dcm") else ("heatmap", submission.heatmap)
    if not asked:
        return f"POST /films?{option}=true with the film makes it, where it can be made"
    if answer.state == "failed":
        return f"the film could not be scored: {answer.error}"
    return "; ".join(answer.notes) or "no pixel of its map is above the normal range"


def _zip(service: Service, files: Sequence[Path]) -> Iterator[bytes]:
    """Give the bytes of an archive of files, which lies on the disk meanwhile."""
    with TemporaryFile(dir=service.spool.folder) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for path in files:
                archive.write(path, path.name)
        file.seek(0)
        while chunk := file.read(2**20):
            yield chunk
