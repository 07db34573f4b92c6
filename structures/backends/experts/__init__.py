"""Structures with a gate: three executions, and which of them.

parts        a gated term cut into ordinary structures
all_experts  every expert for every token, by the planner;  grouped: every expert for its own tokens, by the planner
kernel       every expert for its own tokens, by the native kernel;  segments: for a kernel of one launch for them all
price        what `auto` takes
"""

from structures.backends.experts.price import ExpertsPlan, plan, preferred

__all__ = ["ExpertsPlan", "plan", "preferred"]
