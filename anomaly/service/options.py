"""The options of `anomaly serve` and `anomaly watch`, declared as those of every verb are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anomaly.pipeline.options import MOST_WORKERS, CalibrationName, Device, Flag

Served = Annotated[
    Path, Flag("Run folder or bundle, such as runs/cae-1.", metavar="RUN|BUNDLE", argument=True, complete="runs")
]
Seconds = Annotated[int, Flag("Seconds that a film may take, to arrive and to be scored.", min=1, max=86_400)]


@dataclass(frozen=True)
class ServeOptions:
    """Score what comes over the network."""

    run: Served
    host: Annotated[str, Flag("Address to listen on; one beyond this machine needs --token-file.", metavar="HOST")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Flag("Port for HTTP; 0: a free one.", min=0, max=65_535)] = 8000
    token_file: Annotated[Path | None, Flag("File with the token that every request has to bring.")] = None
    tls_cert: Annotated[Path | None, Flag("Certificate (PEM): HTTPS instead of HTTP.")] = None
    tls_key: Annotated[Path | None, Flag("Its key (PEM), if it is not in the same file.")] = None
    spool: Annotated[Path, Flag("Folder, private to the service, in which films wait and results are kept.")] = Path(
        "spool"
    )
    queue: Annotated[int, Flag("Films that may wait; more are answered 429.", min=1)] = 1000
    max_bytes: Annotated[int, Flag("Bytes of a film, at most.", min=1)] = 256 * 2**20
    timeout: Seconds = 60
    keep: Annotated[int, Flag("Minutes for which results are kept, and up to 15 s more.", min=0)] = 60
    workers: Annotated[int, Flag("Processes that score.", min=1, max=MOST_WORKERS)] = 1
    dicom: Annotated[int | None, Flag("Also be a DICOM node, on this port; 0: a free one.", min=0, max=65_535)] = None
    aet: Annotated[str, Flag("AE title of the node; calls by another are rejected.", metavar="TITLE")] = "ANOMALY"
    callers: Annotated[
        str | None,
        Flag("Comma list of the AE titles that may call; needed beyond this machine.  [default: any]"),
    ] = None
    send_to: Annotated[
        str | None, Flag("Where findings on films that came by DICOM are sent.", metavar="AET@HOST:PORT")
    ] = None
    calibration: CalibrationName = None
    device: Device = "auto"


@dataclass(frozen=True)
class WatchOptions:
    """Score what comes into a folder."""

    run: Served
    folder: Annotated[Path, Flag("Folder to watch, with all that are in it.", metavar="FOLDER", argument=True)]
    out: Annotated[Path, Flag("Folder for results.csv, and a JSON file and a heatmap a film.")]
    formats: Annotated[str, Flag("Comma list of png, tiff, npy, dicom, dicom-sc, ...; or none: no heatmaps.")] = "png"
    every: Annotated[int, Flag("Seconds between two looks; what has not changed in between is scored.", min=1)] = 2
    once: Annotated[bool, Flag("Score what is there, and end.")] = False
    timeout: Seconds = 60
    calibration: CalibrationName = None
    device: Device = "auto"
