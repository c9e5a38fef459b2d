"""From a trained detector to figures: one pass over films, calibration, ranking, intervals."""
