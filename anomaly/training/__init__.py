"""The training loop and its settings: one for every model."""
