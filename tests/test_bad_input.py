"""What is refused, and what the message says: the argument, what came, what was expected, the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import statespace as ss

Y = np.array([1.0, 0.4, -0.3, 0.8, 1.5])
Affine = ss.AffineGaussian


def model(initial=None, transition=None, observation=None):
    """Two states, one channel; with a part replaced."""
    return ss.Model(
        initial or ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
        transition or Affine(jnp.eye(2), scale=jnp.ones(2)),
        observation or Affine(jnp.ones((1, 2)), scale=jnp.ones(1)),
    )


def driven():
    return model(transition=Affine(jnp.eye(2), lambda step: step.inputs, jnp.ones(2)))


def trend():
    return ss.LocalLinearTrend(level_scale=1.0, slope_scale=1.0, noise_scale=1.0)


def seen_as(law, method, y=Y):
    """Inference where an observation has this law."""
    return lambda: ss.smooth(model(observation=law), y, method=method, key=jax.random.key(0))


def ordinal(eta):
    return dist.OrderedLogistic(eta, jnp.array([-1.0, 1.0]))


GradedY = np.array([0.0, 1.0, np.nan, 2.0, 3.0])
SWITCHING = ss.SwitchingLinearGaussian(
    initial_probs=[0.5, 0.5],
    transition=[[0.9, 0.1], [0.1, 0.9]],
    matrix=[[[0.9]], [[0.5]]],
    scale=[[0.1], [1.0]],
    observation_matrix=[[[1.0]]],
    observation_scale=[[0.3]],
)
WIDE = ss.GeneralisedLinear(jnp.ones((1, 3)))
SINE = lambda x, step: jnp.sin(x[:1])
ONE_ARGUMENT = lambda x: dist.Normal(x[:1], 1.0).to_event(1)
CAUCHY = lambda x, step: dist.Cauchy(x[:1], 1.0).to_event(1)
STUDENT = lambda x, step: dist.StudentT(1.5, x[:1], 1.0).to_event(1)

NOT_PSD = jnp.array([[1.0, 2.0], [2.0, 1.0]])

REFUSED = {
    # wrong shapes
    "data with too many axes": (
        lambda: ss.Series(np.zeros((5, 3, 2))),
        ValueError,
        r"`y` must have shape .*got \(5, 3, 2\).*list",
    ),
    "another number of channels": (
        lambda: ss.filter(model(), np.zeros((5, 3))),
        ValueError,
        r"data have 3 channels .*`observation`.* gives 1",
    ),
    "a transition of another size": (
        lambda: ss.filter(model(transition=Affine(jnp.eye(3), scale=jnp.ones(3))), Y),
        ValueError,
        r"`transition` .*\(3, 3\).*`initial`.* 2 coordinates.*expected \(2, 2\)",
    ),
    "an observation of another state": (
        lambda: ss.filter(model(observation=Affine(jnp.ones((1, 3)), scale=jnp.ones(1))), Y),
        ValueError,
        r"`observation` .*\(1, 3\).*expected \(1, 2\)",
    ),
    "a transition function of another size": (
        lambda: ss.filter(model(transition=Affine(lambda step: jnp.eye(3), scale=jnp.ones(3))), Y),
        ValueError,
        r"`transition` .*\(3, 3\).*expected \(2, 2\)",
    ),
    "a scale function of another size": (
        lambda: ss.filter(
            model(transition=Affine(lambda step: jnp.eye(2), scale=lambda step: jnp.ones(3))), Y
        ),
        ValueError,
        r"`scale` .*\(2,\) or \(2, k\).*got \(3,\)",
    ),
    "an offset function of another size": (
        lambda: ss.filter(
            model(transition=Affine(jnp.eye(2), lambda step: jnp.ones(3), jnp.ones(2))), Y
        ),
        ValueError,
        r"`offset` .*\(2,\).*got \(3,\)",
    ),
    "a matrix that is a vector": (
        lambda: Affine(jnp.ones(2), scale=jnp.ones(2)),
        ValueError,
        r"`matrix` .*got \(2,\).*function of the step",
    ),
    "a scale that does not fit": (
        lambda: Affine(jnp.eye(2), scale=jnp.ones(3)),
        ValueError,
        r"`scale` .*got \(3,\)",
    ),
    "an offset that does not fit": (
        lambda: Affine(jnp.eye(2), jnp.ones(3), jnp.ones(2)),
        ValueError,
        r"`offset` .*\(2,\).*got \(3,\)",
    ),
    "neither scale nor covariance": (
        lambda: Affine(jnp.eye(2)),
        TypeError,
        r"exactly one of `scale` .*`covariance`",
    ),
    "an initial scale that does not fit": (
        lambda: ss.Gaussian(jnp.zeros(2), jnp.ones(3)),
        ValueError,
        r"`scale` of Gaussian .*got \(3,\)",
    ),
    "a diffuse mask that does not fit": (
        lambda: ss.Gaussian(jnp.zeros(2), jnp.ones(2), diffuse=jnp.array([True])),
        ValueError,
        r"`diffuse` .*\(2,\)",
    ),
    "a drift that is not square": (
        lambda: ss.LinearDiffusion(jnp.ones((2, 3)), jnp.ones(2)),
        ValueError,
        r"`drift` .*square, got \(2, 3\)",
    ),
    "a diffusion that does not fit": (
        lambda: ss.LinearDiffusion(jnp.eye(2), jnp.ones(3)),
        ValueError,
        r"`diffusion` .*got \(3,\)",
    ),
    "an offset of a diffusion that does not fit": (
        lambda: ss.LinearDiffusion(jnp.eye(2), jnp.ones(2), jnp.ones(3)),
        ValueError,
        r"`offset` .*got \(3,\)",
    ),
    # times
    "times that stand still": (
        lambda: ss.Series(Y, [0, 1, 1, 2, 3]),
        ValueError,
        r"`times` must increase strictly, but 1\.0 at position 2",
    ),
    "times that go back": (
        lambda: ss.Series(Y, [0, 2, 1, 3, 4]),
        ValueError,
        r"`times` must increase strictly",
    ),
    "too few times": (
        lambda: ss.Series(Y, [0, 1, 2]),
        ValueError,
        r"`times` must have shape \(5,\).*got \(3,\)",
    ),
    "a time that is not a number": (
        lambda: ss.Series(Y, [0, 1, np.nan, 3, 4]),
        ValueError,
        r"`times` must be finite.*position 2",
    ),
    # values
    "a series that is NaN throughout": (
        lambda: ss.log_likelihood(model(), Y * np.nan),
        ValueError,
        r"NaN throughout.*Series\.unobserved",
    ),
    "an infinite value": (
        lambda: ss.Series([1.0, np.inf]),
        ValueError,
        r"`y` must be finite or NaN.*y\[1\] is inf",
    ),
    "text": (lambda: ss.Series(["a", "b"]), TypeError, r"`y` must be real numbers"),
    # covariances
    "a covariance that is not positive semi-definite": (
        lambda: Affine(jnp.eye(2), covariance=NOT_PSD),
        ValueError,
        r"`covariance` .*not positive semi-definite \(smallest eigenvalue -1\)",
    ),
    "a covariance that is not symmetric": (
        lambda: Affine(jnp.eye(2), covariance=jnp.array([[1.0, 0.2], [0.1, 1.0]])),
        ValueError,
        r"`covariance` .*not symmetric",
    ),
    "a covariance of another size": (
        lambda: Affine(jnp.eye(2), covariance=jnp.eye(3)),
        ValueError,
        r"`covariance` .*\(2, 2\), got \(3, 3\)",
    ),
    "an initial covariance that is not positive semi-definite": (
        lambda: ss.Gaussian(jnp.zeros(2), covariance=NOT_PSD),
        ValueError,
        r"`covariance` of Gaussian .*semi-definite",
    ),
    # inputs
    "inputs of the wrong length": (
        lambda: ss.Series(Y, inputs=np.zeros((4, 1))),
        ValueError,
        r"`inputs` .*\(5, k\).*got \(4, 1\)",
    ),
    "inputs with NaN": (
        lambda: ss.Series(Y, inputs=np.full((5, 1), np.nan)),
        ValueError,
        r"`inputs` must be finite.*inputs\[0, 0\]",
    ),
    "no inputs for a model that reads them": (
        lambda: ss.filter(driven(), Y),
        ValueError,
        r"without inputs.*Series\(y, inputs=",
    ),
    "a forecast without its inputs": (
        lambda: ss.forecast(driven(), ss.Series(Y, inputs=np.zeros((5, 2))), 2),
        ValueError,
        r"`inputs` of the forecast",
    ),
    "a forecast with inputs of the wrong length": (
        lambda: ss.forecast(
            driven(), ss.Series(Y, inputs=np.zeros((5, 2))), 2, inputs=np.zeros((3, 2))
        ),
        ValueError,
        r"`inputs` .*\(2, k\).*got \(3, 2\)",
    ),
    "a forecast with inputs of another width": (
        lambda: ss.forecast(
            driven(), ss.Series(Y, inputs=np.zeros((5, 2))), 2, inputs=np.zeros((2, 3))
        ),
        ValueError,
        r"`inputs` .*3 columns.*2",
    ),
    # a method that does not fit the model
    "a plain function as transition": (
        lambda: ss.smooth(
            model(transition=lambda x, step: dist.Normal(x, 1).to_event(1)), Y, method=ss.Kalman()
        ),
        TypeError,
        r"Kalman does not fit.*`transition` is a function.*AffineGaussian or LinearDiffusion",
    ),
    "a plain function as observation": (
        lambda: ss.smooth(
            model(observation=lambda x, step: dist.Poisson(jnp.exp(x[:1])).to_event(1)),
            Y,
            method=ss.Kalman(),
        ),
        TypeError,
        r"Kalman does not fit.*`observation` is a function.*AffineGaussian",
    ),
    "a diffusion as observation": (
        lambda: ss.smooth(
            model(observation=ss.LinearDiffusion(jnp.eye(2), jnp.ones(2))), np.zeros((5, 2))
        ),
        TypeError,
        r"Kalman does not fit.*`observation` is a LinearDiffusion",
    ),
    "an initial law that is not normal": (
        lambda: ss.smooth(
            model(initial=dist.Gamma(jnp.ones(2)).to_event(1)), Y, method=ss.Kalman()
        ),
        TypeError,
        r"Kalman does not fit.*`initial`",
    ),
    "a method that is none": (
        lambda: ss.smooth(model(), Y, method="kalman"),
        TypeError,
        r"`method` .*got 'kalman'",
    ),
    "a form that there is not": (
        lambda: ss.Kalman(form="ud"),
        ValueError,
        r"`form` .*\"covariance\", \"sqrt\".*'ud'",
    ),
    "something that is no model": (
        lambda: ss.smooth(3, Y),
        TypeError,
        r"three attributes initial, transition and observation; int",
    ),
    # conditionals that do not do what a method needs
    "a category that there is not": (
        seen_as(ss.GeneralisedLinear([[1.0, 0.0]], family=ordinal), ss.Laplace(), GradedY),
        ValueError,
        r"observations of OrderedLogistic .*lower_bound=0, upper_bound=2.*y\[4, 0\] is 3\.0 \(1 such",
    ),
    "a negative waiting time": (
        seen_as(lambda x, step: dist.Gamma(2.0, jnp.exp(x[:1])).to_event(1), ss.Laplace()),
        ValueError,
        r"observations of Gamma must be in its support, Positive.*y\[2, 0\] is -0\.3",
    ),
    "a switching model for a Gaussian method": (
        lambda: ss.smooth(SWITCHING, Y, method=ss.ExtendedKalman()),
        TypeError,
        r"Switching.*InteractingMultipleModel\(\), GaussianSum\(\), StructuredVariational.*RaoBlackw",
    ),
    "a switching model for Laplace's method": (
        lambda: ss.smooth(SWITCHING, Y, method=ss.Laplace()),
        TypeError,
        r"its `initial` is Switching.*InteractingMultipleModel",
    ),
    "a generalised linear observation of another state": (
        seen_as(WIDE, ss.Laplace(), abs(np.round(Y))),
        ValueError,
        r"`observation` .*\(1, 3\).*2 coordinates: expected \(1, 2\)",
    ),
    "the same, linearised": (
        seen_as(WIDE, ss.ExtendedKalman()),
        ValueError,
        r"`observation` .*\(1, 3\).*expected \(1, 2\)",
    ),
    "an observation that gives an array": (
        seen_as(SINE, ss.ExtendedKalman()),
        TypeError,
        r"`observation` of the model must give a distribution.*got an array of shape \(1,\)",
    ),
    "an observation that gives an array to Laplace's method": (
        seen_as(SINE, ss.Laplace()),
        TypeError,
        r"`observation` of the model must give a distribution",
    ),
    "a family that gives an array": (
        seen_as(ss.GeneralisedLinear([[1.0, 0.0]], family=jnp.exp), ss.Laplace()),
        TypeError,
        r"`family` of GeneralisedLinear must give a distribution",
    ),
    "an observation of one argument": (
        seen_as(ONE_ARGUMENT, ss.SigmaPointKalman()),
        TypeError,
        r"`observation` .*function of \(state, step\), but its arguments are \(x\)",
    ),
    "a transition of one argument": (
        lambda: ss.filter(
            model(transition=lambda x: dist.Normal(x, 1.0).to_event(1)),
            Y,
            method=ss.ParticleFilter(10),
            key=jax.random.key(0),
        ),
        TypeError,
        r"`transition` .*function of \(state, step\), but its arguments are \(x\)",
    ),
    "a recurrence that does not read its inputs": (
        lambda: ss.parallel_newton(lambda x: 0.5 * x, jnp.ones(3), jnp.ones((5, 1))),
        TypeError,
        r"`f` must be a function of \(state, input\), but its arguments are \(x\)",
    ),
    "a law without a mean": (
        seen_as(CAUCHY, ss.ExtendedKalman()),
        TypeError,
        r"ExtendedKalman .*`observation` .*Cauchy.*Laplace\(\), ExpectationPropagation\(\) or particles",
    ),
    "a law without a variance": (
        seen_as(STUDENT, ss.SigmaPointKalman()),
        TypeError,
        r"SigmaPointKalman .*StudentT.*Laplace",
    ),
    "a transition without a mean": (
        lambda: ss.smooth(
            model(transition=lambda x, step: dist.Cauchy(x, 1.0).to_event(1)),
            Y,
            method=ss.IteratedSmoother(),
        ),
        TypeError,
        r"`transition` .*Cauchy.*use particles",
    ),
    # parameters that are no numbers
    "a matrix with NaN": (
        lambda: Affine([[jnp.nan]], scale=[1.0]),
        ValueError,
        r"`matrix` of AffineGaussian must be finite, got \[\[nan\]\]",
    ),
    "an infinite offset": (
        lambda: Affine([[1.0]], [jnp.inf], [1.0]),
        ValueError,
        r"`offset` of AffineGaussian must be finite",
    ),
    "a covariance with NaN": (
        lambda: Affine([[1.0]], covariance=[[jnp.nan]]),
        ValueError,
        r"`covariance` of AffineGaussian must be finite",
    ),
    "a negative standard deviation": (
        lambda: Affine(jnp.eye(2), scale=[-1.0, 1.0]),
        ValueError,
        r"`scale` of AffineGaussian must not be negative, got \[-1\.  1\.\]",
    ),
    "an initial mean with NaN": (
        lambda: ss.Gaussian([jnp.nan], [1.0]),
        ValueError,
        r"`mean` of Gaussian must be finite",
    ),
    "a negative initial standard deviation": (
        lambda: ss.Gaussian([0.0], [-1.0]),
        ValueError,
        r"`scale` of Gaussian must not be negative",
    ),
    "loadings with NaN": (
        lambda: ss.GeneralisedLinear([[jnp.nan]]),
        ValueError,
        r"`matrix` of GeneralisedLinear must be finite",
    ),
    "a degree of freedom that is no number": (
        lambda: ss.GeneralisedLinear([[1.0]], family="student_t", scale=1.0, df=jnp.nan),
        ValueError,
        r"`df` of GeneralisedLinear must be finite",
    ),
    # settings of methods
    "a name that is no rule": (
        lambda: ss.IteratedSmoother(linearisation="ukf"),
        ValueError,
        r"`linearisation` of IteratedSmoother must be a rule: \"taylor\", \"cubature\".*got 'ukf'",
    ),
    "something that is no rule": (
        lambda: ss.Laplace(linearisation=3),
        TypeError,
        r"`linearisation` of Laplace must be a rule.*got 3",
    ),
    "a rule without points": (
        lambda: ss.SigmaPointKalman(rule=ss.linearisation.Taylor()),
        TypeError,
        r"`rule` of SigmaPointKalman must be a rule: \"cubature\".*got Taylor",
    ),
    "iterations that are no whole number": (
        lambda: ss.IteratedSmoother(iterations=2.5),
        ValueError,
        r"`iterations` of IteratedSmoother must be a whole number of at least 1, got 2\.5",
    ),
    "members that are no whole number": (
        lambda: ss.EnsembleKalman(members=10.5),
        ValueError,
        r"`members` of EnsembleKalman must be a whole number of at least 2, got 10\.5",
    ),
    "damping of another method": (
        lambda: ss.Laplace(damping="line-search"),
        ValueError,
        r"`damping` of Laplace must be at least 0 and below 1, or None, got 'line-search'",
    ),
    "regimes that are not those of the transition": (
        lambda: ss.SwitchingLinearGaussian(
            [0.5, 0.5], np.eye(3), [[[0.9]]], [[1.0]], [[[1.0]]], [[1.0]]
        ),
        ValueError,
        r"`transition` of SwitchingLinearGaussian .*3 regimes.*`initial_probs` .*2",
    ),
    # nothing, or too little
    "an empty series": (
        lambda: ss.smooth(model(), np.zeros(0)),
        ValueError,
        r"`y` is empty.*\(0,\)",
    ),
    "a series without channels": (
        lambda: ss.Series(np.zeros((5, 0))),
        ValueError,
        r"`y` is empty.*no channels",
    ),
    "an empty panel": (lambda: ss.smooth(model(), []), ValueError, r"empty"),
    "one moment for two diffuse directions": (
        lambda: ss.smooth(trend(), Y[:1]),
        ValueError,
        r"diffuse",
    ),
    # what the verbs are asked for
    "no steps": (
        lambda: ss.forecast(model(), Y, 0),
        ValueError,
        r"`steps` must be positive, got 0",
    ),
    "neither steps nor times": (
        lambda: ss.forecast(model(), Y),
        ValueError,
        r"either `steps`.*or `times`",
    ),
    "steps on irregular times": (
        lambda: ss.forecast(model(), ss.Series(Y, [0, 1, 2, 5, 6]), 3),
        ValueError,
        r"irregular: give `times`",
    ),
    "times of a forecast that go back": (
        lambda: ss.forecast(model(), Y, times=[7.0, 6.0]),
        ValueError,
        r"`times` must increase",
    ),
    "no draws": (
        lambda: ss.sample_states(model(), Y, key=jax.random.key(0), draws=0),
        ValueError,
        r"`draws` .*got 0",
    ),
    "a simulation of no moments": (
        lambda: ss.simulate(model(), 0, key=jax.random.key(0)),
        ValueError,
        r"positive number of moments, got 0",
    ),
    "a simulation from a flat prior": (
        lambda: ss.simulate(trend(), 5, key=jax.random.key(0)),
        ValueError,
        r"`initial` is diffuse.*initial_state=",
    ),
    "an online observation of the past": (
        lambda: _update_twice(2.0, 1.0),
        ValueError,
        r"`time` must be after .*2\.0, got 1\.0",
    ),
    "steps that are no whole number": (
        lambda: ss.forecast(model(), Y, 2.5),
        TypeError,
        r"`steps` must be a whole number, got 2\.5",
    ),
    "a class in place of a model": (
        lambda: ss.fit(ss.LocalLevel, Y),
        TypeError,
        r"`model` must be a model, got the class LocalLevel: call it",
    ),
    "a fit in place of its model": (
        lambda: ss.smooth(ss.fit(ss.LocalLevel(1.0, 1.0), Y), Y),
        TypeError,
        r"FitResult has no `initial`; it holds a model: pass its `\.model`",
    ),
    "a number in place of a key": (
        lambda: ss.simulate(model(), 3, key=0),
        TypeError,
        r"`key` must be a PRNG key such as `jax\.random\.key\(0\)`, got 0",
    ),
    "data in place of a posterior": (
        lambda: ss.plot.smoothed(Y),
        TypeError,
        r"`posterior` must be what `smooth` or `filter` returns, got ndarray",
    ),
    "a posterior in place of a forecast": (
        lambda: ss.plot.forecast(ss.smooth(model(), Y)),
        TypeError,
        r"`forecast` must be what `forecast` returns, got GaussianPosterior",
    ),
    "a model without parameters": (
        lambda: ss.fit(ss.LocalLevel(), Y),
        ValueError,
        r"the model has no parameters; nothing is to learn",
    ),
    "an interval that is none": (
        lambda: ss.online(model(), dt=-1.0),
        ValueError,
        r"`dt` must be positive, got -1\.0",
    ),
}


def _update_twice(first, second):
    online = ss.online(model())
    online.update(online.update(online.init(), 1.0, time=first), 1.0, time=second)


@pytest.mark.parametrize("what", REFUSED)
def test_message(what):
    attempt, error, message = REFUSED[what]
    with pytest.raises(error, match=f"(?s){message}"):
        attempt()


def test_a_rule_goes_by_its_name():
    named = ss.linearisation
    for method in (ss.IteratedSmoother, ss.Laplace, ss.DiscriminativeKalman, ss.GaussianSum):
        assert method(linearisation="unscented").linearisation == named.Unscented()
        assert method(linearisation="taylor") == method(linearisation=named.Taylor())
    assert ss.SigmaPointKalman(rule="gauss-hermite").rule == named.GaussHermite()


def test_a_support_that_moves_with_the_state_refuses_nothing():
    """It is known at no state in particular."""
    around = lambda x, step: dist.Uniform(x[:1] - 5.0, x[:1] + 5.0).to_event(1)
    found = ss.filter(
        model(observation=around), Y + 4.5, method=ss.ParticleFilter(50), key=jax.random.key(0)
    )
    assert np.isfinite(found.log_likelihood)


def test_one_moment_is_enough_where_the_prior_is_proper():
    posterior = ss.smooth(model(), Y[:1])
    assert posterior.mean.shape == (1, 2)
    np.testing.assert_allclose(posterior.mean, [[Y[0] / 3, Y[0] / 3]], rtol=1e-12)
    assert posterior.lag_one.shape == (0, 2, 2)
    ahead = ss.forecast(model(), Y[:1], steps=2)
    np.testing.assert_allclose(ahead.mean[:, 0], [2 * Y[0] / 3] * 2, rtol=1e-12)
