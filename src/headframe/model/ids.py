"""Ids are different types, so that they cannot be swapped, and derived from what they name wherever that is possible.

An id made here is either a function of other ids (an allocation is its workload's n-th attempt, a usage interval is its
allocation and its start) or built from entropy that the caller passes in; nothing here draws chance.
"""

import re
from typing import NewType

SiteId = NewType("SiteId", str)
RackId = NewType("RackId", str)
NodeId = NewType("NodeId", str)
GpuId = NewType("GpuId", str)
ProjectId = NewType("ProjectId", str)
UserId = NewType("UserId", str)
KeyId = NewType("KeyId", str)
WorkloadId = NewType("WorkloadId", str)
AllocationId = NewType("AllocationId", str)
ReservationId = NewType("ReservationId", str)
VolumeId = NewType("VolumeId", str)
RigId = NewType("RigId", str)
EngineId = NewType("EngineId", str)
UsageId = NewType("UsageId", str)
GatewayId = NewType("GatewayId", str)
PostingId = NewType("PostingId", str)

ENTROPY_BYTES = 10
WORKLOAD_ENTROPY_BYTES, SECONDS_BYTES = 7, 5
_MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ALLOCATION = re.compile(r"^wl-[a-z0-9-]{1,80}\.[1-9][0-9]{0,8}$", re.ASCII)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32: no i, l, o, u to misread
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def base32(data: bytes) -> str:
    """Crockford base32, lower case, no padding; 10 bytes give 16 characters."""
    number, digits = int.from_bytes(data, "big"), (len(data) * 8 + 4) // 5
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(10 * ((digits - 1) // 2), -1, -10)])[-digits:]


def workload_id(at_ms: int, entropy: bytes) -> WorkloadId:
    """``wl-``, 8 characters of the second since 1970 and 12 of the 7 bytes given. Allocations, usage and entries are named by it, so new rows lie beside
    each other in a store's indexes: ids of chance alone changed a page of each index per row, which took longer the more rows there were.
    """
    assert len(entropy) == WORKLOAD_ENTROPY_BYTES, len(entropy)
    return WorkloadId(f"wl-{base32((at_ms // 1000).to_bytes(SECONDS_BYTES, 'big'))}{base32(entropy)}")


def allocation_id(workload: WorkloadId, attempt: int) -> AllocationId:
    """The n-th attempt of a workload, counted from 1."""
    assert attempt >= 1, attempt
    return AllocationId(f"{workload}.{attempt}")


def rig_id(name: str) -> RigId:
    """A machine that is awaited is named by its name, so that importing it twice is importing it once."""
    return RigId(f"rig.{name}")


def is_allocation_id(text: str) -> bool:
    """Whether it has an allocation's form: what others say is used in paths, so it is looked at first."""
    return _ALLOCATION.fullmatch(text) is not None


def is_machine_name(text: str) -> bool:
    """Whether a machine may be called so: 1 to 63 letters, digits, dots, dashes or underscores, the first a letter or digit."""
    return _MACHINE.fullmatch(text) is not None


def volume_id(project: ProjectId, name: str) -> VolumeId:
    """A volume is named by its project and its name, so that it is made once."""
    return VolumeId(f"{project}.{name}")


def cache_id(project: ProjectId, name: str, node: NodeId) -> VolumeId:
    """A cache is a directory of its own on each node."""
    return VolumeId(f"{project}.{name}@{node}")


def allowance_id(gateway: GatewayId, payer: ProjectId | KeyId) -> str:
    """What a gateway may spend for a project, or with a key, is one row."""
    return f"{gateway}.{payer}"


def usage_id(allocation: AllocationId, start_ms: int) -> UsageId:
    """An interval of an allocation is named by its start, so that metering it twice is metering it once."""
    return UsageId(f"{allocation}/{start_ms}")
