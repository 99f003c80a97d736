"""Double entry: every posting's entries sum to zero, a project's balances never go below it, nothing is ever changed.

Accounts: `credit/P` (spendable), `held/P` (set aside for admitted work), and the operator's `granted`, `revenue`,
`written-off`. A movement returns the project with its new balances and the entries; the caller puts both in one commit.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from headframe.model.ids import PostingId, WorkloadId
from headframe.model.money import (
    GRANTED_ACCOUNT,
    REVENUE_ACCOUNT,
    WRITTEN_OFF_ACCOUNT,
    Entry,
    EntryKind,
    credit_account,
    held_account,
)
from headframe.model.people import Key, Project
from headframe.model.units import MS_PER_DAY

NO_WORKLOAD = WorkloadId("")


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A posting made: the project after it, its entries, and how much of a charge came out of the hold."""

    project: Project
    entries: tuple[Entry, ...]
    from_hold_nano: int = 0


class Memo(msgspec.Struct, frozen=True, kw_only=True):
    """What a posting is for."""

    posting: str
    kind: EntryKind
    at_ms: int
    text: str
    workload_id: WorkloadId = NO_WORKLOAD


def grant_credit(project: Project, amount_nano: int, memo: Memo) -> Moved:
    """The operator gives credit, or takes back (negative) what is not spent."""
    lines = [(GRANTED_ACCOUNT, -amount_nano), (credit_account(project.id), amount_nano)]
    return _post(project, lines, memo, credit_nano=amount_nano)


def hold(project: Project, amount_nano: int, memo: Memo) -> Moved:
    """Set credit aside for admitted work; the caller has checked that there is enough."""
    assert 0 <= amount_nano <= project.credit_nano, (amount_nano, project)
    lines = [(credit_account(project.id), -amount_nano), (held_account(project.id), amount_nano)]
    return _post(project, lines, memo, credit_nano=-amount_nano, held_nano=amount_nano)


def void(project: Project, amount_nano: int, memo: Memo) -> Moved:
    """Give back what a hold did not use."""
    lines = [(held_account(project.id), -amount_nano), (credit_account(project.id), amount_nano)]
    return _post(project, lines, memo, credit_nano=amount_nano, held_nano=-amount_nano)


def charge(project: Project, amount_nano: int, held_nano: int, memo: Memo) -> Moved:
    """Post usage: from the workload's hold, then from credit, and what is left is the operator's loss, never a debt."""
    from_hold = min(held_nano, amount_nano)
    from_credit = min(project.credit_nano, amount_nano - from_hold)
    lost = amount_nano - from_hold - from_credit
    lines = [
        (held_account(project.id), -from_hold),
        (credit_account(project.id), -from_credit),
        (WRITTEN_OFF_ACCOUNT, -lost),
        (REVENUE_ACCOUNT, amount_nano),
    ]
    moved = _post(_spent(project, amount_nano, memo.at_ms), lines, memo, credit_nano=-from_credit, held_nano=-from_hold)
    return msgspec.structs.replace(moved, from_hold_nano=from_hold)


def refund(project: Project, amount_nano: int, memo: Memo) -> Moved:
    """Credit back what a fault of the operator's cost: new entries, the old ones stay."""
    lines = [(REVENUE_ACCOUNT, -amount_nano), (credit_account(project.id), amount_nano)]
    return _post(_spent(project, -amount_nano, memo.at_ms), lines, memo, credit_nano=amount_nano)


def month_of(at_ms: int) -> str:
    """The UTC month that an instant belongs to, as "2026-11"."""
    return _month_of_day(at_ms // MS_PER_DAY)


@lru_cache(maxsize=1024)
def _month_of_day(day: int) -> str:
    return datetime.fromtimestamp(day * MS_PER_DAY / 1000, UTC).strftime("%Y-%m")


def month_spent_nano(payer: Project | Key, at_ms: int) -> int:
    """What the project, or with the key, was spent in the month of `at_ms`."""
    return payer.month_spent_nano if payer.month == month_of(at_ms) else 0


def _spent(project: Project, amount_nano: int, at_ms: int) -> Project:
    month = max(month_of(at_ms), project.month)
    before = project.month_spent_nano if project.month == month else 0
    return msgspec.structs.replace(project, month=month, month_spent_nano=max(0, before + amount_nano))


def _post(project: Project, lines: Sequence[tuple[str, int]], memo: Memo, *, credit_nano: int = 0, held_nano: int = 0) -> Moved:
    assert sum(amount for _, amount in lines) == 0, lines
    entries = tuple(
        Entry(
            id=f"{memo.posting}#{account}", posting_id=PostingId(memo.posting), kind=memo.kind, account=account,
            amount_nano=amount, project_id=project.id, workload_id=memo.workload_id, at_ms=memo.at_ms, memo=memo.text,
        )
        for account, amount in lines
        if amount
    )  # fmt: skip
    after = msgspec.structs.replace(project, credit_nano=project.credit_nano + credit_nano, held_nano=project.held_nano + held_nano)
    assert after.credit_nano >= 0, after
    assert after.held_nano >= 0, after
    return Moved(project=after, entries=entries)
