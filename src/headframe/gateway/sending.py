"""A request on its way to a replica: the connection it is on, and its end. What is asked and what is done with the answer is the business of those that inherit it."""

from functools import partial

from headframe.gateway.dialing import dial
from headframe.gateway.house import House
from headframe.gateway.refusals import Refused
from headframe.gateway.replicas import Replica, Served
from headframe.gateway.upstream import ReplicaConnection
from headframe.gateway.wire import HOP_BY_HOP

NOT_PASSED = HOP_BY_HOP | {b"host", b"authorization", b"x-api-key", b"expect", b"x-request-id", b"cookie"}
"""Of a client's headers: what is only between it and us, and its key."""


class Sending:
    """At most one replica and one connection at a time; both are let go of together."""

    __slots__ = ("_before", "_connection", "_house", "_replica", "_served")

    def __init__(self, house: House, served: Served) -> None:
        self._house, self._served = house, served
        self._replica: Replica | None = None
        self._before: Replica | None = None
        self._connection: ReplicaConnection | None = None

    def stall(self, stalled: bool) -> None:  # noqa: FBT001
        """The client is slower than the replica."""
        if self._connection is not None:
            self._connection.hold(stalled)

    def _give(self, replica: Replica, *, pooled: bool = True) -> None:
        """To that replica, on a connection that was used before, or on a new one."""
        self._replica = replica
        replica.in_flight += 1
        self._served.in_flight += 1
        connection = replica.pooled(self._house.now_s()) if pooled else None
        if connection is not None:
            self._connection = connection
            self._ask_on(connection, replica)
        else:
            self._house.spawn(partial(dial, replica, self._house.now_s, self))

    def unreached(self, replica: Replica, why: str) -> None:
        """There is no connection to it."""
        replica.failed(why)
        if self._replica is replica:
            self._detach()
            self._unreached(Refused(502, "bad_upstream", "The server behind this endpoint can't be reached."))

    def reached(self, replica: Replica, connection: ReplicaConnection) -> None:
        """There is a new connection to it."""
        if self._replica is replica and self._connection is None:
            self._connection = connection
            self._ask_on(connection, replica)
        elif connection.transport is not None:  # the client left meanwhile
            connection.transport.close()

    def _detach(self) -> None:
        """No longer on its replica."""
        replica, self._replica, self._connection = self._replica, None, None
        if replica is not None:
            self._before = replica
            replica.in_flight -= 1
            self._served.in_flight -= 1

    def _drop(self) -> None:
        """Break the connection to the replica: it sees at once that nobody waits."""
        connection = self._connection
        self._detach()
        if connection is not None:
            connection.drop()

    def _ask_on(self, connection: ReplicaConnection, replica: Replica) -> None:
        raise NotImplementedError

    def _unreached(self, refused: Refused) -> None:
        raise NotImplementedError
