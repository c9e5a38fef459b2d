"""Results to the PACS by C-STORE: from the disk, again and again until they are there, however long it is away."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE

from anomaly.console import warn
from anomaly.service.peers import Destination
from anomaly.service.service import Service
from anomaly.service.spool import Sent

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds between two tries; doubled after each that fails."""
NETWORK_SECONDS = 30
TOGETHER = 16
"""Films whose objects are sent over one association."""


class Sender(threading.Thread):
    """Sends what is made of the films that came by DICOM."""

    def __init__(self, service: Service, destination: Destination, aet: str) -> None:
        super().__init__(name="sender", daemon=True)
        self._service, self._to, self._aet = service, destination, aet
        self._films: dict[str, None] = {}  # to be sent, in their order
        self._changed = threading.Condition()
        self._stopped = False
        self.trouble: str | None = None

    def add(self, film_id: str) -> None:
        """Send the objects of a film that is scored, unless the PACS has them."""
        try:
            submission = self._service.spool.submission(film_id)
        except KeyError:
            return
        wanted = submission.origin == "dicom" and not self._service.spool.sent(film_id).complete
        if wanted and self._service.spool.objects(film_id):
            with self._changed:
                self._films[film_id] = None
                self._changed.notify()

    def unsent(self) -> list[str]:
        """Return the films whose objects are still to be sent."""
        with self._changed:
            return list(self._films)

    def stop(self) -> None:
        """End when what is being sent is sent; the rest stays on the disk."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Send until stopped."""
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._films or self._stopped)
                if self._stopped:
                    return
                films = list(self._films)[:TOGETHER]
            try:
                self._send(films)
                self.trouble, pause = None, FIRST_PAUSE
            except Exception as error:  # whatever it is, the thread has to go on
                known = isinstance(error, (_NotSent, OSError))
                trouble = str(error) if known else f"unexpected {type(error).__name__}: {error}"
                if trouble != self.trouble:
                    warn(f"results are not sent for now, and will be: {trouble}")
                self.trouble = trouble
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, timeout=pause)
                pause = min(LONGEST_PAUSE, 2 * pause)

    def _send(self, films: Sequence[str]) -> None:
        """Send the objects of films over one association; raises _NotSent where it has to be tried again."""
        objects = {film_id: self._open_objects(film_id) for film_id in films}
        entity = AE(ae_title=self._aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = NETWORK_SECONDS
        entity.connection_timeout = NETWORK_SECONDS
        kinds = {
            (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
            for paths in objects.values()
            for path in paths
            for meta in [read_file_meta_info(path)]
        }
        for sop_class, transfer_syntax in sorted(kinds):
            entity.add_requested_context(sop_class, transfer_syntax)
        association = entity.associate(self._to.host, self._to.port, ae_title=self._to.aet) if kinds else None
        if association is not None and not association.is_established:
            reason = "rejects the association" if association.is_rejected else "can't be reached"
            raise _NotSent(f"{self._to.aet} at {self._to.host}:{self._to.port} {reason}")
        try:
            for film_id, paths in objects.items():
                self._send_film(association, film_id, paths)
        finally:
            if association is not None and association.is_established:
                association.release()

    def _open_objects(self, film_id: str) -> list[Path]:
        """Return the objects of a film that the PACS has not got."""
        sent = self._service.spool.sent(film_id)
        return [
            path
            for path in self._service.spool.objects(film_id)
            if path.name not in sent.sent and path.name not in sent.rejected
        ]

    def _send_film(self, association: Any, film_id: str, paths: Sequence[Path]) -> None:
        spool = self._service.spool
        for path in paths:
            rejected = _store(association, path)
            with suppress(FileNotFoundError):  # deleted meanwhile
                before = spool.sent(film_id)
                spool.record_sent(
                    film_id,
                    Sent(
                        sent=[*before.sent, path.name] if rejected is None else before.sent,
                        rejected=before.rejected | ({} if rejected is None else {path.name: rejected}),
                        complete=False,
                    ),
                )
            if rejected is not None:
                warn(f"{self._to.aet} does not take {path.name.removeprefix('result_')}: {rejected}")
                self._service.audit.log("rejected", film_id, reason=rejected)
        if spool.path(film_id).is_dir():
            spool.record_sent(film_id, spool.sent(film_id).model_copy(update={"complete": True}))
        self._service.audit.log("sent", film_id, files=len(paths))
        with self._changed:
            self._films.pop(film_id, None)


class _NotSent(Exception):
    """It has to be tried again."""


def _store(association: Any, path: Path) -> str | None:
    """Send an object: None where it was taken, else why it never will be. Raises _NotSent where it may be later."""
    if not association.is_established:
        raise _NotSent("the association ended")
    try:
        status = association.send_c_store(dcmread(path))
    except ValueError as error:  # no context for its class was accepted
        return " ".join(str(error).split())[:200]
    if "Status" not in status:
        raise _NotSent("the association ended, or there was no answer in time")
    code = int(status.Status)
    if code == 0 or code >> 12 == 0xB:  # a warning: it is stored
        return None
    if code >> 8 == 0xA7:
        raise _NotSent("out of resources (0xA700)")
    return f"status 0x{code:04X} {status.get('ErrorComment', '')}".strip()
