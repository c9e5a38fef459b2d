"""Which films have findings that the PACS is to get: in which order, after which pause, and which it refused."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from anomaly.service.spool import Spool

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds between two tries; doubled after each that fails."""


@dataclass
class Parcel:
    """The findings on one film."""

    film_id: str
    tries: int = 0  # that failed
    due: float = 0.0  # not to be tried before, by time.monotonic()
    refused: set[str] = field(default_factory=set)  # objects that are given up until the next start
    doubtful: Counter[str] = field(default_factory=Counter)  # object -> how often it was answered "cannot understand"


class Outbox:
    """Films with findings to be sent, whether or not anybody sends; what is on the disk says which."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._unsent: dict[str, Parcel] = {}  # in the order in which they are tried
        self._refused: set[str] = set()
        self._changed = threading.Condition()
        self.closed = False

    def add(self, film_id: str) -> None:
        """Take a film that is scored, if it has findings that the PACS has not got; also what it refused before."""
        if self._spool.undelivered(film_id):
            with self._changed:
                self._unsent[film_id] = Parcel(film_id)
                self._changed.notify_all()

    def __contains__(self, film_id: str) -> bool:
        """Whether findings on a film are unsent or refused: it is kept."""
        with self._changed:
            return film_id in self._unsent or film_id in self._refused

    def counts(self) -> tuple[int, int]:
        """Return how many films have findings to be sent, and how many have some that the PACS refused for good."""
        with self._changed:
            return len(self._unsent), len(self._refused)

    def take(self, most: int) -> Sequence[Parcel]:
        """Wait until films are due, and return them, `most` of them; none when it is closed."""
        with self._changed:
            while not self.closed:
                now = time.monotonic()
                due = [parcel for parcel in self._unsent.values() if parcel.due <= now]
                if due:
                    return due[:most]
                nearest = min((parcel.due - now for parcel in self._unsent.values()), default=None)
                self._changed.wait(nearest)
            return ()

    def put_back(self, parcel: Parcel) -> None:
        """Try a film again later, after the others: it must not hold them up."""
        parcel.due = time.monotonic() + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(parcel.tries, 30))
        parcel.tries += 1
        with self._changed:
            if self._unsent.pop(parcel.film_id, None) is not None:  # else it was deleted meanwhile
                self._unsent[parcel.film_id] = parcel

    def settle(self, parcel: Parcel) -> None:
        """Try a film no more: the PACS has it, or refused what it has not."""
        open_still = bool(self._spool.undelivered(parcel.film_id))
        with self._changed:
            if self._unsent.pop(parcel.film_id, None) is not None and open_still:
                self._refused.add(parcel.film_id)

    def discard(self, film_id: str) -> None:
        """Forget a film that is deleted."""
        with self._changed:
            self._unsent.pop(film_id, None)
            self._refused.discard(film_id)

    def wait_closed(self, seconds: float) -> None:
        """Wait for so long, or until it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed, timeout=seconds)

    def close(self) -> None:
        """Give out no more films."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
