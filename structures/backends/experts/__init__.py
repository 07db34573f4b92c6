"""Structures with a gate: all experts computed and weighted, or tokens grouped by expert; and which of the two.

parts        a gated term cut into ordinary structures, which the planner runs
all_experts  every expert for every token;  grouped: every expert for its own tokens
segments     the same for a kernel that runs all experts in one launch
price        what `auto` takes
"""

from structures.backends.experts.price import preferred

__all__ = ["preferred"]
