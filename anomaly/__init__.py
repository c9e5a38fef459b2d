"""Unsupervised anomaly detection for X-ray films: train on normal films, score and map what differs."""
