"""What is said of draws from a posterior."""

import numpy as np

from statespace.learners.posterior_result import effective_draws


def test_independent_draws_count_in_full():
    draws = np.random.default_rng(0).normal(size=(4, 2000, 3))
    # the estimate's own error at 8,000 independent draws is a few per cent
    np.testing.assert_allclose(effective_draws(draws), 8000, rtol=0.15)


def test_a_handful_of_draws_counts_for_one_at_least():
    assert (effective_draws(np.array([[0.0, 1.0, 0.0, 1.0]])) >= 1).all()
    assert (effective_draws(np.arange(8.0).reshape(2, 4)) >= 1).all()
