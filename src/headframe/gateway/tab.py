"""What one request costs: set aside before it starts, noted while it lasts, written down and paid once when it is over."""

from collections.abc import Sequence
from functools import partial

import msgspec

from headframe.gateway.book import Caller, Payer, Tenant
from headframe.gateway.counting import Count, hear
from headframe.gateway.house import House
from headframe.gateway.records import Line
from headframe.gateway.refusals import Refused
from headframe.gateway.replicas import Served
from headframe.model.ids import ProjectId
from headframe.model.serving import tokens_nano
from headframe.model.units import money
from headframe.routing.admit import Bucket


class Tab:
    """One request's. `most` is what may go in and come out at the most, in tokens; `named` the request's id where the client gave it."""

    __slots__ = ("_buckets", "_caller", "_held", "_house", "_most", "_payers", "_serial", "_served", "_settled", "at_ms", "limits", "named", "tenant")

    def __init__(self, house: House, served: Served, caller: Caller, most: tuple[int, int], named: str) -> None:
        self._house, self._served, self._caller, self._most, self.named = house, served, caller, most, named
        self.tenant: Tenant | None = house.book.tenants.get(caller.key.project_id)  # an operator's key has no project
        self._payers: list[Payer] = []
        if served.sold and self.tenant is not None:
            self._payers.append(self.tenant)
            budget = house.book.budgets.get(caller.key.id)
            if budget is not None:
                self._payers.append(budget)
        self.at_ms = house.now_ms()
        self.limits = b""
        self._buckets: Sequence[Bucket] = ()
        self._held = self._serial = 0
        self._settled = False

    def admit(self) -> bool:
        """Take it from every limit and set aside what it may cost. Raises Refused with nothing taken; False where money has to be asked for first."""
        if self._house.spool.full:
            raise Refused(
                503, "overloaded", "What was served can't be told to the control plane, and no more of it fits on disk: try later.", again_s=30
            )
        if self._served.sold and self.tenant is None:
            raise Refused(403, "no_project", "This endpoint sells tokens, and an operator's key has no project to bill: use a key of a project.")
        self._buckets, self.limits = self._house.book.admit(self._caller, self.tenant, self._most[0] + self._most[1])
        return self.hold()

    def hold(self) -> bool:
        """Set aside the most that it can cost, if that is there."""
        if not self._payers:
            return True
        need, there = tokens_nano(self._served.entry.serving, *self._most), True
        for payer in self._payers:
            if payer.purse.left < need:
                payer.short += need
                there = False
        if there:  # of one alone nothing is set aside
            for payer in self._payers:
                payer.purse.hold(need)
            self._held = need
        return there

    @property
    def project(self) -> ProjectId:
        """Who pays, or whose endpoint it is."""
        return self._caller.key.project_id or self._served.entry.project_id

    def broke(self) -> Refused:
        """Nothing is left to spend, and nothing more was granted."""
        assert self.tenant is not None
        need = tokens_nano(self._served.entry.serving, *self._most)
        payer = self._payers[-1] if self._payers[-1].purse.left < need else self._payers[0]  # the key before its project
        who = "project" if payer is self.tenant else "key"
        why = payer.why or f"{money(payer.purse.left)} is left here"
        return Refused(429, "insufficient_quota", f"This {who} can't pay for the request: {why}.", kind="insufficient_quota", never_again=True)

    def open(self) -> None:
        """It begins: from now on it is written down."""
        self._serial = self._house.spool.next_serial()

    def progress(self, events: int) -> None:
        """It lasts: what was delivered so far is written down, guessed by its events, for the case that this process ends now."""
        line = self._line(self._most[0], events, 0, estimated=True)
        self._house.spool.put(msgspec.structs.replace(line, open=True))

    def settle(
        self,
        prompt: int,
        completion: int,
        cached: int,
        *,
        estimated: bool = False,
        failed: bool = False,
        cut: bool = False,
        count: Count | None = None,
    ) -> None:
        """It is over and used so much; with `count`, that is asked for first, and what is given here is the guess. Once."""
        if self._settled:
            return
        self._settled = True
        if not self._serial:
            self._pay(0, 0)
            return
        line = self._line(prompt, completion, cached, estimated=estimated, failed=failed, cut=cut)
        if count is None:
            self._write(line)
            return
        self._house.spool.put(msgspec.structs.replace(line, estimated=True, open=True))
        self._house.spawn(partial(hear, count, partial(self._counted, line)))

    def _counted(self, line: Line, found: tuple[int, int] | None) -> None:
        """It was counted, or could not be."""
        self._write(self._line(*found, line.cached, failed=line.failed, cut=line.cut) if found else line)

    def _line(self, prompt: int, completion: int, cached: int, *, estimated: bool = False, failed: bool = False, cut: bool = False) -> Line:
        key, served = self._caller.key, self._served
        amount = tokens_nano(served.entry.serving, prompt, completion) if served.sold else 0
        return Line(
            serial=self._serial, endpoint=served.entry.id, project=self.project, key=key.id, at_ms=self.at_ms, prompt=prompt, completion=completion,
            cached=cached, amount=amount, failed=failed, estimated=estimated, cut=cut, request_id=self.named,
        )  # fmt: skip

    def _write(self, line: Line) -> None:
        self._house.spool.put(line)
        self._house.written()
        served = self._served
        served.prompt += line.prompt
        served.completion += line.completion
        served.failed += line.failed
        self._pay(line.amount, line.prompt + line.completion)

    def _pay(self, cost: int, tokens: int) -> None:
        """What was set aside and not used goes back."""
        if self._held or cost:
            for payer in self._payers:
                payer.paid(self._held, cost, self._house.now_s())
        self._held = 0
        if self._buckets:
            unused = self._most[0] + self._most[1] - tokens
            for bucket in self._buckets:
                bucket.give(unused)
