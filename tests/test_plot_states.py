"""Pictures of finite-state and switching models show the numbers that they are of."""

import dataclasses

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from matplotlib.patches import Circle, FancyArrowPatch

import statespace as ss
from statespace.plot_states import palette
from statespace.posteriors.structured import StructuredPosterior

MATRIX = np.array([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.0, 0.25, 0.75]])
Y = np.array([0.1, -0.2, 0.0, 4.1, 3.9, 4.0, 8.1, 7.9, np.nan, 4.2, 0.1])


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def model():
    level = jnp.array([0.0, 4.0, 8.0])
    return ss.Model(
        ss.Categorical([1.0, 0.0, 0.0]),
        ss.FiniteKernel(MATRIX),
        lambda z, step: dist.Normal(level[z], 0.5),
    )


@pytest.fixture(scope="module")
def posterior():
    return ss.smooth(model(), Y)


def test_states(posterior):
    above, below = ss.plot.states(posterior)
    points = above.collections[0]
    seen = points.get_facecolors()
    expected = [matplotlib.colors.to_rgba(palette(3)[k]) for k in np.asarray(posterior.most_likely)]
    np.testing.assert_allclose(seen, expected)
    assert len(below.collections) == 3
    # The first layer of the stack reaches up to the probability of the first state.
    top = below.collections[0].get_paths()[0].vertices[:, 1].max()
    np.testing.assert_allclose(top, np.asarray(posterior.probs)[:, 0].max(), atol=1e-12)
    (alone,) = np.atleast_1d(ss.plot.states(posterior, observed=False))
    assert alone.get_ylabel() == "probability"


def switching():
    """Two regimes between which the noise tells: the second's is large."""
    return ss.SwitchingLinearGaussian(
        initial_probs=[0.5, 0.5],
        transition=[[0.9, 0.1], [0.2, 0.8]],
        matrix=[[[1.0]]],
        scale=[[0.05], [2.0]],
        observation_matrix=[[[1.0]]],
        observation_scale=[[0.2]],
        state_names=["level"],
    )


def check_regimes(p):
    observed, level, below = ss.plot.states(p)
    assert [ax.get_ylabel() for ax in (observed, level, below)] == ["y", "level", "probability"]
    count = p.probs.shape[1]
    colours = [matplotlib.colors.to_rgba(palette(count)[k]) for k in np.asarray(p.most_likely)]
    band, points = level.collections
    np.testing.assert_allclose(points.get_facecolors(), colours)
    np.testing.assert_allclose(points.get_offsets()[:, 1], p.mean[:, 0])
    low, high = p.interval(0.9)
    edges = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([edges.min(), edges.max()], [low.min(), high.max()])
    top = below.collections[0].get_paths()[0].vertices[:, 1].max()
    np.testing.assert_allclose(top, np.asarray(p.probs)[:, 0].max(), atol=1e-12)
    legend = [t.get_text() for t in observed.get_legend().get_texts()]
    assert legend == ["missing", "90% interval", *(f"regime {k}" for k in range(count))]
    assert len(ss.plot.states(p, observed=False)) == 2
    assert ss.plot.smoothed(p).get_ylabel() == "level"
    above, under = ss.plot.smoothed(p, p.y)
    assert [above.get_ylabel(), under.get_ylabel()] == ["y", "level"]
    np.testing.assert_array_equal(above.lines[0].get_ydata(), p.y[:, 0])
    assert ss.plot.smoothed(p, p.y, states=True).get_ylabel() == "level"
    assert ss.plot.dwell_times(p)[1].get_title(loc="left").startswith("regime 1: ")


def test_regimes_of_a_mixture():
    y = np.array([0.1, 0.0, 0.05, 0.1, 0.0, np.nan, 0.1, 4.0, 1.0, 5.0, 9.0])
    p = ss.smooth(switching(), y, method=ss.InteractingMultipleModel())
    assert np.asarray(p.most_likely).tolist() == [0] * 7 + [1] * 4
    check_regimes(p)
    assert p.to_arviz(draws=3)["sample_stats"]["ess"].shape == (11,)


def test_errors_of_a_mixture():
    """The first by hand; a gap has none; a law without predictions says who has them."""
    filtered = ss.filter(switching(), Y, method=ss.InteractingMultipleModel())
    errors = np.asarray(filtered.innovations)
    assert errors.shape == (11, 1)
    assert np.isnan(errors[8])
    np.testing.assert_allclose(errors[0], Y[0] / np.hypot(1.0, 0.2))
    line = ss.plot.diagnostics(filtered)[0, 0].lines[-1]
    np.testing.assert_array_equal(line.get_ydata(), errors[:, 0])
    without = dataclasses.replace(filtered, errors=None)
    with pytest.raises(ValueError, match=r"holds no one-step predictions .*GaussianSum"):
        ss.plot.diagnostics(without)


def test_regimes_of_a_structured_law(posterior):
    """Two chains, of which the picture needs the moments of one and the regimes of the other."""
    states = ss.smooth(ss.LocalLevel(1.0, 1.0), Y)
    p = StructuredPosterior(
        mean=states.mean,
        covariance=states.covariance,
        probs=posterior.probs,
        times=states.times,
        labels=None,
        log_likelihood=states.log_likelihood,
        pointwise=states.pointwise,
        y=states.y,
        lag_one=states.lag_one,
        pairs=posterior.pairs,
        states_chain=states.chain,
        regimes_chain=posterior.chain,
        convergence=None,
        state_names=("level",),
    )
    np.testing.assert_array_equal(p.most_likely, posterior.most_likely)
    check_regimes(p)
    groups = p.to_arviz(draws=3)
    assert groups["posterior"]["states"].shape == (1, 3, 11, 1)
    assert groups["posterior"]["regimes"].shape == (1, 3, 11)
    assert list(groups["observed_data"]["y"].coords["channel"].values) == ["y"]
    with pytest.raises(TypeError, match="not that of the observations"):
        ss.plot.diagnostics(p)


def test_transitions_of_regimes():
    texts = [t.get_text() for t in ss.plot.transitions(switching()).texts]
    assert {"0\n0.90", "1\n0.80", "0.10", "0.20"} < set(texts)
    assert texts[-1] == "in a circle: probability to stay; at an arrow: to move"


def test_transitions():
    ax = ss.plot.transitions(model(), names=["low", "middle", "high"])
    arrows = [p for p in ax.patches if isinstance(p, FancyArrowPatch)]
    assert len(arrows) == 4  # of six moves two are impossible
    circles = [p.radius for p in ax.patches if isinstance(p, Circle)]
    values, vectors = np.linalg.eig(MATRIX.T)
    share = np.real(vectors[:, np.argmax(np.real(values))])
    np.testing.assert_allclose(circles, 0.1 + 0.17 * np.sqrt(share / share.sum()), rtol=1e-9)
    texts = [t.get_text() for t in ax.texts]
    assert "low\n0.80" in texts
    assert "0.30" in texts


def test_dwell_times(posterior):
    panels = ss.plot.dwell_times(posterior, model(), longest=6)
    assert [ax.get_title(loc="left") for ax in panels] == [
        "state 0: no complete stay",  # the first and the last are cut off
        "state 1: 2 stays",
        "state 2: 1 stay",
    ]
    # Rice: twice the cube root of 2 stays, rounded up, are 3 bars of 2 moments each.
    assert [bar.get_x() for bar in panels[1].patches] == [0.5, 2.5, 4.5]
    x, y = panels[1].lines[0].get_data()
    np.testing.assert_allclose(y, 0.4 * 0.6 ** (x - 1))
    freely = ss.plot.dwell_times(posterior, model())
    x, y = freely[0].lines[0].get_data()  # 0.8 ** 13.4 is 1 / 20, but there are only 11 moments
    np.testing.assert_array_equal(x, np.arange(1, 12))
    np.testing.assert_allclose(y, 0.2 * 0.8 ** (x - 1))
    assert not len(ss.plot.dwell_times(posterior)[0].get_xticks())


def test_forecast_of_a_mixture():
    ahead = ss.forecast(model(), Y, 4)
    ax = ss.plot.forecast(ahead, Y)
    line = next(line for line in ax.lines if line.get_label() == "forecast")
    np.testing.assert_allclose(line.get_ydata(), np.asarray(ahead.mean)[:, 0])


def glm(**parts):
    kernel = ss.FiniteKernel([[0.9, 0.1], [0.2, 0.8]])
    return ss.Model(ss.Categorical([0.5, 0.5]), kernel, ss.emissions.GLM(**parts))


def test_weights_and_filters():
    drawn = np.array([[[1.0, -2.0, 0.5]], [[0.3, 0.0, 4.0]]])
    ax = ss.plot.weights(glm(bias=np.zeros((2, 1)), weights=drawn), names=["a", "b", "c"])
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines[:2]], drawn[:, 0])
    coupling = np.arange(8.0).reshape(2, 2, 2, 1)
    coupled = glm(
        bias=np.zeros((2, 2)),
        coupling=coupling,
        basis=ss.emissions.Exponential(lags=3),
        family="poisson",
    )
    panels = ss.plot.weights(coupled)
    filters = np.asarray(coupled.observation.filters)
    np.testing.assert_allclose(panels[1].images[0].get_array(), filters[1].sum(axis=-1))
    (ax,) = ss.plot.weight_filters(coupled, [(0, 1)])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), filters[1, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ss.plot.states(ss.smooth(ss.LocalLevel(1.0, 1.0), Y)),
            "a model of a finite state or a switching model, got GaussianPosterior",
        ),
        (lambda: ss.plot.states(ss.smooth(model(), [Y, Y])), "recordings one by one"),
        (lambda: ss.plot.weights(model()), "GLM with inputs or coupling"),
        (lambda: ss.plot.weight_filters(model(), [(0, 0)]), "has coupling"),
        (
            lambda: ss.plot.transitions(
                ss.Switching(ss.RecurrentKernel(np.zeros((2, 2)), np.zeros((2, 1))), [lambda *_: 0])
            ),
            "constant transition matrix is needed, got RecurrentKernel",
        ),
        (
            lambda: ss.plot.transitions(ss.SoftmaxKernel(np.zeros((2, 2)), np.zeros((2, 2, 1)))),
            "constant transition matrix",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
