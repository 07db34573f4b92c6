"""Prices of operations that were measured wrong once: among other work, in 16 bits, and gradients left to autograd."""

from __future__ import annotations

import structures
from structures.backends.planned import figures, price, problem, search
from structures.backends.planned.layout import TOKENS
from structures.backends.planned.program import Pointwise, Want


def test_a_tensor_among_larger_ones_is_read_from_further_away():
    small, large = (problem.ChainProblem(64, 64, (("a", 64),), (), ((n, n),), ()) for n in (64, 2048))
    rates, layout = figures.built_in("float32", 2), (TOKENS, "a")
    alone, forward, train = (
        price.Price(posed, 1024, rates, train=train).move(layout, layout)
        for posed, train in ((small, False), (large, False), (large, True))
    )
    assert alone < forward <= train


def test_gradients_left_to_autograd_pay_for_bringing_a_copied_factor_back_into_its_order():
    structure = structures.get("kronecker_sparse").bind(2048, 2048, a=1, d=2)  # its factor is turned and copied: 16 MB
    setting = search.Conditions("float32", threads=2, want=Want(True, (True,), True))
    left = [p for p in search.candidates(structure, 128, setting, figures.built_in("float32", 2)) if p.native]
    tokens_last = [p.forward[-2].layout[-1] == TOKENS for p in left]  # W x: W's gradient then comes as W was copied
    assert tokens_last[0] and False in tokens_last
    assert left[tokens_last.index(False)].seconds > 1.5 * left[0].seconds  # measured: 16.1 ms against 9.3


def test_an_elementwise_product_of_16_bits_is_no_cheaper_for_its_fewer_bytes():
    posed = problem.ChainProblem(64, 64, (("a", 512), ("b", 512)), (), (), ())
    op = Pointwise("h", "f0", "f1", ("a", "b"), ("a",), (), ("a", "b"))
    fine, coarse = (
        price.Price(posed, 1, figures.built_in(dtype, 2), itemsize)(op)
        for dtype, itemsize in (("float32", 4), ("bfloat16", 2))
    )
    assert coarse > 1.5 * fine
