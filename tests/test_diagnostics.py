"""Residual tests against statsmodels, and their behaviour with missing values."""

import numpy as np
import pytest
from scipy import stats

from statespace.diagnostics import (
    autocorrelation,
    heteroskedasticity,
    jarque_bera,
    ljung_box,
    residual_tests,
)

sm_diagnostic = pytest.importorskip("statsmodels.stats.diagnostic")
sm_tools = pytest.importorskip("statsmodels.stats.stattools")
sm_tsa = pytest.importorskip("statsmodels.tsa.stattools")


@pytest.fixture
def residuals():
    rng = np.random.default_rng(4)
    x = rng.standard_t(5, size=157)
    x[1:] += 0.2 * x[:-1]
    return x * np.linspace(0.8, 1.3, 157)


def test_autocorrelation_is_that_of_statsmodels(residuals):
    expected = sm_tsa.acf(residuals, nlags=20, fft=False)
    np.testing.assert_allclose(autocorrelation(residuals, 20), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("fitted", [0, 2])
def test_ljung_box_is_that_of_statsmodels(residuals, fitted):
    ours = np.array(ljung_box(residuals, 12, fitted))
    theirs = sm_diagnostic.acorr_ljungbox(residuals, lags=12, model_df=fitted).to_numpy(float)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_ljung_box_reports_the_lags_asked_for(residuals):
    assert ljung_box(residuals, [3, 7]) == [ljung_box(residuals, 7)[2], ljung_box(residuals, 7)[6]]


def test_jarque_bera_is_that_of_statsmodels(residuals):
    np.testing.assert_allclose(
        jarque_bera(residuals), sm_tools.jarque_bera(residuals)[:2], rtol=1e-10
    )


@pytest.mark.parametrize("alternative", ["two-sided", "increasing", "decreasing"])
@pytest.mark.parametrize("gap", [False, True])
def test_heteroskedasticity_is_that_of_statsmodels(residuals, alternative, gap):
    if gap:
        residuals[[3, 10, 11, 140]] = np.nan
    expected = sm_tsa.breakvar_heteroskedasticity_test(residuals, alternative=alternative)
    if alternative == "decreasing":
        # statsmodels reports the inverted ratio there; the p value is the same
        expected = (1 / expected[0], expected[1])
    if gap:
        # statsmodels reports the ratio of sums, of 49 and 51 squares, and refers that of means to F
        expected = (expected[0] * 49 / 51, expected[1])
    np.testing.assert_allclose(heteroskedasticity(residuals, alternative), expected[:2], rtol=1e-10)


def test_ljung_box_with_missing_values_keeps_its_level():
    """Of 2000 white series with a third missing, 5 % ± 4 standard errors are rejected at 5 %."""
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(2000):
        x = rng.normal(size=200)
        x[rng.random(200) < 1 / 3] = np.nan
        rejected += ljung_box(x, [8])[0].p_value < 0.05
    assert abs(rejected / 2000 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_gaps_at_the_end_change_nothing(residuals):
    longer = np.append(residuals, [np.nan] * 5)
    np.testing.assert_allclose(autocorrelation(longer, 9), autocorrelation(residuals, 9))
    np.testing.assert_allclose(ljung_box(longer, 9), ljung_box(residuals, 9))


def test_residual_tests_of_several_channels(residuals):
    rng = np.random.default_rng(1)
    errors = np.stack([residuals, rng.normal(size=157)], axis=1)
    errors[:3, 1] = np.nan
    tests = residual_tests(errors)
    assert tests.lags == 10
    assert tests.counts == (157, 154)
    assert tests.autocorrelation[0] == ljung_box(errors[:, 0], [10])[0]
    # the leading diffuse moments are no part of the thirds
    assert tests.heteroskedasticity[1] == heteroskedasticity(errors[3:, 1])
    assert tests.kurtosis[0] == pytest.approx(stats.kurtosis(residuals) + 3)
    text = str(tests)
    assert "y0: 157 standardised prediction errors" in text
    assert "constant variance (H)" in text
    assert text.count("Ljung–Box") == 2


def test_messages(residuals):
    with pytest.raises(ValueError, match=r"`lags` must be from 1 to 156"):
        ljung_box(residuals, 157)
    with pytest.raises(ValueError, match=r"one of \['two-sided', 'increasing', 'decreasing'\]"):
        heteroskedasticity(residuals, "up")
    with pytest.raises(ValueError, match="residuals of one channel"):
        jarque_bera(residuals[:, None])
    with pytest.raises(ValueError, match="2 prediction errors; the tests need at least 3"):
        residual_tests([np.nan, 0.3, 0.2])
