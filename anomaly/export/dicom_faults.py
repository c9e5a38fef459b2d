"""What the libraries of DICOM raise of a film, as that film's own error: no other film is to suffer for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from preprocessing import InputError

_LONGEST = 200  # letters of what a library says


@contextmanager
def film_fault(doing: str) -> Iterator[None]:
    """Turn whatever pydicom or highdicom raises into an InputError that says what failed; also a decorator.

    Not for code that writes files: a full disk is no fault of a film. That memory ran out stays what it is.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # each library raises whatever its checks and conversions do
        said = " ".join(str(error).split())[:_LONGEST]
        raise InputError(f"{doing} failed (unexpected {type(error).__name__}: {said})") from error
