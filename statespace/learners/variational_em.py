"""Structured variational EM: switching linear models, also recurrent ones, that learn."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import structured
from statespace.learners import switching_regressions as m_step
from statespace.learners import switching_starts as beginnings
from statespace.learners.em_finite import bare as thawed
from statespace.learners.likelihood import bare
from statespace.learners.priors import Priors, checked_priors, log_prior
from statespace.learners.problem import Problem, check_start, not_finite, with_values
from statespace.learners.progress import bar
from statespace.learners.result import FitResult
from statespace.methods.structured_variational import StructuredVariational
from statespace.models.switching import SwitchingLinearGaussian
from statespace.parameters import parameters, replace
from statespace.series import Series

_BLOCK = 10  # iterations in one call of the compiled loop
_RUNNING, _CONVERGED, _NOT_FINITE = 0, 1, 2


class VariationalEM(eqx.Module):
    """Learns switching linear models: infer states and regimes, then learn as if they were known.

    The law of states and regimes is the one of :class:`~statespace.StructuredVariational`, a Gaussian chain
    times a finite one; every iteration fits the one to the other and then the parameters to both, and none of
    the three lowers the bound of the log likelihood, which is the trace. Dynamics, observation and noise are
    regressions weighted by the regimes' probabilities, the weights of recurrent regimes a multinomial
    regression on the states. A parameter with a prior, and one that only some of a regression's parts share
    between regimes, is moved by climbing the bound. Missing entries, inputs of the regimes' law, frozen
    parameters and panels are supported; a sticky chain is a Dirichlet prior of ``kernel.probs``.

    The bound has many maxima, so the start decides. A warm start learns a linear model by EM, guesses regimes
    from its smoothed states, and begins with both. There are two guesses, of which now the one and now the
    other is better: clusters of where the state is and how it moves on, and the regimes of an autoregressive
    hidden Markov model. Both are tried unless `starts` says otherwise, and the higher bound decides.

    Args:
        iterations: at most so many.
        tolerance: stop when an iteration raises the bound (plus log prior) by less than this, in nats.
        floor: the least eigenvalue of a learned noise covariance, as a share of the variance of what it is
            the noise of; so that no regime collapses on a few moments.
        warm_start: whether to start as above; if not, and where a result is given to go on from, the start
            is the model as it is.
        starts: how many warm starts to make, by the two guesses in turn, each time with another key; the end
            of the highest bound is kept. None: one by each guess.
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
    starts: int | None = eqx.field(static=True, default=None)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name in ("iterations", "starts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` of VariationalEM must be at least 1, got {getattr(self, name)}."
                )
        for name in ("tolerance", "floor"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"`{name}` of VariationalEM must not be negative, got {getattr(self, name)}."
                )
        if self.starts not in (None, 1) and not self.warm_start:
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
        if warm:
            keys = jax.random.split(key, self.starts or 2)
            begun = beginnings.warm(problem, keys, floors)
        else:
            begun = iter([_begin(problem)])
        ends = [self._run(problem, values, q, floors) for values, q in begun]
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
            starts=tuple(np.asarray(t) for _, t, _ in ends) if len(ends) > 1 else None,
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

        q, found = beginnings.each(problem, one, s.q)
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


@eqx.filter_jit
def _begin(problem: Problem) -> tuple[dict[str, Array], structured.Structured]:
    """The model as it is, and its mean field."""
    one = lambda s: problem.method.infer(problem.method.lower(problem.model, s))[0]
    return parameters(problem.model, frozen=False), beginnings.each(problem, one)


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
