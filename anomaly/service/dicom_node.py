"""The service as a DICOM node: C-ECHO, and C-STORE of radiographs (PS3.4 annexes A and B).

A film is on the disk, synchronized, before success is returned. What there is no room for is refused by 0xA700 (out of
resources), upon which a sender tries again. What is no radiograph, and results of this program that a router sends back
(scored again they would go round for ever), are dropped and answered by 0xB006 (elements discarded), a warning: at a
failure Orthanc and storescu end the association, so that a study with a report in it would deliver none of its films.
"""

import io
import threading
from typing import Any

from pydicom import Dataset, dcmread
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event

from anomaly.console import warn
from anomaly.runs import FULL, DiskFull
from anomaly.service.peers import NodeSettings
from anomaly.service.queue import QueueFull
from anomaly.service.service import NoRoom, Service
from anomaly.service.spool import TooLarge
from preprocessing import InputError
from preprocessing.readers.dicom_objects import other_object

SUCCESS, DISCARDED, OUT_OF_RESOURCES = 0x0000, 0xB006, 0xA700
FILMS = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture: digitized films
)
"""SOP classes that are scored."""
TRANSFER_SYNTAXES = (
    "1.2.840.10008.1.2.1",  # explicit, little endian
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",  # big endian
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.50",  # JPEG baseline, extended, lossless
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",  # HTJ2K
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
)
MOST_PDU = 2**17
"""Bytes of a PDU that are taken."""
NETWORK_SECONDS = 60
"""An association that says nothing for so long is ended."""
NEGOTIATION_SECONDS = 5
OVERHEAD = 2**20
"""Bytes of a message beyond its data set, at most."""


class DicomNode:
    """The node at work, in threads of its own."""

    def __init__(self, service: Service, settings: NodeSettings, *, make_objects: bool) -> None:
        """`make_objects`: whether films that come this way get DICOM objects, to be sent on."""
        self._service, self._settings, self._make_objects = service, settings, make_objects
        self._received: dict[int, int] = {}  # association -> bytes of the message that is arriving
        self._lock = threading.Lock()
        self._server: Any = None

    def start(self, host: str, port: int) -> int:
        """Listen, and return the port; raises InputError where it can't be had."""
        entity = AE(ae_title=self._settings.aet)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._settings.callers)
        entity.maximum_associations = self._settings.associations
        entity.maximum_pdu_size = MOST_PDU
        entity.network_timeout, entity.acse_timeout, entity.dimse_timeout = (
            NETWORK_SECONDS,
            NEGOTIATION_SECONDS,
            NETWORK_SECONDS,
        )
        entity.add_supported_context("1.2.840.10008.1.1")  # verification
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), list(TRANSFER_SYNTAXES))
        handlers: Any = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_DATA_RECV, self._on_data),
            (evt.EVT_CONN_CLOSE, self._on_close),
            (evt.EVT_REJECTED, self._on_rejected),
        ]
        try:
            self._server = entity.start_server((host, port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise InputError(f"--dicom {host}:{port} can't be listened on ({error.strerror}); take another") from None
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Take no more associations, and end those that there are; films that are acknowledged are on the disk."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _on_store(self, event: Event) -> int | Dataset:
        """Take one instance, or say why not."""
        request: Any = event.request
        with self._lock:
            self._received[id(event.assoc)] = 0
        if str(request.AffectedSOPClassUID) not in FILMS:
            return self._discard("no radiograph: not kept, not scored")
        data = event.encoded_dataset()
        if _is_result(data):
            return self._discard("a result of this program: not kept, not scored")
        try:
            incoming = self._service.receive(len(data))
        except (QueueFull, NoRoom, OSError) as error:
            if isinstance(error, OSError) and error.errno not in FULL:
                warn(f"a film that was sent can't be kept: {error}")
            return self._refuse(OUT_OF_RESOURCES)
        try:
            incoming.write(data)
            name = str(request.AffectedSOPInstanceUID)
            self._service.accept(incoming, name, origin="dicom", heatmap=True, dicom=self._make_objects)
        except (TooLarge, DiskFull, OSError) as error:
            self._service.refuse(incoming)
            if isinstance(error, OSError) and error.errno not in FULL:
                warn(f"a film that was sent can't be kept: {error}")
            return self._refuse(OUT_OF_RESOURCES)
        return SUCCESS

    def _discard(self, reason: str) -> Dataset:
        """Drop an instance, and say so in a warning."""
        self._service.audit.log("discarded", origin="dicom", status=DISCARDED, reason=reason)
        answer = Dataset()
        answer.Status, answer.ErrorComment = DISCARDED, reason
        return answer

    def _refuse(self, status: int) -> int:
        self._service.audit.log("refused", origin="dicom", status=status)
        return status

    def _on_data(self, event: Event) -> None:
        """End an association whose message grows beyond what is taken, before memory does."""
        with self._lock:
            size = self._received.get(id(event.assoc), 0) + len(event.data)
            self._received[id(event.assoc)] = size
        if size > self._service.limits.most_bytes + OVERHEAD:
            self._refuse(OUT_OF_RESOURCES)
            connection = event.assoc.dul.socket
            if connection is not None:
                connection.close()

    def _on_close(self, event: Event) -> None:
        with self._lock:
            self._received.pop(id(event.assoc), None)

    def _on_rejected(self, event: Event) -> None:
        self._service.audit.log("refused", origin="dicom", status=0)


def _is_result(data: bytes) -> bool:
    """Whether an instance is an overlay made by this program."""
    try:
        header = dcmread(
            io.BytesIO(data), stop_before_pixels=True, specific_tags=["Manufacturer", "DerivationDescription"]
        )
    except Exception:  # pydicom has many reasons; the worker says what is wrong with the film
        return False
    return other_object(header) is not None
