"""The audit log of a service: one JSON line an event, without names, patients or scores.

    time     UTC, ISO 8601
    event    started, received, refused, discarded, scored, failed, no findings, sent, rejected, worker died, deleted,
             expired, stopped
    id       of the film, where there is one
    ...      bytes, origin (http or dicom), status (of a refusal), reason (of a death, a rejection), file (that the PACS
             rejected), files (that it took)

Lines are appended by one write each, to a file that is opened for it: it may be rotated at any time.
"""

import json
import os
from pathlib import Path

from anomaly.service.spool import now


class Audit:
    """Appends events to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def log(self, event: str, film_id: str | None = None, **facts: str | int) -> None:
        """Append an event. Where the disk is full the line is lost, and the film is not."""
        known = {"time": now(), "event": event, **({} if film_id is None else {"id": film_id}), **facts}
        try:
            handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, (json.dumps(known) + "\n").encode())
            finally:
                os.close(handle)
        except OSError as error:
            from anomaly.console import warn

            warn(f"{self.file}: an event is not logged ({error.strerror})")
