"""`python -m anomaly` is `anomaly`."""

from anomaly.cli.app import main

main()
