"""Correctness, speed and memory on a GPU, in one command that needs little more than torch: `python -m benchmarks.gpu`.

It takes its films along in one file (`--draw` makes it; SYNTHETIC), does what tells most first, and writes each result
as a line of JSON the moment it has it, so that a run that is cut off still tells. Without a GPU it runs on the
processor, where it checks itself rather than a card.
"""
