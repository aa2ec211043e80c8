"""Number of states: held-out likelihood against fits by hand, and the table of criteria."""

import numpy as np
import pytest

import statespace as ss


def recordings():
    """Four recordings of unequal length that switch between two rates."""
    rng = np.random.default_rng(0)
    out = []
    for T in (30, 22, 26, 18):
        z = np.cumsum(rng.random(T) < 0.15) % 2
        out.append(rng.poisson(np.where(z, 12.0, 2.0)) * 1.0)
    out[1][3:5] = np.nan
    return out


def models():
    one = ss.HMM(None, [[1.0]], ss.emissions.Poisson([5.0]))
    two = ss.HMM(None, [[0.8, 0.2], [0.2, 0.8]], ss.emissions.Poisson([4.0, 8.0]))
    return {1: one, 2: two}


LEARNER = ss.EM(tolerance=1e-9)


def test_held_out_by_hand():
    """Two folds: recordings 0 and 2 are scored by the fit to 1 and 3, and the other way round."""
    data = recordings()
    found = ss.cross_validate(models(), data, folds=2, learner=LEARNER)
    assert found.best == "2"
    for i, start in enumerate(models().values()):
        for train, test in (([1, 3], [0, 2]), ([0, 2], [1, 3])):
            fitted = ss.fit(start, [data[j] for j in train], learner=LEARNER)
            for j in test:
                score = ss.log_likelihood(fitted.model, data[j]) / np.sum(~np.isnan(data[j]))
                np.testing.assert_allclose(found.scores[i, j], score, atol=2e-5)
    np.testing.assert_array_equal(found.moments, [30, 20, 26, 18])
    total = [found.scores[i] @ found.moments / 94 for i in range(2)]
    np.testing.assert_allclose(found.mean, total, rtol=1e-12)
    gaps, errors = found.differences
    assert gaps[1] == errors[1] == 0
    assert gaps[0] < -2 * errors[0] < 0
    lines = str(found).splitlines()
    assert "held-out per moment" in lines[1]
    assert lines[4].split()[1] == f"{found.mean[1]:.5g}"


def test_table_of_criteria():
    data = recordings()[0]
    fits = {k: ss.fit(m, data, learner=LEARNER) for k, m in models().items()}
    table = ss.compare(fits).splitlines()
    assert table[1].split() == ["log", "likelihood", "parameters", "AIC", "BIC"]
    likelihood = fits[2].log_likelihood
    known = (likelihood, 5, -2 * likelihood + 10, -2 * likelihood + 5 * np.log(30))
    np.testing.assert_allclose([float(x) for x in table[4].split()[1:]], known, atol=6e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda y: ss.cross_validate(models(), y[0]), ValueError, "at least two"),
        (
            lambda y: ss.cross_validate(models(), y, folds=5),
            ValueError,
            "from 2 to the 4 recordings, got 5",
        ),
        (lambda y: ss.compare(models()), TypeError, "1 is a HMM"),
        (
            lambda y: ss.compare({i: ss.fit(models()[1], y[i], learner=LEARNER) for i in range(2)}),
            ValueError,
            "same data",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(recordings())
