"""What `import statespace` loads, and what only the first use does."""

import subprocess
import sys
from importlib import import_module

import pytest

import statespace as ss

LATE = (
    "arviz",
    "blackjax",
    "diffrax",
    "lineax",
    "matplotlib",
    "numpyro",
    "optax",
    "pandas",
    "scipy.fft",
    "scipy.special",
    "scipy.stats",
    "tqdm",
    "xarray",
)

FILTER = """
import jax.numpy as jnp
model = ss.Model(
    initial=ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
    transition=ss.AffineGaussian(jnp.array([[1.0, 1.0], [0.0, 1.0]]), scale=jnp.array([0.1, 0.1])),
    observation=ss.AffineGaussian(jnp.array([[1.0, 0.0]]), scale=jnp.array([1.0])),
)
ss.filter(model, jnp.arange(10.0))
"""

MODELS = """
import numpy as np
ss.LocalLinearTrend(level_scale=1.0, slope_scale=0.1, noise_scale=1.0) + ss.Cycle(period=10.0)
ss.ARIMA((1, 1, 1), ar=[0.5], ma=[0.2])
ss.ConstantVelocity(1.0, 1.0)
ss.DynamicFactor([[1.0], [0.5]], [[[0.5]]], [1.0, 1.0], idiosyncratic_ar=[0.1, 0.2])
eye = np.eye(2)
model = ss.LinearGaussian(eye, eye, eye, eye, np.zeros(2), eye)
ss.freeze(model, "initial_mean")
ss.parameters(model)
"""


def loaded(code: str) -> list[str]:
    """Which of the late packages a fresh interpreter has loaded after the code."""
    watch = f"import sys\nimport statespace as ss\n{code}\nprint(*(set(sys.modules) & set({LATE})))"
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_late_package_is_recognised_by_its_name():
    for name in ("numpyro", "scipy.special", "tqdm", "pandas"):
        assert name in loaded(f"import {name}")


@pytest.mark.parametrize("code", ["", FILTER, MODELS], ids=["import", "filter", "models"])
def test_no_late_package_is_loaded_by(code):
    assert loaded(code) == []


def test_numpyro_is_loaded_when_a_support_is_asked_for():
    assert "numpyro" in loaded("ss.supports(ss.AR([0.5], 1.0))")


def test_late_name_is_as_public_as_the_others():
    home = import_module("statespace.learners.observation_distribution")
    assert ss.ObservationDistribution is home.ObservationDistribution
    assert "ObservationDistribution" in dir(ss)
    assert set(ss.__all__) <= set(dir(ss))


def test_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'kalman_filter'"):
        ss.kalman_filter  # noqa: B018
