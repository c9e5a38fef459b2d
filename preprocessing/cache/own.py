"""Whether an HDF5 file holds all its data itself.

The format lets a file point elsewhere, and reads from there unasked: links to objects of other files, datasets whose
bytes lie in other files (external storage), and datasets put together of other files' (virtual ones). In a cache from a
stranger, these would make films of any file that its reader can read.
"""

from typing import Any

import h5py

MAX_LINKS = 1000  # a cache has fewer than 60
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
"""What a cache may be compressed with. Others are libraries that HDF5 loads from folders of the system."""


def points_elsewhere(file: Any) -> str | None:
    """Say what of a file is not held by the file itself, a few words; None where everything is.

    Only hard links are read, and datasets in storage of their own. Raises RuntimeError for damaged tables.
    """
    seen: set[Any] = set()
    groups, links = [("", file.id)], 0
    while groups:
        path, group = groups.pop()
        for name in group:
            links += 1
            if links > MAX_LINKS:
                return f"it has more than {MAX_LINKS} links"
            place = f"{path}{name.decode('utf-8', 'backslashreplace')}"
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                return f"{place} is a link to somewhere else"
            address = h5py.h5o.get_info(group, name).addr
            if address in seen:
                continue
            seen.add(address)
            found = h5py.h5o.open(group, name)
            if isinstance(found, h5py.h5g.GroupID):
                groups.append((f"{place}/", found))
            elif isinstance(found, h5py.h5d.DatasetID) and (fault := _stored_elsewhere(found)):
                return f"{place} {fault}"
    return None


def _stored_elsewhere(dataset: Any) -> str | None:
    layout = dataset.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        return "is put together of datasets of other files"
    if layout.get_external_count():
        return "is stored in another file"
    filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
    unknown = [number for number in filters if number not in FILTERS]
    return f"is packed by HDF5 filter {unknown[0]}, which is not read" if unknown else None
