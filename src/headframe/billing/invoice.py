"""An invoice is a fold over ledger entries: what each workload's revenue postings add up to in a month."""

from collections.abc import Iterable

from headframe.billing.ledger import month_of
from headframe.model.ids import ProjectId, WorkloadId
from headframe.model.money import REVENUE_ACCOUNT, Entry, EntryKind, Invoice, InvoiceLine


def invoice(entries: Iterable[Entry], project: ProjectId, month: str) -> Invoice:
    """The month's invoice of one project; entries of other projects or months, and in any order, change nothing."""
    used: dict[WorkloadId, int] = {}
    refunded: dict[WorkloadId, int] = {}
    memos: dict[WorkloadId, str] = {}
    for entry in entries:
        if entry.account != REVENUE_ACCOUNT or entry.project_id != project or month_of(entry.at_ms) != month:
            continue
        side = used if entry.kind is EntryKind.USAGE else refunded
        side[entry.workload_id] = side.get(entry.workload_id, 0) + entry.amount_nano
        memos[entry.workload_id] = min(entry.memo, memos.get(entry.workload_id, entry.memo))
    lines = tuple(
        InvoiceLine(
            workload_id=key, memo=memos[key].split(" attempt ")[0], usage_nano=used.get(key, 0),
            refund_nano=refunded.get(key, 0), amount_nano=used.get(key, 0) + refunded.get(key, 0),
        )
        for key in sorted(memos, key=lambda key: (memos[key], key))
    )  # fmt: skip
    usage, refund = sum(used.values()), sum(refunded.values())
    return Invoice(project_id=project, month=month, lines=lines, usage_nano=usage, refund_nano=refund, total_nano=usage + refund)
