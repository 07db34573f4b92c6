"""`python -m bench search`: the einsum space searched under constraints, ranked by measured time and by quality.

Counts first, then timing beside dense, then quality by successive halving, then the survivors timed anew. What is
measured is written to a journal line by line, so a search that ends early goes on where it stopped.
"""
