"""The benchmark: sweeps run by pytest, and what is made of their results."""
