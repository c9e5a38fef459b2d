"""A folder, zip archive or CSV manifest of films as sorted records; `open` says how each is understood.

The names below are the public ones; boxes and masks beside films, which only the training of nets asks for, are in
`annotations`.
"""

from preprocessing.sources.new_films import open_films
from preprocessing.sources.open import open_source
from preprocessing.sources.patients import identity_from_tags
from preprocessing.sources.record import Record, Source

__all__ = ["Record", "Source", "identity_from_tags", "open_films", "open_source"]
