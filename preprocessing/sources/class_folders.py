"""Folders that say something of the films in them: class folders, splits, or neither.

What a class folder is called, and what that means, is in `names`. Folders are classes where

- one of them is called by a word of that table, or was named by the user; every other folder beside it must then be
  known too: one whose meaning is not known is asked about; or
- they are 2 to 20, all films lie directly in them (or in `images` there), each holds several films or one is called as
  classes are (`0`, `yes`, `class A`), and none is called like a patient, date, site or body part: then it is asked
  which is normal.

Any other folders are mere folders. Classes lie at the top, or under folders named as splits, as in MVTec AD
(`test/crack/1.png`), or have such folders in them (`normal/train/1.png`). Pixel truth is
`ground_truth/CLASS/NAME_mask.png` or `NAME.png` (MVTec AD), and `CLASS/label/NAME.png` beside
`CLASS/img/NAME.png` (BMAD).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from preprocessing import InputError
from preprocessing.sources.listing import Listing
from preprocessing.sources.masks import split_path
from preprocessing.sources.names import (
    GROUND_TRUTH,
    IMAGES,
    MANIFEST,
    is_class_word,
    is_mere_folder,
    meaning,
    named,
    split_names,
    split_of,
)
from preprocessing.sources.patients import Identity
from preprocessing.sources.reading import Asked, Found, label_counts, question
from preprocessing.sources.record import Record
from preprocessing.wording import squeezed

MOST_CLASSES = 20
_LABELS = {"normal": 0, "abnormal": 1, "finding": 1, "unlabelled": -1}


@dataclass(frozen=True)
class _Place:
    """Where a film lies: class and split as its folders call them ("" for none), and the folders further down."""

    film: str
    name: str
    split: str
    inner: tuple[str, ...]


def class_records(listing: Listing, asked: Asked, identities: dict[str, Identity]) -> Found | None:
    """Label films by the folders they lie in; None where folders are no classes.

    Raises `InputError`, if `asked.strict`, for folders that look like classes but whose meaning is not known, for films
    outside the class folders, and for classes within classes that contradict them.
    """
    base = _shared(listing.films, asked)
    places = [_place(film, base, asked) for film in listing.films]
    if any(place.split and place.name for place in places) and any(_split_first(place, base) for place in places):
        places = [place if _split_first(place, base) else _Place(place.film, "", "", ()) for place in places]
    names = {place.name for place in places if place.name}
    meanings = {name: _meaning(name, asked, listing) for name in names}
    if not {*meanings.values()} & {"normal", "abnormal", "finding"}:
        _ask_where_they_look_so(listing, places, asked)
        return None
    if asked.normal or asked.abnormal:
        asked.check_used(names, "folder")
    notes = _check(listing, places, meanings, asked)
    splits = split_names({place.split for place in places})
    found = Found("classes", [], notes)
    for place in places:
        what = meanings.get(place.name) or "unlabelled"
        label, finding = _LABELS[what], place.name if what == "finding" else ""
        identity = identities[place.film]
        found.records.append(
            Record(
                path=place.film,
                patient=identity.patient,
                study=identity.study,
                label=label,
                split=splits[place.split],
                finding=finding or (_inner_finding(place) if label == 1 else ""),
                anomaly_mask=next(_truths(place, base, listing), None) if label else None,
                patient_known=identity.known,
            )
        )
    found.notes.append(_said(found.records, places))
    return found


def folder_records(listing: Listing, asked: Asked, identities: dict[str, Identity]) -> Found:
    """List films whose folders say nothing of their labels; splits by folders are kept where all lie in such.

    Raises `InputError`, if `asked.strict`, for class folders deeper than where `class_records` looks.
    """
    if asked.normal or asked.abnormal:
        asked.check_used((film.split("/")[0] for film in listing.films if "/" in film), "folder")
    whole = meaning(listing.root.name) if not listing.is_archive and len(listing.root.name.split()) == 1 else None
    label, notes = asked.unlabelled, []
    if whole in ("normal", "abnormal"):
        label = _LABELS[whole]
        notes.append(f"the folder is called {listing.root.name}: its films are {whole}")
    elif asked.strict:
        _check_no_class_folders(listing.films)
    tops = {film.split("/")[0] for film in listing.films}
    divided = all(split_of(top) for top in tops) and all("/" in film for film in listing.films)
    splits = split_names(tops) if divided else dict.fromkeys(tops, "")
    aside = {top for top in tops if meaning(top) == "unlabelled"} if asked.strict else set()
    if aside and any("/" in film for film in listing.films):
        notes.append(f"{', '.join(sorted(aside))}/: films of unknown label")
    records = [
        Record(
            film,
            who.patient,
            who.study,
            -1 if film.split("/")[0] in aside else label,
            splits[film.split("/")[0]],
            patient_known=who.known,
        )
        for film, who in ((film, identities[film]) for film in listing.films)
    ]
    return Found("folder" if whole not in ("normal", "abnormal") else "classes", records, notes)


def _shared(films: list[str], asked: Asked) -> int:
    """Return how many folders, meaningless ones, all films have in common."""
    paths = [film.split("/")[:-1] for film in films]
    depth = 0
    while all(len(path) > depth for path in paths) and len({path[depth] for path in paths}) == 1:
        name = paths[0][depth]
        if asked.meaning(name) or split_of(name):
            break
        depth += 1
    return depth


def _place(film: str, base: int, asked: Asked) -> _Place:
    folders = film.split("/")[base:-1]
    if not folders:
        return _Place(film, "", "", ())
    first, second = folders[0], folders[1] if len(folders) > 1 else ""
    if split_of(first) and not named(first, (*asked.normal, *asked.abnormal)):
        return _Place(film, second, first.lower(), tuple(folders[2:]))
    if second and split_of(second):
        return _Place(film, first, second.lower(), tuple(folders[2:]))
    return _Place(film, first, "", tuple(folders[1:]))


def _split_first(place: _Place, base: int) -> bool:
    return bool(place.split) and place.film.split("/")[base].lower() == place.split


def _meaning(name: str, asked: Asked, listing: Listing) -> str | None:
    """Return what a class folder means; MVTec AD's defects are known by their folder of ground truth."""
    known = asked.meaning(name)
    if known is None and any(
        squeezed(mask.split("/")[0]) == squeezed(GROUND_TRUTH[0]) and f"/{name}/" in mask for mask in listing.masks
    ):
        return "finding"
    return known


def _ask_where_they_look_so(listing: Listing, places: list[_Place], asked: Asked) -> None:
    """Refuse folders that look like classes; where labels don't matter, only note it."""
    names = {place.name for place in places}
    direct = all(place.name and all(squeezed(folder) in IMAGES for folder in place.inner) for place in places)
    several = min(Counter(place.name for place in places).values()) > 1 or any(is_class_word(name) for name in names)
    if direct and several and 2 <= len(names) <= MOST_CLASSES and not any(is_mere_folder(name) for name in names):
        if asked.strict:
            raise InputError(question(listing.root, names))
        listing.notes.append(f"folders {', '.join(sorted(names))} look like classes of unknown meaning: no labels read")


def _check(listing: Listing, places: list[_Place], meanings: dict[str, str | None], asked: Asked) -> list[str]:
    """Refuse what lies outside the classes or contradicts them; notes in place of that where labels don't matter."""
    unknown = {name for name, what in meanings.items() if what is None}
    stray = next((place for place in places if not place.name), None)
    divided = any(place.split for place in places)
    faults = []
    if unknown:
        known = {name for name, what in meanings.items() if what in ("normal", "abnormal", "finding")}
        faults.append(
            question(listing.root, unknown | known) + f": what {', '.join(sorted(unknown))} holds is not known"
        )
    if stray is not None:
        expected = "train, val or test and the class folders there" if divided else "the class folders"
        faults.append(f"{stray.film}: lies outside {expected}; move it, or write a {MANIFEST}")
    for place in places:
        inner = {meaning(folder) for folder in place.inner}
        what = meanings.get(place.name)
        if (what == "normal" and inner & {"abnormal", "finding"}) or (
            what in ("abnormal", "finding") and "normal" in inner
        ):
            faults.append(f"{place.film}: lies in folders that contradict each other; move it, or write a {MANIFEST}")
            break
    if faults and asked.strict:
        raise InputError(faults[0])
    return faults


def _inner_finding(place: _Place) -> str:
    return next((folder for folder in place.inner if meaning(folder) == "finding"), "")


def _truths(place: _Place, base: int, listing: Listing) -> Iterator[str]:
    """Yield the masks of a film's lesion that there are."""
    folders = place.film.split("/")
    _, stem, _ = split_path(place.film)
    after_split = [part for part in folders[base:-1] if part.lower() != place.split]
    names = [f"{stem}_mask.png", f"{stem}.png", f"{stem}_mask.tif", f"{stem}.tif"]
    tops = ["/".join([*folders[:base], *between, truth]) for truth in GROUND_TRUTH for between in ([], [folders[base]])]
    for top in tops:
        yield from (
            place for place in ("/".join([top, *after_split, name]) for name in names) if place in listing.store.sizes
        )
    if len(folders) > 1 and squeezed(folders[-2]) in IMAGES:
        for sibling in ("label", "Label", "labels"):
            beside = ["/".join([*folders[:-2], sibling, name]) for name in (folders[-1], *names)]
            yield from (name for name in beside if name in listing.masks)


def _check_no_class_folders(films: list[str]) -> None:
    """Refuse films in class folders that lie deeper than where `class_records` looks: they are not unlabelled."""
    for film in films:
        folders = film.split("/")[:-1]
        for depth, folder in enumerate(folders):
            if meaning(folder) in ("normal", "abnormal", "finding"):
                place = "/".join(folders[: depth + 1])
                raise InputError(
                    f"{place}: a class folder, but neither at the top nor under train, val or test; name the folder "
                    f"that holds the class folders, or write a {MANIFEST}"
                )


def _said(records: list[Record], places: list[_Place]) -> str:
    """Say of every class folder what its films are."""
    groups = defaultdict(list)
    for record, place in zip(records, places, strict=True):
        groups[place.name].append(record)
    texts = []
    for name in sorted(groups):
        finding = next((record.finding for record in groups[name] if record.finding == name), "")
        texts.append(
            f"{name or '(none)'}/: {label_counts(groups[name])}" + (f" (finding {finding})" if finding else "")
        )
    return "; ".join(texts)
