"""The pages of a service: the worklist, and what it answers."""

from dataclasses import dataclass
from typing import Any

from anomaly.formatting import number
from anomaly.reporting.html import render
from anomaly.reporting.worklist import ListedFilm, WorklistContext, render_worklist
from anomaly.service.records import FilmAnswer
from anomaly.service.service import Service
from preprocessing.wording import counted

MOST_LISTED = 2000
"""Films of the page, the last ones."""


@dataclass(frozen=True)
class _Route:
    request: str
    description: str
    options: dict[str, str]
    answers: dict[str, str]


def worklist_page(service: Service) -> str:
    """Return the films of a service by falling score, as a page."""
    assert service.facts is not None
    facts, found = service.facts, service.answers(MOST_LISTED)
    scored = sorted((film for film in found if film.score is not None), key=lambda film: -(film.score or 0.0))
    failed = [(film.name, film.error or "") for film in found if film.state == "failed"]
    waiting = sum(film.state == "waiting" for film in found)
    flagged = sum(bool(film.flagged) for film in scored)
    notes = [note for note in (scored[0].notes if scored else ()) if all(note in film.notes for film in scored)]
    if facts.synthetic:  # whether the films are, nobody knows
        notes.append("the detector was trained on SYNTHETIC films: what it says of patients means nothing")
    if len(found) == MOST_LISTED:
        notes.append(f"the last {MOST_LISTED} films alone")
    counts = {
        "flagged": f"{flagged} of {counted(len(scored), 'film')}",
        "score": f"{facts.score_name}; a film is flagged from {facts.threshold:.6g}",
        "waiting": counted(waiting, "film"),
        "kept": f"{service.limits.keep_minutes:g} minutes after a film is scored",
    }
    return render_worklist(
        WorklistContext(
            title="Worklist",
            id=f"service-{facts.run}",
            subtitle=f"scored by {facts.model} of {facts.run}",
            score=facts.score_name,
            threshold=facts.threshold,
            films=[_listed(rank, film) for rank, film in enumerate(scored, 1)],
            counts=counts,
            notes=notes,
            folder="films",
            map_scale=facts.map_scale,
            map_unit=facts.map_unit,
            pictures_by="POST /films?heatmap=true",
            failures=failed,
        )
    )


def _listed(rank: int, film: FilmAnswer) -> ListedFilm:
    said = "" if film.p_value is None else f"p-value {number(film.p_value)}"
    if film.out_of_domain:
        said += f"{'; ' if said else ''}unlike the films of the training (another body part?), so this means nothing"
    picture = f"films/{film.id}/heatmap.png"
    pictured = any("heatmap.png" in part.files for part in film.parts)
    assert film.score is not None
    return ListedFilm(
        rank,
        film.name,
        film.score,
        bool(film.flagged),
        said=said,
        pictures={"thumbnail": picture, "heatmap": picture} if pictured else {},
    )


def api_page(schema: dict[str, Any]) -> str:
    """Return what a service answers as a page; `schema` is its OpenAPI description."""
    routes = []
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            options = {one["name"]: one.get("description", "") for one in told.get("parameters", ())}
            answers = {status: one["description"] for status, one in told["responses"].items()}
            routes.append(_Route(f"{method.upper()} {path}", told.get("description", ""), options, answers))
    info = schema["info"]
    title = f"{info['title']} {info['version']}"
    return render(
        "service.html", title=title, description=info["description"], routes=routes, synthetic=False, sections={}
    )
