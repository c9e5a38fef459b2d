"""A real PACS: Debian's Orthanc on loopback, films routed to our node, findings back in their study, kills in between.

Needs orthanc and orthanc-dicomweb; dciodvfy of dicom3tools and storescu of dcmtk where they are installed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import pytest

httpx = pytest.importorskip("httpx")
for package in ("fastapi", "pynetdicom", "highdicom"):
    pytest.importorskip(package, reason="needs the extras: pip install 'xray-anomaly[serve,dicom]'")

from pydicom import dcmread  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402

from anomaly.runs import Run  # noqa: E402

from .dicom_cases import DCIODVFY, STORESCU, errors_of  # noqa: E402
from .film_files import dicom  # noqa: E402
from .service_running import until  # noqa: E402

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
pytestmark = [
    pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed: Debian's orthanc"),
    pytest.mark.skipif(not PLUGIN.exists(), reason="DICOMweb of Orthanc is not installed: Debian's orthanc-dicomweb"),
]
DX = "1.2.840.10008.5.1.4.1.1.1.1"
RESULTS = {
    "1.2.840.10008.5.1.4.1.1.7": "SC",
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.30": "PM",
    "1.2.840.10008.5.1.4.1.1.88.33": "SR",
}
SECONDS = 90


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Process:
    """A process that is started, killed and started again."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.kill(self._running.pid, number)
            self._running.wait()
            self._running = None


class Hospital:
    """A PACS and our node, which know each other."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder = folder
        self.http, self.pacs_port, self.node_port = free_port(), free_port(), free_port()
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "index"),
            "HttpPort": self.http,
            "DicomPort": self.pacs_port,
            "DicomAet": "PACS",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {"node": ["ANOMALY", "127.0.0.1", self.node_port]},
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "DicomScuTimeout": 10,
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.pacs = Process([str(ORTHANC), str(folder / "orthanc.json")], folder / "orthanc.log")
        words = ["--port", "0", "--spool", str(folder / "spool"), "--device", "cpu", "--dicom", str(self.node_port)]
        words += ["--send-to", f"PACS@127.0.0.1:{self.pacs_port}", "--callers", "PACS,STORESCU"]
        self.node = Process([sys.executable, "-m", "anomaly", "serve", str(run), *words], folder / "node.log")
        self.web = httpx.Client(base_url=f"http://127.0.0.1:{self.http}", timeout=30)

    def start(self) -> None:
        """Start both, and wait until both answer."""
        self.pacs.start()
        self.node.start()
        self.await_pacs()
        self.await_node()

    def await_pacs(self) -> None:
        until(lambda: self.get("/system") is not None, SECONDS)

    def await_node(self) -> None:
        until(lambda: self.post("/modalities/node/echo", "{}") == 200, SECONDS)

    def get(self, path: str) -> Any:
        try:
            answer = self.web.get(path, headers={"accept": "application/json"})
            return answer.json() if answer.status_code == 200 else None
        except httpx.HTTPError:
            return None

    def post(self, path: str, content: bytes | str) -> int:
        try:
            return int(self.web.post(path, content=content).status_code)
        except httpx.HTTPError:
            return 0

    def store(self, film: bytes) -> str:
        """Store a film in the PACS, and return its id there."""
        return str(self.web.post("/instances", content=film).json()["ID"])

    def route(self, instance: str) -> bool:
        """Let the PACS send an instance to the node; whether the node has it."""
        return self.post("/modalities/node/store", instance) == 200

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the node's audit log has of an event."""
        log = [json.loads(line) for line in (self.folder / "spool/audit.jsonl").read_text().splitlines()]
        return [event for event in log if event["event"] == name]

    def results(self, study: str) -> dict[str, str]:
        """What DICOMweb finds in a study beside the film: kind -> SOP instance UID."""
        found = self.get(f"/dicom-web/studies/{study}/instances") or []
        kinds = {one["00080018"]["Value"][0]: one["00080016"]["Value"][0] for one in found}
        return {RESULTS[kind]: uid for uid, kind in kinds.items() if kind in RESULTS}

    def fetch(self, study: str, uid: str, file: Path) -> Any:
        """Retrieve an instance by DICOMweb (WADO-RS), as one part of a multipart answer."""
        answer = self.web.get(f"/dicom-web/studies/{study}/instances", headers={"accept": "application/json"})
        series = {one["00080018"]["Value"][0]: one["0020000E"]["Value"][0] for one in answer.json()}[uid]
        answer = self.web.get(f"/dicom-web/studies/{study}/series/{series}/instances/{uid}")
        boundary = answer.headers["content-type"].partition("boundary=")[2].partition(";")[0].strip('"')
        body = answer.content.split(f"--{boundary}".encode())[1].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        file.write_bytes(body)
        return dcmread(file)

    def stop(self) -> None:
        self.node.kill(signal.SIGTERM)
        self.pacs.kill()
        self.web.close()


@pytest.fixture(scope="module")
def hospital(run: Run) -> Iterator[Hospital]:
    with tempfile.TemporaryDirectory(prefix="anomaly-pacs-") as folder:
        made = Hospital(Path(folder), run.path)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def film(films: Path) -> tuple[bytes, str]:
    """A built-in film as a DX image of a patient, with its study."""
    picture = cv2.imread(str(sorted(films.rglob("image1.png"))[0]), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    study = generate_uid()
    tags = {
        "PatientName": "Roe^Jane",
        "PatientID": "4711",
        "StudyInstanceUID": study,
        "SeriesInstanceUID": generate_uid(),
        "StudyDate": "20240229",
        "BodyPartExamined": "HAND",
    }
    data = dicom(picture, bits=8, SOPClassUID=DX, **tags)
    return data, study


def test_findings_come_back_into_the_study_and_are_valid(
    hospital: Hospital, film: tuple[bytes, str], tmp_path: Path
) -> None:
    data, study = film
    assert hospital.route(hospital.store(data))
    until(lambda: {"SC", "PM", "SR"} <= set(hospital.results(study)), SECONDS)
    found = hospital.results(study)
    original = dcmread(tmp_path / "film") if (tmp_path / "film").write_bytes(data) else None
    for kind, uid in found.items():
        result = hospital.fetch(study, uid, tmp_path / f"{kind}.dcm")
        assert result.StudyInstanceUID == study and result.PatientID == "4711" and original is not None
        assert result.SeriesInstanceUID != original.SeriesInstanceUID
        if DCIODVFY is not None:
            assert errors_of(tmp_path / f"{kind}.dcm") == [], kind
    # A router that sends the results on does not make them go round, nor does it meet an error.
    instances = hospital.get("/instances")
    classes = {one: hospital.get(f"/instances/{one}/simplified-tags")["SOPClassUID"] for one in instances}
    secondary = next(one for one, kind in classes.items() if RESULTS.get(kind) == "SC")
    received = hospital.events("received")
    assert hospital.route(secondary)
    assert hospital.events("received") == received


def test_a_study_with_a_report_in_it_delivers_its_film(hospital: Hospital, film: tuple[bytes, str]) -> None:
    data, study = film
    tags = {"StudyInstanceUID": study, "SeriesInstanceUID": generate_uid(), "PatientID": "4711"}
    report = hospital.store(dicom(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", **tags))
    received = len(hospital.events("received"))
    assert hospital.post("/modalities/node/store", json.dumps([report, hospital.store(data)])) == 200
    assert len(hospital.events("received")) == received + 1
    assert hospital.events("discarded")[-1]["status"] == 0xB006


@pytest.mark.skipif(STORESCU is None, reason="storescu is not installed: Debian's dcmtk")
def test_no_film_is_lost_when_either_side_is_killed(
    hospital: Hospital, film: tuple[bytes, str], tmp_path: Path
) -> None:
    data, study = film
    (tmp_path / "film.dcm").write_bytes(data)
    hospital.pacs.kill()
    command = [str(STORESCU), "-aec", "ANOMALY", "-aet", "STORESCU", "127.0.0.1", str(hospital.node_port)]
    assert subprocess.run([*command, str(tmp_path / "film.dcm")], check=False).returncode == 0
    hospital.node.kill()  # with a film that is acknowledged, wherever it is now
    hospital.node.start()
    unsent = hospital.folder / "spool/films"
    until(lambda: any(unsent.glob("*/result_sr.dcm")) and not any(unsent.glob("*/film")), SECONDS)
    hospital.node.kill()  # with findings that are not sent
    hospital.pacs.start()
    hospital.await_pacs()
    assert hospital.results(study) == {}
    hospital.node.start()
    until(lambda: {"SC", "PM", "SR"} <= set(hospital.results(study)), SECONDS)


def test_the_pacs_hears_of_it_where_the_node_is_away(hospital: Hospital, film: tuple[bytes, str]) -> None:
    data, study = film
    stored = hospital.store(data)
    hospital.node.kill()
    assert not hospital.route(stored)  # and tries again, as a router does
    hospital.node.start()
    hospital.await_node()
    assert hospital.route(stored)
    until(lambda: {"SC", "PM", "SR"} <= set(hospital.results(study)), SECONDS)
