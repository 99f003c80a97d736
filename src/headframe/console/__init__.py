"""A snapshot to HTML and SVG: pure but for reading its own templates."""
