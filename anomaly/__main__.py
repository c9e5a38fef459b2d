"""`python -m anomaly` is `anomaly`."""

from anomaly.cli import main

main()
