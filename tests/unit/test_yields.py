"""What cards brought and cost, by the hour: from readings and usage, once, into rows and a ledger that sums to zero."""

import asyncio
from itertools import groupby

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.billing.yields import Hour, postings, yields
from headframe.model.command import Enrol, Found, RemoveFiller, SetFiller, SetNode, SetSite, TellCoin
from headframe.model.endpoint import Served
from headframe.model.event import Draft, Kind
from headframe.model.fleet import Site
from headframe.model.health import CardHour, NodeHour
from headframe.model.ids import AllocationId, KeyId, PostingId, RackId, UsageId, WorkloadId
from headframe.model.money import Entry, NodeYield, Usage
from headframe.model.power import EnergyCharge, Tariff
from headframe.model.states import AllocationState
from headframe.model.work import Tier
from headframe.server.decide import SITE, decide
from headframe.server.desk import Desk
from headframe.server.profits import LATE_MS, By, catch_up, kept, profits
from headframe.store.base import Query
from headframe.store.memory import MemoryStore
from headframe.store.open import open_store
from support import HOUR, NOW_MS, PROJECT, gpu, key, node, running
from test_filling import KAWPOW, RVN

START = NOW_MS // HOUR * HOUR
HERE = Site(id=SITE, name="here", created_ms=0, pue=1.2)


def used(allocation, ms=HOUR, amount_nano=300_000_000, at_ms=START):
    return Usage(id=UsageId(f"{allocation.id}/{at_ms}"), allocation_id=allocation.id, workload_id=allocation.workload_id, project_id=allocation.project_id, start_ms=at_ms, end_ms=at_ms + ms,
                 gpu_milli=allocation.gpu_milli, cpu_milli=0, memory_mib=0, disk_mib=0, price_version=1, rate_nano=amount_nano, amount_nano=amount_nano)  # fmt: skip


def tokens(n, at_ms, amount_nano):
    return Served(
        id=f"s{n}",
        gateway_id="gw",
        endpoint_id=WorkloadId("ep-1"),
        project_id=PROJECT,
        key_id=KeyId("k"),
        at_ms=at_ms,
        requests=1,
        prompt=1,
        completion=1,
        amount_nano=amount_nano,
        paid_nano=amount_nano,
    )


def hour(usages=(), allocations=(), readings=(), usd_kwh=0.1, **more):
    return Hour(start_ms=START, site=HERE, usages=usages, allocations={row.id: row for row in allocations}, readings={row.node_id: row for row in readings}, usd_kwh=usd_kwh,
                assumed_w=lambda _key, busy: 20 + 280 * busy, filler_usd_h=lambda _allocation: 0.03, **more)  # fmt: skip


def rows_of(given_hour, cards=2, idle_w=50):
    return yields(given_hour, [(node(0, idle_w=idle_w), [gpu(0, k).id for k in range(cards)])])


def test_a_card_that_was_read_costs_what_it_drew_at_the_meter_and_one_that_was_not_what_is_assumed():
    reading = NodeHour(
        node_id="node-0",
        hour_ms=START,
        cards=(CardHour(gpu_id="GPU-0-0", minutes=60, power_w=300.0), CardHour(gpu_id="GPU-0-1", minutes=5, power_w=1.0)),
    )
    row = rows_of(hour(readings=[reading]))[0]
    assert [(card.wh, card.measured) for card in row.cards] == [(360, True), (24, False)]
    assert row.cards[0].energy_nano == 36_000_000
    assert row.host_wh == 60


def test_what_was_sold_is_shared_among_an_allocations_cards_and_a_filler_mines_for_as_long_as_it_held_its_card():
    _, sold = running(1, [0], 2)
    _, filler = running(2, [0], 1, tier=Tier.FILLER)
    row = rows_of(hour([used(sold)], [sold]))[0]
    assert [card.sold_nano for card in row.cards] == [150_000_000, 150_000_000]
    row = rows_of(hour([used(filler, ms=HOUR // 2, amount_nano=0)], [filler]))[0]
    assert [(card.sold_nano, card.mined_nano) for card in row.cards] == [(0, 15_000_000), (0, 0)]


def test_what_tokens_brought_is_shared_among_an_endpoints_replicas_by_the_time_of_their_cards():
    _, long = running(1, [0], 2, tier=Tier.SERVED)
    _, short = running(2, [0], 1, first=2, tier=Tier.SERVED)
    served = hour(
        [used(long, amount_nano=0), used(short, ms=HOUR // 2, amount_nano=0)],
        [long, short],
        tokens_nano={"chat": 1000, "other": 7},
        endpoints={long.id: "chat", short.id: "chat"},
    )
    assert [card.sold_nano for card in rows_of(served, cards=3)[0].cards] == [400, 400, 200]


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 0.5)), min_size=1, max_size=6))
def test_every_posting_sums_to_zero_and_the_energy_is_that_of_the_rows(drawn):
    readings = [
        NodeHour(node_id=f"node-{n}", hour_ms=START, cards=(CardHour(gpu_id=f"GPU-{n}-0", minutes=60, power_w=float(watts)),))
        for n, (watts, _) in enumerate(drawn)
    ]
    given_hour = hour(readings=readings, usd_kwh=drawn[0][1])
    rows = yields(given_hour, [(node(n), [gpu(n, 0).id]) for n in range(len(drawn))])
    entries = postings(given_hour, rows, 0)
    for _, group in groupby(sorted(entries, key=lambda entry: entry.posting_id), key=lambda entry: entry.posting_id):
        assert sum(entry.amount_nano for entry in group) == 0
    assert sum(entry.amount_nano for entry in entries if entry.account == "operator/energy") == sum(
        card.energy_nano for row in rows for card in row.cards
    )


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else open_store(f"sqlite:///{tmp_path / 'h.db'}")
    yield made
    made.close()


def test_an_hour_is_added_up_once_late_enough_and_found_again_by_owner(store):
    clock = [START]

    async def now(call):
        return call()

    desk = Desk(store, lambda: clock[0], now)
    desk.open()

    async def do(command):
        await desk.write(lambda world, now_ms: decide(world, command, now_ms))

    async def scene():
        await do(Found(site_name="here", key=key()))
        await do(
            Enrol(node=node(0, idle_w=50, state="new", joined_ms=START), gpus=(gpu(0, 0, max_w=350, state="new"), gpu(0, 1, max_w=350, state="new")))
        )
        await do(SetSite(site_id=SITE, pue=1.2, tariff=Tariff(name="t", energy=(EnergyCharge(usd_kwh=0.1),))))
        await do(SetNode(node_id="node-0", rack_id=RackId("r"), owner="alice"))
        await do(TellCoin(coin=RVN))
        await do(SetFiller(filler=KAWPOW))
        workload, filler = running(1, [0], 1, tier=Tier.FILLER)
        workload = msgspec.structs.replace(workload, held_nano=0, spec=msgspec.structs.replace(workload.spec, name=f"{KAWPOW.id}@GPU-0-0"))
        draft = Draft(
            kind=Kind.USAGE_METERED,
            subject="x",
            text="x",
            rows=(workload, msgspec.structs.replace(filler, state=AllocationState.RUNNING), used(filler, amount_nano=0)),
        )
        replica, serves = running(2, [0], 1, first=1, tier=Tier.SERVED)
        replica = msgspec.structs.replace(replica, held_nano=0, endpoint_id=WorkloadId("ep-1"))
        draft = msgspec.structs.replace(
            draft, rows=(*draft.rows, replica, serves, used(serves, amount_nano=0), tokens(1, START + 5, 7_000), tokens(2, START + HOUR, 9))
        )
        await desk.write(lambda _world, _now: iter((draft,)))
        store.keep_hours([NodeHour(node_id="node-0", hour_ms=START, cards=(CardHour(gpu_id="GPU-0-0", minutes=60, power_w=280.0),))], 0)
        await do(RemoveFiller(name=KAWPOW.name))  # what it earned is still its own, not what the next one would
        await do(SetFiller(filler=msgspec.structs.replace(KAWPOW, id="filler-next", name="next", coin="", usd_gpu_h=9.0)))
        clock[0] = START + HOUR + LATE_MS - 1
        await catch_up(desk, None)
        assert list(kept(store, 0, 1 << 50)) == []
        clock[0] += 1
        await catch_up(desk, None)
        await catch_up(desk, None)

    asyncio.run(scene())
    rows = store.page(NodeYield, Query())
    assert [(row.start_ms, row.owner) for row in rows] == [(START, "alice")]
    entries = store.page(Entry, Query())
    assert sum(entry.amount_nano for entry in entries) == 0
    assert {entry.posting_id for entry in entries} == {PostingId(f"{what}/{SITE}/{START}/0") for what in ("energy", "mined")}
    found = profits(desk.world, iter(rows), By.OWNER)
    assert [row.name for row in found] == ["alice"]
    mined = 2500 * 0.02 * 86400 / 60 / 5e12 * 50e6 * 0.99 / 24
    assert found[0].mined_nano / 1e9 == pytest.approx(mined, rel=1e-6)
    assert found[0].net_nano == found[0].sold_nano + found[0].mined_nano - found[0].energy_nano
    by_gpu = {row.name: row for row in profits(desk.world, iter(rows), By.GPU)}
    assert by_gpu["GPU-0-0"].measured == 1.0
    assert (by_gpu["GPU-0-1"].mined_nano, by_gpu["GPU-0-1"].sold_nano) == (0, 7_000)
    assert AllocationId("wl-1.1") in desk.world.allocations
