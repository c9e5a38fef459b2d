"""Heatmaps as files: pictures, numbers, DICOM objects."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomaly.console import silent
from anomaly.pipeline.dicom_files import DICOM_FORMATS, DicomFiles
from anomaly.pipeline.film_reference import outside_sentence
from anomaly.pipeline.heatmaps import MAP_FORMATS, Heatmap, heatmaps
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.selection import Display, Selection
from anomaly.runs import inside
from preprocessing import InputError
from preprocessing.sources import Source

FORMATS = (*MAP_FORMATS, *DICOM_FORMATS)


def split_formats(names: Sequence[str], *also: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the formats of pictures and the kinds of DICOM objects that names of `FORMATS` stand for, each once.

    Raises InputError for a name that is none of them; `also` is what else it might have been.
    """
    if unknown := [name for name in names if name not in FORMATS]:
        raise InputError(f"no format {unknown[0]!r}; there are: {', '.join((*FORMATS, *also))}")
    kinds = dict.fromkeys(kind for name in names for kind in DICOM_FORMATS.get(name, ()))
    return [name for name in names if name not in DICOM_FORMATS], tuple(kinds)


@dataclass(frozen=True)
class MapFiles:
    """Where heatmaps are written, and as what."""

    folder: Path
    formats: Sequence[str] = MAP_FORMATS
    dicom: DicomFiles | None = None  # beside these formats
    outside: list[str] = field(default_factory=list)  # films written that show something else than the training's

    def write(self, heatmap: Heatmap) -> Path | None:
        """Write the files of a heatmap, named after its film, and return the first; None where there can be none."""
        # After the film's whole name: a.png and a.dcm, or the dotted names of DICOM, stay apart.
        written = [inside(self.folder, f"{heatmap.path}_heatmap.{suffix}") for suffix in self.formats]
        for file in written:
            heatmap.save(file)
        if self.dicom is not None and (first := self.dicom.write(heatmap, self.folder)) is not None:
            written.append(first)
        if heatmap.out_of_domain:
            self.outside.append(heatmap.name)
        return written[0] if written else None

    def notes(self, run: OpenRun, count: int) -> list[str]:
        """Return what a reader of the files of so many films should know, a sentence each."""
        outside = [outside_sentence(run, self.outside, count)] if self.outside else []
        return [*outside, *(self.dicom.notes() if self.dicom is not None else [])]


def write_heatmaps(
    run: OpenRun,
    selection: Selection,
    files: MapFiles,
    *,
    by: str | None = None,
    limit: int | None = None,
    originals: Source | None = None,
    display: Display = silent,
) -> list[Path]:
    """Write heatmaps as files, as `heatmaps` gives them, and return the first of each, the highest-scored film's first.

    DICOM objects need `originals`; films that can't have them are left out, and `files.dicom.failures` says why.
    """
    written: list[tuple[float, Path]] = []  # of films that have any
    with display("mapping", len(selection.films), "films") as advance:
        for heatmap in heatmaps(run, selection, by=by, limit=limit, originals=originals, on_films=advance):
            first = files.write(heatmap)
            written += [] if first is None else [(heatmap.score, first)]
    return [path for _, path in sorted(written, key=lambda pair: -pair[0])]
