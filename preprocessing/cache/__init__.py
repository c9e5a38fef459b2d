"""The cache of prepared films: its format, and the only code that writes or reads it."""
