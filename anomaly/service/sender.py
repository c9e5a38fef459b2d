"""Results to the PACS by C-STORE: from the disk, again and again until they are there, however long it is away.

What a status means for an object (PS3.4 annex B.2.3, PS3.7 annex C):

    taken        0x0000; warnings (0xBxxx, 0x0001, 0x0107, 0x0116); 0x0111, as it is there already
    unsupported  0x0122, or no presentation context of its class was accepted: the PACS does not take this class
    refused      0xA9xx (does not match its class), 0x0117 (invalid instance), 0x0211, 0x0212 (not understood as a
                 C-STORE): it would be answered alike each time
    doubtful     0xCxxx (cannot understand), which some answer while their database is away, too: refused after
                 `MOST_DOUBTFUL` tries
    again        all else, for as long as it takes: 0xA7xx (out of resources), 0x0110 (processing failure), 0x0124 (not
                 authorized), 0x0213 (resource limitation), no answer, an association that ends

What is refused stays in the spool (`Outbox`) until it is deleted, and is tried again at the next start.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE

from anomaly.console import warn
from anomaly.service import outbox
from anomaly.service.outbox import Parcel
from anomaly.service.peers import Destination
from anomaly.service.service import Service

NETWORK_SECONDS = 30
TOGETHER = 16
"""Films whose objects are sent over one association."""
MOST_DOUBTFUL = 10
"""Tries of an object that the PACS cannot understand: about a quarter of an hour."""
LAST = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ContentSequence")
"""What the last element of an object is: an image's pixels, a report's content."""


class Verdict(Enum):
    """What a status means for an object."""

    TAKEN = auto()
    UNSUPPORTED = auto()
    REFUSED = auto()
    DOUBTFUL = auto()
    AGAIN = auto()


class _Away(Exception):
    """There is no association to be had."""


class _Ended(Exception):
    """The association ended while an object was sent."""


class _Damaged(Exception):
    """A file of the spool is no whole object."""


class Sender(threading.Thread):
    """Sends what is made of the films that came by DICOM."""

    def __init__(self, service: Service, destination: Destination, aet: str) -> None:
        super().__init__(name="sender", daemon=True)
        self._service, self._outbox, self._to, self._aet = service, service.outbox, destination, aet
        self._said: set[str] = set()  # reasons, once each until all is sent
        self._not_taken: set[str] = set()  # classes, once each
        self.trouble: str | None = None
        """Why something is not sent for now."""

    def stop(self) -> None:
        """End when what is being sent is sent; the rest stays on the disk."""
        self._outbox.close()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Send until stopped."""
        pause = outbox.FIRST_PAUSE
        while parcels := self._outbox.take(TOGETHER):
            moved = False
            try:
                moved = self._send(parcels)
                pause = outbox.FIRST_PAUSE  # a film that fails has a longer one of its own: others need not wait for it
            except _Ended:
                pause = outbox.FIRST_PAUSE
            except Exception as error:  # whatever it is, the thread has to go on
                self._say(_text(error), "results are")
                pause = min(outbox.LONGEST_PAUSE, 2 * pause)
            if not self._outbox.counts()[0]:
                self.trouble = None
                self._said.clear()
            elif not moved:
                self._outbox.wait_closed(pause)

    def _say(self, reason: str, about: str) -> None:
        self.trouble = reason
        if reason not in self._said:
            warn(f"{about} not sent for now, and will be: {reason}")
        self._said.add(reason)

    def _send(self, parcels: Sequence[Parcel]) -> bool:
        """Send the objects of films over one association; whether one of these films is done with.

        A film that fails is tried again later, after the others. Raises _Away, _Ended.
        """
        association = self._associate(parcels)
        moved = False
        try:
            for parcel in parcels:
                if self._outbox.closed:
                    break
                try:
                    moved |= self._send_film(association, parcel)
                except Exception as error:
                    self._outbox.put_back(parcel)
                    if parcel.film_id in self._outbox:  # else it was deleted meanwhile
                        self._say(_text(error), f"film {parcel.film_id} is")
                    if isinstance(error, _Ended):
                        raise
        finally:
            if association is not None and association.is_established:
                association.release()
        return moved

    def _associate(self, parcels: Sequence[Parcel]) -> Any:
        """Return an association for the classes of these films; None where there is nothing that could be sent."""
        entity = AE(ae_title=self._aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = NETWORK_SECONDS
        entity.connection_timeout = NETWORK_SECONDS
        kinds = {kind for parcel in parcels for path in self._open_objects(parcel) for kind in _kind(path)}
        for sop_class, transfer_syntax in sorted(kinds):
            entity.add_requested_context(sop_class, transfer_syntax)
        if not kinds:
            return None
        association = entity.associate(self._to.host, self._to.port, ae_title=self._to.aet)
        if not association.is_established:
            reason = "rejects the association" if association.is_rejected else "can't be reached"
            raise _Away(f"{self._to.aet} at {self._to.host}:{self._to.port} {reason}")
        return association

    def _open_objects(self, parcel: Parcel) -> list[Path]:
        """Return the objects of a film that are to be tried now."""
        return [one for one in self._service.spool.undelivered(parcel.film_id) if one.name not in parcel.refused]

    def _send_film(self, association: Any, parcel: Parcel) -> bool:
        """Send the objects of a film; whether it is done with. Raises _Ended."""
        taken, again = 0, ""
        try:
            for path in self._open_objects(parcel):
                verdict, reason = _store(association, path)
                parcel.doubtful[path.name] += verdict is Verdict.DOUBTFUL
                if verdict is Verdict.DOUBTFUL and parcel.doubtful[path.name] >= MOST_DOUBTFUL:
                    verdict, reason = Verdict.REFUSED, f"{reason}, {MOST_DOUBTFUL} times"
                if verdict is Verdict.TAKEN:
                    self._service.spool.record_sent(parcel.film_id, path.name)
                    taken += 1
                elif verdict in (Verdict.REFUSED, Verdict.UNSUPPORTED):
                    self._refuse(parcel, path.name, reason, unsupported=verdict is Verdict.UNSUPPORTED)
                else:
                    again = f"{self._to.aet} answers {_short(path.name)} by {reason}"
        finally:
            if taken:
                self._service.audit.log("sent", parcel.film_id, files=taken)
        if again:
            self._outbox.put_back(parcel)
            self._say(again, f"film {parcel.film_id} is")
        else:
            self._outbox.settle(parcel)
        return not again

    def _refuse(self, parcel: Parcel, name: str, reason: str, *, unsupported: bool) -> None:
        """Give an object up, until the next start."""
        parcel.refused.add(name)
        self._service.spool.record_rejected(parcel.film_id, name, reason, unsupported=unsupported)
        self._service.audit.log("rejected", parcel.film_id, file=_short(name), reason=reason)
        if unsupported:
            if reason not in self._not_taken:  # a line a class, not a film
                warn(f"{self._to.aet} does not take {_short(name)}: {reason}")
            self._not_taken.add(reason)
        else:
            warn(f"{_short(name)} of film {parcel.film_id} is not sent, and kept until it is deleted: {reason}")


def verdict_of(status: int) -> Verdict:
    """Return what the status of a C-STORE response means for its object.

    >>> verdict_of(0xB007).name, verdict_of(0x0110).name, verdict_of(0xA901).name
    ('TAKEN', 'AGAIN', 'REFUSED')
    """
    if status in (0x0000, 0x0001, 0x0107, 0x0111, 0x0116) or status >> 12 == 0xB:
        return Verdict.TAKEN
    if status == 0x0122:
        return Verdict.UNSUPPORTED
    if status >> 8 == 0xA9 or status in (0x0117, 0x0211, 0x0212):
        return Verdict.REFUSED
    return Verdict.DOUBTFUL if status >> 12 == 0xC else Verdict.AGAIN


def _store(association: Any, path: Path) -> tuple[Verdict, str]:
    """Send an object: what becomes of it, and why. Raises _Ended, and OSError where the disk fails."""
    try:
        instance = _read(path)
    except _Damaged as error:
        return Verdict.REFUSED, f"the file is damaged ({error})"
    sop_class = instance.SOPClassUID
    if not association.is_established:
        raise _Ended("the association ended")
    if sop_class not in {context.abstract_syntax for context in association.accepted_contexts}:
        return Verdict.UNSUPPORTED, f"it takes no {sop_class.name}"
    try:
        answer = association.send_c_store(instance)
    except (ValueError, AttributeError) as error:  # no transfer syntax of it was accepted, or it can't be encoded
        return Verdict.REFUSED, " ".join(str(error).split())[:200]
    if "Status" not in answer:
        raise _Ended("the association ended, or there was no answer in time")
    code = int(answer.Status)
    verdict = verdict_of(code)
    if verdict is Verdict.UNSUPPORTED:  # the same words for all of its class
        return verdict, f"it takes no {sop_class.name} (status 0x{code:04X})"
    return verdict, f"status 0x{code:04X} {answer.get('ErrorComment', '')}".strip()


def _read(path: Path) -> Dataset:
    """Read an object of the spool; raises _Damaged where it is not whole, OSError where the disk fails."""
    try:
        instance = dcmread(path)
        tag = max(instance.keys(), default=0)
        last: Any = instance.get_item(tag)
        # A file that is cut off is read as far as it goes, and a value that is cut off as if it were that short.
        cut = isinstance(last, RawDataElement) and last.value_tell + last.length != path.stat().st_size
        if cut or keyword_for_tag(tag) not in LAST or not (instance.get("SOPClassUID") and instance.SOPInstanceUID):
            raise _Damaged("it ends early, or lacks its class and UID")
    except (OSError, _Damaged):
        raise
    except Exception as error:  # pydicom has many reasons
        raise _Damaged(f"{type(error).__name__}: {error}") from None
    return instance


def _kind(path: Path) -> Iterator[tuple[str, str]]:
    """Give the class and the transfer syntax of an object; of what can't be read nothing, as `_store` says why."""
    with suppress(Exception):
        meta = read_file_meta_info(path)
        yield str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def _short(name: str) -> str:
    return name.removeprefix("result_")


def _text(error: Exception) -> str:
    known = isinstance(error, (_Away, _Ended, OSError))
    return str(error) if known else f"unexpected {type(error).__name__}: {error}"
