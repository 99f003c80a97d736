"""New connections to replicas: all else that a request needs is at hand, this takes a while."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from headframe.gateway.replicas import Replica
from headframe.gateway.upstream import ReplicaConnection

CONNECT_S = 2.0


class Dialling(Protocol):
    """Who waits for a connection."""

    def reached(self, replica: Replica, connection: ReplicaConnection) -> None:
        """Here it is."""
        ...

    def unreached(self, replica: Replica, why: str) -> None:
        """There is none."""
        ...


async def connect(replica: Replica, now_s: Callable[[], float]) -> ReplicaConnection:
    """A new connection. Raises OSError or TimeoutError."""
    loop, entry = asyncio.get_running_loop(), replica.entry
    async with asyncio.timeout(CONNECT_S):
        _, connection = await loop.create_connection(lambda: ReplicaConnection(replica.take_back, now_s), entry.host, entry.port)
    return connection


async def dial(replica: Replica, now_s: Callable[[], float], waiting: Dialling) -> None:
    """The same for a request that waits for it."""
    try:
        connection = await connect(replica, now_s)
    except (OSError, TimeoutError) as error:
        waiting.unreached(replica, f"no connection: {error or 'it takes too long'}")
    else:
        waiting.reached(replica, connection)
