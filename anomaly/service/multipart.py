"""Films of a multipart/form-data request (RFC 7578), each written to the spool as its bytes arrive."""

import logging
from collections.abc import AsyncIterator, Callable

from anomaly.service.spool import Incoming
from preprocessing import InputError

logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # what it warns of is in the answer

MOST_FILMS = 256
"""Of one request."""


class BadRequest(InputError):
    """A body that is not what its headers say."""


class MultipartFilms:
    """The films of one request: those received so far are in `films`, with the names that the sender gives them."""

    def __init__(self, content_type: str, receive: Callable[[], Incoming]) -> None:
        """`receive` begins each film; what it raises ends the request."""
        from python_multipart.multipart import MultipartParser, parse_options_header

        self.films: list[tuple[Incoming, str]] = []
        self._receive, self._options = receive, parse_options_header
        self._header, self._value, self._disposition = b"", b"", b""
        self._film: Incoming | None = None
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise BadRequest("a multipart body without a boundary in its Content-Type")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def read(self, body: AsyncIterator[bytes]) -> None:
        """Read the body to its end; raises BadRequest where it is none, and what `receive` and writing raise."""
        from python_multipart.exceptions import FormParserError

        try:
            async for chunk in body:
                self._parser.write(chunk)
            self._parser.finalize()
        except FormParserError as error:
            raise BadRequest(f"the body is not multipart/form-data: {error}") from None
        if not self._ended:
            raise BadRequest("the body ends before its last boundary")
        if not self.films:
            raise BadRequest("no film in the request: give each as a file part")

    def _begin(self) -> None:
        self._disposition, self._film = b"", None

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers(self) -> None:
        options = self._options(self._disposition)[1]
        if b"filename" not in options:
            name = options.get(b"name", b"").decode("utf-8", "replace")[:40]
            raise BadRequest(f"part {name!r} is not a file; options such as heatmap=true go into the address")
        if len(self.films) >= MOST_FILMS:
            raise BadRequest(f"more than {MOST_FILMS} films in a request; send several")
        self._film = self._receive()
        self.films.append((self._film, options[b"filename"].decode("utf-8", "replace")))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        assert self._film is not None
        self._film.write(data[start:end])

    def _on_part_end(self) -> None:
        self._film = None

    def _on_end(self) -> None:
        self._ended = True
