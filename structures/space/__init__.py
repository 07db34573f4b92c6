"""The einsum space of arXiv 2410.02117 and what lies around it, as ordinary registry entries.

`member(theta, in_features, out_features)` is the two-factor space; `of_sizes` takes any kinds of axes, of up to nine
factors, axes shared by input and output included; `add` sums members. Every member has a `Spec`, which is registry YAML
that runs as it is.
"""

from structures.space.member import Member, add, member, of_sizes
from structures.space.text import to_yaml

__all__ = ["Member", "add", "member", "of_sizes", "to_yaml"]
