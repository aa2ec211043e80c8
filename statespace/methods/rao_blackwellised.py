"""Rao–Blackwellised particle methods for switching linear models."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains import gaussian
from statespace.chains.gaussian.covariances import predict
from statespace.chains.gaussian.mixtures import covariances, mixture_moments
from statespace.chains.particle import switching
from statespace.conditionals.finite import Categorical
from statespace.conditionals.switching import RegimeState, Switching
from statespace.methods.gaussian_lowering import initial_law, noise
from statespace.methods.lowering import at, dtype_of, steps_of
from statespace.methods.particle_filter import missing_key
from statespace.methods.particle_laws import over_time
from statespace.model import Step, state_names
from statespace.posteriors.switching import SwitchingPosterior
from statespace.probabilities import normal_deviates
from statespace.series import Panel, Series

if TYPE_CHECKING:
    from statespace.forecasts.particle import ParticleForecast


class RaoBlackwellised(eqx.Module):
    """Particle filter and smoother of switching linear models, with the states integrated out.

    Needs all three conditionals of the model to be :class:`~statespace.Switching`, of linear Gaussian
    conditionals. Particles are paths of regimes, each with a Kalman filter of its own. At each moment all
    successors of all particles are weighed by the observation, and N of them kept without repeats, such that
    the likelihood is unbiased (Fearnhead & Clifford 2003); while the paths of regimes are no more than N,
    filter and likelihood are exact. The smoother draws paths of regimes backward, each step weighed by the
    likelihood of all later observations with the states integrated out (Whiteley, Andrieu & Doucet 2010), and
    smooths the states along each of them exactly.

    Args:
        particles: N, how many paths the filter keeps.
        draws: how many paths the smoother draws.
        key: source of randomness; the verbs put theirs here.

    Raises:
        ValueError: if there is not at least one particle and one draw.

    Example:
        >>> model = ss.SwitchingLinearGaussian(...)
        >>> posterior = ss.smooth(model, y, method=ss.RaoBlackwellised(particles=100), key=key)
        >>> posterior.probs, posterior.mean
    """

    particles: int = eqx.field(static=True, default=100)
    draws: int = eqx.field(static=True, default=200)
    key: PRNGKeyArray | None = None

    def __check_init__(self) -> None:
        for name in ("particles", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` of RaoBlackwellised must be at least 1, got {getattr(self, name)}."
                )

    def with_key(self, key: PRNGKeyArray) -> Self:
        """The same method with this source of randomness."""
        return dataclasses.replace(self, key=key)

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse what cannot be run, before anything is traced."""
        conditionals(model)
        for series in (data.series if isinstance(data, Panel) else [data])[:1]:
            step = at(steps_of(series)[0], 0)
            shapes = jax.eval_shape(lambda step: _at(model, step, "sqrt"), step)
            n = shapes.matrix.shape[-1]
            start = initial_law(_Part(conditionals(model)[0].of(0)), step).mean.shape
            m = series.channels.shape[1]
            if start != (n,):
                raise ValueError(
                    f"`transition` of the model is of states of {n} coordinates, `initial` of shape {start}."
                )
            if shapes.design.shape[1:] != (m, n):
                raise ValueError(
                    f"`observation` of the model has matrices of shape {shapes.design.shape[1:]}; the data "
                    f"have {m} channel{'s' * (m != 1)} and the state {n} coordinates: expected ({m}, {n})."
                )

    def lower(self, model: Any, series: Series) -> tuple[switching.SwitchingChain, gaussian.Form]:
        """The switching chain of a model on a recording, and the form of its arithmetic."""
        initial, _, _ = conditionals(model)
        steps, varies = steps_of(series)
        first = at(steps, 0)
        count = len(initial.kernel.probs)
        laws = [initial_law(_Part(initial.of(k)), first) for k in range(count)]
        if any(law.diffuse is not None for law in laws):
            raise ValueError(
                "RaoBlackwellised needs a proper `initial`: give `Gaussian(mean, scale)` without diffuse "
                "directions."
            )
        dtype = dtype_of(series, eqx.filter(model, eqx.is_array))
        form: gaussian.Form = "sqrt" if dtype == jnp.float32 else "covariance"
        constant, varying = over_time(lambda step: _at(model, step, form), steps, varies)
        n = laws[0].mean.shape[0]
        none, one = jnp.zeros((n, n), dtype), jnp.eye(n, dtype=dtype)
        spread = [predict(none, one, noise(law, form).astype(dtype), form) for law in laws]
        chain = switching.SwitchingChain(
            _logs(initial.kernel.probs),
            jnp.stack([law.mean for law in laws]),
            jnp.stack(spread),
            constant,
            varying,
            series.channels,
        )
        cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
        return jax.tree.map(cast, chain), form

    def run(self, model: Any, series: Series) -> switching.SwitchingRun:
        """The filter, from the method's own key."""
        chain, form = self.lower(model, series)
        return switching.run(chain, self._keys()[0], self.particles, form)

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """Log of an unbiased estimate of ``p(y)``."""
        return jnp.sum(self.run(model, series).pointwise)

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """Log of the estimate of ``p(y_t | y_0 … y_{t-1})`` of each moment."""
        return self.run(model, series).pointwise

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """Each observation's one-step predictive probability as a normal deviate; NaN where missing."""
        chain, form = self.lower(model, series)
        run = switching.run(chain, self._keys()[0], self.particles, form)
        below = switching.predictive_probabilities(chain, run.paths, form)
        return normal_deviates(below, chain.y)

    def posterior(self, model: Any, series: Series, kind: Any) -> SwitchingPosterior:
        """The law of regimes and states: "filtered" or "smoothed"."""
        chain, form = self.lower(model, series)
        forward, backward, states = self._keys()
        run = switching.run(chain, forward, self.particles, form)
        filtered = SwitchingPosterior(
            mean=run.mean,
            covariance=run.covariance,
            probs=run.probs,
            times=series.times,
            log_likelihood=jnp.sum(run.pointwise),
            pointwise=run.pointwise,
            ess=run.ess,
            y=series.channels,
            regimes=run.paths.regime,
            means=run.paths.mean,
            covariances=covariances(run.paths.spread, form),
            log_weights=run.paths.log_weights,
            labels=None,
            state_names=state_names(model),
        )
        if kind == "filtered":
            return filtered
        drawn = switching.backward_sample(chain, run.paths, backward, self.draws, form)
        keys = jax.random.split(states, self.draws)
        along = lambda path, key: switching.along_path(chain, path, key, form)
        means, laws, paths = (jnp.moveaxis(x, 0, 1) for x in jax.vmap(along)(drawn, keys))
        each = jnp.full(self.draws, 1 / self.draws, means.dtype)
        mean, covariance = jax.vmap(mixture_moments, (None, 0, 0))(each, means, laws)
        count = len(chain.log_probs)
        return dataclasses.replace(
            filtered,
            mean=mean,
            covariance=covariance,
            probs=jnp.mean(drawn.T[..., None] == jnp.arange(count), axis=1, dtype=mean.dtype),
            regimes=drawn.T,
            means=means,
            covariances=laws,
            log_weights=jnp.broadcast_to(jnp.log(each), (len(series), self.draws)),
            states=paths,
            kind="smoothed",
        )

    def sample_states(
        self, model: Any, series: Series, key: PRNGKeyArray, draws: int
    ) -> RegimeState:
        """Joint draws of all regimes ``(draws, T)`` and states ``(draws, T, n)`` given all observations."""
        sampler = dataclasses.replace(self, draws=draws, key=key)
        smoothed = sampler.posterior(model, series, "smoothed")
        return RegimeState(smoothed.regimes.T, jnp.moveaxis(smoothed.states, 1, 0))

    def forecast(self, model: Any, series: Series, rows: Array) -> ParticleForecast:
        """The law of observations at some moments of a recording, of which they are not part."""
        from statespace.chains import particle
        from statespace.forecasts.particle import forecast
        from statespace.methods.particle_filter import posterior_of

        smoothed = self.posterior(model, series, "smoothed")
        cloud = particle.Cloud(RegimeState(smoothed.regimes, smoothed.states), smoothed.log_weights)
        nothing = jnp.zeros(len(series), bool)
        run = particle.Run(
            cloud, smoothed.log_likelihood, smoothed.pointwise, smoothed.ess, ~nothing, nothing
        )
        paths = posterior_of(model, series, run, cloud, "smoothed", paths=True)
        return forecast(model, paths, series, rows)

    def online(self, model: Any, dt: float) -> Any:
        """The filter one observation at a time."""
        from statespace.methods.online_switching import SwitchingOnline

        return SwitchingOnline(model, self, dt)

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be run by `vmap`: always."""
        return True

    def _keys(self) -> Array:
        if self.key is None:
            raise ValueError(missing_key(self))
        return jax.random.split(self.key, 3)


class _Part(eqx.Module):
    """An initial law where a model is expected."""

    initial: Any


def conditionals(
    model: Any, method: str = "RaoBlackwellised", *, linear: bool = True
) -> tuple[Switching, Switching, Switching]:
    """The three switching conditionals of a model.

    Args:
        model: a model.
        method: its name, for the errors.
        linear: whether the regimes' conditionals must be linear Gaussian.

    Raises:
        TypeError: naming the one that is not of the kind that the method needs, and the kind.
    """
    for name in ("initial", "transition", "observation"):
        part = getattr(model, name)
        if not isinstance(part, Switching):
            raise TypeError(
                f"{method} does not fit this model: its `{name}` is a {type(part).__name__}; the method "
                f"needs Switching there, with a {'linear ' * linear}Gaussian conditional for each regime."
            )
        if name == "initial" and not isinstance(part.kernel, Categorical):
            raise TypeError(
                "`initial` of the model must be Switching with a Categorical for its kernel, got "
                f"{type(part.kernel).__name__}."
            )
        if part.recurrent:
            raise TypeError(
                f"{method} does not fit this model: its regimes depend on the previous state "
                "(RecurrentKernel), so that the state cannot be integrated out given them. Use "
                "ParticleFilter(), or StructuredVariational() for the smoothed law."
            )
        for k, conditional in enumerate(part.conditionals):
            if linear and name != "initial" and not hasattr(conditional, "at"):
                raise TypeError(
                    f"{method} does not fit this model: in its "
                    f"`{name}` the conditional of regime {k} is a {type(conditional).__name__}; it must be "
                    "AffineGaussian or another linear Gaussian conditional."
                )
    return model.initial, model.transition, model.observation


def _at(model: Any, step: Step, form: gaussian.Form) -> switching.Regimes:
    """The arrays of all regimes at one step."""
    initial, transition, observation = conditionals(model)
    count = len(initial.kernel.probs)
    moves = [transition.of(k).at(step) for k in range(count)]
    sees = [observation.of(k).at(step) for k in range(count)]
    return switching.Regimes(
        _logs(transition.kernel.matrix(step)),
        jnp.stack([law.matrix for law in moves]),
        jnp.stack([law.offset for law in moves]),
        _side_by_side([noise(law, form) for law in moves]),
        jnp.stack([law.matrix for law in sees]),
        jnp.stack([law.offset for law in sees]),
        _side_by_side([noise(law, form) for law in sees]),
    )


def _side_by_side(noises: list[Array]) -> Array:
    """Factors with fewer columns are filled with zeros."""
    width = max(x.shape[1] for x in noises)
    return jnp.stack([jnp.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in noises])


def _logs(probs: Float[Array, "*K"]) -> Float[Array, "*K"]:
    possible = probs > 0
    return jnp.where(possible, jnp.log(jnp.where(possible, probs, 1)), -jnp.inf)
