"""What a gateway knows, kept on disk."""

import asyncio

from headframe.gateway.book import Book
from headframe.gateway.keeping import Keeper
from headframe.gateway.spool import Spool
from headframe.model.endpoint import Table
from headframe.model.ids import GatewayId
from gateways import PEPPER, make_key


def test_however_many_keep_it_at_once_the_file_is_whole_and_the_newest(tmp_path):
    async def go():
        book = Book(tmp_path / "table.json", PEPPER, lambda: 0.0, "127.0.0.1")
        keeper = Keeper(book)

        async def learn(n):
            book.take(Table(run="a", seq=n, full=False, keys=(make_key(n)[0],), projects=(), endpoints=()))
            await keeper.keep()

        await asyncio.gather(*(learn(n) for n in range(1, 60)))
        again = Book(tmp_path / "table.json", PEPPER, lambda: 0.0, "127.0.0.1")
        again.load(Spool(tmp_path / "spool", GatewayId("gw-a")))
        return set(book.keys), set(again.keys)

    known, kept = asyncio.run(go())
    assert kept == known and len(kept) == 59
