"""`anomaly serve` under load: films per second, how long each takes to its answer, memory, films lost.

    python -m benchmarks.service RUN --films 10000 [--clients 8] [--batch 16] [--source FOLDER]
                                                    [--client httpx|curl|storescu]

The service runs as a process of its own, as typed. Clients are threads that post a film, or `--batch` of them as one
form, and wait for the results (`POST /films?wait=60`); a 429 is answered by waiting as Retry-After says. With
`--client curl` each request is a process of curl (https://curl.se), one film each. With `--client storescu` each client
is a process of DCMTK's storescu (https://dcmtk.org) that sends its share as DICOM over one association, as fast as the
service takes it; heatmaps are drawn then, as they always are for films that come by DICOM. Films are those of
`--source`, or built-in SYNTHETIC ones, again and again. Memory is the resident set of the service and of its worker,
each second.

Every id is asked for again at the end, or looked up in the audit log: a film without a score is counted as lost. `film`
is the time from a film's receipt to its result, by that log; `request` what an HTTP client waits.
"""

import argparse
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from anomaly.service.records import FilmAnswers
from benchmarks.record import command_line, record
from preprocessing.phantom import write_phantoms

WAIT = 60


@dataclass
class Load:
    """What the clients saw."""

    address: str
    seconds: list[float] = field(default_factory=list)  # a request
    ids: list[str] = field(default_factory=list)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def post(self, films: list[Path], client: httpx.Client) -> None:
        """Post films by httpx, and wait for their results."""
        while True:
            begun = time.perf_counter()
            if len(films) == 1:
                answer = client.post("/films", params={"wait": WAIT}, content=films[0].read_bytes())
            else:
                files = [("film", (film.name, film.read_bytes())) for film in films]
                answer = client.post("/films", params={"wait": WAIT}, files=files)
            if answer.status_code != 429:
                break
            with self.lock:
                self.refused += 1
            time.sleep(float(answer.headers["retry-after"]))
        answer.raise_for_status()
        self._add(time.perf_counter() - begun, answer.text)

    def curl(self, film: Path) -> None:
        """Post a film by curl, and wait for its result."""
        begun = time.perf_counter()
        words = ["curl", "-sS", "--fail", "--retry", "20", "--data-binary", f"@{film}"]
        done = subprocess.run([*words, f"{self.address}/films?wait={WAIT}"], capture_output=True, text=True, check=True)
        self._add(time.perf_counter() - begun, done.stdout)

    def _add(self, seconds: float, text: str) -> None:
        found = FilmAnswers.model_validate_json(text).films
        with self.lock:
            self.seconds.append(seconds)
            self.ids += [film.id for film in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--films", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--client", choices=["httpx", "curl", "storescu"], default="httpx")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="anomaly-bench-") as folder:
        source = options.source or Path(folder) / "films"
        if options.source is None:
            write_phantoms(source, seed=1, patients=24, size=128)
        figures = measure(options, source, Path(folder) / "spool")
    names = ("films", "clients", "batch", "client")
    record("service", command_line("service"), {name: getattr(options, name) for name in names}, figures)


def measure(options: argparse.Namespace, source: Path, spool: Path) -> dict[str, Any]:
    """Serve, load, and return the figures."""
    paths = sorted(path for path in source.rglob("*") if path.suffix in (".png", ".jpg", ".dcm") and path.is_file())
    words = [str(options.run), "--port", "0", "--spool", str(spool), "--keep", "600", "--device", "cpu"]
    by_dicom = options.client == "storescu"
    if by_dicom:
        paths = as_dicom(paths, spool.with_name("dicom"))
        words += ["--dicom", "0", "--queue", str(options.films)]
    films = itertools.islice(itertools.cycle(paths), options.films)
    command = [sys.executable, "-m", "anomaly", "serve", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    node = next(line.partition(": ")[0] for line in process.stdout if "DICOM" in line) if by_dicom else ""
    address = next(line.partition(": ")[0] for line in process.stdout if "/docs" in line)
    memory: list[dict[str, float]] = []
    watching = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, memory, watching))
    watcher.start()
    load = Load(address)
    begun = time.perf_counter()
    try:
        if by_dicom:
            _send(node, list(films), options.clients)
        else:
            drive(load, films, options)
        while any(httpx.get(f"{address}/health").json()[state] for state in ("waiting", "at_work")):
            time.sleep(0.2)
        seconds = time.perf_counter() - begun
        spent = list(_from_receipt_to_result(spool / "audit.jsonl"))
        lost = options.films - (len(spent) if by_dicom else scored_films(load, options.clients))
        health = httpx.get(f"{address}/health").json()
    finally:
        watching.set()
        watcher.join()
        process.send_signal(signal.SIGTERM)
        process.wait()
    return {
        "films_per_second": options.films / seconds,
        "film, p50, s": float(np.quantile(spent, 0.5)),
        "film, p99, s": float(np.quantile(spent, 0.99)),
        **{f"request, p{p}, s": float(np.percentile(load.seconds, p)) for p in (50, 99) if load.seconds},
        "refused by 429, then taken": load.refused,
        "lost": lost,
        "workers died": health["workers_died"],
        **_of_memory(memory),
    }


def drive(load: Load, films: Iterator[Path], options: argparse.Namespace) -> None:
    """Post all films by so many clients."""
    if options.client == "curl":
        assert shutil.which("curl"), "curl is not installed"
        with ThreadPoolExecutor(options.clients) as pool:
            list(pool.map(load.curl, films))
        return
    limits = httpx.Limits(max_connections=options.clients, max_keepalive_connections=options.clients)
    with (
        httpx.Client(base_url=load.address, timeout=2 * WAIT, limits=limits) as client,
        ThreadPoolExecutor(options.clients) as pool,
    ):
        batches = iter(lambda: list(itertools.islice(films, options.batch)), [])
        list(pool.map(lambda batch: load.post(batch, client), batches))


def as_dicom(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write films as digital X-rays, a patient each, and return the files."""
    folder.mkdir()
    for number, path in enumerate(paths):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        film: Any = Dataset()
        film.file_meta = FileMetaDataset()
        film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        film.SOPClassUID, film.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
        film.StudyInstanceUID, film.SeriesInstanceUID = generate_uid(), generate_uid()
        film.PatientName, film.PatientID, film.Modality = "", str(number), "DX"
        film.StudyID, film.SeriesNumber, film.InstanceNumber = str(number), 1, 1
        film.Rows, film.Columns = grey.shape
        film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
        film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
        film.PixelData = grey.tobytes() + b"\0" * (grey.size % 2)
        film.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return sorted(folder.glob("*.dcm"))


def _send(node: str, films: list[Path], clients: int) -> None:
    """Send all films by so many processes of storescu, each film as an instance of its own."""
    aet, _, place = node.partition("@")
    host, _, port = place.rpartition(":")

    def send(share: list[Path]) -> None:
        subprocess.run(["storescu", "--invent-instance", "-aec", aet, host, port, *map(str, share)], check=True)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, [films[client::clients] for client in range(clients)]))


def _from_receipt_to_result(log: Path) -> Iterator[float]:
    """Yield the seconds between the receipt of a film and its result, of films that have a score."""
    received: dict[str, datetime] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "received":
            received[event["id"]] = datetime.fromisoformat(event["time"])
        elif event["event"] == "scored":
            yield (datetime.fromisoformat(event["time"]) - received[event["id"]]).total_seconds()


def scored_films(load: Load, clients: int) -> int:
    """Ask for every film again, until none waits, and return how many have a score."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    with (
        httpx.Client(base_url=load.address, timeout=60, limits=limits) as client,
        ThreadPoolExecutor(clients) as pool,
    ):

        def scored(film_id: str) -> bool:
            while (answer := client.get(f"/films/{film_id}").json())["state"] == "waiting":
                time.sleep(0.1)
            return answer["score"] is not None

        return sum(pool.map(scored, load.ids))


def _watch(pid: int, memory: list[dict[str, float]], ended: threading.Event) -> None:
    """Note the resident memory of the service and of its largest child, in MiB, each second."""
    while not ended.wait(1.0):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        sizes = [resident(int(child)) for child in children]
        memory.append({"service": resident(pid), "worker": max(sizes, default=0.0)})


def resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def _of_memory(memory: list[dict[str, float]]) -> dict[str, float]:
    """Return the memory after a tenth of the time, when all is warm, and at the end."""
    warm = memory[len(memory) // 10]
    last = memory[-max(1, len(memory) // 20) :]
    figures = {}
    for name in ("service", "worker"):
        figures[f"{name}, MiB, after a tenth"] = warm[name]
        figures[f"{name}, MiB, at the end"] = max(one[name] for one in last)
    return figures


if __name__ == "__main__":
    main()
