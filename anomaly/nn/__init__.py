"""Pure building blocks and losses, each with its shapes."""
