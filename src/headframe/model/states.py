"""States and their legal moves, one table each; code, docs and property tests read the same ones."""

from enum import StrEnum


class NodeState(StrEnum):
    """A machine's life; `unknown` while its link is lost."""

    NEW = "new"
    QUALIFYING = "qualifying"
    READY = "ready"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    QUARANTINED = "quarantined"
    UNKNOWN = "unknown"
    RETIRED = "retired"


class GpuState(StrEnum):
    """A card's life; only `ready` ones get work."""

    NEW = "new"
    TESTING = "testing"
    READY = "ready"
    SUSPECT = "suspect"
    RETIRED = "retired"


class Service(StrEnum):
    """What an operator wants of a node: `drain` lets nothing new start and ends in maintenance, `resume` puts it back to work,
    `retire` is for good.
    """

    DRAIN = "drain"
    RESUME = "resume"
    RETIRE = "retire"


class WorkloadState(StrEnum):
    """What a tenant sees of their work."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AllocationState(StrEnum):
    """One attempt, holding its GPUs whole from `granted` until `ended`."""

    GRANTED = "granted"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class Reason(StrEnum):
    """Why an allocation ended: closed, so that every end can be explained and billed."""

    FINISHED = "finished"
    FAILED = "failed"
    SETUP_FAILED = "setup-failed"
    START_FAILED = "start-failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    MAX_DURATION = "max-duration"
    IDLE = "idle"
    CREDIT_EXHAUSTED = "credit-exhausted"
    NODE_LOST = "node-lost"
    NODE_FAULT = "node-fault"
    RESIZED = "resized"


NODE_FAULTS = frozenset({Reason.NODE_LOST, Reason.NODE_FAULT})
"""Ends that are the operator's fault: what the attempt cost is credited back."""
MADE_WAY = frozenset({Reason.PREEMPTED, Reason.RESIZED})
"""Ends that others or we asked for: they are not held against the work, however often it was."""
OWN_FAULTS = frozenset({Reason.FINISHED, Reason.FAILED, Reason.SETUP_FAILED, Reason.START_FAILED})
"""Ends by itself, of what is to go on for ever: the next start waits the longer, the more of them there were in a row."""

_N, _G, _W, _A = NodeState, GpuState, WorkloadState, AllocationState

NODE_MOVES: dict[NodeState, frozenset[NodeState]] = {
    _N.NEW: frozenset({_N.QUALIFYING, _N.UNKNOWN, _N.RETIRED}),
    _N.QUALIFYING: frozenset({_N.READY, _N.QUARANTINED, _N.UNKNOWN, _N.RETIRED}),
    _N.READY: frozenset({_N.DRAINING, _N.QUARANTINED, _N.UNKNOWN, _N.QUALIFYING}),
    _N.DRAINING: frozenset({_N.READY, _N.MAINTENANCE, _N.QUARANTINED, _N.UNKNOWN, _N.RETIRED}),
    _N.MAINTENANCE: frozenset({_N.QUALIFYING, _N.RETIRED}),
    _N.QUARANTINED: frozenset({_N.QUALIFYING, _N.MAINTENANCE, _N.RETIRED}),
    _N.UNKNOWN: frozenset({_N.READY, _N.QUALIFYING, _N.DRAINING, _N.QUARANTINED, _N.RETIRED}),
    _N.RETIRED: frozenset(),
}
GPU_MOVES: dict[GpuState, frozenset[GpuState]] = {
    _G.NEW: frozenset({_G.TESTING, _G.RETIRED}),
    _G.TESTING: frozenset({_G.READY, _G.SUSPECT, _G.RETIRED}),
    _G.READY: frozenset({_G.SUSPECT, _G.TESTING, _G.RETIRED}),
    _G.SUSPECT: frozenset({_G.TESTING, _G.RETIRED}),
    _G.RETIRED: frozenset(),
}
WORKLOAD_MOVES: dict[WorkloadState, frozenset[WorkloadState]] = {
    _W.QUEUED: frozenset({_W.STARTING, _W.CANCELLED, _W.FAILED}),
    _W.STARTING: frozenset({_W.RUNNING, _W.STOPPING, _W.SUCCEEDED, _W.FAILED, _W.CANCELLED, _W.QUEUED}),
    _W.RUNNING: frozenset({_W.STOPPING, _W.SUCCEEDED, _W.FAILED, _W.CANCELLED, _W.QUEUED}),
    _W.STOPPING: frozenset({_W.SUCCEEDED, _W.FAILED, _W.CANCELLED, _W.QUEUED}),
    _W.SUCCEEDED: frozenset(),
    _W.FAILED: frozenset(),
    _W.CANCELLED: frozenset(),
}
ALLOCATION_MOVES: dict[AllocationState, frozenset[AllocationState]] = {
    _A.GRANTED: frozenset({_A.STARTING, _A.RUNNING, _A.STOPPING, _A.ENDED}),
    _A.STARTING: frozenset({_A.RUNNING, _A.STOPPING, _A.ENDED}),
    _A.RUNNING: frozenset({_A.STOPPING, _A.ENDED}),
    _A.STOPPING: frozenset({_A.ENDED}),
    _A.ENDED: frozenset(),
}

WORKLOAD_ENDS = frozenset(state for state, moves in WORKLOAD_MOVES.items() if not moves)
