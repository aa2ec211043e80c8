"""From Gaussian and affine conditionals to the arrays of a Gaussian chain."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from statespace.chains import gaussian
from statespace.conditionals.affine import AffineGaussian, Gaussian, psd_factor
from statespace.conditionals.diffusion import LinearDiffusion
from statespace.conditionals.discriminative import Discriminative
from statespace.conditionals.switching import RegimeLaw, Switching
from statespace.model import Step
from statespace.series import Series


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


def linear(model: Any, name: str, method: str = "Kalman") -> Any:
    """The named conditional, if it can be made affine Gaussian at every step, as the method needs it."""
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
    if isinstance(conditional, Switching):
        raise _switches(name)
    if isinstance(conditional, Discriminative):
        raise TypeError(
            f"Kalman does not fit this model: its `{name}` is Discriminative, p(x | y) in place of p(y | x); "
            "the method that fits is DiscriminativeKalman()."
        )
    if not hasattr(conditional, "at"):
        kinds = "AffineGaussian" + (" or LinearDiffusion" if name == "transition" else "")
        raise TypeError(
            f"{method} does not fit this model: its `{name}` is a {type(conditional).__name__}, of which "
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
    if isinstance(law, RegimeLaw):
        raise _switches("initial")
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


def _switches(name: str) -> TypeError:
    return TypeError(
        f"the method does not fit this model: its `{name}` is Switching, and a state with a regime is not "
        "Gaussian. Use InteractingMultipleModel(), GaussianSum(), StructuredVariational() or "
        "RaoBlackwellised(); where the regime depends on the state, one of the last two."
    )


def check_shapes(
    initial: Gaussian, transition: Any, observation: Any, series: Series, step: Step
) -> None:
    """Refuse conditionals that do not fit each other or the recording, before anything is traced."""
    check_transition(initial, transition, step)
    n, m = initial.mean.shape[0], series.channels.shape[1]
    here = _shapes_at("observation", observation, step).matrix.shape
    if here[-1] != n:
        raise _misfit("observation", here, n, m)
    if here != (m, n):
        raise ValueError(
            f"the data have {m} channel{'s' * (m != 1)} (shape {series.y.shape}), but `observation` of "
            f"the model gives {here[0]} (its matrix has shape {here})."
        )
    check_diffuse(initial, series)


def check_transition(initial: Gaussian, transition: Any, step: Step) -> None:
    """Refuse a transition that does not fit the initial law."""
    n = initial.mean.shape[0]
    here = _shapes_at("transition", transition, step).matrix.shape
    if here != (n, n):
        raise _misfit("transition", here, n, n)


def require_columns(name: str, conditional: Any, state: Array, step: Step) -> None:
    """Refuse a matrix that is for states of another size, where a conditional has one."""
    if hasattr(conditional, "at"):
        here = _shapes_at(name, conditional, step).matrix.shape
    elif hasattr(conditional, "predictor"):
        here = jax.eval_shape(conditional.predictor, step)[0].shape
    else:
        return
    if here[-1:] != state.shape:
        raise _misfit(name, here, len(state), here[0])


def check_diffuse(initial: Gaussian, series: Series) -> None:
    """Refuse more diffuse directions than there are observations."""
    q = 0 if initial.diffuse is None else initial.diffuse.shape[1]
    if series.channels.size < q:
        raise ValueError(
            f"`y` of shape {series.y.shape} cannot determine the {q} diffuse directions of `initial`: "
            "record more moments, or give them a proper prior, `Gaussian(mean, scale)`."
        )


def _misfit(name: str, shape: tuple[int, ...], states: int, rows: int) -> ValueError:
    return ValueError(
        f"`{name}` of the model has a matrix of shape {shape}, but `initial` says that the "
        f"state has {states} coordinates: expected ({rows}, {states})."
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
