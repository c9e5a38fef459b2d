"""The DICOM node: what is stored, what is refused, what is sent on, and that nothing is lost in between."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pynetdicom = pytest.importorskip("pynetdicom", reason="the node needs the extra: pip install 'xray-anomaly[serve]'")

from pydicom import Dataset, dcmread  # noqa: E402
from pydicom.dataset import FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, generate_uid  # noqa: E402

from anomaly.service.dicom_node import DicomNode  # noqa: E402
from anomaly.service.peers import Destination, NodeSettings, ae_title  # noqa: E402
from anomaly.service.sender import Sender  # noqa: E402
from anomaly.service.service import DEFAULTS, Limits, Service  # noqa: E402
from preprocessing import InputError  # noqa: E402

from .service_detectors import OpenFake  # noqa: E402
from .service_running import until  # noqa: E402

DX, SC, SR = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33"


def instance(sop_class: str = DX, pixels: int = 16, **tags: Any) -> Dataset:
    """A radiograph of a patient, whole enough to be stored."""
    film: Any = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID, film.SOPInstanceUID = sop_class, generate_uid()
    film.PatientName, film.PatientID, film.StudyInstanceUID = "Doe^Jane", "secret", generate_uid()
    film.SeriesInstanceUID = generate_uid()
    film.Rows = film.Columns = pixels
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.PixelData = np.zeros((pixels, pixels), np.uint16).tobytes()
    for name, value in tags.items():
        setattr(film, name, value)
    return film


@contextmanager
def node(
    spool: Path, limits: Limits = DEFAULTS, settings: NodeSettings | None = None, send_to: Destination | None = None
) -> Iterator[tuple[Service, int]]:
    """A node with its service, and the sender where there is somewhere to send to."""
    service = Service(spool, OpenFake(), limits)
    sender = None
    if send_to is not None:
        sender = Sender(service, send_to, "ANOMALY")
        service.on_done, service.unsent = sender.add, sender.unsent
    service.start()
    entity = DicomNode(service, settings or NodeSettings("ANOMALY"), make_objects=send_to is not None)
    port = entity.start("127.0.0.1", 0)
    if sender is not None:
        sender.start()
    try:
        yield service, port
    finally:
        entity.stop()
        if sender is not None:
            sender.stop()
        service.stop()


# pynetdicom leaves the socket of a connection that was refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
ASSOCIATIONS: list[Any] = []


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    yield
    for one in ASSOCIATIONS:
        if one.is_established:
            one.abort()
    ASSOCIATIONS.clear()


def associate(port: int, *classes: str, called: str = "ANOMALY", calling: str = "PACS") -> Any:
    entity = pynetdicom.AE(ae_title=calling)
    for sop_class in classes or ("1.2.840.10008.1.1", DX, SC, SR):
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    ASSOCIATIONS.append(entity.associate("127.0.0.1", port, ae_title=called))
    return ASSOCIATIONS[-1]


def store(port: int, *instances: Dataset) -> list[int]:
    association = associate(port)
    assert association.is_established
    statuses = [int(association.send_c_store(one).Status) for one in instances]
    association.release()
    return statuses


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, int]]:
    with node(tmp_path_factory.mktemp("node") / "spool", Limits(most_bytes=2**20)) as one:
        yield one


def test_an_echo_is_answered(stored: tuple[Service, int]) -> None:
    association = associate(stored[1])
    assert association.send_c_echo().Status == 0
    association.release()


def test_a_film_is_on_the_disk_before_success_is_said(stored: tuple[Service, int]) -> None:
    service, port = stored
    film = instance()
    assert store(port, film) == [0]
    until(lambda: any(answer.name == film.SOPInstanceUID for answer in service.answers(100)))
    (answer,) = [one for one in service.answers(100) if one.name == film.SOPInstanceUID]
    until(lambda: service.answer(answer.id).state != "waiting")
    assert "secret" not in service.audit.file.read_text() and "Doe" not in service.audit.file.read_text()
    assert 'origin": "dicom' in service.audit.file.read_text()


def test_what_is_no_film_is_refused_by_status_and_the_rest_is_taken(stored: tuple[Service, int]) -> None:
    result = instance(SC, Manufacturer="xray-anomaly", DerivationDescription="heatmap")
    made = instance(SC, Manufacturer="xray-anomaly")
    statuses = store(stored[1], instance(SR), instance(), result, instance(SC), instance(pixels=800), made)
    assert statuses == [0x0122, 0, 0x0122, 0, 0xA700, 0]  # a report, ..., a heatmap of ours, ..., one of 1.3 MB


def test_a_message_beyond_all_bounds_ends_its_association(stored: tuple[Service, int]) -> None:
    association = associate(stored[1])
    answer = association.send_c_store(instance(pixels=4096))  # 32 MB
    assert "Status" not in answer or answer.Status == 0xA700
    association.abort()
    assert store(stored[1], instance()) == [0]


def test_who_is_not_known_is_rejected(tmp_path: Path) -> None:
    settings = NodeSettings("ANOMALY", callers=("PACS",))
    with node(tmp_path / "spool", settings=settings) as (_, port):
        assert associate(port).is_established
        assert associate(port, called="OTHER").is_rejected
        assert associate(port, calling="STRANGER").is_rejected


def test_a_flood_of_associations_is_rejected_and_passes(tmp_path: Path) -> None:
    with node(tmp_path / "spool", settings=NodeSettings("ANOMALY", associations=3)) as (_, port):
        held = [associate(port) for _ in range(3)]
        assert all(one.is_established for one in held)
        assert all(associate(port).is_rejected for _ in range(5))
        raw = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]  # that say nothing
        for one in [*held, *raw]:
            (one.release if hasattr(one, "release") else one.close)()
        until(lambda: associate(port).is_established)


def test_a_full_queue_is_out_of_resources(tmp_path: Path) -> None:
    with node(tmp_path / "spool", Limits(queue=1)) as (service, port):
        service.queue.reserve()
        assert store(port, instance()) == [0xA700]
        service.queue.release()
        assert store(port, instance()) == [0]


def test_a_full_disk_is_out_of_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with node(tmp_path / "spool") as (service, port):
        with monkeypatch.context() as patch:
            patch.setattr("anomaly.service.spool.os.fsync", full)
            assert store(port, instance()) == [0xA700]
        assert not list(service.spool.ids()) and service.queue._reserved == 0
        assert store(port, instance()) == [0]


def full(handle: int) -> None:
    raise OSError(28, "No space left on device")


# --- sending --------------------------------------------------------------------------------------------------------


class Pacs:
    """A PACS that takes what it is told to take."""

    def __init__(self, port: int = 0, classes: tuple[str, ...] = (DX, SC, SR)) -> None:
        self.stored: list[str] = []
        self.status = 0
        entity = pynetdicom.AE(ae_title="PACS")
        for sop_class in classes:
            entity.add_supported_context(sop_class)
        handlers = [(pynetdicom.evt.EVT_C_STORE, self._on_store)]
        self._server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def _on_store(self, event: Any) -> int:
        if self.status == 0:
            self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return self.status

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def result_of(service: Service, film_id: str, *objects: Dataset) -> None:
    """Lay objects beside a film that is scored, as the worker does."""
    for number, one in enumerate(objects):
        one.save_as(service.spool.path(film_id) / f"result_{number}.dcm", enforce_file_format=True)


@contextmanager
def results(
    spool: Path, port: int, monkeypatch: pytest.MonkeyPatch, *objects: Dataset
) -> Iterator[tuple[Service, int]]:
    """A node whose films get these objects."""
    monkeypatch.setattr("anomaly.service.sender.FIRST_PAUSE", 0.05)
    add = Sender.add

    def with_objects(self: Sender, film_id: str) -> None:
        if not self._service.spool.objects(film_id):
            result_of(self._service, film_id, *objects)
        add(self, film_id)

    monkeypatch.setattr(Sender, "add", with_objects)
    with node(spool, send_to=Destination("PACS", "127.0.0.1", port)) as one:
        yield one


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def test_results_are_sent_on_when_the_pacs_is_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [instance(SC), instance(SR)]
    uids = {str(one.SOPInstanceUID) for one in objects}
    port = free_port()
    with results(tmp_path / "spool", port, monkeypatch, *objects) as (service, own):
        assert store(own, instance()) == [0]
        until(lambda: len(service.unsent()) == 1)
        assert service.health().unsent == 1
    pacs = Pacs(port)  # the node was stopped meanwhile: what is unsent is on the disk
    try:
        pacs.status = 0xA700
        with results(tmp_path / "spool", port, monkeypatch, *objects) as (service, _):
            assert len(service.unsent()) == 1
            until(lambda: "out of resources" in str(sender_trouble(service)))
            pacs.status = 0
            until(lambda: not service.unsent())
            assert set(pacs.stored) == uids
        with results(tmp_path / "spool", port, monkeypatch, *objects) as (service, _):
            assert not service.unsent()  # and what is sent is not sent again
        assert len(pacs.stored) == 2
    finally:
        pacs.close()


def sender_trouble(service: Service) -> str | None:
    (sender,) = [one for one in threading.enumerate() if isinstance(one, Sender)]
    return sender.trouble


def test_what_the_pacs_never_takes_is_said_and_not_sent_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pacs = Pacs(classes=(SC,))
    objects = [instance(SC), instance(SR)]
    try:
        with results(tmp_path / "spool", pacs.port, monkeypatch, *objects) as (service, own):
            assert store(own, instance()) == [0]
            until(lambda: pacs.stored and not service.unsent())
            (film_id,) = service.spool.ids()
            sent = service.spool.sent(film_id)
            assert sent.complete and len(sent.sent) == 1 and list(sent.rejected) == ["result_1.dcm"]
    finally:
        pacs.close()
    assert "PACS does not take 1.dcm" in capsys.readouterr().err


def test_unsent_results_outlive_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly.service.service.TIDY_SECONDS", 0.02)
    port = free_port()
    limits = Limits(keep_minutes=0.0)
    service = Service(tmp_path / "spool", OpenFake(), limits)
    service.start()
    kept, gone = (service.receive() for _ in range(2))
    kept.write(b"0.1")
    gone.write(b"0.1")
    service.unsent = lambda: [kept.id]
    for incoming in (kept, gone):
        service.accept(incoming, "film")
    until(lambda: list(service.spool.ids()) == [kept.id])
    service.stop()
    assert port


def test_addresses_are_checked() -> None:
    assert Destination.parse("PACS@[::1]:104") == Destination("PACS", "::1", 104)
    for bad in ("PACS", "PACS@host", "PACS@host:x", "@host:1", "A" * 17 + "@host:1", "PACS@host:99999"):
        with pytest.raises(InputError):
            Destination.parse(bad)
    with pytest.raises(InputError, match="AE title"):
        ae_title("a\\b", "--aet")


def test_a_film_that_came_by_dicom_reads_as_it_was_sent(tmp_path: Path) -> None:
    with node(tmp_path / "spool", Limits(queue=1)) as (service, port):
        film = instance()
        service.queue.close()  # nothing is scored: the bytes stay
        assert store(port, film) == [0]
        (film_id,) = service.spool.ids()
        kept: Any = dcmread(service.spool.path(film_id) / "film")
        assert kept.PixelData == film.PixelData and kept.SOPInstanceUID == film.SOPInstanceUID
