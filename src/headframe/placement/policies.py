"""Each policy is a cost in `kernels.cost_of`, ties by rank."""

from headframe.model.report import Policy
from headframe.placement import kernels

NUMBER = {
    Policy.HEADFRAME: kernels.OURS, Policy.FGD: kernels.FGD, Policy.BEST_FIT: kernels.BEST_FIT, Policy.PACKING: kernels.PACKING,
    Policy.CLUSTERING: kernels.CLUSTERING, Policy.DOT_PRODUCT: kernels.DOT_PRODUCT, Policy.FIRST_FIT: kernels.FIRST,
    Policy.RANDOM: kernels.RANDOM,
}  # fmt: skip
