"""Speed, each figure with the command that makes it; `python -m benchmarks` runs all and appends to results.jsonl."""
