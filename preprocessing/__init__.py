"""From a folder of X-ray films to one HDF5 cache. Knows nothing of the models: it never imports `anomaly`."""


class InputError(ValueError):
    """Something the user can fix: one line that says what was found, where, and what to do. Exit status 2."""
