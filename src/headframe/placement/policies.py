"""The policies that can be chosen, ours and those it is held against; each is a cost in `kernels.cost_of`, ties by rank."""

from enum import StrEnum

from headframe.placement import kernels


class Policy(StrEnum):
    """Where a request goes among the nodes that fit it.

    - `headframe`: least lost value; see `score.py`.
    - `fgd`: least fragmentation growth (Weng et al., USENIX ATC 2023), with the integer score of its authors' scheduler.
    - `best-fit`: least free CPU and GPU left over.
    - `packing`: GPUs in use, then nodes in use, then empty nodes (Weng et al., NSDI 2022).
    - `clustering`: nodes that already run the same kind of request.
    - `dot-product`: least product of the free and the requested amounts (after Grandl et al., SIGCOMM 2014).
    - `first-fit`: the first node; `random`: any node.
    """

    HEADFRAME = "headframe"
    FGD = "fgd"
    BEST_FIT = "best-fit"
    PACKING = "packing"
    CLUSTERING = "clustering"
    DOT_PRODUCT = "dot-product"
    FIRST_FIT = "first-fit"
    RANDOM = "random"


NUMBER = {
    Policy.HEADFRAME: kernels.OURS, Policy.FGD: kernels.FGD, Policy.BEST_FIT: kernels.BEST_FIT, Policy.PACKING: kernels.PACKING,
    Policy.CLUSTERING: kernels.CLUSTERING, Policy.DOT_PRODUCT: kernels.DOT_PRODUCT, Policy.FIRST_FIT: kernels.FIRST,
    Policy.RANDOM: kernels.RANDOM,
}  # fmt: skip
