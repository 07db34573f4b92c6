"""How a projection is found: every method derived from the axes of the einsum. `structures.project` is the way in."""
