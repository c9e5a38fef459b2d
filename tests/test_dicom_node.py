"""The DICOM node: what is stored, what is refused, what is sent on, and that nothing is lost in between."""

import json
import logging
import socket
import subprocess
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
from anomaly.service.outbox import Outbox  # noqa: E402
from anomaly.service.peers import Destination, NodeSettings, ae_title  # noqa: E402
from anomaly.service.sender import Sender, Verdict, verdict_of  # noqa: E402
from anomaly.service.service import DEFAULTS, Limits, Service  # noqa: E402
from anomaly.service.spool import Spool  # noqa: E402
from preprocessing import InputError  # noqa: E402

from .dicom_cases import STORESCU  # noqa: E402
from .service_detectors import OpenFake  # noqa: E402
from .service_running import until  # noqa: E402

DX, SC, SR = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33"
ABORT = -1


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


def test_what_is_no_film_is_dropped_with_a_warning_and_the_rest_is_taken(stored: tuple[Service, int]) -> None:
    """A failure status would end the association of Orthanc and storescu: a study with a report would bring no film."""
    service, port = stored
    result = instance(SC, Manufacturer="xray-anomaly", DerivationDescription="heatmap")
    made = instance(SC, Manufacturer="xray-anomaly")
    statuses = store(port, instance(SR), instance(), result, instance(SC), instance(pixels=800), made)
    assert statuses == [0xB006, 0, 0xB006, 0, 0xA700, 0]  # a report, ..., a heatmap of ours, ..., one of 1.3 MB
    names = [answer.name for answer in service.answers(100)]
    assert result.SOPInstanceUID not in names and made.SOPInstanceUID in names
    discarded = [one for one in events(service) if one["event"] == "discarded"]
    assert [one["reason"][:12] for one in discarded] == ["no radiograp", "a result of "]
    association = associate(port)
    assert association.send_c_store(instance(SR)).ErrorComment == "no radiograph: not kept, not scored"
    association.release()


@pytest.mark.skipif(STORESCU is None, reason="storescu is not installed: Debian's dcmtk")
def test_storescu_goes_on_after_what_is_no_film(stored: tuple[Service, int], tmp_path: Path) -> None:
    service, port = stored
    sent = [instance(SR), instance()]
    for number, one in enumerate(sent):
        one.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    command = [str(STORESCU), "-aec", "ANOMALY", "127.0.0.1", str(port), *map(str, sorted(tmp_path.glob("*.dcm")))]
    assert subprocess.run(command, check=False).returncode == 0
    assert sent[1].SOPInstanceUID in [answer.name for answer in service.answers(100)]


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
        self.asked: list[str] = []
        self.status = 0
        self.statuses: dict[str, int] = {}  # of one instance; ABORT ends the association
        entity = pynetdicom.AE(ae_title="PACS")
        for sop_class in classes:
            entity.add_supported_context(sop_class)
        handlers = [(pynetdicom.evt.EVT_C_STORE, self._on_store)]
        self._server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]

    def _on_store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        status = self.statuses.get(uid, self.status)
        self.asked.append(uid)
        if status == ABORT:
            event.assoc.abort()
        elif status == 0 or status >> 12 == 0xB:
            self.stored.append(uid)
        return 0xA700 if status == ABORT else status

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def result_of(spool: Spool, film_id: str, *objects: Dataset) -> None:
    """Lay objects beside a film that is scored, as the worker does."""
    for number, one in enumerate(objects):
        one.save_as(spool.path(film_id) / f"result_{number}.dcm", enforce_file_format=True)


def events(service: Service, *names: str) -> list[dict[str, Any]]:
    """The audit log, or these events of it."""
    found = [json.loads(line) for line in service.audit.file.read_text().splitlines()]
    return [event for event in found if not names or event["event"] in names]


@contextmanager
def results(
    spool: Path, port: int, monkeypatch: pytest.MonkeyPatch, *objects: Dataset, a_film: bool = False
) -> Iterator[tuple[Service, int]]:
    """A node whose films get these objects; with `a_film`, each film the next of them."""
    monkeypatch.setattr("anomaly.service.outbox.FIRST_PAUSE", 0.02)
    add, left = Outbox.add, list(objects)

    def with_objects(self: Outbox, film_id: str) -> None:
        if not self._spool.objects(film_id):
            result_of(self._spool, film_id, *([left.pop(0)] if a_film else objects))
        add(self, film_id)

    monkeypatch.setattr(Outbox, "add", with_objects)
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
        until(lambda: service.health().unsent == 1)
        assert service.health().unsent == 1
    pacs = Pacs(port)  # the node was stopped meanwhile: what is unsent is on the disk
    try:
        pacs.status = 0xA700
        with results(tmp_path / "spool", port, monkeypatch, *objects) as (service, _):
            assert service.health().unsent == 1
            until(lambda: "status 0xA700" in str(sender_trouble(service)))
            pacs.status = 0
            until(lambda: not service.health().unsent)
            assert set(pacs.stored) == uids
        with results(tmp_path / "spool", port, monkeypatch, *objects) as (service, _):
            assert not service.health().unsent  # and what is sent is not sent again
        assert len(pacs.stored) == 2
    finally:
        pacs.close()


def sender_trouble(service: Service) -> str | None:
    (sender,) = [one for one in threading.enumerate() if isinstance(one, Sender)]
    return sender.trouble


def test_a_class_that_the_pacs_does_not_take_is_said_once_and_holds_no_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pacs = Pacs(classes=(SC,))
    objects = [instance(SC), instance(SR)]
    try:
        with results(tmp_path / "spool", pacs.port, monkeypatch, *objects) as (service, own):
            for count in (1, 2):
                assert store(own, instance()) == [0]
                until(lambda: len(pacs.stored) == count and not service.health().unsent)  # noqa: B023
            assert service.health().refused == 0  # the finding is there, in another form
            for film_id in service.spool.ids():
                sent = service.spool.sent(film_id)
                assert sent.sent == ["result_0.dcm"] and list(sent.unsupported) == ["result_1.dcm"]
                assert not service.spool.undelivered(film_id)
            assert [one["files"] for one in events(service, "sent")] == [1, 1]
            assert [one["file"] for one in events(service, "rejected")] == ["1.dcm", "1.dcm"]
    finally:
        pacs.close()
    assert capsys.readouterr().err.count("PACS does not take 1.dcm") == 1


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *((code, Verdict.TAKEN) for code in (0x0000, 0xB000, 0xB006, 0xB007, 0x0001, 0x0107, 0x0116, 0x0111)),
        (0x0122, Verdict.UNSUPPORTED),
        *((code, Verdict.REFUSED) for code in (0xA900, 0xA9FF, 0x0117, 0x0211, 0x0212)),
        *((code, Verdict.DOUBTFUL) for code in (0xC000, 0xC211, 0xCFFF)),
        *((code, Verdict.AGAIN) for code in (0xA700, 0xA7FF, 0x0110, 0x0124, 0x0213, 0x0210, 0xFE00, 0xA800, 0x1234)),
    ],
)
def test_a_status_means_what_the_standard_says(status: int, verdict: Verdict) -> None:
    assert verdict_of(status) is verdict


@pytest.mark.parametrize("status", [0x0110, 0xA700])
def test_a_passing_failure_loses_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    pacs = Pacs()
    pacs.status = status
    monkeypatch.setattr("anomaly.service.sender.MOST_DOUBTFUL", 2)  # which is not of these
    try:
        with results(tmp_path / "spool", pacs.port, monkeypatch, instance(SC), instance(SR)) as (service, own):
            assert store(own, instance()) == [0]
            until(lambda: len(pacs.asked) >= 8)
            health = service.health()
            assert (health.unsent, health.refused) == (1, 0) and not events(service, "sent", "rejected")
            pacs.status = 0
            until(lambda: not service.health().unsent)
            assert len(pacs.stored) == 2 and [one["files"] for one in events(service, "sent")] == [2]
    finally:
        pacs.close()


@pytest.mark.parametrize(("status", "tries"), [(0xA900, 1), (0xC000, 3)])
def test_what_is_refused_for_good_is_counted_and_kept_and_tried_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int, tries: int
) -> None:
    monkeypatch.setattr("anomaly.service.sender.MOST_DOUBTFUL", 3)
    pacs = Pacs()
    good, bad = instance(SC), instance(SR)
    pacs.statuses[str(bad.SOPInstanceUID)] = status
    try:
        with results(tmp_path / "spool", pacs.port, monkeypatch, good, bad) as (service, own):
            assert store(own, instance()) == [0]
            until(lambda: service.health().refused == 1)
            assert service.health().unsent == 0
            assert pacs.asked.count(str(bad.SOPInstanceUID)) == tries and pacs.stored == [str(good.SOPInstanceUID)]
            (film_id,) = service.spool.ids()
            assert f"status 0x{status:04X}" in service.spool.sent(film_id).rejected["result_1.dcm"]
            assert [one["files"] for one in events(service, "sent")] == [1] and events(service, "rejected")
            assert film_id in service.outbox  # so that it does not expire
        assert f"1.dcm of film {film_id} is not sent" in capsys.readouterr().err
        pacs.statuses.clear()
        with results(tmp_path / "spool", pacs.port, monkeypatch) as (service, own):
            until(lambda: service.health().unsent + service.health().refused == 0)
            assert pacs.stored == [str(good.SOPInstanceUID), str(bad.SOPInstanceUID)]
            assert not service.spool.sent(film_id).rejected
            service.delete(film_id)
            assert film_id not in service.outbox and not list(service.spool.ids())
    finally:
        pacs.close()


def test_a_film_that_ends_the_association_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs = Pacs()
    objects = [instance(SC) for _ in range(4)]
    first, *others = [str(one.SOPInstanceUID) for one in objects]
    pacs.statuses[first] = ABORT
    port = free_port()
    try:
        with results(tmp_path / "spool", port, monkeypatch, *objects, a_film=True) as (service, own):
            for count in range(4):  # in this order, while the PACS is away
                assert store(own, instance()) == [0]
                until(lambda: service.health().unsent == count + 1)  # noqa: B023
        with results(tmp_path / "spool", pacs.port, monkeypatch) as (service, _):
            until(lambda: service.health().unsent == 1)
            assert pacs.asked[0] == first and sorted(pacs.stored) == sorted(others)
            assert len(events(service, "sent")) == 3
            del pacs.statuses[first]
            until(lambda: not service.health().unsent)
            assert pacs.stored[-1] == first
    finally:
        pacs.close()


@pytest.mark.parametrize("cut", ["within a value", "between elements", "all"])
def test_a_damaged_file_of_the_spool_is_named_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: str
) -> None:
    pacs = Pacs()
    objects = [instance(SC), instance(SC)]
    port = free_port()
    try:
        with results(tmp_path / "spool", port, monkeypatch, *objects, a_film=True) as (service, own):
            for count in range(2):
                assert store(own, instance()) == [0]
                until(lambda: service.health().unsent == count + 1)  # noqa: B023
            damaged = next(service.spool.ids())
        file = tmp_path / "spool/films" / damaged / "result_0.dcm"
        content = file.read_bytes()
        keep = {"within a value": len(content) - 100, "between elements": content.index(b"\x08\x00\x16\x00"), "all": 0}
        file.write_bytes(content[: keep[cut]])
        with results(tmp_path / "spool", pacs.port, monkeypatch) as (service, _):
            until(lambda: service.health().refused == 1 and not service.health().unsent)
            assert pacs.stored == [str(objects[1].SOPInstanceUID)]
    finally:
        pacs.close()
    assert f"0.dcm of film {damaged} is not sent, and kept until it is deleted: the file is damaged" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("sends", [True, False])
def test_unsent_results_outlive_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sends: bool) -> None:
    """Whether or not the service was started with somewhere to send them to."""
    monkeypatch.setattr("anomaly.service.service.TIDY_SECONDS", 0.02)
    with results(tmp_path / "spool", free_port(), monkeypatch, instance(SC)) as (service, own):
        assert store(own, instance()) == [0]
        until(lambda: service.health().unsent == 1)
        (kept,) = service.spool.ids()
    to = Destination("PACS", "127.0.0.1", free_port()) if sends else None
    with node(tmp_path / "spool", Limits(keep_minutes=0.0), send_to=to) as (service, _):
        incoming = service.receive()
        incoming.write(b"0.1")
        gone = service.accept(incoming, "film")
        until(lambda: any(one.get("id") == gone for one in events(service, "expired")))
        until(lambda: list(service.spool.ids()) == [kept])
        assert service.health().unsent == 1


def test_a_film_that_fails_after_its_sender_has_gone_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By DICOM nobody asks for a result: who runs the service has to hear of it."""
    with node(tmp_path / "spool", send_to=Destination("PACS", "127.0.0.1", free_port())) as (service, _):
        for content in (b"bad", b"0.5", b"0.5"):
            incoming = service.receive()
            incoming.write(content)
            service.accept(incoming, "1.2.3", origin="dicom", dicom=True)
        until(lambda: len(events(service, "no findings")) == 2)
    said = capsys.readouterr().err
    assert "not scored: 1.2.3, which came by DICOM as film" in said and "not a film" in said
    assert said.count("nothing is sent of film") == 1


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
