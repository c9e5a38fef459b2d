"""The worklist of new films: its pictures, worklist.html, and results.json for programs."""

from pathlib import Path

from anomaly.console import silent
from anomaly.evaluation.conformal import more_abnormal_than
from anomaly.formatting import number
from anomaly.pipeline.other_cache import cache_source
from anomaly.pipeline.pictures import FOLDER, Drawn, PictureCollector, draw_pictures
from anomaly.pipeline.results_record import (
    FilmRecord,
    ResultsRecord,
    film_records,
    results_head,
    results_json,
)
from anomaly.pipeline.scoring import ScoringResult, UnitScore
from anomaly.pipeline.selection import Display
from anomaly.reporting.worklist import ListedFilm, WorklistContext, render_worklist
from anomaly.runs import write_atomic
from preprocessing.where import LABELS
from preprocessing.wording import counted

Written = list[tuple[Path, str]]
"""Files, and in words what is in each."""


def write_worklist(
    result: ScoringResult, pictures: PictureCollector, folder: Path, *, display: Display = silent
) -> Written:
    """Write worklist.html, its pictures and results.json of new films into a folder, and return them.

    pictures  what the pass kept of the films that get any.
    """
    films = result.selection.films
    originals = result.selection.source or cache_source(films.cache)
    drawn = draw_pictures(pictures, films, originals, folder, display=display)
    write_atomic(folder / "results.json", results_json(result, drawn))
    write_atomic(folder / "worklist.html", render_worklist(_context(result, drawn, folder)))
    shown = "" if len(drawn.by_place) == len(result) else f", with pictures of the {len(drawn.by_place)} highest"
    return [
        (folder / "results.json", "all of it, for programs"),
        (folder / "worklist.html", f"{counted(len(result), 'film')} by falling score{shown}: the page to go through"),
    ]


def _context(result: ScoringResult, drawn: Drawn, folder: Path) -> WorklistContext:
    run, selection, record = result.run, result.selection, results_head(result, drawn)
    patients, studies = (
        {unit.id: _standing(unit) for unit in result.units(kind) if unit.films > 1} for kind in ("patient", "study")
    )
    listed = (
        _listed(film, patients.get(film.patient, ""), studies.get(film.study, ""), result)
        for film in film_records(result, drawn)
    )
    calibrated = f", calibrated on films of {record.calibration}" if record.calibration else ""
    scored = f"scored by {record.model} of {record.run}{calibrated} on {record.made[:16].replace('T', ' ')}"
    return WorklistContext(
        title=f"Worklist: {folder.name}",
        id=selection.identity.listing_hash if selection.identity else selection.films.cache.content_hash,
        subtitle=f"{record.source}, {scored}",
        score=record.score,
        threshold=record.thresholds["film"],
        films=list(listed),
        counts=_counts(record, result, len(drawn.by_place)),
        notes=[*([run.note] if run.note else []), *record.notes],
        synthetic=record.synthetic,
        folder=FOLDER,
        map_scale=run.calibration.map_scale,
        map_unit=run.model.map_unit,
        failures=result.failures,
    )


def _counts(record: ResultsRecord, result: ScoringResult, pictured: int) -> dict[str, str]:
    """Return what the head of the page counts."""
    counts = {
        "flagged": result.flag_counts,
        "score": f"{record.score}; a film is flagged from {record.thresholds['film']:.6g}",
    }
    if pictured < len(result):
        counts["pictures"] = f"of the {counted(pictured, 'highest-ranked film')} alone; --pictures N makes more"
    return counts


def _listed(film: FilmRecord, patient: str, study: str, result: ScoringResult) -> ListedFilm:
    """Return a film as the page lists it; `patient` and `study`: how these stand, "" of one film."""
    whose = []
    if film.patient_known:
        whose.append(f"patient {film.patient}{patient}")
    if film.study not in (film.film, film.patient):
        whose.append(f"study {film.study}{study}")
    labels = {name: label for label, name in LABELS.items()}
    said = ""
    if film.p_value is not None and film.p_interval is not None:
        said = more_abnormal_than(film.p_value, film.p_interval, result.calibration.patients)
        said += "" if film.q_value is None else f", q {number(film.q_value)}"
    if film.out_of_domain:
        said += f"{'; ' if said else ''}unlike the films of the training (another body part?), so this means nothing"
    return ListedFilm(film.rank, film.film, film.score, film.flagged, labels[film.label], said, whose, film.pictures)


def _standing(unit: UnitScore) -> str:
    """Return how a study or patient of several films stands, in brackets; a single film says it itself."""
    return f" ({counted(unit.films, 'film')}{', flagged' * unit.flagged})"
