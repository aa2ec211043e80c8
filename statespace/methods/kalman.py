"""Exact inference in linear Gaussian models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains import gaussian
from statespace.chains.gaussian.algebra import UNROLLED
from statespace.conditionals.affine import AffineGaussian, Gaussian, psd_factor
from statespace.conditionals.diffusion import LinearDiffusion
from statespace.methods.lowering import at, dtype_of, stack, steps_of
from statespace.model import Step, state_names
from statespace.posterior import Forecast, GaussianPosterior
from statespace.scores import whiten
from statespace.series import Panel, Series

if TYPE_CHECKING:
    from statespace.methods.online_kalman import Online

_PARALLEL_FROM = 64  # moments from which an accelerator gains by associative scans


class Lowered(NamedTuple):
    """A chain, and how its functions are to be called: ``gaussian.smooth(chain, **how)``."""

    chain: gaussian.Chain
    how: dict[str, Any]


class Kalman(eqx.Module):
    """Exact filter and smoother of linear Gaussian models (Kalman 1960; Rauch, Tung & Striebel 1965).

    Needs: ``initial`` Gaussian; ``transition`` an ``AffineGaussian`` or ``LinearDiffusion``;
    ``observation`` an ``AffineGaussian``. Missing entries, irregular times, inputs and exactly diffuse
    initial states are supported.

    Args:
        form: "covariance", or "sqrt" for recursions on factors, which float32 and nearly singular models
            need. None: "sqrt" in float32, "covariance" in float64.
        parallel: whether to use associative scans (Särkkä & García-Fernández 2021), whose depth is
            logarithmic in the number of moments. They need positive definite ``H Q H^T + R``. None: on
            accelerators only.

    Raises:
        ValueError: if ``form`` is neither.
    """

    form: gaussian.Form | None = eqx.field(static=True, default=None)
    parallel: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.form not in (None, "covariance", "sqrt"):
            raise ValueError(
                f'`form` of Kalman must be "covariance", "sqrt" or None, got {self.form!r}.'
            )

    def lower(self, model: Any, series: Series) -> Lowered:
        """The chain of a model on a recording.

        Raises:
            TypeError: if a conditional is not of a kind that exact Gaussian inference needs.
            ValueError: if the conditionals' shapes do not fit each other or the recording.
        """
        steps, varies = steps_of(series)
        initial = initial_law(model, at(steps, 0))
        transition = linear(model, "transition")
        observation = linear(model, "observation")
        check_shapes(initial, transition, observation, series, at(steps, 0))
        later = jax.tree.map(lambda x: x[1:] if len(series) > 1 else x, steps)
        moves = stack(transition.at, later, varies)
        sees = stack(observation.at, steps, varies)
        dtype = dtype_of(series, initial, moves, sees)
        form = self.form or ("sqrt" if dtype == jnp.float32 else "covariance")
        parallel = self.parallel
        if parallel is None:
            parallel = jax.default_backend() != "cpu" and len(series) >= _PARALLEL_FROM
        chain = gaussian.Chain(
            gaussian.Initial(initial.mean, widened(initial, moves, sees, form), initial.diffuse),
            gaussian.Transitions(moves.matrix, moves.offset, noise_over_time(moves, form)),
            observed(sees, noise_over_time(sees, form), series),
        )
        chain = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(dtype), chain)
        return Lowered(chain, {"form": form, "parallel": parallel})

    def check(self, model: Any, data: Series | Panel) -> None:
        """Nothing: shapes are checked as the model is lowered, and every number can be observed."""

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """``log p(y)``."""
        chain, how = self.lower(model, series)
        return gaussian.log_likelihood(chain, **how)

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """``log p(y_t | y_0 … y_{t-1})`` of each moment."""
        chain, how = self.lower(model, series)
        return gaussian.pointwise(chain, **how)

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """One-step prediction errors, whitened; NaN where missing."""
        chain, how = self.lower(model, series)
        run = gaussian.filter(chain, **how)
        return whiten(series.channels - run.observation_mean, run.observation_covariance)[0]

    def posterior(self, model: Any, series: Series, kind: Any) -> GaussianPosterior:
        """The law of the states: "filtered" or "smoothed"."""
        chain, how = self.lower(model, series)
        state: Any
        if kind == "smoothed":
            filtered, state = gaussian.filter_and_smooth(chain, **how)
        else:
            filtered = state = gaussian.filter(chain, **how)
        return GaussianPosterior(
            mean=state.mean,
            covariance=state.covariance,
            times=series.times,
            log_likelihood=filtered.log_likelihood,
            pointwise=filtered.pointwise,
            predicted_mean=filtered.observation_mean,
            predicted_covariance=filtered.observation_covariance,
            y=series.channels,
            lag_one=getattr(state, "lag_one", None),
            chain=chain,
            kind=kind,
            state_names=state_names(model),
            form=how["form"],
            parallel=how["parallel"],
        )

    def sample_states(
        self, model: Any, series: Series, key: PRNGKeyArray, draws: int
    ) -> Float[Array, "draws T n"]:
        """Joint draws of all states given all observations."""
        chain, how = self.lower(model, series)
        return gaussian.sample(chain, key, draws, **how)

    def forecast(self, model: Any, series: Series, rows: Array) -> Forecast:
        """The law of observations at some moments of a recording, of which they are not part."""
        chain, how = self.lower(model, series)
        smoothed = gaussian.smooth(chain, **how)
        mean, covariance = gaussian.observations(
            chain, smoothed.mean, smoothed.covariance, form=how["form"]
        )
        state = GaussianPosterior(
            mean=smoothed.mean[rows],
            covariance=smoothed.covariance[rows],
            times=series.times[rows],
            chain=chain,
            rows=rows,
            kind="smoothed",
            state_names=state_names(model),
            form=how["form"],
            parallel=how["parallel"],
        )
        return Forecast(mean[rows], covariance[rows], series.times[rows], state=state)

    def online(self, model: Any, dt: float) -> Online:
        """The filter one observation at a time."""
        from statespace.methods.online_kalman import Online

        return Online(model, self, dt)

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be smoothed by `vmap`; if not, one recording after the other.

        A smoother of many states calls LAPACK in branches that `vmap` would all take, and that can wait for
        each other: see :func:`statespace.chains.gaussian.covariances.factorise_moments`.
        """
        states = initial_law(model, at(steps_of(series)[0], 0)).mean.shape[0]
        return states <= UNROLLED or jax.default_backend() != "cpu"


def widened(
    initial: Gaussian, moves: AffineGaussian, sees: AffineGaussian, form: gaussian.Form
) -> Array:
    """The initial noise, with a finite variance in the diffuse directions.

    Any will do, because the flat prior absorbs it. One of the size of the other noises keeps the first
    predictions from being (nearly) singular when the observation noise is small or absent, and what is
    left after the flat directions are integrated out from being a difference of large numbers.
    """
    first = noise(initial, form)
    if initial.diffuse is None:
        return first
    variances = [
        jnp.max(jnp.abs(jnp.diagonal(part @ part.T if form == "sqrt" else part)), initial=0.0)
        for part in (noise_over_time(moves, form)[0], noise_over_time(sees, form)[0])
    ]
    size = jax.lax.stop_gradient(jnp.maximum(*variances))
    size = jnp.where(size > 0, size, 1.0)
    if form == "sqrt":
        return jnp.concatenate([first, jnp.sqrt(size) * initial.diffuse], axis=1)
    return first + size * initial.diffuse @ initial.diffuse.T


def observed(sees: AffineGaussian, noise: Array, series: Series) -> gaussian.Observed:
    """Potentials of the observations, masked unless the recording is known to be complete."""
    y = series.channels
    if series.complete is True:
        return gaussian.Observed(sees.matrix, sees.offset, noise, y)
    mask = ~jnp.isnan(y)
    return gaussian.Observed(sees.matrix, sees.offset, noise, jnp.where(mask, y, 0), mask)


def noise(law: Any, form: gaussian.Form) -> Array:
    """The noise of one conditional as the form wants it."""
    if form == "covariance":
        if law.covariance is not None:
            return law.covariance
        return jnp.diag(law.scale**2) if law.scale.ndim == 1 else law.scale @ law.scale.T
    if law.covariance is not None:
        return psd_factor(law.covariance)
    return jnp.diag(law.scale) if law.scale.ndim == 1 else law.scale


def noise_over_time(law: AffineGaussian, form: gaussian.Form) -> Array:
    """The same with a leading axis of time."""
    parts = (law.scale, law.covariance)
    return jax.vmap(lambda part: noise(_Noise(*part), form))(parts)


class _Noise(NamedTuple):
    scale: Array | None
    covariance: Array | None


def linear(model: Any, name: str) -> Any:
    """The named conditional, if it can be made affine Gaussian at every step."""
    conditional = getattr(model, name, None)
    if conditional is None:
        raise TypeError(
            f"a model needs the three attributes initial, transition and observation; "
            f"{type(model).__name__} has no `{name}`."
        )
    if name == "observation" and isinstance(conditional, LinearDiffusion):
        raise TypeError(
            "Kalman does not fit this model: its `observation` is a LinearDiffusion, which says how a state "
            "moves over an interval; exact inference needs an AffineGaussian there."
        )
    if not hasattr(conditional, "at"):
        kinds = "AffineGaussian" + (" or LinearDiffusion" if name == "transition" else "")
        raise TypeError(
            f"Kalman does not fit this model: its `{name}` is a {type(conditional).__name__}, of which "
            f"nothing is known but the distributions that it returns; exact inference needs {kinds}."
        )
    return conditional


def initial_law(model: Any, step: Step) -> Gaussian:
    """The initial law as a Gaussian: given as one, or as a NumPyro normal distribution."""
    law = getattr(model, "initial", None)
    if law is None:
        raise TypeError(
            f"{type(model).__name__} has no `initial`: a model needs all three conditionals."
        )
    if isinstance(law, Gaussian):
        return law
    import numpyro.distributions as dist

    law = law if isinstance(law, dist.Distribution) else law(step)
    base = law
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution)):
        base = base.base_dist
    if isinstance(base, dist.MultivariateNormal) and law.batch_shape == ():
        return Gaussian(base.loc, base.scale_tril)
    if isinstance(base, dist.Normal) and len(law.event_shape) == 1 and law.batch_shape == ():
        shape = law.event_shape
        return Gaussian(jnp.broadcast_to(base.loc, shape), jnp.broadcast_to(base.scale, shape))
    raise TypeError(
        f"Kalman does not fit this model: its `initial` is {type(law).__name__} with batch shape "
        f"{law.batch_shape} and event shape {law.event_shape}; exact inference needs "
        "statespace.Gaussian, MultivariateNormal or Normal(...).to_event(1) over a state of shape (n,)."
    )


def check_shapes(
    initial: Gaussian, transition: Any, observation: Any, series: Series, step: Step
) -> None:
    """Refuse conditionals that do not fit each other or the recording, before anything is traced."""
    n = initial.mean.shape[0]
    m = series.channels.shape[1]
    for name, conditional, rows in (("transition", transition, n), ("observation", observation, m)):
        here = _shapes_at(name, conditional, step)
        if here.matrix.shape == (rows, n):
            continue
        if name == "observation" and here.matrix.shape[-1] == n:
            raise ValueError(
                f"the data have {m} channel{'s' * (m != 1)} (shape {series.y.shape}), but `observation` of "
                f"the model gives {here.matrix.shape[0]} (its matrix has shape {here.matrix.shape})."
            )
        raise ValueError(
            f"`{name}` of the model has a matrix of shape {here.matrix.shape}, but `initial` says that the "
            f"state has {n} coordinates: expected ({rows}, {n})."
        )
    q = 0 if initial.diffuse is None else initial.diffuse.shape[1]
    if series.channels.size < q:
        raise ValueError(
            f"`y` of shape {series.y.shape} cannot determine the {q} diffuse directions of `initial`: "
            "record more moments, or give them a proper prior, `Gaussian(mean, scale)`."
        )


def _shapes_at(name: str, conditional: Any, step: Step) -> Any:
    """Shapes of a conditional at one step; what fails for want of inputs says so."""
    try:
        return jax.eval_shape(conditional.at, step)
    except Exception as error:
        if step.inputs is not None:
            raise
        raise ValueError(
            f"`{name}` of the model cannot be evaluated on a recording without inputs ({error}); if it reads "
            "`step.inputs`, give them with the data: `Series(y, inputs=...)`."
        ) from error
