"""Hostile files, made by the tests: what docs/reliability.md promises of each."""
