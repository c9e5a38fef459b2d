"""DICOM peers by name and address; needs no DICOM package."""

from collections.abc import Sequence
from dataclasses import dataclass

from preprocessing import InputError


@dataclass(frozen=True)
class NodeSettings:
    """How our node is called, and who may call."""

    aet: str
    callers: Sequence[str] = ()  # AE titles that are answered; none: all
    associations: int = 10  # at once; more are rejected, as a passing state


@dataclass(frozen=True)
class Destination:
    """AET@HOST:PORT."""

    aet: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """Read it; raises InputError where it is none.

        >>> Destination.parse("PACS@10.0.0.1:104")
        Destination(aet='PACS', host='10.0.0.1', port=104)
        """
        aet, at, place = text.rpartition("@")
        host, colon, port = place.rpartition(":")
        if not (at and colon and host and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(f"--send-to {text!r} is not AET@HOST:PORT, such as PACS@10.0.0.1:104")
        return cls(ae_title(aet, "--send-to"), host.strip("[]"), int(port))


def ae_title(text: str, option: str) -> str:
    """Return an AE title (PS3.5 6.2: 1 to 16 characters, no backslash); raises InputError for what is none."""
    title = text.strip()
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise InputError(f"{option}: {text!r} is no AE title; give 1 to 16 ASCII characters without \\")
    return title
