"""The gateway's choices: which replica, how many, for whom and for how much."""

import random
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.gateway.records import Line
from headframe.gateway.spool import Spool, batch
from headframe.gateway.stream import Stream
from headframe.model.endpoint import Endpoint, EndpointReport, GatewayReport
from headframe.model.errors import BadFile
from headframe.model.serving import Metric, Pricing, Serving, tokens_nano
from headframe.model.work import Spec
from headframe.model.world import World
from headframe.routing.admit import Bucket, Purse
from headframe.routing.choose import BLOCK_BYTES, Beliefs, blocks, choose
from headframe.routing.scale import DOWN_AFTER_MS, Memory, Sample, scale
from headframe.server.demand import Demand
from headframe.server.workload_file import parse

MINUTE = 60_000


class Replica:
    def __init__(self, n, in_flight=0):
        self.bit, self.in_flight = 1 << n, in_flight


def steps(serving, demands, ready=None, every_ms=1000):
    """Scale second by second; replicas are ready at once unless told."""
    samples, memory, have, wanted = [], Memory(), 0, []
    for n, demand in enumerate(demands):
        now_ms = 1_000_000 + n * every_ms
        samples = [each for each in [*samples, Sample(now_ms, demand)] if each.at_ms > now_ms - 120_000]
        made = scale(serving, samples, have if ready is None else min(have, ready), have, memory, now_ms)
        memory, have = made.memory, made.wanted
        wanted.append(have)
    return wanted


def test_the_first_request_wakes_one_and_load_that_doubles_is_met_at_once():
    serving = Serving(replicas_min=0, replicas_max=10, target=10)
    assert steps(serving, [0, 0, 1])[-1] == 1
    assert steps(serving, [1] * 30 + [60] * 3)[-1] >= 4, "not after a minute, but after seconds"
    assert max(steps(serving, [500] * 20)) == 10, "never more than allowed"


def test_who_finds_nobody_is_seen_at_once_and_not_with_the_next_second():
    """Found as a user: a request that had to wake a replica waited for the second of the last sample to end."""
    demand, world, at_ms = Demand(), World(), 1_000_000
    serving = Serving(replicas_min=0, replicas_max=4, target=8)
    world.endpoints["wl-a"] = Endpoint(id="wl-a", project_id="pr-a", key_id="k", name="a", spec=Spec(run="x", serve=serving), created_ms=at_ms)

    def told(held):
        quiet = EndpointReport(
            id="wl-a", in_flight=0, held=held, waiting=held, requests=held, failed=0, prompt=0, completion=0, first_ms=0, took_ms=0, cold_starts=0
        )
        return GatewayReport(gateway="gw-aaaaaaaa", endpoints=(quiet,))

    demand.hear(told(0), at_ms)
    assert demand.loads(world, at_ms)["wl-a"].wanted == 0
    assert demand.hear(told(1), at_ms + 100), "the tick is woken"
    assert demand.loads(world, at_ms + 100)["wl-a"].wanted == 1
    assert len(demand.moments("wl-a")) == 2
    demand.loads(world, at_ms + 200)
    assert len(demand.moments("wl-a")) == 2, "and only for the first who waits"


def test_nobody_goes_while_load_is_only_pausing_and_everybody_when_nobody_asks_any_more():
    serving = Serving(replicas_min=0, replicas_max=10, target=10, idle_s=900)
    wanted = steps(serving, [35] * 120 + [0] * (DOWN_AFTER_MS // 1000 - 10))
    assert wanted[119] == wanted[-1] == 5, "loads cost minutes: a pause of minutes keeps them"
    assert steps(serving, [35] * 120 + [0] * 850)[-1] == 1, "the last one stays until the idle time is over"
    assert steps(serving, [35] * 120 + [0] * 1000)[-1] == 0
    assert steps(Serving(replicas_min=2, replicas_max=4), [0] * 2000)[-1] == 2


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("mon-fri 08:00-18:00 = 2", ["2026-11-25T08:00", "2026-11-27T17:59"], ["2026-11-25T07:59", "2026-11-25T18:00", "2026-11-28T12:00"]),
        ("sat 22:00-2:30 = 3", ["2026-11-28T22:00", "2026-11-29T02:29"], ["2026-11-28T02:00", "2026-11-29T02:30", "2026-11-29T22:00"]),
        ("daily 0:00-24:00 = 1", ["2026-11-25T00:00", "2026-11-29T23:59"], []),
        ("fri-mon 09:00-10:00 = 2", ["2026-11-27T09:00", "2026-11-30T09:59"], ["2026-11-24T09:00"]),
    ],
)
def test_replicas_are_ready_at_the_hours_that_were_named(window, inside, outside):
    serving = parse(f"type: endpoint\nname: x\nrun: y\nreplicas: 0..4\nprewarm: ['{window}']").spec.serve
    for said, wanted in [*((each, serving.prewarm[0].replicas) for each in inside), *((each, 0) for each in outside)]:
        now_ms = int(datetime.fromisoformat(said + ":00+00:00").timestamp() * 1000)
        assert scale(serving, [], 0, 0, Memory(busy_ms=1), now_ms).wanted == wanted, said


@pytest.mark.parametrize(
    "window",
    ["mon 8-18 = 2", "mon-fri 08:00-18:00 = 0", "xyz 08:00-18:00 = 2", "mon 08:61-18:00 = 2", "mon 08:00-08:00 = 2", "mon 25:00-26:00 = 1", ""],
)
def test_hours_that_are_none_are_told(window):
    with pytest.raises(BadFile, match="prewarm"):
        parse(f"type: endpoint\nname: x\nrun: y\nprewarm: ['{window}']")


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 20), st.sampled_from(Metric), st.floats(0.1, 1000))
def test_the_number_wanted_is_always_allowed(demands, least, more, metric, target):
    serving = Serving(replicas_min=least, replicas_max=max(1, least + more), metric=metric, target=target)
    assert all(least <= wanted <= serving.replicas_max for wanted in steps(serving, demands))


def chosen_of(replicas, beliefs, prompt, turn):
    return replicas[choose([replica.in_flight for replica in replicas], [replica.bit for replica in replicas], beliefs, prompt, turn)]


def test_a_prompt_goes_where_its_beginning_is_believed_to_be():
    replicas, beliefs = [Replica(n) for n in range(4)], Beliefs()
    system = b'{"model":"m","messages":[' + b"s" * 2000
    first = chosen_of(replicas, beliefs, blocks(system + b"a" * 600, b"x"), 0)
    beliefs.learn(blocks(system + b"a" * 600, b"x"), first.bit)
    assert all(chosen_of(replicas, beliefs, blocks(system + bytes([n]) * 600, b"x"), n) is first for n in range(4))
    first.in_flight = 50
    assert chosen_of(replicas, beliefs, blocks(system, b"x"), 0) is not first, "but not where it is much busier than elsewhere"
    assert blocks(system, b"x") != blocks(system, b"y"), "of another endpoint's, nothing follows"
    first.in_flight = 0
    beliefs.forget(first.bit)
    assert len({chosen_of(replicas, beliefs, blocks(system, b"x"), n).bit for n in range(4)}) == 4


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.binary(max_size=3000), st.integers(0, 100))
def test_whatever_is_believed_no_replica_takes_more_than_its_bound(loads, body, turn):
    replicas, beliefs = [Replica(n, load) for n, load in enumerate(loads)], Beliefs()
    beliefs.learn(blocks(body, b"s"), replicas[0].bit)
    chosen = chosen_of(replicas, beliefs, blocks(body, b"s"), turn)
    assert chosen in replicas
    assert chosen.in_flight <= 1.25 * (sum(loads) + 1) / len(loads) + 2 or all(load > 1.25 * (sum(loads) + 1) / len(loads) + 2 for load in loads)


def test_beliefs_are_bounded_and_what_is_used_stays():
    beliefs = Beliefs(limit=100)
    kept = blocks(b"k" * BLOCK_BYTES * 3, b"s")
    for n in range(200):
        beliefs.learn(blocks(random.Random(n).randbytes(BLOCK_BYTES * 4), b"s"), 1)
        beliefs.learn(kept, 2)
    assert beliefs.matched(kept, 2) == (3, 2)
    assert len(beliefs._holders) <= 100


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 30), st.floats(0, 50)), max_size=40))
def test_no_more_is_taken_in_a_time_than_the_limit_and_what_fills_up_meanwhile(limit, asked):
    bucket, now_s, taken = Bucket(limit, 0.0), 0.0, 0.0
    for wait_s, amount in asked:
        now_s += wait_s
        bucket.fill(limit, now_s)
        if bucket.take(min(amount, limit)):
            taken += min(amount, limit)
    assert taken <= limit * (1 + now_s / 60) + 1e-6


@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 10**5), st.floats(0, 1)), max_size=40))
def test_a_purse_is_never_overdrawn_by_what_costs_no_more_than_was_set_aside(granted, asked):
    purse, going, spent = Purse(), [], 0
    purse.granted = granted
    for most, share in asked:
        if purse.hold(most):
            going.append((most, int(most * share)))
        assert purse.left >= 0
        if len(going) > 3:
            held, cost = going.pop(0)
            purse.settle(held, cost)
            spent += cost
    for held, cost in going:
        purse.settle(held, cost)
        spent += cost
    assert purse.left == granted - spent >= 0


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**7), st.integers(0, 10**7))
def test_tokens_cost_what_their_price_says_rounded_up_once(price_in, price_out, prompt, completion):
    serving = Serving(pricing=Pricing.PER_TOKEN, input_nano=price_in, output_nano=price_out)
    exact = prompt * price_in + completion * price_out
    assert 0 <= tokens_nano(serving, prompt, completion) * 10**6 - exact < 10**6
    assert tokens_nano(Serving(input_nano=5), prompt, completion) == 0


@given(st.lists(st.sampled_from(['{"choices":[{"delta":{"content":"é世"}}]}', '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}', "[DONE]", '{"choices":[{}],"usage":null}']), max_size=8),
       st.sampled_from(["\n\n", "\r\n\r\n"]), st.lists(st.integers(0, 400), max_size=12), st.booleans())  # fmt: skip
def test_a_stream_cut_anywhere_says_the_same(said, end, cuts, injected):
    raw = "".join(f"data: {each}{end}" for each in said).encode()
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    stream, got = Stream(injected=injected, name="", write=bytes), b""
    for start, stop in zip(places, places[1:]):
        if part := raw[start:stop]:
            got += stream.feed(part)
    done, expected = False, b""
    for each in said:
        if (each == "[DONE]" and done) or (injected and '"choices":[]' in each):
            continue
        done = done or each == "[DONE]"
        expected += f"data: {each}{end}".encode()
    assert got == expected
    assert stream.done == ("[DONE]" in said)
    assert stream.used == any('"prompt_tokens"' in each for each in said)


def line(serial, amount=10, **more):
    return Line(serial=serial, endpoint="wl-a", project="pr-a", key="k", at_ms=1, prompt=1, completion=1, amount=amount, **more)


def test_what_was_served_is_told_in_numbered_batches_that_never_change(tmp_path):
    spool = Spool(tmp_path, "gw-1")
    for n in range(3):
        spool.put(line(n + 1))
    spool.put(line(4, request_id="mine"))
    spool.seal()
    spool.put(line(5, amount=7))
    first = spool.oldest()
    assert first.number == 1
    assert [(each.requests, each.amount_nano, each.request_id) for each in first.items] == [(3, 30, ""), (1, 10, "mine")]
    assert spool.unsent() == {"pr-a": 47, "k": 47}
    assert spool.oldest() == first
    spool.taken(1)
    assert spool.oldest() is None
    assert spool.unsent() == {"pr-a": 7, "k": 7}
    spool.close()
    again = Spool(tmp_path, "gw-1")
    assert again.number > 2, "no number is used twice"
    assert again.unsent() == {"pr-a": 7, "k": 7}


def test_after_a_crash_what_was_under_way_ends_as_far_as_it_had_come(tmp_path):
    spool = Spool(tmp_path, "gw-1")
    spool.put(line(1, amount=5, open=True))
    spool.put(line(2, amount=5, open=True))
    spool.put(line(2, amount=9))
    spool.put(line(1, amount=6, open=True))
    spool.flush()
    torn = tmp_path / "00000001.log"
    torn.write_bytes(torn.read_bytes() + b'{"serial":3,"endp')
    again = Spool(tmp_path, "gw-1")
    assert again.unsent() == {"pr-a": 15, "k": 15}
    found = [each for n in sorted(again._sizes) for each in again.read(n) if not each.open]
    assert [(each.serial, each.amount, each.cut, each.estimated) for each in found] == [(2, 9, False, False), (1, 6, True, True)]
    assert again.next_serial() > 2


@given(st.permutations([line(n, amount=n, request_id="r" if n % 3 == 0 else "") for n in range(1, 9)]))
def test_a_batch_is_the_sum_of_its_lines_in_whatever_order(lines):
    made = batch(1, "gw-1", lines)
    assert sum(each.amount_nano for each in made.items) == sum(range(1, 9))
    assert sum(each.requests for each in made.items) == 8


def test_a_damaged_file_is_told_and_not_thrown_away(tmp_path):
    from headframe.model.errors import Conflicting

    Spool(tmp_path, "gw-1").close()
    (tmp_path / "00000001.log").write_bytes(b"nonsense\n")
    with pytest.raises(Conflicting, match="damaged"):
        Spool(tmp_path, "gw-1")
    assert (tmp_path / "00000001.log").read_bytes() == b"nonsense\n"
