"""Charts: each drawn by one function into a scene, which SVG for the pages and PNG files render alike."""
