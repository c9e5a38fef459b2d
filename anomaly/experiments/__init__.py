"""Many trainings: the bench and its table, the search of settings."""
