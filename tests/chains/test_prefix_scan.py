"""Prefix scans against products taken one after the other."""

import jax
import numpy as np
import pytest

from statespace.chains.associative import prefix_scan


@pytest.mark.parametrize("length", [1, 16, 17, 41, 64])
@pytest.mark.parametrize("reverse", [False, True])
def test_prefixes_are_products_in_order(length, reverse):
    matrices = np.random.default_rng(0).normal(size=(length, 2, 2))
    scan = jax.jit(lambda m: prefix_scan(lambda a, b: a @ b, m, reverse=reverse))
    order = range(length)[::-1] if reverse else range(length)
    expected, product = np.empty_like(matrices), np.eye(2)
    for t in order:
        expected[t] = product = product @ matrices[t]
    np.testing.assert_allclose(scan(matrices), expected, rtol=1e-9, atol=1e-12)


def test_derivatives_go_through_the_blocks():
    factors = np.random.default_rng(1).uniform(0.5, 1.5, 19)
    last = lambda x: prefix_scan(lambda a, b: a * b, x)[-1]
    np.testing.assert_allclose(jax.grad(last)(factors), np.prod(factors) / factors, rtol=1e-12)
