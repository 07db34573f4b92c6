"""What the authors of DYAD published of their feed-forward modules: times on a GPU that they do not name.

Mean milliseconds over fc1 and fc2 in one call, 32 x 128 tokens, activation left out; source: the results file
ff_speedup_results.txt of the repository of arXiv:2312.06881. The rows of IT run under fp16 autocast against dense in
fp32 (3.2 to 4.9 times) are left out: most of their ratio is the type. Dense runs at 13 to 14 TFLOP/s there: fp32.
"""

# (activation, width) -> forward, forward and backward
DENSE = {
    ("relu", 768): (1.4588, 4.3023),
    ("relu", 1024): (2.5482, 7.5200),
    ("gelu", 768): (1.4143, 4.2405),
    ("relu", 1536): (5.5350, 16.7886),
    ("relu", 2048): (10.0980, 30.2945),
}
# (activation, width, layer, blocks) -> forward, forward and backward
TIMES = {
    ("relu", 768, "dyad_it", 4): (1.0373, 3.9020),
    ("relu", 768, "dyad_it", 8): (0.7727, 2.6088),
    ("relu", 768, "dyad_ot", 4): (1.0059, 3.8399),
    ("relu", 768, "dyad_dt", 4): (1.0485, 4.0045),
    ("relu", 768, "dyad_it_cat", 4): (1.1212, 3.2686),
    ("relu", 768, "dyad_it_cat", 8): (0.8168, 2.6177),
    ("relu", 1024, "dyad_it", 4): (1.7444, 5.4923),
    ("relu", 1024, "dyad_it", 8): (1.1119, 4.1383),
    ("relu", 1024, "dyad_ot", 4): (1.6625, 5.3400),
    ("relu", 1024, "dyad_dt", 4): (1.7545, 5.6027),
    ("relu", 1024, "dyad_it_cat", 4): (1.8415, 5.4609),
    ("relu", 1024, "dyad_it_cat", 8): (1.1961, 3.5026),
    ("gelu", 768, "dyad_it", 4): (1.0704, 3.9491),
    ("gelu", 768, "dyad_it", 8): (0.7948, 2.6376),
    # "sparse" of OPT-Custom: the schedule is not said; its rows at 768 and 1024 are those of CONCAT within 0.5 %
    ("relu", 1536, "dyad_it_cat", 4): (3.7423, 10.9111),
    ("relu", 2048, "dyad_it_cat", 4): (6.2005, 18.3044),
}


def ratios(activation: str, width: int, layer: str, blocks: int | None) -> tuple[float, float] | None:
    """Dense's time over this layer's, forward and both ways; None where nothing was published."""
    dense, own = DENSE.get((activation, width)), TIMES.get((activation, width, layer, blocks or 0))
    return (dense[0] / own[0], dense[1] / own[1]) if dense and own else None
