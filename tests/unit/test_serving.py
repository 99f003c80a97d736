"""Endpoints, decided: replicas made, rolled and drained; what gateways may spend and what they say that they served, taken once."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headframe.model.command import ApplyEndpoint, CreateKey, StopEndpoint, TakeReport
from headframe.model.endpoint import EndpointReport, GatewayReport, Served, ServedBatch, Wish
from headframe.model.ids import KeyId, UserId, WorkloadId, allocation_id
from headframe.model.money import Entry
from headframe.model.people import Key, Scope
from headframe.model.serving import Load, Pricing, Serving
from headframe.model.states import WORKLOAD_ENDS, AllocationState, Reason, WorkloadState
from headframe.model.units import NANO_PER_USD
from headframe.model.work import ENDPOINT, Facts, Observation, Tier
from headframe.reconcile.endpoints import DRAIN_MS, ROLL_WAIT_MS, endpoints
from headframe.server.decide import decide
from headframe.server.demand import Demand
from headframe.server.serving import SILENT_MS, short, silent
from headframe.server.tick import decisions
from support import NOW_MS, PROJECT, commit, fleet, project, spec

KEY = WorkloadId("wl-aaaaaaaaaaaaaaaa")


def served(world, gpus=1, n=1, **serve):
    """An endpoint applied."""
    asked = spec(gpus, name="chat", type=ENDPOINT, serve=Serving(**{"replicas_min": 0, "replicas_max": 4, **serve}), env={"N": str(n)})
    if asked.serve.pricing is Pricing.PER_TOKEN:
        asked = msgspec.structs.replace(asked, tier=Tier.SERVED)
    commit(world, decide(world, ApplyEndpoint(id=KEY, project_id=PROJECT, key_id=KeyId("op"), spec=asked), NOW_MS))
    return world


def live(world):
    return [each for each in world.replicas.get(KEY, {}).values() if each.state not in WORKLOAD_ENDS]


def ready(world):
    return frozenset(allocation_id(each.id, 1) for each in live(world) if each.state is WorkloadState.RUNNING)


def turn(world, now_ms, wanted=None, answering=True, drained=True, ended=()):
    """A tick in which everything granted runs at once, and what is stopped ends."""
    seen = []
    for key, held in list(world.held.items()):
        if held.state is AllocationState.STOPPING:
            seen.append(
                Observation(
                    allocation_id=key,
                    state=AllocationState.ENDED,
                    started_ms=held.started_ms,
                    ended_ms=now_ms,
                    reason=held.stop_because,
                    seen_ms=now_ms,
                )
            )
        elif key in ended:
            seen.append(
                Observation(
                    allocation_id=key,
                    state=AllocationState.ENDED,
                    started_ms=now_ms,
                    ended_ms=now_ms,
                    reason=Reason.FAILED,
                    exit_code=3,
                    detail="exited with 3",
                    seen_ms=now_ms,
                )
            )
        else:
            seen.append(Observation(allocation_id=key, state=AllocationState.RUNNING, started_ms=held.started_ms or now_ms, seen_ms=now_ms))
    up = ready(world) if answering else frozenset()
    load = Load(wanted=wanted, why="because", ready=up, drained=frozenset(world.held) if drained else frozenset())
    commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, now_ms), observations=tuple(seen), loads={KEY: load}), now_ms))


def test_replicas_are_made_placed_and_given_up_as_they_are_wanted():
    world = served(fleet(nodes=1, gpus_each=4))
    for n, wanted in enumerate([1, 3, 3, 3]):
        turn(world, NOW_MS + n * 1000, wanted)
    assert [each.name for each in live(world)] == ["chat.1", "chat.2", "chat.3"]
    ports = [part.port for held in world.held.values() for part in held.parts]
    assert len(set(ports)) == 3
    assert all(20_000 <= port < 30_000 for port in ports)
    for n in range(4):
        turn(world, NOW_MS + 10_000 + n * 1000, 1)
    assert [each.name for each in live(world)] == ["chat.1"], "the newest go first"
    commit(world, decide(world, StopEndpoint(id=KEY), NOW_MS + 20_000))
    for n in range(3):
        turn(world, NOW_MS + 21_000 + n * 1000)
    assert not world.endpoints
    assert not world.held
    assert project(world).held_nano == 0


def test_another_leader_hears_from_gateways_for_how_long_nobody_asked():
    world = served(fleet(nodes=1, gpus_each=4), idle_s=600)
    for n in range(3):
        turn(world, NOW_MS + n * 1000, 1)

    def wanted(*quiet_s):
        leader = Demand()
        for n, each in enumerate(quiet_s):
            leader.hear(GatewayReport(gateway=f"gw-{n}", endpoints=(EndpointReport(id=KEY, in_flight=0, held=0, quiet_s=each),)), NOW_MS + 9000)
        return leader.loads(world, NOW_MS + 9000)[KEY].wanted

    assert wanted(601.0) == wanted(700.0, 601.0) == 0
    assert wanted(599.0) == wanted(700.0, 20.0) == 1, "the gateway that was asked last says it"


def test_what_is_drained_is_stopped_only_when_no_gateway_has_anything_there_or_at_its_limit():
    world = served(fleet(nodes=1, gpus_each=4))
    for n, wanted in enumerate([2, 2, 2, 1, 1, 1]):
        turn(world, NOW_MS + n * 1000, wanted, drained=False)
    assert [bool(each.drain_ms) for each in live(world)] == [False, True]
    turn(world, NOW_MS + DRAIN_MS + 60_000, 1, drained=False)
    turn(world, NOW_MS + DRAIN_MS + 61_000, 1, drained=False)
    assert len(live(world)) == 1


def test_a_new_revision_takes_over_one_by_one_and_never_leaves_fewer_that_answer():
    world = served(fleet(nodes=1, gpus_each=4), replicas_min=3)
    for n in range(4):
        turn(world, NOW_MS + n * 1000)
    served(world, n=2, replicas_min=3)
    for n in range(30):
        turn(world, NOW_MS + 10_000 + n * 1000)
        assert sum(not each.drain_ms for each in live(world) if allocation_id(each.id, 1) in ready(world)) >= 3
    assert [each.revision for each in live(world)] == [2, 2, 2]
    made = world.endpoints[KEY].made
    served(world, n=2, replicas_min=2, target=9.0)
    turn(world, NOW_MS + 50_000)
    assert world.endpoints[KEY].revision == 2, "how many there are is no new revision"
    assert world.endpoints[KEY].made == made


def test_where_there_is_no_room_for_both_the_old_one_goes_first_after_a_while():
    world = served(fleet(nodes=1, gpus_each=1), replicas_min=1)
    for n in range(3):
        turn(world, NOW_MS + n * 1000)
    served(world, n=2, replicas_min=1)
    turn(world, NOW_MS + 5000)
    turn(world, NOW_MS + 6000)
    assert [each.drain_ms for each in live(world) if each.revision == 1] == [0]
    for n in range(6):
        turn(world, NOW_MS + 6000 + ROLL_WAIT_MS + n * 1000)
    assert [(each.revision, each.state) for each in live(world)] == [(2, WorkloadState.RUNNING)]


def test_replicas_that_fail_are_replaced_more_and_more_slowly_until_one_answers():
    world, now_ms, ends = served(fleet(nodes=1, gpus_each=1), replicas_min=1), NOW_MS, 0
    for _ in range(300):
        now_ms += 1000
        ends += bool(world.held)
        turn(world, now_ms, answering=False, ended=tuple(world.held))
    assert 4 <= world.endpoints[KEY].failures <= 8, "in five minutes"
    assert "exited with 3" in world.endpoints[KEY].why
    for n in range(400):
        turn(world, now_ms + n * 1000)
    assert world.endpoints[KEY].failures == 0
    assert not world.endpoints[KEY].why


def test_time_of_replicas_is_billed_unless_tokens_are_sold():
    for sold in (False, True):
        more = {"pricing": Pricing.PER_TOKEN, "input_nano": 10**9, "output_nano": 10**9} if sold else {}
        world = served(fleet(nodes=1, gpus_each=1), replicas_min=1, **more)
        for n in range(3):
            turn(world, NOW_MS + n * 1000)
        commit(world, decide(world, StopEndpoint(id=KEY), NOW_MS + 3_600_000))
        for n in range(3):
            turn(world, NOW_MS + 3_601_000 + n * 1000)
        assert (1000 * NANO_PER_USD - project(world).credit_nano > 0) is not sold


def item(amount, n=0, **more):
    return Served(
        id=f"gw-12345678/{n}",
        gateway_id="gw-12345678",
        endpoint_id=KEY,
        project_id=PROJECT,
        key_id=KeyId("k"),
        at_ms=NOW_MS,
        requests=1,
        prompt=5,
        completion=7,
        amount_nano=amount,
        **more,
    )


def take(world, batch=None, wishes=(), earlier=None, now_ms=NOW_MS):
    report = GatewayReport(gateway="gw-12345678", batch=batch, wishes=tuple(wishes))
    return commit(world, decide(world, TakeReport(report=report, earlier=earlier or {}), now_ms))


def revenue(events):
    return sum(row.amount_nano for event in events for row in event.rows if isinstance(row, Entry) and row.account == "operator/revenue")


def allowance(world):
    return world.allowances["gw-12345678." + PROJECT]


def test_an_allowance_is_held_spent_given_back_and_said_twice_without_harm():
    world = served(fleet(nodes=1), pricing=Pricing.PER_TOKEN, input_nano=1, output_nano=1)
    credit = project(world).credit_nano
    wish = Wish(project_id=PROJECT, honoured_nano=0, wanted_nano=NANO_PER_USD)
    take(world, wishes=[wish])
    assert (allowance(world).left_nano, project(world).held_nano) == (NANO_PER_USD, NANO_PER_USD)
    again = Wish(project_id=PROJECT, honoured_nano=NANO_PER_USD, wanted_nano=NANO_PER_USD)
    assert not take(world, wishes=[again])
    batch = ServedBatch(number=3, items=(item(400), item(600)))
    assert revenue(take(world, batch)) == 1000
    assert revenue(take(world, batch)) == 0, "the same batch again"
    assert revenue(take(world, ServedBatch(number=2, items=(item(5),)))) == 0, "an older one"
    assert (allowance(world).left_nano, project(world).held_nano) == (NANO_PER_USD - 1000, NANO_PER_USD - 1000)
    assert world.endpoints[KEY].earned_nano == 1000
    take(world, wishes=[Wish(project_id=PROJECT, honoured_nano=1000, wanted_nano=0)])
    assert (allowance(world).left_nano, project(world).held_nano, project(world).credit_nano) == (0, 0, credit - 1000)


def test_a_gateway_that_is_gone_gives_up_what_it_might_spend_and_what_it_says_later_is_paid_from_credit():
    world = served(fleet(nodes=1), pricing=Pricing.PER_TOKEN, input_nano=1, output_nano=1)
    take(world, wishes=[Wish(project_id=PROJECT, honoured_nano=0, wanted_nano=500)])
    commit(world, silent(world, NOW_MS + SILENT_MS // 2))
    assert project(world).held_nano == 500
    commit(world, silent(world, NOW_MS + SILENT_MS + 1))
    assert project(world).held_nano == 0
    assert not world.gateways
    assert revenue(take(world, ServedBatch(number=9, items=(item(300),)))) == 300
    assert project(world).held_nano == 0


def test_a_request_that_our_side_had_cut_is_paid_once_and_one_that_was_whole_as_often_as_it_is_asked():
    world = served(fleet(nodes=1), pricing=Pricing.PER_TOKEN, input_nano=1, output_nano=1)

    def rows(*items, number, earlier=None):
        events = take(world, ServedBatch(number=number, items=items), earlier=earlier)
        return [row for event in events for row in event.rows if isinstance(row, Served)]

    (first,) = rows(item(100, request_id="r", cut=True), number=1)
    assert (first.name, first.amount_nano) == (f"{PROJECT}/r", 100)
    (second,) = rows(item(160, request_id="r", cut=True), number=2, earlier={f"{PROJECT}/r": first})
    assert (second.amount_nano, second.paid_nano) == (60, 160)
    third, fourth = rows(item(120, request_id="r"), item(120, n=1, request_id="r"), number=3, earlier={f"{PROJECT}/r": second})
    assert (third.amount_nano, fourth.amount_nano) == (0, 120)
    (late,) = rows(msgspec.structs.replace(item(90, request_id="r", cut=True), at_ms=NOW_MS - 5000), number=4, earlier={f"{PROJECT}/r": fourth})
    assert late.amount_nano == 0, "a try that was cut, heard of after the one that was whole"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2 * 10**9), st.integers(0, 10**9)), max_size=25))
def test_whatever_gateways_say_the_ledger_sums_to_zero_and_no_balance_goes_below(told):
    world, total, number = fleet(nodes=1, credit_usd=3), 0, 0
    for kind, amount, other in told:
        if kind == 0:
            number += 1
            events = take(world, ServedBatch(number=number, items=(item(amount, n=number),)))
        else:
            events = take(world, wishes=[Wish(project_id=PROJECT, honoured_nano=min(other, amount) if kind == 1 else 10**12, wanted_nano=amount)])
        total += sum(row.amount_nano for event in events for row in event.rows if isinstance(row, Entry))
        mine = project(world)
        assert mine.credit_nano >= 0
        left = allowance(world).left_nano if world.allowances else 0
        assert mine.held_nano == left >= 0
    assert total == 0


def thrifty(budget):
    """A fleet whose project has a key with a budget, and two gateways; `say` is what one of them reports."""
    world = fleet(nodes=1, credit_usd=1000)
    key = Key(id=KeyId("k"), name="app", scope=Scope.INFER, project_id=PROJECT, user_id=UserId(""), mac="", created_ms=NOW_MS, budget_nano=budget)
    commit(world, decide(world, CreateKey(key=key), NOW_MS))

    def say(gateway, now_ms=NOW_MS, **more):
        return commit(world, decide(world, TakeReport(report=GatewayReport(gateway=gateway, **more), earlier={}), now_ms))

    return world, say


@given(st.lists(st.tuples(st.sampled_from(["gw-11111111", "gw-22222222"]), st.integers(0, 2), st.integers(0, 10**9)), max_size=30))
def test_what_gateways_together_may_spend_with_a_key_is_never_more_than_its_budget(told):
    world, say = thrifty(10**9)
    number, due = {}, 0
    for gateway, kind, amount in told:
        row = world.allowances.get(f"{gateway}.k")
        if kind == 0:
            cost = min(amount, row.left_nano if row else 0)  # what an honest gateway spends
            number[gateway] = number.get(gateway, 0) + 1
            due += cost
            say(gateway, batch=ServedBatch(number=number[gateway], items=(msgspec.structs.replace(item(cost), gateway_id=gateway),)))
        else:
            honoured = row.granted_nano if row and kind == 1 else row.spent_nano if row else 0
            say(gateway, wishes=(Wish(project_id=PROJECT, key_id=KeyId("k"), honoured_nano=honoured, wanted_nano=amount if kind == 1 else 0),))
        assert world.keys["k"].month_spent_nano == due
        assert all(each.left_nano >= 0 for each in world.allowances.values())
        assert due + sum(each.left_nano for each in world.allowances.values() if each.key_id) <= 10**9


def test_a_keys_budget_is_whole_again_with_the_next_month_and_nothing_is_held_of_the_projects_credit():
    world, say = thrifty(1000)
    wish = Wish(project_id=PROJECT, key_id=KeyId("k"), honoured_nano=0, wanted_nano=5000)
    say("gw-11111111", wishes=(wish,))
    assert (world.allowances["gw-11111111.k"].left_nano, project(world).held_nano) == (1000, 0)
    assert "budget of $0.000001 a month leaves no more" in short(world.keys["k"], wish, world.allowances["gw-11111111.k"])
    say("gw-11111111", batch=ServedBatch(number=1, items=(msgspec.structs.replace(item(900), gateway_id="gw-11111111"),)))
    more = msgspec.structs.replace(wish, honoured_nano=1000, wanted_nano=600)
    say("gw-11111111", wishes=(more,))
    assert world.allowances["gw-11111111.k"].left_nano == 100
    say("gw-11111111", wishes=(more,), now_ms=NOW_MS + 32 * 86_400_000)
    assert world.allowances["gw-11111111.k"].left_nano == 600
    commit(world, silent(world, NOW_MS + SILENT_MS * 40))
    assert not world.allowances


def test_nothing_happens_where_no_gateway_speaks():
    world = served(fleet(nodes=1, gpus_each=4), replicas_min=2)
    for n in range(3):
        turn(world, NOW_MS + n * 1000)
    assert not list(endpoints(world, Facts(), NOW_MS + 10_000_000))
