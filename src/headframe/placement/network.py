"""What distance costs a gang: the share of its time that an all-reduce takes when it must leave the rack.

The alpha-beta model of NCCL's own tuner (time = latency + bytes over bandwidth): on k nodes of g GPUs, S bytes take
max(2(g-1)/g S/B_node, 2(k-1)/k (S/g)/(0.73 B_nic)) and a latency per step, where 0.73 of a wire's rate is what was measured
on 8 x B200 nodes (Bekman, ML Engineering, network benchmarks). Half of the computing can hide it. For ranking, not for promises.
"""

GRADIENT_GB = 14.0
"""The gradients of seven billion parameters in bf16: what one step moves where nothing better is known."""
COMPUTE_S = 2.0
NODE_GB_S = 10.0
"""Between the cards of a node over PCIe 4 x16; NVLink is 30 times faster and never the limit here."""
LEAF_GB_S = 12.5
"""A node's way to its switch: 100 Gb/s."""
SPINE_OVERSUBSCRIBED = 4.0
"""How much slower a way between racks is, when all use it."""
WIRE_SHARE = 0.73
LATENCY_S = 9.6e-6


def all_reduce_s(gpus: int, nodes: int, *, crosses: bool) -> float:
    """Seconds to sum the gradients over `nodes` of `gpus` each, within a rack or across racks."""
    within = 2 * (gpus - 1) / gpus * GRADIENT_GB / NODE_GB_S if gpus > 1 else 0.0
    if nodes < 2:
        return within
    rate = WIRE_SHARE * LEAF_GB_S / (SPINE_OVERSUBSCRIBED if crosses else 1.0)
    return LATENCY_S * 2 * (nodes - 1) + max(within, 2 * (nodes - 1) / nodes * GRADIENT_GB / rate)


def efficiency(gpus: int, nodes: int, *, crosses: bool) -> float:
    """The share of a step that computes."""
    return COMPUTE_S / (COMPUTE_S / 2 + max(COMPUTE_S / 2, all_reduce_s(gpus, nodes, crosses=crosses)))


def crossing_share(gpus: int, nodes: int) -> float:
    """The share of a gang's work that is lost by leaving the rack."""
    if nodes < 2 or gpus < 1:
        return 0.0
    return 1 - efficiency(gpus, nodes, crosses=True) / efficiency(gpus, nodes, crosses=False)
