"""Who runs where, and why not: `plan` for the queue, `feasible` at submit, `explain` for one that waits. Pure."""

from headframe.placement.plan import Admit, Grant, Plan, are_parts, at_most, explain, feasible, models, plan

__all__ = ["Admit", "Grant", "Plan", "are_parts", "at_most", "explain", "feasible", "models", "plan"]
