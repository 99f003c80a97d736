"""Names as parts of paths."""

import httpx


def segment(text: str) -> str:
    """A name as one path segment."""
    return httpx.URL("/").copy_with(path="/" + text.replace("/", "%2F")).raw_path.decode()[1:] or "-"
