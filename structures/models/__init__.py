"""Somebody else's network: which layers, what a swap costs, the swap itself, saved models, shapes, rates."""
