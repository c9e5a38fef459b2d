"""Made-up anomalies for normal films: what `anomaly.models.synthetic` learns to segment.

`draws` random numbers, `site` where an anomaly is put and how films are resampled, `families` the kinds of anomalies,
`synthesis` films with anomalies and where these can be seen.
"""
