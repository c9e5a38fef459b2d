"""Pages, charts, pictures, tables and text made from results."""
