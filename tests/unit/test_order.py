"""The queue: who comes first, and what is alike is looked at once."""

from unittest import mock

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headframe.model.fleet import Reservation
from headframe.model.ids import NodeId, ProjectId, ReservationId
from headframe.model.people import Project
from headframe.model.states import WorkloadState
from headframe.model.work import Tier
from headframe.model.world import World
from headframe.placement import plan
from headframe.placement.order import WAIT_LIMIT_MS, Order
from support import HOUR, NOW_MS, PROJECT, elastic, fleet, job, put, running

OTHER = ProjectId("pr-other")
waiting = st.lists(
    st.builds(
        dict,
        gpus=st.sampled_from([0.5, 1, 2, 4]),
        nodes=st.sampled_from([1, 1, 2]),
        priority=st.sampled_from([0, 0, 1]),
        tier=st.sampled_from([Tier.RESERVED, Tier.ON_DEMAND, Tier.SPOT]),
        max_duration_s=st.sampled_from([0, 1800, 7200]),
        of=st.sampled_from([PROJECT, OTHER]),
        age_ms=st.sampled_from([0, 0, 0, WAIT_LIMIT_MS, WAIT_LIMIT_MS + 5]),
        rests=st.sampled_from([False, False, False, True]),
        most=st.sampled_from([0, 0, 0, 3]),
    ),
    max_size=14,
)
held = st.lists(st.tuples(st.sampled_from([Tier.ON_DEMAND, Tier.SPOT, Tier.FILLER]), st.integers(0, 3), st.booleans()), max_size=6)


def queued(n, of, age_ms, rests, most, **asked):
    """A workload in the queue; elastic where it would take more."""
    made = elastic(n, 1, most, **{key: asked[key] for key in ("priority", "tier", "max_duration_s")}) if most else job(n, **asked)
    return msgspec.structs.replace(made, project_id=of, queued_ms=made.queued_ms - age_ms, not_before_ms=NOW_MS + HOUR if rests else 0)


def busy(requests, holders, quota, guaranteed, set_aside):
    world = fleet(nodes=4, gpus_each=4)
    world.put(
        Project(id=OTHER, name="other", created_ms=0, credit_nano=10**15, quota_gpus_milli=quota * 1000, guaranteed_gpus_milli=guaranteed * 1000)
    )
    free = dict.fromkeys(range(4), 0)
    for n, (tier, node, two) in enumerate(holders):
        if free[node] + 1 + two <= 4:
            put(world, running(100 + n, [node], 1 + two, NOW_MS - 5 * HOUR, tier=tier, first=free[node], max_duration_s=6 * 3600))
            free[node] += 1 + two
    if set_aside:
        world.put(
            Reservation(
                id=ReservationId("rs-x"), name="x", project_id=PROJECT, node_ids=(NodeId("node-3"),), start_ms=NOW_MS + set_aside * HOUR,
                end_ms=NOW_MS + 5 * HOUR, created_ms=0,
            )
        )  # fmt: skip
    for n, request in enumerate(requests):
        world.put(queued(n, **request))
    return world


@given(waiting, held, st.integers(0, 3), st.integers(0, 4), st.sampled_from([0, 0, 1, -1]))
def test_what_is_passed_over_for_being_alike_would_have_been_refused(requests, holders, quota, guaranteed, set_aside):
    """The same plan, with each one looked at."""
    quick = plan(busy(requests, holders, quota, guaranteed, set_aside), NOW_MS + 100)
    looks = []
    with mock.patch.object(Order, "pass_over"):
        thorough = plan(busy(requests, holders, quota, guaranteed, set_aside), NOW_MS + 100, until=lambda: looks.append(0))
    assert len(looks) == len(requests)
    assert (quick.grants, quick.evictions, quick.kept) == (thorough.grants, thorough.evictions, thorough.kept)
    assert {key: [no.rule for no in why] for key, why in quick.refusals.items()} == {
        key: [no.rule for no in why] for key, why in thorough.refusals.items()
    }


@given(waiting, st.randoms(use_true_random=False))
def test_those_that_wait_come_by_lateness_share_priority_and_age_whatever_came_and_went(requests, rng):
    world = busy(requests, [], 0, 0, 0)
    for workload in rng.sample(list(world.queued.values()), len(requests) // 3):
        mark = world.mark()
        world.put(msgspec.structs.replace(workload, state=WorkloadState.STARTING, attempt=1))
        if rng.random() < 0.5:
            world.rollback(mark)
    anew = World()
    anew.load([*world.projects.values(), *world.workloads.values()], 1)
    assert anew.waiting == world.waiting
    got = [workload.id for workload in Order(world, NOW_MS + 100)]
    assert sorted(got) == sorted(world.queued)

    def place(key):
        """Nobody holds anything, so projects share alike and the older's turn comes first: by age among the late, by project, priority and age among others."""
        workload = world.queued[key]
        late = NOW_MS + 100 - workload.queued_ms >= WAIT_LIMIT_MS
        tier = {Tier.RESERVED: 0, Tier.ON_DEMAND: 1, Tier.SPOT: 2}[workload.spec.tier]
        return (tier, not late, workload.queued_ms if late else 0, workload.id if late else "")

    assert [place(key)[:3] for key in got] == sorted(place(key)[:3] for key in got)
    for of in (PROJECT, OTHER):
        mine = [world.queued[key] for key in got if world.queued[key].project_id == of and not place(key)[3]]
        keys = [(place(w.id)[0], -w.spec.priority, w.queued_ms, w.id) for w in mine]
        assert keys == sorted(keys)


def test_a_queue_of_thousands_that_are_alike_is_refused_by_looking_at_one():
    world = put(fleet(nodes=1, queue=[job(n, gpus=1) for n in range(2000)]), running(9999, [0], 8))
    looks = []
    made = plan(world, NOW_MS + 10_000, until=lambda: looks.append(0))
    assert len(looks) == 1
    assert len(made.refusals) == 2000
    assert len(set(made.refusals.values())) == 1
