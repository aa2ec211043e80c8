"""Structural components and their sums, against statsmodels' UnobservedComponents and closed forms."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from written_out import covariance, dense, diffuse_count, per_direction

import statespace as ss
from statespace.parameters import constrain, unconstrain

sm = pytest.importorskip("statsmodels.api")
Initialization = pytest.importorskip("statsmodels.tsa.statespace.initialization").Initialization

Y = np.log(sm.datasets.macrodata.load_pandas().data["realgdp"].to_numpy()) * 100
GAPS = Y.copy()
GAPS[[4, 11, 12, 13]] = np.nan
CYCLE = {"cycle": True, "stochastic_cycle": True}

# name: (model, statsmodels' specification, its parameters)
CASES = {
    "local level": (
        lambda: ss.LocalLevel(0.7, 0.4),
        {"level": "llevel"},
        [0.16, 0.49],
    ),
    "random walk": (lambda: ss.LocalLevel(0.7), {"level": "rwalk"}, [0.49]),
    "constant": (lambda: ss.LocalLevel(noise_scale=0.7), {"level": "dconstant"}, [0.49]),
    "trend": (
        lambda: ss.LocalLinearTrend(0.5, 0.3, 0.7),
        {"level": "lltrend"},
        [0.49, 0.25, 0.09],
    ),
    "smooth trend": (
        lambda: ss.LocalLinearTrend(slope_scale=0.3, noise_scale=0.7),
        {"level": "strend"},
        [0.49, 0.09],
    ),
    "straight line": (
        lambda: ss.LocalLinearTrend(noise_scale=0.7),
        {"level": "dtrend"},
        [0.49],
    ),
    "dummies": (
        lambda: ss.LocalLevel(0.7, 0.4) + ss.Seasonal(4, 0.2),
        {"level": "llevel", "seasonal": 4},
        [0.16, 0.49, 0.04],
    ),
    "fixed dummies": (
        lambda: ss.LocalLevel(0.7, 0.4) + ss.Seasonal(4),
        {"level": "llevel", "seasonal": 4, "stochastic_seasonal": False},
        [0.16, 0.49],
    ),
    "harmonics": (
        lambda: ss.LocalLevel(0.7, 0.4) + ss.Seasonal(7, 0.2, "trigonometric", harmonics=2),
        {"level": "llevel", "freq_seasonal": [{"period": 7, "harmonics": 2}]},
        [0.16, 0.49, 0.04],
    ),
    "damped cycle": (
        lambda: ss.LocalLinearTrend(0.5, 0.3, 0.7) + ss.Cycle(20.0, 0.9, 0.6),
        dict(level="lltrend", damped_cycle=True, **CYCLE),
        [0.49, 0.25, 0.09, 0.36, 2 * np.pi / 20, 0.9],
    ),
    "undamped cycle": (
        lambda: ss.LocalLevel(0.5, 0.7) + ss.Cycle(8.0, scale=0.6),
        dict(level="llevel", **CYCLE),
        [0.49, 0.25, 0.36, 2 * np.pi / 8],
    ),
    "autoregression": (
        lambda: ss.LocalLevel(0.5) + ss.AR([0.6, -0.2], 0.8) + ss.Irregular(0.7),
        {"level": "llevel", "autoregressive": 2},
        [0.49, 0.25, 0.64, 0.6, -0.2],
    ),
}


def peer_of(name, y):
    peer = sm.tsa.UnobservedComponents(y, **CASES[name][1], use_exact_diffuse=True)
    if name == "damped cycle":
        # statsmodels starts every cycle diffuse, even one that is stationary.
        law = Initialization(peer.k_states)
        law.set((0, 2), "diffuse")
        law.set((2, 4), "stationary")
        peer.ssm.initialization = law
    return peer


def data(name):
    return GAPS[:26] if name in ("trend", "dummies", "damped cycle") else Y[:26]


@pytest.mark.parametrize("name", CASES)
def test_likelihood_agrees_with_statsmodels(name):
    make, _, parameters = CASES[name]
    model, y = make(), data(name)
    want = per_direction(peer_of(name, y).loglike(parameters), model)
    np.testing.assert_allclose(float(dense(model, y).log_likelihood()), want, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name != "autoregression"])
def test_system_agrees_with_statsmodels(name):
    """Where the two have the same states (of an autoregression, theirs are its lags): matrix by matrix."""
    make, _, parameters = CASES[name]
    model, peer = make(), peer_of(name, Y[:26])
    peer.update(parameters)
    system = peer.ssm
    np.testing.assert_allclose(model.transition.matrix, system["transition"], atol=1e-12)
    np.testing.assert_allclose(model.observation.matrix, system["design"], atol=1e-12)
    noise = system["selection"] @ system["state_cov"] @ system["selection"].T
    np.testing.assert_allclose(covariance(model.transition), noise, atol=1e-12)
    np.testing.assert_allclose(covariance(model.observation), system["obs_cov"], atol=1e-12)


def test_the_first_snippet_of_the_design():
    """Nile, local level, exact diffuse: Durbin & Koopman (2012), as KFAS has it."""
    nile = sm.datasets.nile.load_pandas().data["volume"].to_numpy()
    model = ss.LocalLevel(level_scale=np.sqrt(1469.1), noise_scale=np.sqrt(15099.0))
    peer = sm.tsa.UnobservedComponents(nile, level="llevel", use_exact_diffuse=True)
    want = per_direction(peer.loglike([15099.0, 1469.1]), model)
    np.testing.assert_allclose(want, -632.545625, atol=1e-6)
    got = dense(model, nile[:40]).log_likelihood()
    peer = sm.tsa.UnobservedComponents(nile[:40], level="llevel", use_exact_diffuse=True)
    np.testing.assert_allclose(
        float(got), per_direction(peer.loglike([15099.0, 1469.1]), model), rtol=1e-9
    )


@pytest.mark.parametrize("period", [4, 5])
def test_all_harmonics_describe_the_same_fixed_pattern_as_dummies(period):
    """Both say: anything that repeats and sums to zero. Likelihoods differ by the unit of the flat prior."""
    dummies = ss.LocalLevel(0.5, 0.7) + ss.Seasonal(period)
    harmonics = ss.LocalLevel(0.5, 0.7) + ss.Seasonal(period, kind="trigonometric")
    assert diffuse_count(dummies) == diffuse_count(harmonics) == period
    rng = np.random.default_rng(0)
    difference = [
        float(dense(dummies, y).log_likelihood() - dense(harmonics, y).log_likelihood())
        for y in (rng.normal(size=14), 3 + 2 * rng.normal(size=14))
    ]
    np.testing.assert_allclose(difference[0], difference[1], rtol=1e-9)


def test_dummies_sum_to_zero_and_harmonics_repeat():
    for model in (
        ss.Seasonal(6),
        ss.Seasonal(6, kind="trigonometric"),
        ss.Seasonal(6, kind="trigonometric", harmonics=(1, 3)),
    ):
        f, h = np.asarray(model.transition.matrix), np.asarray(model.observation.matrix)
        state = np.random.default_rng(1).normal(size=len(f))
        path = [(h @ np.linalg.matrix_power(f, t) @ state).item() for t in range(12)]
        np.testing.assert_allclose(path[6:], path[:6], atol=1e-12)
        np.testing.assert_allclose(np.sum(path[:6]), 0, atol=1e-12)


def test_a_period_that_is_no_whole_number():
    model = ss.Seasonal(365.25, kind="trigonometric", harmonics=2)
    f = np.asarray(model.transition.matrix)
    angles = np.sort(np.abs(np.angle(np.linalg.eigvals(f))))
    np.testing.assert_allclose(angles, 2 * np.pi * np.array([1, 1, 2, 2]) / 365.25, rtol=1e-9)


def test_a_cycle_starts_in_its_stationary_law():
    cycle = ss.Cycle(10.0, 0.8, 1.5)
    p, f = covariance(cycle.initial), np.asarray(cycle.transition.matrix)
    np.testing.assert_allclose(p, f @ p @ f.T + covariance(cycle.transition), atol=1e-12)
    np.testing.assert_allclose(p, 1.5**2 / (1 - 0.8**2) * np.eye(2), rtol=1e-12)
    assert cycle.initial.diffuse is None
    assert diffuse_count(ss.Cycle(10.0, scale=1.0)) == 2


def test_names_of_parameters_states_and_components():
    model = (
        ss.LocalLinearTrend(0.1, 0.2, noise_scale=0.3)
        + ss.Seasonal(4, 0.4)
        + ss.Cycle(20.0, 0.9, 0.5)
        + ss.Cycle(7.0, 0.8, 0.6)
        + ss.Seasonal(3.5, 0.7, "trigonometric", harmonics=1, name="half_week")
    )
    values = {k: float(v) for k, v in ss.parameters(model).items()}
    assert values == pytest.approx(
        {
            "trend.level_scale": 0.1,
            "trend.slope_scale": 0.2,
            "trend.noise_scale": 0.3,
            "seasonal.scale": 0.4,
            "cycle.period": 20.0,
            "cycle.damping": 0.9,
            "cycle.scale": 0.5,
            "cycle_2.period": 7.0,
            "cycle_2.damping": 0.8,
            "cycle_2.scale": 0.6,
            "half_week.scale": 0.7,
        }
    )
    assert model.component_names == ("trend", "seasonal", "cycle", "cycle_2", "half_week")
    assert model.state_names == (
        "trend.level",
        "trend.slope",
        "seasonal.lag0",
        "seasonal.lag1",
        "seasonal.lag2",
        "cycle.cos",
        "cycle.sin",
        "cycle_2.cos",
        "cycle_2.sin",
        "half_week.cos1",
        "half_week.sin1",
    )
    assert model["cycle_2"].period == 7.0


def test_order_of_the_terms_survives_a_round_trip_through_jax():
    model = ss.Seasonal(4, 0.4) + ss.LocalLevel(0.1, 0.2) + ss.Cycle(20.0, 0.9, 0.5)
    again = jax.jit(lambda m: m)(model)
    assert again.state_names == model.state_names
    assert list(ss.parameters(again)) == list(ss.parameters(model))
    np.testing.assert_array_equal(again.transition.matrix, model.transition.matrix)


def test_sums_in_any_grouping_are_the_same_model():
    a, b, c = ss.LocalLevel(0.1, 0.2), ss.Seasonal(4, 0.3), ss.Cycle(20.0, 0.9, 0.5)
    left, right, listed = (a + b) + c, a + (b + c), sum([a, b, c])
    assert left.state_names == right.state_names == listed.state_names
    np.testing.assert_array_equal(left.transition.matrix, right.transition.matrix)
    np.testing.assert_array_equal(left.transition.matrix, listed.transition.matrix)


def test_a_scale_of_zero_is_no_parameter():
    model = ss.LocalLinearTrend(level_scale=0.0, slope_scale=0.2, noise_scale=0.3)
    assert set(ss.parameters(model)) == {"slope_scale", "noise_scale"}
    np.testing.assert_allclose(covariance(model.transition), np.diag([0.0, 0.04]))


def test_learning_and_freezing_by_dotted_name():
    model = ss.LocalLevel(0.5, 0.7) + ss.Cycle(20.0, 0.9, 0.6)
    frozen = ss.freeze(model, "cycle.period")
    assert "cycle.period" not in unconstrain(frozen)
    moved = constrain(frozen, {k: v - 5.0 for k, v in unconstrain(frozen).items()})
    values = ss.parameters(moved)
    assert values["cycle.period"] == 20.0
    assert 0 < values["cycle.damping"] < 1
    assert values["level.level_scale"] > 0


def test_initial_law_in_place_of_the_diffuse_one():
    law = ss.Gaussian(mean=np.array([1.0, 0.1]), scale=np.array([2.0, 0.5]))
    model = ss.LocalLinearTrend(0.1, 0.2, 0.3, initial_law=law) + ss.Seasonal(3)
    assert diffuse_count(model) == 2
    np.testing.assert_allclose(model.initial.mean, [1.0, 0.1, 0, 0])
    np.testing.assert_allclose(covariance(model.initial), np.diag([4.0, 0.25, 0, 0]))
    assert "initial_law.mean" not in ss.parameters(model["trend"])


def test_constant_parts_are_arrays():
    model = ss.LocalLevel(0.5, 0.7) + ss.Seasonal(4, 0.1) + ss.Cycle(9.0, 0.5, 1.0)
    for part in (model.transition, model.observation):
        for value in (part.matrix, part.offset, part.scale):
            assert value is None or isinstance(value, jax.Array)


def test_gradients_reach_every_parameter():
    model = ss.LocalLevel(0.5, 0.7) + ss.Cycle(9.0, 0.5, 1.0) + ss.AR([0.3], 0.4)

    def total(free):
        m = constrain(model, free)
        parts = (m.transition.matrix, m.transition.scale, m.observation.scale)
        return sum(jnp.sum(p * p) for p in (*parts, m.initial.covariance))

    gradient = jax.jit(jax.grad(total))(unconstrain(model))
    assert all(np.isfinite(g).all() and np.any(g != 0) for g in gradient.values())


def test_single_precision(x64_off):
    model = ss.LocalLevel(0.5, 0.7) + ss.Seasonal(4, 0.1) + ss.AR([0.3], 0.4)
    leaves = [model.transition.matrix, model.transition.scale, model.initial.covariance]
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}


def test_precision_of_the_parameters_is_kept():
    model = ss.LocalLevel(jnp.float32(0.5), jnp.float32(0.7)) + ss.Seasonal(4, jnp.float32(0.1))
    assert model.transition.matrix.dtype == np.float32
    assert model.initial.covariance.dtype == np.float32
    assert model.initial.diffuse.dtype == np.float32


def posterior(mean, cov):
    return types.SimpleNamespace(mean=jnp.asarray(mean), covariance=jnp.asarray(cov))


def test_components_of_a_posterior():
    model = ss.LocalLinearTrend(0.1, 0.2, 0.3) + ss.ARMA([0.5], mean=2.0) + ss.Regression(1)
    rng = np.random.default_rng(0)
    mean, factor = rng.normal(size=(5, 4)), rng.normal(size=(5, 4, 4))
    cov, u = factor @ factor.transpose(0, 2, 1), rng.normal(size=(5, 1))
    got = model.components(posterior(mean, cov), inputs=u)
    assert list(got) == ["trend", "arma", "regression"]
    np.testing.assert_allclose(got["trend"].mean, mean[:, 0])
    np.testing.assert_allclose(got["trend"].std, np.sqrt(cov[:, 0, 0]))
    np.testing.assert_allclose(got["arma"].mean, 2.0 + mean[:, 2])
    np.testing.assert_allclose(got["regression"].mean, u[:, 0] * mean[:, 3])
    np.testing.assert_allclose(got["regression"].std, np.abs(u[:, 0]) * np.sqrt(cov[:, 3, 3]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.LocalLevel(-1.0), r"`level_scale` must not be negative, got -1"),
        (lambda: ss.LocalLevel(1.0, np.nan), r"`noise_scale` must be finite"),
        (lambda: ss.LocalLevel([1.0, 2.0]), r"`level_scale` must have shape \(\), got \(2,\)"),
        (lambda: ss.LocalLinearTrend(1.0, -2.0), r"`slope_scale` must not be negative"),
        (lambda: ss.Irregular(0.0), r"`scale` must be positive"),
        (lambda: ss.Irregular(1.0).transition, r"Irregular has no state .* add it to a component"),
        (lambda: ss.Seasonal(1), r"`period` of Seasonal must be at least 2 steps, got 1"),
        (lambda: ss.Seasonal(2.5), r"must be a whole number of steps, got 2.5"),
        (lambda: ss.Seasonal(4, kind="sine"), r'must be "dummy" or "trigonometric"'),
        (lambda: ss.Seasonal(4, harmonics=1), r"`harmonics` belong to"),
        (lambda: ss.Seasonal(12, 1.0, "trigonometric", 7), r"a number from 1 to 6.*got 7"),
        (lambda: ss.Seasonal(12, 1.0, "trigonometric", (1, 1)), r"distinct"),
        (lambda: ss.Cycle(2.0, 0.5, 1.0), r"`period` must be above 2 steps a cycle, got 2"),
        (lambda: ss.Cycle(9.0, 1.0, 1.0), r"`damping` of Cycle must be in \[0, 1\), got 1"),
        (lambda: ss.Cycle(9.0, -0.1, 1.0), r"`damping` must not be negative"),
        (lambda: ss.Cycle(9.0, 0.9), r"without `scale` would be zero"),
        (
            lambda: ss.LocalLevel(1.0, 2.0) + ss.Irregular(1.0),
            r"\['level', 'irregular'\] each bring observation noise",
        ),
        (
            lambda: ss.LocalLevel(1.0) + ss.LocalLinearTrend(1.0),
            r"'level' and 'trend' both start diffuse in a level",
        ),
        (
            lambda: ss.Seasonal(24) + ss.Seasonal(168),
            r"'seasonal' and 'seasonal_2' both start diffuse in a cycle of period",
        ),
        (
            lambda: ss.Seasonal(4, name="a") + ss.LocalLevel(1.0, name="a"),
            r"two components are called 'a'",
        ),
        (
            lambda: ss.LocalLevel(1.0, initial_law=ss.Gaussian(np.zeros(2), np.ones(2))).initial,
            r"`initial_law` of LocalLevel must be for its 1 states",
        ),
        (
            lambda: ss.LocalLevel(1.0).components(posterior(np.zeros((3, 2)), np.zeros((3, 2, 2)))),
            r"the posterior has 2 states, this model has 1",
        ),
        (
            lambda: ss.Regression(1).components(posterior(np.zeros((3, 1)), np.zeros((3, 1, 1)))),
            r"pass `components\(posterior, inputs=u\)`",
        ),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_components_add():
    with pytest.raises(TypeError):
        ss.LocalLevel(1.0) + 3.0


def test_two_seasonals_whose_harmonics_differ_may_be_added():
    weekly = tuple(j for j in range(1, 11) if j % 7)
    model = ss.Seasonal(24, 0.1, "trigonometric", harmonics=3) + ss.Seasonal(
        168, 0.1, "trigonometric", harmonics=weekly, name="weekly"
    )
    assert model.component_names == ("seasonal", "weekly")
