"""`python -m bench train`: what structures cost in quality, in losses that can be compared."""
