"""The book on disk."""

import asyncio

from headframe.gateway.book import Book


class Keeper:
    """Writes one book, each time with all that was so when its turn came; one at a time, since they write the same file."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._lock = asyncio.Lock()

    async def keep(self) -> None:
        """On disk when this returns."""
        async with self._lock:
            await asyncio.to_thread(self._book.write, self._book.kept())
