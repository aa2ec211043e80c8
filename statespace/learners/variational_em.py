"""Structured variational EM: switching linear models, also recurrent ones, that learn."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import finite, gaussian, structured
from statespace.emissions.autoregressive import Autoregressive
from statespace.learners import switching_regressions as m_step
from statespace.learners.em import EM
from statespace.learners.em_finite import bare as thawed
from statespace.learners.likelihood import bare, each_recording, recordings
from statespace.learners.priors import Priors, checked_priors, log_prior
from statespace.learners.problem import Problem, check_start, not_finite, with_values
from statespace.learners.progress import bar
from statespace.learners.result import ConvergenceWarning, FitResult
from statespace.methods.forward_backward import ForwardBackward
from statespace.methods.kalman import Kalman
from statespace.methods.structured_variational import StructuredVariational
from statespace.models.hmm import HMM
from statespace.models.switching import SwitchingLinearGaussian
from statespace.parameters import freeze, parameters, replace
from statespace.series import Panel, Series, as_data

_BLOCK = 10  # iterations in one call of the compiled loop
_RUNNING, _CONVERGED, _NOT_FINITE = 0, 1, 2
_LINEAR_ITERATIONS = 50
_REGIME_ITERATIONS = 100
_REGIME_STARTS = 6


class VariationalEM(eqx.Module):
    """Learns switching linear models: infer states and regimes, then learn as if they were known.

    The law of states and regimes is the one of :class:`~statespace.StructuredVariational`, a Gaussian chain
    times a finite one; every iteration fits the one to the other and then the parameters to both, and none of
    the three lowers the bound of the log likelihood, which is the trace. Dynamics, observation and noise are
    regressions weighted by the regimes' probabilities, the weights of recurrent regimes a multinomial
    regression on the states. A parameter with a prior, and one that only some of a regression's parts share
    between regimes, is moved by climbing the bound. Missing entries, inputs of the regimes' law, frozen
    parameters and panels are supported; a sticky chain is a Dirichlet prior of ``kernel.probs``.

    The bound has many maxima, so the start decides. The warm start learns a linear model by EM, then the
    regimes as an autoregressive hidden Markov model of its smoothed states, and begins with both.

    Args:
        iterations: at most so many.
        tolerance: stop when an iteration raises the bound (plus log prior) by less than this, in nats.
        floor: the least eigenvalue of a learned noise covariance, as a share of the variance of what it is
            the noise of; so that no regime collapses on a few moments.
        warm_start: whether to start as above; if not, and where a result is given to go on from, the start
            is the model as it is.
        starts: how many warm starts to make, from different regimes; the highest end is kept.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> model = ss.RecurrentSwitchingLinearGaussian.from_principal_components(y, 4, 2)
        >>> fitted = ss.fit(model, y, learner=ss.VariationalEM(), key=jax.random.key(0))
        >>> posterior = ss.smooth(fitted.model, y, method=ss.StructuredVariational())

    References:
        Ghahramani & Hinton (2000), Variational learning for switching state-space models; Linderman et al.
        (2017), AISTATS; Zoltowski, Pillow & Linderman (2020), ICML, section 4.
    """

    iterations: int = eqx.field(static=True, default=200)
    tolerance: float = eqx.field(static=True, default=1e-2)
    floor: float = eqx.field(static=True, default=1e-6)
    warm_start: bool = eqx.field(static=True, default=True)
    starts: int = eqx.field(static=True, default=1)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name in ("iterations", "starts"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` of VariationalEM must be at least 1, got {getattr(self, name)}."
                )
        for name in ("tolerance", "floor"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"`{name}` of VariationalEM must not be negative, got {getattr(self, name)}."
                )
        if self.starts > 1 and not self.warm_start:
            raise ValueError("VariationalEM(starts=...) makes warm starts: leave `warm_start` on.")

    @property
    def default_method(self) -> StructuredVariational:
        """How states and regimes are inferred."""
        return StructuredVariational()

    def fit(
        self,
        model: Any,
        data: Any,
        *,
        priors: Priors | None = None,
        key: PRNGKeyArray | None = None,
        method: Any = None,
        start: FitResult | None = None,
    ) -> FitResult:
        """Parameters at which no iteration raises the bound; see :func:`statespace.fit`.

        Raises:
            TypeError: if the model is no switching linear one, or the method another.
            ValueError: if a warm start has no key, or the start is impossible.
        """
        if not isinstance(thawed(model), SwitchingLinearGaussian):
            raise TypeError(
                "VariationalEM learns SwitchingLinearGaussian and RecurrentSwitchingLinearGaussian, got "
                f"{type(thawed(model)).__name__}; ParticleEM() learns any model of states with densities."
            )
        method = self.default_method if method is None else method
        if not isinstance(method, StructuredVariational):
            raise TypeError(
                "VariationalEM infers states by StructuredVariational(), got "
                f"{type(method).__name__} as `method`: leave it out."
            )
        problem = Problem(model, bare(data), checked_priors(model, priors), method)
        check_start(problem, "VariationalEM")
        warm = self.warm_start and start is None and thawed(model).regimes > 1
        if warm and key is None:
            raise ValueError(
                "VariationalEM starts regimes at random: give `fit` a `key`, such as `jax.random.key(0)`; or "
                "set `warm_start=False`, and give a model whose regimes differ."
            )
        floors = _floors(problem, self.floor)
        ends = []
        for own in jax.random.split(key, self.starts) if warm else [None]:
            values, q = _begin(problem) if own is None else _warm(problem, own, floors)
            ends.append(self._run(problem, values, q, floors))
        best = int(np.argmax([np.nan_to_num(trace[-1], nan=-np.inf) for _, trace, _ in ends]))
        state, trace, _ = ends[best]
        if not np.isfinite(trace[-1]):
            raise not_finite("VariationalEM", trace[-1])
        problem = with_values(problem, state.values)
        converged = int(state.status) == _CONVERGED
        prior = float(log_prior(problem.model, problem.priors)) if problem.priors else None
        return FitResult(
            model=problem.model,
            data=data,
            learner="structured variational EM (log likelihood: a lower bound)",
            log_likelihood=trace[-1] - (prior or 0.0),
            log_prior=prior,
            converged=converged,
            reason="an iteration gains less than the tolerance"
            if converged
            else f"{self.iterations} iterations were not enough; raise `iterations`, or go on from here",
            iterations=len(trace),
            trace=np.asarray(trace),
            uncertainty=None,
            _problem=problem,
            starts=tuple(np.asarray(t) for _, t, _ in ends) if self.starts > 1 else None,
        ).warn_unless_converged()

    def _run(
        self, problem: Problem, values: Any, q: structured.Structured, floors: dict[str, Array]
    ) -> tuple[Progress, list[float], int]:
        """Iterate, block by block, to the end."""
        dtype = q.bound.dtype
        low, zero = jnp.full_like(q.bound, -jnp.inf), jnp.zeros((), int)
        state = Progress(
            values, q._replace(bound=low), low.min(), jnp.zeros(_BLOCK, dtype), zero, zero
        )
        trace: list[float] = []
        with bar(self.iterations, "variational EM", self.progress) as shown:
            while int(state.status) == _RUNNING and len(trace) < self.iterations:
                before = int(state.iteration)
                end = jnp.asarray(min(before + _BLOCK, self.iterations))
                state = _iterate(problem, state, jnp.asarray(self.tolerance, dtype), floors, end)
                done = int(state.iteration) - before
                trace += np.asarray(state.trace)[:done].tolist()
                shown.set_postfix_str(f"bound {trace[-1]:.3f}", refresh=False)
                shown.update(done)
        return state, trace, len(trace)


class Progress(NamedTuple):
    """Variational EM under way.

    Attributes:
        values: the free parameters, by name.
        q: the mean field of each recording.
        density: bound plus log prior one iteration ago.
        trace: those of the last block of iterations.
        iteration: how many were made.
        status: why it stopped, or that it did not.
    """

    values: dict[str, Array]
    q: structured.Structured
    density: Float[Array, ""]
    trace: Float[Array, " b"]
    iteration: Int[Array, ""]
    status: Int[Array, ""]


@eqx.filter_jit
def _iterate(
    problem: Problem, state: Progress, tolerance: Array, floors: dict[str, Array], end: Array
) -> Progress:
    """Iterations up to number ``end``, in one compiled loop."""
    begin = state.iteration

    def goes_on(s: Progress) -> Array:
        return (s.status == _RUNNING) & (s.iteration < end)

    def iteration(s: Progress) -> Progress:
        model = replace(problem.model, s.values)

        def one(series: Series, q: structured.Structured) -> tuple[Any, m_step.Moments]:
            chain, form = problem.method.lower(model, series)
            renewed = structured.renewed(chain, q)
            # the first is compared with nothing
            renewed = renewed._replace(bound=jnp.where(s.iteration == 0, q.bound, renewed.bound))
            q = structured.sweep(chain, renewed, form)
            return q, m_step.moments(thawed(model), series, chain.within, q)

        q, found = _each(problem, one, s.q)
        density = jnp.sum(q.bound) + log_prior(model, problem.priors)
        density = density.astype(s.density.dtype)
        gain = density - s.density
        status = jnp.where(gain < tolerance, _CONVERGED, _RUNNING)
        status = jnp.where(jnp.isfinite(density), status, _NOT_FINITE)
        moved = s.values | m_step.maximise(model, problem, found, floors)
        keep = status != _RUNNING
        return Progress(
            values=jax.tree.map(lambda a, b: jnp.where(keep, a, b), s.values, moved),
            q=q,
            density=density,
            trace=s.trace.at[s.iteration - begin].set(density),
            iteration=s.iteration + 1,
            status=status.astype(s.status.dtype),
        )

    return jax.lax.while_loop(goes_on, iteration, state)


def _each(problem: Problem, function: Any, *args: Any) -> Any:
    """``function`` of every recording, with a leading axis of recordings."""
    series, _ = recordings(problem.data)
    if isinstance(problem.data, Panel):
        return each_recording(function, problem.model, problem.method, series, *args)
    first = jax.tree.map(lambda x: x[0], args)
    return jax.tree.map(lambda x: x[None], function(problem.data, *first))


@eqx.filter_jit
def _begin(problem: Problem) -> tuple[dict[str, Array], structured.Structured]:
    """The model as it is, and its mean field."""
    one = lambda s: problem.method.infer(problem.method.lower(problem.model, s))[0]
    return parameters(problem.model, frozen=False), _each(problem, one)


def _floors(problem: Problem, share: float) -> dict[str, Array]:
    """Least variances: of the observations by the data's, of the states by what they bring to them."""
    model = thawed(problem.model)
    y = np.asarray(problem.data.y, float)
    y = y.reshape(-1, y.shape[-1] if y.ndim > problem.data.times.ndim else 1)
    seen = float(np.nanmean(np.nanvar(y, axis=0)))
    loadings = np.asarray(model.observation_matrix, float)
    size = float(np.mean(np.sum(loadings**2, axis=(1, 2)) / loadings.shape[1]))
    state = seen / size if size > 0 else 1.0
    dtype = model.matrix.dtype
    least = {"observation": seen, "transition": state, "initial": state}
    return {label: jnp.asarray(share * v, dtype) for label, v in least.items()}


# the warm start: a linear model, then an autoregressive hidden Markov model of its states -------------


def _warm(
    problem: Problem, key: PRNGKeyArray, floors: dict[str, Array]
) -> tuple[dict[str, Array], structured.Structured]:
    """Parameters and a mean field from a linear model and the regimes of its states."""
    states = _linear_states(problem, floors)
    probs, pairs = _regimes(problem, states, key, floors)
    return _joined(problem, states, probs, pairs, floors)


def _linear_states(problem: Problem, floors: dict[str, Array]) -> structured.States:
    """Smoothed states of a linear model: the mean of the regimes, learned by EM."""
    model = thawed(problem.model)
    mean = lambda x: x if x is None else jnp.mean(x, axis=0, keepdims=True)
    whole = {name: mean(getattr(model, name)) for name in m_step.OF_LINEAR}
    linear: Any = m_step.linear(_Parts(**whole))
    held = [other for name, other in m_step.OF_LINEAR.items() if name not in problem.names]
    held = [name for name in held if name in parameters(linear)]
    if held:
        linear = freeze(linear, *held)
    if parameters(linear, frozen=False):
        least = float(min(floors["observation"], floors["transition"]))
        learner = EM(iterations=_LINEAR_ITERATIONS, tolerance=0.1, floor=least, progress=False)
        linear = _quietly(learner, linear, problem.data, None).model
    return _smoothed(problem, linear)


class _Parts(eqx.Module):
    """The arrays of a switching model."""

    matrix: Array
    offset: Array | None
    scale: Array
    observation_matrix: Array
    observation_offset: Array | None
    observation_scale: Array
    initial_mean: Array
    initial_scale: Array


@eqx.filter_jit
def _smoothed(problem: Problem, linear: Any) -> structured.States:
    def one(series: Series) -> structured.States:
        chain, how = Kalman().lower(linear, series)
        smoothed = gaussian.smooth(chain, **how)
        return structured.States(smoothed.mean, smoothed.covariance, smoothed.lag_one)

    return _each(problem, one)


def _regimes(
    problem: Problem, states: structured.States, key: PRNGKeyArray, floors: dict[str, Array]
) -> tuple[Array, Array]:
    """Probabilities of regimes, and of pairs, in an autoregressive hidden Markov model of the states."""
    count = thawed(problem.model).regimes
    lengths = problem.data.lengths if isinstance(problem.data, Panel) else [states.mean.shape[1]]
    paths = [np.asarray(x)[:size] for x, size in zip(states.mean, lengths)]
    before = np.concatenate([x[:-1] for x in paths])
    rest = np.concatenate([x[1:] for x in paths]) - before
    n = before.shape[1]
    each = lambda part: np.repeat(part[None], count, axis=0)
    noise = np.cov(rest.T).reshape(n, n) + float(floors["transition"]) * np.eye(n)
    leaving = 0.1 / (count - 1)
    model = HMM(
        None,
        np.full((count, count), leaving) + (0.9 - leaving) * np.eye(count),
        Autoregressive(
            each(np.eye(n)[None]), each(rest.mean(axis=0)), each(np.linalg.cholesky(noise))
        ),
    )
    data = as_data(paths if len(paths) > 1 else paths[0])
    learner = EM(
        iterations=_REGIME_ITERATIONS,
        tolerance=0.1,
        floor=float(floors["transition"]),
        starts=_REGIME_STARTS,
        progress=False,
    )
    found = _quietly(learner, model, data, key).model
    return _finite(Problem(found, bare(data), {}, ForwardBackward()), states.mean.shape[1])


@eqx.filter_jit
def _finite(problem: Problem, size: int) -> tuple[Array, Array]:
    def one(series: Series) -> tuple[Array, Array]:
        chain = problem.method.lower(problem.model, series)
        smoothed = finite.smooth(chain, parallel=False)
        return smoothed.probs, finite.pairs(chain, smoothed)

    probs, pairs = _each(problem, one)
    return probs, pairs


@eqx.filter_jit
def _joined(
    problem: Problem,
    states: structured.States,
    probs: Array,
    pairs: Array,
    floors: dict[str, Array],
) -> tuple[dict[str, Array], structured.Structured]:
    """The parameters that fit states and regimes, and both as a mean field."""
    model = thawed(problem.model)

    def one(series: Series, *given: Any) -> tuple[structured.Structured, m_step.Moments]:
        chain, _ = problem.method.lower(model, series)
        states, probs, pairs = given
        q = structured.unknown(chain)._replace(states=states, probs=probs, pairs=pairs)
        return q, m_step.moments(model, series, chain.within, q)

    q, found = _each(problem, one, states, probs, pairs)
    values = parameters(problem.model, frozen=False)
    return values | m_step.maximise(problem.model, problem, found, floors), q


def _quietly(learner: EM, model: Any, data: Any, key: PRNGKeyArray | None) -> FitResult:
    """A fit that is only a start, and need not have converged."""
    method = ForwardBackward() if isinstance(model, HMM) else Kalman()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return learner.fit(model, data, key=key, method=method)
