"""The pages of a service: the worklist, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anomaly.formatting import number
from anomaly.reporting.html import render
from anomaly.reporting.worklist import ListedFilm, WorklistContext, render_worklist
from anomaly.service.identity import Identity, read_identity
from anomaly.service.records import DetectorFacts, FilmAnswer
from anomaly.service.service import Service
from preprocessing.wording import counted

MOST_LISTED = 2000
"""Films of the page, the last ones."""
DETECTOR_DIGITS = 16
"""Hexadecimal digits of a detector's digest in an address."""
UNKNOWN = "unknown"
"""In place of a digest, of results that an earlier version wrote."""
_SHOWN_DIGITS = 8


@dataclass(frozen=True)
class _Route:
    request: str
    description: str
    options: dict[str, str]
    answers: dict[str, str]


def worklist_page(service: Service, detector: str = "") -> str:
    """Return the films of one detector by falling score, as a page; "": of the one at work.

    A spool may hold what another one scored, of which the scores are other figures: each has a list of its own, and
    these name each other. `detector` is `DETECTOR_DIGITS` of a digest; raises KeyError where it scored nothing here.
    """
    assert service.facts is not None
    found = service.answers(MOST_LISTED)
    lists: dict[str, list[FilmAnswer]] = {service.facts.digest: []}
    for film in found:
        if film.score is not None:
            lists.setdefault(film.detector or UNKNOWN, []).append(film)
    digests = {digest[:DETECTOR_DIGITS]: digest for digest in lists}
    chosen = digests[detector] if detector else service.facts.digest
    at_work = chosen == service.facts.digest
    facts = service.facts if at_work else _facts_of(lists[chosen][0])
    scored = sorted(lists[chosen], key=lambda film: -(film.score or 0.0))
    others = [
        (_list_name(films, service.facts), "worklist")
        if digest == service.facts.digest
        else (_list_name(films, _facts_of(films[0])), f"worklist?detector={digest[:DETECTOR_DIGITS]}")
        for digest, films in lists.items()
        if digest != chosen
    ]
    failed = [film for film in found if film.state == "failed"] if at_work else []
    waiting = sum(film.state == "waiting" for film in found) if at_work else None
    pieces = render_worklist(
        WorklistContext(
            title="Worklist",
            id=f"service-{chosen[:DETECTOR_DIGITS]}",
            subtitle=f"scored by {_detector_name(facts)}",
            score=facts.score_name,
            threshold=facts.threshold,
            films=[_listed(rank, film, _identity(service, film)) for rank, film in enumerate(scored, 1)],
            counts=_counts(service, scored, facts, waiting),
            notes=_notes(scored, facts, len(found)),
            folder="films",
            map_scale=facts.map_scale,
            map_unit=facts.map_unit,
            pictures_by="POST /films?heatmap=true",
            others=others,
            failures=[_failure(film, _identity(service, film)) for film in failed],
        )
    )
    return "".join(pieces)


def _facts_of(film: FilmAnswer) -> DetectorFacts:
    """Return what a result says of the detector that made it; where its heatmaps' colors end is not known."""
    return DetectorFacts(
        model=film.model or "",
        run=film.run or "",
        score_name=film.score_name or "",
        threshold=film.threshold or 0.0,
        map_scale=None,
        map_unit="",
        synthetic=bool(film.synthetic),
        digest=film.detector or UNKNOWN,
    )


def _detector_name(facts: DetectorFacts) -> str:
    return f"{facts.model} of {facts.run} ({facts.digest[:_SHOWN_DIGITS]})"


def _list_name(films: Sequence[FilmAnswer], facts: DetectorFacts) -> str:
    return f"{counted(len(films), 'film')} scored by {_detector_name(facts)}"


def _counts(
    service: Service, scored: Sequence[FilmAnswer], facts: DetectorFacts, waiting: int | None
) -> dict[str, str]:
    flagged = sum(bool(film.flagged) for film in scored)
    return {
        "flagged": f"{flagged} of {counted(len(scored), 'film')}",
        "score": f"{facts.score_name}; a film is flagged from {facts.threshold:.6g}",
        **({} if waiting is None else {"waiting": counted(waiting, "film")}),
        "kept": f"{service.limits.keep_minutes:g} minutes after a film is scored",
    }


def _notes(scored: Sequence[FilmAnswer], facts: DetectorFacts, listed: int) -> list[str]:
    notes = [note for note in (scored[0].notes if scored else ()) if all(note in film.notes for film in scored)]
    if facts.synthetic:  # whether the films are, nobody knows
        notes.append("the detector was trained on SYNTHETIC films: what it says of patients means nothing")
    if listed == MOST_LISTED:
        notes.append(f"the last {MOST_LISTED} films alone")
    return notes


def _identity(service: Service, film: FilmAnswer) -> Identity:
    return read_identity(service.spool.path(film.id))


def _listed(rank: int, film: FilmAnswer, identity: Identity) -> ListedFilm:
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
        whose=[*identity.lines(), f"received {_shown_time(film.received)}"],
        pictures={"thumbnail": picture, "heatmap": picture} if pictured else {},
        id=film.id,
    )


def _failure(film: FilmAnswer, identity: Identity) -> tuple[str, str]:
    """Return which film could not be scored, and why."""
    return " · ".join([film.name, *identity.lines(), f"received {_shown_time(film.received)}"]), film.error or ""


def _shown_time(time: str) -> str:
    """Return a time of the records as the page shows it.

    >>> _shown_time("2026-11-27T09:05:07.123+00:00")
    '2026-11-27 09:05:07 UTC'
    """
    return f"{time[:19].replace('T', ' ')} UTC"


def api_page(schema: dict[str, Any]) -> str:
    """Return what a service answers as a page; `schema` is its OpenAPI description."""
    routes = []
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            options = {one["name"]: one.get("description", "") for one in told.get("parameters", ())}
            answers = {status: told["responses"][status]["description"] for status in sorted(told["responses"])}
            routes.append(_Route(f"{method.upper()} {path}", told.get("description", ""), options, answers))
    info = schema["info"]
    title = f"{info['title']} {info['version']}"
    return render(
        "service.html", title=title, description=info["description"], routes=routes, synthetic=False, sections={}
    )
