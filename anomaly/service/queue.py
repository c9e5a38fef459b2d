"""Which films wait for a worker: bounded, in the order in which they came, shared by all threads of a service."""

import threading
import time
from collections import deque
from collections.abc import Sequence

from preprocessing import InputError


class QueueFull(InputError):
    """No more films are taken for now."""

    def __init__(self, limit: int, seconds: int) -> None:
        super().__init__(f"{limit} films wait, the limit of --queue; try again in {seconds} s")
        self.seconds = seconds


class FilmQueue:
    """Films by id. A place is reserved before a film is received, so that none is received in vain."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._waiting: deque[str] = deque()
        self._suspects: deque[str] = deque()  # a worker died with them: each gets one to itself
        self._at_work: set[str] = set()
        self._reserved = 0
        self._closed = False
        self._changed = threading.Condition()
        self._unfinished: set[str] = set()  # waiting or at work
        self._pace: deque[tuple[float, int]] = deque(maxlen=32)  # when so many were done

    def reserve(self) -> None:
        """Hold a place; raises QueueFull where there is none."""
        with self._changed:
            if self._held() + self._reserved >= self.limit:
                raise QueueFull(self.limit, self._seconds_to_wait())
            self._reserved += 1

    def release(self) -> None:
        """Give a place back."""
        with self._changed:
            self._reserved -= 1

    def put(self, film_id: str, *, suspect: bool = False, reserved: bool = True) -> None:
        """Add a film, in the place reserved for it; those of an earlier time come without one."""
        with self._changed:
            self._reserved -= reserved
            (self._suspects if suspect else self._waiting).append(film_id)
            self._unfinished.add(film_id)
            self._changed.notify()

    def take(self, most: int) -> list[str]:
        """Wait for films, and return those that wait, `most` of them; a suspect by itself; [] when it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._suspects)
            if self._closed:
                return []
            if self._suspects:  # first, or they would never come under load; each ends one more worker at most
                taken = [self._suspects.popleft()]
            else:
                taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._at_work.update(taken)
            return taken

    def put_back(self, film_ids: Sequence[str], suspects: Sequence[str] = ()) -> None:
        """Let films wait again, ahead of all others; `suspects` are those that a worker died with."""
        with self._changed:
            self._at_work.difference_update(film_ids)
            self._suspects.extend(one for one in film_ids if one in suspects)
            self._waiting.extendleft(one for one in reversed(film_ids) if one not in suspects)
            self._changed.notify_all()

    def done(self, film_ids: Sequence[str]) -> None:
        """Say that nothing more is to be done with films."""
        with self._changed:
            self._at_work.difference_update(film_ids)
            self._unfinished.difference_update(film_ids)
            self._pace.append((time.monotonic(), len(film_ids)))

    def withdraw(self, film_id: str) -> bool:
        """Take a film out; False where it is not waiting."""
        with self._changed:
            for films in (self._waiting, self._suspects):
                if film_id in films:
                    films.remove(film_id)
                    self._unfinished.discard(film_id)
                    return True
            return False

    def at_work(self, film_id: str) -> bool:
        """Whether a worker has it."""
        with self._changed:
            return film_id in self._at_work

    def unfinished(self, film_ids: Sequence[str]) -> bool:
        """Whether one of them waits or is at work."""
        with self._changed:
            return not self._unfinished.isdisjoint(film_ids)

    def counts(self) -> tuple[int, int]:
        """Return how many films wait, and how many a worker has."""
        with self._changed:
            return len(self._waiting) + len(self._suspects), len(self._at_work)

    def close(self) -> None:
        """Give out no more films."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_closed(self, seconds: float) -> bool:
        """Wait for so long, or until it is closed; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout=seconds)

    def _held(self) -> int:
        return len(self._waiting) + len(self._suspects) + len(self._at_work)

    def _seconds_to_wait(self) -> int:
        """Return after how long a place is likely to be free: 1 to 60 s, by the pace of the last films."""
        if len(self._pace) < 2:
            return 5
        films = sum(count for _, count in list(self._pace)[1:])
        seconds = max(1e-3, time.monotonic() - self._pace[0][0])
        return max(1, min(60, round(self.limit / 8 * seconds / max(films, 1))))
