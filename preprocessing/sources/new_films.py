"""New films, for scoring: any mix of files, folders, archives and manifests as one source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from preprocessing import InputError
from preprocessing.sources.listing import is_heatmap_name
from preprocessing.sources.mura import MURA_FILM
from preprocessing.sources.open import drawn_above, existing, is_collection, list_source
from preprocessing.sources.paths import safe_name
from preprocessing.sources.patients import identify
from preprocessing.sources.reading import Asked
from preprocessing.sources.record import Record, Source
from preprocessing.sources.storage import Folder, Parts, Store
from preprocessing.wording import counted


def open_films(
    paths: list[Path],
    *,
    names: Mapping[Path, str] = MappingProxyType({}),
    normal: tuple[str, ...] = (),
    abnormal: tuple[str, ...] = (),
    follow_links: bool = False,
) -> Source:
    """List new films for scoring: any mix of files, folders, archives and manifests, each film once.

    names             path -> what a lone film is called in place of its path, such as one in a temporary folder.
    normal, abnormal  what folders or labels are called that mean so; as in `open_source`.

    Films are in the order of `paths`, those of a folder, archive or manifest in its own. Labels, patients, boxes, masks
    and all else are kept where they are known, but splits, which are those of another training, are empty. Paths are
    relative to the folder that all of `paths` have in common; so are patients and studies where they come from more
    than one tree. Raises `InputError` if there is no film; contradictions in labels and splits do not matter here, and
    folders that look like classes of unknown meaning are said in a note, as are heatmaps of this program among films.
    """
    if not paths:
        raise InputError("no films named; give files or folders")
    given, paths = paths, [path for path in paths if path in names or not is_heatmap_name(path.name) or path.is_dir()]
    if not paths:
        raise InputError(f"{given[0]}: a heatmap that this program wrote, which is no film; name the film itself")
    heatmaps = counted(len(given) - len(paths), "file")
    left_out = [f"no films: {heatmaps} written by this program (heatmaps)"] if len(given) > len(paths) else []
    places = [existing(path) for path in paths]
    folders = [
        place.parent if place.is_file() else place
        for path, place in zip(paths, places, strict=True)
        if path not in names
    ]
    root = Path(os.path.commonpath(folders)) if folders else Path("films in memory")
    asked = Asked(unlabelled=-1, normal=normal, abnormal=abnormal, strict=False)
    sources = [
        list_source(place, asked, follow_links=follow_links) if is_collection(place) else _lone_film(place)
        for place in places
    ]
    trees = [_tree(place, source) for place, source in zip(places, sources, strict=True)]
    several = len({tree for tree in trees if tree is not None}) > 1

    files: dict[str, tuple[Store, str]] = {}
    records: dict[str, Record] = {}
    for path, source, tree in zip(paths, sources, trees, strict=True):
        if path in names:
            (record,), name = source.records, names[path]
            files[name] = source.store, record.path
            records[name] = Record(name, name, name, -1)
            continue
        prefix = _prefix(source.root, root)
        for record in source.records:
            moved = _moved(record, prefix, _prefix(tree, root) if tree is not None and several else "")
            if moved.path in names.values():
                raise InputError(
                    f"{source.root / record.path}: {moved.path} is the name of a film in memory; rename it"
                )
            files |= {new: (source.store, old) for new, old in zip(moved.files(), record.files(), strict=True)}
            records.setdefault(moved.path, moved)
    kinds = {source.kind for source in sources}
    return Source(
        name=sources[0].name if len(sources) == 1 else safe_name(root.name),
        kind=kinds.pop() if len(kinds) == 1 else "folder",
        root=root,
        records=list(records.values()),
        synthetic=any(source.synthetic for source in sources),
        notes=tuple(dict.fromkeys([*left_out, *(note for source in sources for note in source.notes)])),
        store=Parts(files),
    )


def _lone_film(place: Path) -> Source:
    """Make a source of one film, whatever its suffix: the reader decides whether it is one."""
    store = Folder(place.parent)
    store.find(place.name)
    mura = MURA_FILM.fullmatch("/".join(place.parts[-3:]))
    who = identify(place.name)
    patient, study = (mura[1], f"{mura[1]}/{mura[2]}") if mura else (who.patient, who.study)
    record = Record(place.name, patient, study, -1, patient_known=mura is not None or who.known)
    drawn = mura is not None and drawn_above(place.parent)
    return Source(safe_name(place.stem), "folder", place.parent, [record], drawn, (), store)


def _tree(place: Path, source: Source) -> Path | None:
    """Return the folder within which patients' names are unique; None where names are paths anyway."""
    if is_collection(place):
        return source.root
    record = source.records[0]
    return None if record.patient == record.path else place.parents[2]


def _prefix(place: Path, root: Path) -> str:
    return "" if place == root else Path(os.path.relpath(place, root)).as_posix() + "/"


def _moved(record: Record, prefix: str, tree: str) -> Record:
    """Move a record below `prefix`, its names below `tree`, and drop its split."""
    masks = {field: prefix + path for field in ("mask", "anomaly_mask") if (path := getattr(record, field)) is not None}
    return replace(
        record,
        path=prefix + record.path,
        patient=(prefix if record.patient == record.path else tree) + record.patient,
        study=(prefix if record.study == record.path else tree) + record.study,
        split="",
        **masks,
    )
