"""The columns of a cache's index, each read from the file when it is asked for first."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from preprocessing.cache.schema import COLUMNS


class Columns(Mapping[str, NDArray[Any]]):
    """The index, column name -> (N, ...), as the schema's table has it; texts are object arrays of str.

    Of a million films all columns take 1.2 GB, and what most work asks for a third of that: a column that nothing asks
    for is not kept.

    load   reads a column whole, by its name
    """

    def __init__(self, load: Callable[[str], NDArray[Any]]) -> None:
        self._load = load
        self._kept: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._kept:
            self._kept[name] = self._load(name)
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMNS)

    def __len__(self) -> int:
        return len(COLUMNS)
