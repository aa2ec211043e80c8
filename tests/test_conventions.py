"""The statements of docs/conventions.md, one test each, in their order."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from written_out import dense

import statespace as ss
from statespace.chains import gaussian

IRREGULAR = np.array([0.0, 0.5, 2.0, 2.1, 5.0])
Y = np.array([1.0, 0.4, -0.3, 0.8, 1.5])
INPUTS = np.array([[3.0], [-1.0], [2.0], [0.5], [7.0]])


def close(a, b, rtol=1e-9):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=1e-12)


def discrete(**observation):
    """An autoregression in one state."""
    return ss.Model(
        ss.Gaussian(jnp.array([2.0]), jnp.array([1.5])),
        ss.AffineGaussian(jnp.array([[0.7]]), jnp.array([0.1]), jnp.array([0.4])),
        ss.AffineGaussian(jnp.array([[1.0]]), scale=jnp.array([0.5]), **observation),
    )


def continuous(rate=0.5, diffusion=0.8):
    """An Ornstein-Uhlenbeck process, observed with noise."""
    return ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.ones(1)),
        ss.LinearDiffusion(jnp.array([[-rate]]), jnp.array([diffusion])),
        ss.AffineGaussian(jnp.array([[1.0]]), scale=jnp.array([0.5])),
    )


def driven():
    """Inputs move the state and shift the observation, by different amounts."""
    return ss.Model(
        ss.Gaussian(jnp.array([2.0]), jnp.array([1.5])),
        ss.AffineGaussian(jnp.array([[0.7]]), lambda step: 10 * step.inputs, jnp.array([0.4])),
        ss.AffineGaussian(jnp.array([[1.0]]), lambda step: 100 * step.inputs, jnp.array([0.5])),
    )


def reading(field):
    """The noiseless first state is 0 and each transition adds what `field` of its step says."""

    def part(step):
        return jnp.reshape(jnp.asarray(getattr(step, field), float), 1)

    return ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.zeros(1)),
        ss.AffineGaussian(jnp.ones((1, 1)), part, jnp.zeros(1)),
        ss.AffineGaussian(jnp.ones((1, 1)), scale=jnp.ones(1)),
    )


def read_by_transitions(field, data):
    """What the transitions into moments 1, 2, … saw in `field`."""
    return np.diff(ss.smooth(reading(field), data).mean[:, 0])


# Moments, times and intervals -----------------------------------------------------------------------


def test_there_are_T_states_for_T_observations():
    model = discrete()
    assert ss.smooth(model, Y).mean.shape == (5, 1)
    # The first predicted observation has the law of the first state, plus noise.
    first = ss.filter(model, Y)
    close(first.predicted_mean[0], [2.0])
    close(first.predicted_covariance[0], [[1.5**2 + 0.5**2]])


def test_moments_count_from_0():
    close(read_by_transitions("index", Y), [1, 2, 3, 4])


def test_a_step_belongs_to_the_new_moment():
    series = ss.Series(Y, IRREGULAR, INPUTS)
    close(read_by_transitions("time", series), IRREGULAR[1:])
    close(read_by_transitions("dt", series), np.diff(IRREGULAR))
    close(read_by_transitions("inputs", series), INPUTS[1:, 0])


def test_without_times_moments_are_at_0_1_2():
    close(ss.smooth(discrete(), Y).times, [0, 1, 2, 3, 4])
    close(read_by_transitions("time", Y), [1, 2, 3, 4])
    close(read_by_transitions("dt", Y), [1, 1, 1, 1])


def test_dt_is_the_time_since_the_previous_moment():
    """At the first moment it is the first interval: seen by an observation that reads it."""
    model = ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.zeros(1)),
        ss.AffineGaussian(jnp.zeros((1, 1)), scale=jnp.zeros(1)),
        ss.AffineGaussian(jnp.ones((1, 1)), lambda step: jnp.reshape(step.dt, 1), jnp.ones(1)),
    )
    seen = ss.filter(model, ss.Series(Y, IRREGULAR)).predicted_mean[:, 0]
    close(seen, [0.5, 0.5, 1.5, 0.1, 2.9], rtol=1e-7)


def test_times_increase_strictly():
    for times in ([0, 1, 1, 2, 3], [0, 2, 1, 3, 4]):
        with pytest.raises(ValueError, match="increas"):
            ss.Series(Y, times)
    model = continuous()
    close(
        ss.log_likelihood(model, ss.Series(Y, IRREGULAR)),
        dense(model, Y, IRREGULAR).log_likelihood(),
    )


def test_dates_with_a_frequency_count_in_periods():
    pd = pytest.importorskip("pandas")
    monthly = pd.Series(Y, pd.date_range("2001-01-31", periods=5, freq="ME"))
    close(read_by_transitions("dt", monthly), [1, 1, 1, 1])
    days = pd.Series(
        Y, pd.to_datetime(["2001-01-01", "2001-01-02", "2001-01-05", "2001-01-06", "2001-02-01"])
    )
    close(read_by_transitions("dt", days), [1, 3, 1, 26])
    close(read_by_transitions("dt", ss.Series(days, time_unit="h")), [24, 72, 24, 26 * 24])
    assert list(ss.smooth(discrete(), monthly).to_pandas().index) == list(monthly.index)


def test_only_a_conditional_that_reads_dt_or_time_knows_of_irregular_times():
    series = ss.Series(Y, IRREGULAR)
    assert float(ss.log_likelihood(discrete(), series)) == float(ss.log_likelihood(discrete(), Y))
    model = continuous()
    assert float(ss.log_likelihood(model, series)) != float(ss.log_likelihood(model, Y))


# Inputs ---------------------------------------------------------------------------------------------


def test_the_inputs_of_moment_t_act_in_the_transition_into_t_and_in_the_observation_at_t():
    seen = ss.filter(driven(), ss.Series(Y, inputs=INPUTS))
    state = np.concatenate([[2.0], 0.7 * np.asarray(seen.mean)[:-1, 0] + 10 * INPUTS[1:, 0]])
    close(seen.predicted_mean[:, 0], state + 100 * INPUTS[:, 0])


def test_inputs_have_no_missing_values():
    holed = INPUTS.copy()
    holed[2] = np.nan
    with pytest.raises(ValueError, match=r"`inputs`.*"):
        ss.Series(Y, inputs=holed)


def test_the_future_needs_its_inputs():
    model, series = driven(), ss.Series(Y, inputs=INPUTS)
    with pytest.raises(ValueError, match=r"`inputs` of the forecast"):
        ss.forecast(model, series, steps=2)
    ahead = ss.forecast(model, series, steps=2, inputs=np.array([[1.0], [2.0]]))
    last = float(ss.filter(model, series).mean[-1, 0])
    one = 0.7 * last + 10
    close(ahead.mean[:, 0], [one + 100, 0.7 * one + 20 + 200])


# What a missing value does ----------------------------------------------------------------------------


def two_channels():
    return ss.Model(
        ss.Gaussian(jnp.array([1.0]), jnp.array([1.0])),
        ss.AffineGaussian(jnp.array([[0.7]]), scale=jnp.array([0.4])),
        ss.AffineGaussian(jnp.array([[1.0], [2.0]]), scale=jnp.array([[0.5, 0.0], [0.3, 0.4]])),
    )


def test_nan_in_y_is_a_missing_entry():
    """A channel that is never seen might as well not be there."""
    y = np.stack([Y, np.full(5, np.nan)], 1)
    y[3, 1] = 2.2
    close(ss.log_likelihood(two_channels(), y), dense(two_channels(), y).log_likelihood())
    y[3, 1] = np.nan
    alone = ss.Model(two_channels().initial, two_channels().transition, discrete().observation)
    close(ss.log_likelihood(two_channels(), y), ss.log_likelihood(alone, Y))


def test_a_moment_with_everything_missing_is_a_point_of_prediction():
    model = continuous()
    without = ss.smooth(model, ss.Series(Y, IRREGULAR))
    times = np.insert(IRREGULAR, 2, 1.3)
    with_it = ss.smooth(model, ss.Series(np.insert(Y, 2, np.nan), times))
    keep = [0, 1, 3, 4, 5]
    close(with_it.mean[jnp.array(keep)], without.mean)
    close(with_it.covariance[jnp.array(keep)], without.covariance)
    close(with_it.log_likelihood, without.log_likelihood)
    between = ss.forecast(model, ss.Series(Y, IRREGULAR), times=[1.3])
    close(between.mean[0], with_it.mean[2])
    close(between.state.covariance[0], with_it.covariance[2])


def test_a_missing_moment_contributes_exactly_0_to_the_log_likelihood():
    y = Y.copy()
    y[2] = np.nan
    assert float(ss.filter(discrete(), y).pointwise[2]) == 0.0

    def loss(scale, y):
        model = ss.Model(
            discrete().initial,
            discrete().transition,
            ss.AffineGaussian(
                jnp.ones((1, 1)),
                scale=lambda step: jnp.where(step.index == 2, scale, 0.5)[None],
            ),
        )
        return ss.log_likelihood(model, y)

    assert float(jax.grad(loss)(0.5, y)) == 0.0
    assert float(jax.grad(loss)(0.5, Y)) != 0.0


def test_nan_is_for_data_masks_are_for_chains():
    one = jnp.ones((1, 1, 1))
    mask = jnp.array([[True], [False], [True]])

    def value(y):
        chain = gaussian.Chain(
            gaussian.Initial(jnp.zeros(1), jnp.ones((1, 1))),
            gaussian.Transitions(one, jnp.zeros((1, 1)), one),
            gaussian.Observed(one, jnp.zeros((1, 1)), one, y, mask),
        )
        return gaussian.log_likelihood(chain, "covariance", False)

    values, grads = zip(
        *(
            jax.value_and_grad(value)(jnp.array([[1.0], [x], [2.0]]))
            for x in (0.0, 1e300, np.inf, np.nan)
        )
    )
    assert len({float(v) for v in values}) == 1
    for grad in grads:
        close(grad, grads[0])
        assert float(grad[1, 0]) == 0.0


def test_infinite_values_nan_in_times_and_a_series_that_is_entirely_nan_are_refused():
    with pytest.raises(ValueError, match="finite or NaN"):
        ss.Series([1.0, np.inf, 2.0])
    with pytest.raises(ValueError, match="`times`"):
        ss.Series([1.0, 2.0, 3.0], [0.0, np.nan, 2.0])
    with pytest.raises(ValueError, match="NaN throughout"):
        ss.Series([np.nan, np.nan])


# Shapes ---------------------------------------------------------------------------------------------


def test_time_comes_first(key):
    model, y = two_channels(), np.stack([Y, Y], 1)
    posterior = ss.smooth(model, y)
    assert posterior.mean.shape == (5, 1)
    assert posterior.covariance.shape == (5, 1, 1)
    assert posterior.predicted_mean.shape == (5, 2)
    assert posterior.predicted_covariance.shape == (5, 2, 2)
    assert posterior.pointwise.shape == (5,)
    assert ss.sample_states(model, y, key=key, draws=7).shape == (7, 5, 1)
    drawn = ss.simulate(model, 4, key=key)
    assert drawn.states.shape == (4, 1)
    assert drawn.y.shape == (4, 2)
    flat, column = ss.smooth(discrete(), Y), ss.smooth(discrete(), Y[:, None])
    close(flat.mean, column.mean)
    close(flat.predicted_mean, column.predicted_mean)


def test_lag_one_t_is_the_covariance_of_x_t_and_the_next():
    r = np.random.default_rng(0)
    model = ss.Model(
        ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
        ss.AffineGaussian(jnp.array([[0.5, 0.4], [-0.1, 0.8]]), scale=jnp.array([0.4, 1.0])),
        ss.AffineGaussian(jnp.array([[1.0, 0.3]]), scale=jnp.array([0.5])),
    )
    y = r.normal(size=5)
    lag_one = ss.smooth(model, y).lag_one
    assert lag_one.shape == (4, 2, 2)
    close(lag_one, dense(model, y).lag_one())
    assert not np.allclose(lag_one, np.swapaxes(lag_one, 1, 2))


def test_filtered_is_given_the_data_up_to_t_and_smoothed_given_all():
    model = discrete()
    whole, cut = ss.filter(model, Y), ss.filter(model, Y[:3])
    close(whole.mean[:3], cut.mean)
    close(ss.smooth(model, Y[:3]).mean[-1], whole.mean[2])
    close(ss.smooth(model, Y).mean[-1], whole.mean[-1])
    assert abs(float(ss.smooth(model, Y).mean[0, 0] - whole.mean[0, 0])) > 1e-3
    close(whole.predicted_mean[3], ss.forecast(model, Y[:3], steps=1).mean[0])


def test_one_moment_is_a_series_none_is_not():
    one = ss.smooth(discrete(), Y[:1])
    assert one.mean.shape == (1, 1)
    assert one.lag_one.shape == (0, 1, 1)
    variance = 1 / (1 / 1.5**2 + 1 / 0.5**2)
    close(one.covariance, [[[variance]]])
    close(one.mean, [[variance * (2.0 / 1.5**2 + Y[0] / 0.5**2)]])
    with pytest.raises(ValueError, match="empty"):
        ss.smooth(discrete(), np.zeros(0))


def test_a_batch_is_vmap():
    batch = jnp.stack([jnp.asarray(Y), jnp.asarray(Y[::-1].copy())])
    got = jax.vmap(lambda y: ss.log_likelihood(discrete(), y))(batch)
    close(got, [ss.log_likelihood(discrete(), y) for y in batch])
    with pytest.raises(ValueError, match="channels"):
        ss.log_likelihood(discrete(), np.stack([Y, Y], 1))


# Initial states ---------------------------------------------------------------------------------------


def test_gaussian_is_the_law_of_the_first_state_itself():
    nothing = ss.Series([np.nan, 0.0])
    close(ss.filter(discrete(), nothing).mean[0], [2.0])
    close(ss.filter(discrete(), nothing).covariance[0], [[1.5**2]])


def test_scale_0_is_a_known_initial_state():
    model = ss.Model(
        ss.Gaussian(jnp.array([2.0, 5.0]), jnp.zeros(2)),
        ss.AffineGaussian(jnp.eye(2), scale=jnp.array([1.0, 0.0])),
        ss.AffineGaussian(jnp.array([[1.0, 1.0]]), scale=jnp.array([0.5])),
    )
    posterior = ss.smooth(model, Y)
    close(posterior.mean[0], [2.0, 5.0])
    close(posterior.mean[:, 1], np.full(5, 5.0))
    close(posterior.covariance[:, 1, 1], np.zeros(5))
    close(posterior.log_likelihood, dense(model, Y).log_likelihood())


def test_diffuse_directions_have_a_flat_prior():
    """The limit of an ever larger variance: errors fall in proportion to its inverse."""

    def model(initial):
        return ss.Model(initial, discrete().transition, discrete().observation)

    exact = ss.smooth(model(ss.Gaussian(jnp.zeros(1), jnp.zeros(1), diffuse=jnp.array([True]))), Y)
    errors = []
    for scale in (1e2, 1e3):
        vague = ss.smooth(model(ss.Gaussian(jnp.zeros(1), jnp.array([scale]))), Y)
        errors.append(float(jnp.abs(vague.mean - exact.mean).max()))
    assert errors[0] < 1e-3
    assert errors[1] == pytest.approx(errors[0] / 100, rel=1e-2)
    assert np.isfinite(exact.covariance).all()


# Finite states ------------------------------------------------------------------------------------------

LEVELS = jnp.array([0.0, 1.0, 5.0])
CYCLE = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])


def finite(first=(1.0, 0.0, 0.0), matrix=CYCLE):
    return ss.Model(
        ss.Categorical(first),
        ss.FiniteKernel(matrix),
        lambda state, step: dist.Normal(LEVELS[state], 0.5),
    )


def test_states_are_numbered_from_0(key):
    posterior = ss.smooth(finite(), Y)
    assert posterior.probs.shape == (5, 3)
    assert posterior.most_likely.shape == (5,)
    assert int(posterior.most_likely[0]) == 0
    assert set(np.asarray(ss.simulate(finite(), 50, key=key).states)) <= {0, 1, 2}


def test_rows_are_from_columns_are_to():
    predicted = ss.filter(finite(), np.array([0.0, np.nan])).predicted[1]
    close(predicted, CYCLE[0])


def test_a_probability_of_exactly_zero_stays_zero():
    free = {name: value + 0.3 for name, value in ss.unconstrain(finite()).items()}
    moved = ss.constrain(finite(), free)
    np.testing.assert_array_equal(moved.transition.probs == 0, CYCLE == 0)
    np.testing.assert_array_equal(moved.initial.probs, [1, 0, 0])


def test_pairs_t_has_rows_for_the_earlier_state():
    posterior = ss.smooth(finite(), Y)
    assert posterior.pairs.shape == (4, 3, 3)
    close(posterior.pairs.sum(axis=2), posterior.probs[:-1])
    close(posterior.pairs.sum(axis=1), posterior.probs[1:])


def test_state_weights_multiply_plausibilities():
    free = finite(first=(0.2, 0.3, 0.5))
    nothing = np.vstack([np.ones((4, 3)), np.full((1, 3), np.nan)])
    close(ss.log_likelihood(free, ss.Series(Y, state_weights=nothing)), ss.log_likelihood(free, Y))
    known = nothing.copy()
    known[2] = [0, 2.0, 0]
    smoothed = ss.smooth(free, ss.Series(Y, state_weights=known))
    close(smoothed.probs[2], [0, 1, 0])
    here = np.log(2 * np.asarray(ss.smooth(free, Y).probs)[2, 1])
    close(smoothed.log_likelihood - ss.log_likelihood(free, Y), here)


def test_impossible_data_have_log_likelihood_minus_infinity():
    never = ss.Series(Y[:2], state_weights=[[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert ss.log_likelihood(finite(), never) == -np.inf
    assert np.isfinite(ss.smooth(finite(), never).probs).all()


def test_history_holds_the_last_observations_newest_first():
    class Reader(eqx.Module):
        lags: int = eqx.field(static=True, default=2)

        def __call__(self, state, step):
            past = jnp.nan_to_num(step.history, nan=-1.0)
            return dist.Normal(past[0, 0] + 10 * past[1, 0], 1.0)

    m = ss.Model(ss.Categorical([1.0]), ss.FiniteKernel([[1.0]]), Reader())
    mean = np.array([-11, 1.0 - 10, 0.4 + 10 * 1.0, -0.3 + 10 * 0.4, 0.8 - 10 * 0.3])
    close(ss.log_likelihood(m, Y), stats.norm(mean, 1).logpdf(Y).sum())


# Likelihoods --------------------------------------------------------------------------------------------


def test_each_observed_entry_contributes_its_log_2_pi():
    """Unit noise around a known state, observed as it is: only the constants remain."""
    model = ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.zeros(1)),
        ss.AffineGaussian(jnp.zeros((1, 1)), scale=jnp.zeros(1)),
        ss.AffineGaussian(jnp.zeros((2, 1)), scale=jnp.ones(2)),
    )
    y = np.zeros((4, 2))
    y[1, 0] = y[3] = np.nan
    close(ss.log_likelihood(model, y), -5 * 0.5 * np.log(2 * np.pi))


def test_pointwise_t_is_the_log_density_given_the_past():
    model = discrete()
    pointwise = ss.filter(model, Y).pointwise
    values = [0.0, *(float(ss.log_likelihood(model, Y[: t + 1])) for t in range(5))]
    close(pointwise, np.diff(values), rtol=1e-8)
    close(pointwise.sum(), values[-1])
    close(ss.smooth(model, Y).pointwise, pointwise)


def test_a_diffuse_direction_takes_one_log_2_pi_back():
    nile = ss.datasets.load("nile")
    model = ss.LocalLevel(level_scale=np.sqrt(1469.1), noise_scale=np.sqrt(15099.0))
    value = float(ss.log_likelihood(model, nile))
    assert value == pytest.approx(-632.545625, abs=1e-6)
    assert value - 0.5 * np.log(2 * np.pi) == pytest.approx(-633.464564, abs=1e-6)


# Units ----------------------------------------------------------------------------------------------------


def test_a_scale_is_a_standard_deviation_or_a_factor():
    factor = jnp.array([[0.4, 0.0], [0.3, 0.2]])
    vector = ss.AffineGaussian(jnp.eye(2), scale=jnp.array([0.4, 2.0]))
    matrix = ss.AffineGaussian(jnp.eye(2), scale=jnp.diag(jnp.array([0.4, 2.0])))
    step = ss.Step(0, 0.0, 1.0)
    close(vector(jnp.zeros(2), step).variance, [0.16, 4.0])
    close(matrix(jnp.zeros(2), step).variance, [0.16, 4.0])
    by_factor = ss.AffineGaussian(jnp.eye(2), scale=factor)(jnp.zeros(2), step)
    by_product = ss.AffineGaussian(jnp.eye(2), covariance=factor @ factor.T)(jnp.zeros(2), step)
    close(by_factor.covariance_matrix, factor @ factor.T)
    close(by_product.covariance_matrix, factor @ factor.T)


def test_linear_diffusion_is_in_units_of_time():
    seconds, minutes = continuous(0.5, 0.8), continuous(0.5 * 60, 0.8 * np.sqrt(60))
    close(
        ss.log_likelihood(minutes, ss.Series(Y, IRREGULAR / 60)),
        ss.log_likelihood(seconds, ss.Series(Y, IRREGULAR)),
    )
    # the variance of an Ornstein-Uhlenbeck process after a time dt
    law = seconds.transition.at(ss.Step(1, 3.0, 3.0))
    close(law.matrix, [[np.exp(-1.5)]])
    close(law.covariance, [[0.8**2 / (2 * 0.5) * (1 - np.exp(-3.0))]])


# Panels ---------------------------------------------------------------------------------------------------


def test_a_list_of_recordings_is_a_panel_of_independent_ones():
    model, recordings = continuous(), [ss.Series(Y, IRREGULAR), ss.Series(Y[1:4]), ss.Series(Y[:1])]
    each = [ss.smooth(model, r) for r in recordings]
    close(ss.log_likelihood(model, recordings), sum(float(p.log_likelihood) for p in each))
    panel = ss.smooth(model, recordings)
    assert [len(p) for p in panel] == [5, 3, 1]
    for together, alone in zip(panel, each):
        close(together.mean, alone.mean)
        close(together.covariance, alone.covariance)
        close(together.log_likelihood, alone.log_likelihood)


# Randomness and precision -----------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_result(key):
    for draw in (
        lambda k: ss.simulate(discrete(), 5, key=k).y,
        lambda k: ss.sample_states(discrete(), Y, key=k, draws=2),
    ):
        np.testing.assert_array_equal(draw(key), draw(key))
        assert (np.asarray(draw(key)) != np.asarray(draw(jax.random.key(1)))).all()
    with pytest.raises(TypeError, match="key"):
        ss.simulate(discrete(), 5)


def volatility():
    """Neither linear nor finite."""
    return ss.Model(
        lambda step: dist.Normal(jnp.zeros(1), 0.6).to_event(1),
        lambda x, step: dist.Normal(0.9 * x, 0.3).to_event(1),
        lambda x, step: dist.Normal(0.0, jnp.exp(x / 2)).to_event(1),
    )


RETURNS = np.array([0.3, -1.2, np.nan, 2.0])


def test_a_random_method_asks_for_a_key_which_a_panel_splits(key):
    with pytest.raises(ValueError, match="give `key=`"):
        ss.log_likelihood(volatility(), RETURNS)
    method = ss.ParticleFilter(20)
    whole = ss.log_likelihood(volatility(), [RETURNS, RETURNS], method=method, key=key)
    each = [
        ss.log_likelihood(volatility(), RETURNS, method=method, key=k)
        for k in jax.random.split(key)
    ]
    assert each[0] != each[1]
    np.testing.assert_allclose(whole, sum(each))


def test_particles_have_axes_of_moment_and_particle(key):
    method = ss.ParticleFilter(20, threshold=0.0)
    posterior = ss.filter(volatility(), RETURNS, method=method, key=key)
    assert posterior.particles.shape == (4, 20, 1)
    np.testing.assert_allclose(np.exp(posterior.log_weights).sum(axis=1), 1)
    np.testing.assert_allclose(posterior.log_weights[2], posterior.log_weights[1], atol=1e-12)


def test_a_log_likelihood_by_particles_is_the_log_of_an_unbiased_estimate():
    model = ss.Model(
        ss.Gaussian([0.0], [1.0]),
        ss.AffineGaussian([[0.9]], scale=[0.5]),
        ss.AffineGaussian([[1.0]], scale=[0.5]),
    )
    exact, method = ss.log_likelihood(model, RETURNS), ss.ParticleFilter(20)
    one = lambda k: ss.log_likelihood(model, RETURNS, method=method, key=k)
    found = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), 2000)))
    ratio, low = np.exp(found - exact), exact - found.mean()
    # five standard errors, and for the half variance what a skewed law leaves of it
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(2000)
    assert 0.5 < low / (found.var() / 2) < 2


def test_results_have_the_precision_of_the_data(x64_off):
    before = jax.config.jax_enable_x64
    model = discrete()
    posterior = ss.smooth(model, Y.astype(np.float32))
    leaves = [posterior.mean, posterior.covariance, posterior.log_likelihood, posterior.pointwise]
    assert {x.dtype for x in leaves} == {jnp.dtype("float32")}
    assert jax.config.jax_enable_x64 == before


def test_results_are_float64_of_float64():
    posterior = ss.smooth(discrete(), Y)
    assert posterior.mean.dtype == posterior.log_likelihood.dtype == jnp.dtype("float64")


def test_in_float32_the_recursions_carry_square_roots_in_float64_covariances():
    y = Y.astype(np.float32)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), discrete())
    assert ss.Kalman().lower(single, ss.Series(y)).how["form"] == "sqrt"
    assert ss.Kalman().lower(discrete(), ss.Series(Y)).how["form"] == "covariance"
    values = [
        float(ss.log_likelihood(discrete(), Y, method=ss.Kalman(form=form, parallel=parallel)))
        for form in ("covariance", "sqrt")
        for parallel in (False, True)
    ]
    close(values, np.full(4, values[0]), rtol=1e-13)
